"""Solar cells (ELPV): regimes compared from scratch and in fine-tuning, and the choice of their rates.

The data set and whom to cite: `timm_advprop/engine/solar_cells.py`. Functional and defective cells are 69 and 31 of a
hundred, so accuracy is balanced over both classes, and the area under the ROC curve is that of the defect's
probability. Attacks in training are a single step from a random start, as large as the ball, away from the true class:
of two classes that is also towards the other one. Rates and weight decays are those of the best balanced accuracy on
held-out images, with seeds of their own (`solar-cells-choice`).
"""
from dataclasses import replace
from functools import partial
from typing import Dict

from timm_advprop.engine.small_datasets import write_fashion_mnist
from timm_advprop.engine.solar_cells import write_solar_cells

from . import fashion_mnist
from .comparison.measures import Measures
from .comparison.rows import Rates, Row, attack_flags, rows_of_rates
from .comparison.study import Claim, Study

__all__ = ['STUDIES']

_EPOCHS = 40  # as in the recipe
_SCRATCH = Rates(one_loss=('0.4', '5e-4'), summed=('0.1', '2e-3'))
_TUNING = Rates(one_loss=('0.1', '5e-4'), summed=('0.02', '5e-4'))
_EPS = 2
_USUAL = attack_flags(_EPS)
_COST = 8 / 3  # of AdvProp with an attack of one step, in vanilla trainings
_SPLIT_MODEL = ['--model', 'test_resnet_ap']  # takes weights with auxiliary norms, and plain ones

_FROM_SCRATCH: Dict[str, Row] = {
    'vanilla': _SCRATCH.row('vanilla', 'vanilla'),
    'vanilla-long': _SCRATCH.row(
        'vanilla, for the cost of AdvProp', 'vanilla', '--epochs', str(round(_COST * _EPOCHS))),
    'joint': _SCRATCH.row('joint, one norm, eps 2', 'joint', *_USUAL),
    'advprop-1': _SCRATCH.advprop('AdvProp, eps 1', *attack_flags(1)),
    'advprop-2': _SCRATCH.advprop('AdvProp, eps 2', *_USUAL, blends=(0.25, 0.5, 0.75)),
    'advprop-4': _SCRATCH.advprop('AdvProp, eps 4', *attack_flags(4)),
    'augmix': _SCRATCH.advprop('AugMix for the attack', '--adv-source', 'augmix'),
    'fast-advprop': _SCRATCH.row('Fast AdvProp, eps 2', 'fast-advprop', '--adv-eps', str(_EPS), '--adv-alpha',
                                 str(_EPS), '--adv-random-start', '1', aux=1),
}
_FINE_TUNED: Dict[str, Row] = {
    'vanilla': replace(_FROM_SCRATCH['vanilla'], title='vanilla, from scratch'),
    'advprop-2': replace(_FROM_SCRATCH['advprop-2'], title='AdvProp, from scratch', blends=()),
    'vanilla-vanilla': _TUNING.row('vanilla → vanilla', 'vanilla', *_SPLIT_MODEL, start='vanilla'),
    'vanilla-advprop': _TUNING.advprop('vanilla → AdvProp', *_SPLIT_MODEL, *_USUAL, start='vanilla'),
    'advprop-vanilla': _TUNING.row('AdvProp → vanilla', 'vanilla', *_SPLIT_MODEL, start='advprop'),
    'advprop-advprop': _TUNING.advprop('AdvProp → AdvProp', *_SPLIT_MODEL, *_USUAL, start='advprop'),
}
_COLUMNS = {
    'clean': 'clean', 'auc': 'AUC', 'ece': 'ECE', 'corruption': 'corruptions', 'corruption_noise': 'noise',
    'corruption_blur': 'blur', 'corruption_weather': 'weather', 'corruption_digital': 'digital',
    'pgd2_main': 'PGD, eps 2, main', 'pgd4_main': 'PGD, eps 4, main', 'clean_aux': 'clean, aux',
    'pgd2_aux': 'PGD, eps 2, aux', 'pgd4_aux': 'PGD, eps 4, aux'}
_claim = partial(Claim, margin=1.)  # of a hundred: one is about seven test images

_COMPARED = Study(
    name='solar-cells',
    about='Solar cells (ELPV), 1,576 training images of 64 × 64 pixels, flipped and cropped, test_resnet, 40 epochs. '
          'Attacks in training are one step from a random start, away from the true class',
    recipe='hparams/test_resnet_solar_cells.yaml',
    write_data=write_solar_cells,
    data='solar-cells-64',
    rows=_FROM_SCRATCH,
    seeds=tuple(range(5)),
    measures=Measures(score='balanced', num_corrupted=654, num_attacked=327, strengths=(1, 2, 4)),
    columns=_COLUMNS,
    panels=('clean', 'auc', 'corruption', 'pgd2_main'),
    curves=('vanilla', 'joint', 'advprop-1', 'advprop-2', 'advprop-4', 'augmix', 'fast-advprop'),
    claims=(
        _claim('AdvProp of eps 1 improves balanced accuracy', 'advprop-1', 'vanilla', 'clean'),
        _claim('AdvProp of eps 2 improves balanced accuracy', 'advprop-2', 'vanilla', 'clean'),
        _claim('AdvProp of eps 2 improves the AUC', 'advprop-2', 'vanilla', 'auc'),
        _claim('AdvProp of eps 2 is better than vanilla training of the same cost, clean', 'advprop-2', 'vanilla-long',
               'clean'),
        _claim('Auxiliary norms are better than one norm, eps 2, clean', 'advprop-2', 'joint', 'clean'),
        _claim('Weak attacks suit a small network: eps 1 is better than 4, clean', 'advprop-1', 'advprop-4', 'clean'),
        _claim('Fast AdvProp improves balanced accuracy at vanilla cost', 'fast-advprop', 'vanilla', 'clean'),
        _claim('AdvProp of eps 2 improves accuracy under corruptions', 'advprop-2', 'vanilla', 'corruption'),
        _claim('AdvProp of eps 2 is better than vanilla training of the same cost, corruptions', 'advprop-2',
               'vanilla-long', 'corruption'),
        _claim('One norm is better than auxiliary norms under corruptions, eps 2', 'joint', 'advprop-2', 'corruption'),
    ),
    flags=('--val-interval', '1000'),  # the last epoch is always validated
)
_PRETRAINING = replace(
    fashion_mnist.STUDIES['fashion-mnist'],
    name='fashion-mnist-pretraining',
    about='Fashion-MNIST, 20,000 training images, shifted by up to 2 pixels and flipped, test_resnet, 10 epochs',
    write_data=partial(write_fashion_mnist, num_train=20_000, num_holdout=2000, padding=2),
    data='fashion-mnist-20000',
    rows={'vanilla': fashion_mnist.REGIMES['vanilla'],
          'advprop': replace(fashion_mnist.REGIMES['advprop-2'], blends=())},
    seeds=_COMPARED.seeds,
    claims=(),
    flags=(*fashion_mnist.STUDIES['fashion-mnist'].flags, '--epochs', '10'),
)
_TUNED = replace(
    _COMPARED,
    name='solar-cells-fine-tuning',
    about=f'{_COMPARED.about}. Fine-tuned after pre-training, whose cost is left out: {_PRETRAINING.about}. AdvProp is '
          'of eps 2 in both',
    rows=_FINE_TUNED,
    curves=tuple(_FINE_TUNED),
    claims=(
        _claim('Pre-training improves balanced accuracy', 'vanilla-vanilla', 'vanilla', 'clean'),
        _claim('AdvProp in pre-training improves vanilla fine-tuning, clean', 'advprop-vanilla', 'vanilla-vanilla',
               'clean'),
        _claim('AdvProp in pre-training improves vanilla fine-tuning, corruptions', 'advprop-vanilla',
               'vanilla-vanilla', 'corruption'),
        _claim('AdvProp in fine-tuning improves it, clean', 'vanilla-advprop', 'vanilla-vanilla', 'clean'),
        _claim('AdvProp in fine-tuning improves it, corruptions', 'vanilla-advprop', 'vanilla-vanilla', 'corruption'),
        _claim('AdvProp in both improves balanced accuracy', 'advprop-advprop', 'vanilla-vanilla', 'clean'),
        _claim('AdvProp in both improves the AUC', 'advprop-advprop', 'vanilla-vanilla', 'auc'),
        _claim('AdvProp in both improves accuracy under corruptions', 'advprop-advprop', 'vanilla-vanilla',
               'corruption'),
    ),
    pretraining=_PRETRAINING,
)
_CANDIDATES = (('0.05', '5e-4'), ('0.1', '5e-4'), ('0.1', '2e-3'), ('0.2', '5e-4'), ('0.4', '5e-4'))
_OF_TUNING = (('0.02', '5e-4'), ('0.05', '5e-4'), ('0.1', '5e-4'), ('0.2', '5e-4'))
_CHOICE = replace(
    _TUNED,
    name='solar-cells-choice',
    about=f'{_COMPARED.about}. Also from vanilla weights of {_PRETRAINING.about}',
    rows={
        **rows_of_rates('vanilla', Row('vanilla', (['--regime', 'vanilla'],)), _CANDIDATES),
        **rows_of_rates('advprop', Row('AdvProp', (['--regime', 'advprop', *_USUAL],), aux=1), _CANDIDATES),
        **rows_of_rates('tuned-vanilla', Row('vanilla → vanilla', (
            ['--regime', 'vanilla', *_SPLIT_MODEL],), start='vanilla'), _OF_TUNING),
        **rows_of_rates('tuned-advprop', Row('vanilla → AdvProp', (
            ['--regime', 'advprop', *_SPLIT_MODEL, *_USUAL],), aux=1, start='vanilla'), _OF_TUNING),
    },
    seeds=(100, 101),
    measures=Measures(split='holdout', score='balanced', num_corrupted=0, num_attacked=0),
    columns={column: _COLUMNS[column] for column in ('clean', 'auc', 'ece')},
    panels=('clean', 'auc'),
    curves=(),
    reference='vanilla-lr0.1-wd5e-4',
    claims=(),
)


# Published weights are downloaded: where that is not possible the study ends with a line that says so.
def _published(title: str, model: str, mean: str, std: str, *flags: str, aux: int = 0) -> Row:
    return Row(title, (['--model', model, '--pretrained', '--mean', mean, '--std', std, *flags],), aux)


_PLAIN_B0 = ('tf_efficientnet_b0.aa_in1k', '0.449', '0.226')  # ImageNet's mean and deviation, of grey images
_ADVPROP_B0 = ('efficientnet_b0_ap', '0.5', '0.5')
_VANILLA, _ADVPROP = ('--regime', 'vanilla'), ('--regime', 'advprop', *_USUAL)
_PUBLISHED = replace(
    _TUNED,
    name='solar-cells-published',
    about='Solar cells (ELPV), 1,576 training images of 128 × 128 pixels, flipped and cropped, EfficientNet-B0 '
          'fine-tuned for 20 epochs from published ImageNet weights, of AutoAugment (vanilla) and of AdvProp; the rate '
          'was not chosen on images. AdvProp of eps 2 in fine-tuning',
    write_data=partial(write_solar_cells, size=128),
    data='solar-cells-128',
    rows={
        'vanilla-vanilla': _published('vanilla → vanilla', *_PLAIN_B0, *_VANILLA),
        'vanilla-advprop': _published('vanilla → AdvProp', *_PLAIN_B0, *_ADVPROP, aux=1),
        'advprop-vanilla': _published('AdvProp → vanilla', *_ADVPROP_B0, *_VANILLA),
        'advprop-advprop': _published('AdvProp → AdvProp', *_ADVPROP_B0, *_ADVPROP, aux=1),
    },
    measures=replace(_COMPARED.measures, num_corrupted=218),
    reference='vanilla-vanilla',
    curves=('vanilla-vanilla', 'vanilla-advprop', 'advprop-vanilla', 'advprop-advprop'),
    claims=_TUNED.claims[1:],
    flags=(*_COMPARED.flags, '--img-size', '128', '--epochs', '20', '--lr', '0.01', '--weight-decay', '1e-5'),
    pretraining=None,
)
STUDIES = {study.name: study for study in (_COMPARED, _TUNED, _CHOICE, _PUBLISHED)}
