"""Fashion-MNIST: the regimes compared, a larger network, settings compared on held-out images, and their choice.

Attacks in training are a single step from a random start, as large as the ball; the weakest one aims at a random class,
as in the paper, stronger ones away from the true class. Rates and weight decays were chosen on held-out images with
seeds of their own (`fashion-mnist-choice`): once for vanilla, for all regimes of one loss, and once for AdvProp, for
all that sum losses.
"""
from dataclasses import replace
from functools import partial
from typing import Dict

from timm_advprop.engine.small_datasets import write_fashion_mnist

from .comparison.measures import Measures
from .comparison.rows import Rates, Row, attack_flags, rows_of_rates
from .comparison.study import Claim, Study

__all__ = ['STUDIES']

_EPOCHS = 40  # as in the recipe
_CANDIDATES = (('0.05', '5e-4'), ('0.05', '1e-3'), ('0.1', '5e-4'), ('0.1', '1e-3'), ('0.2', '5e-4'))
_RATES = Rates(one_loss=('0.2', '5e-4'), summed=('0.1', '1e-3'))
_WEAK, _EPS = attack_flags(1, target='random'), 2
_USUAL = attack_flags(_EPS)
_HALF = ['--epochs', str(_EPOCHS // 2)]
_SPLITS = ['--aug-splits', '2', '--aa', 'rand-m5-inc1']
_TRADES = ['--adv-eps', str(_EPS), '--adv-alpha', '1', '--adv-steps', '2']  # the KL is lowest at the image itself
_PYRAMID = 'pyramid eps=0.5 alpha=0.5 steps=1 scales=[14,4,1] weights=[1,1,2] target=none'  # eps 2 where scales agree
_SETTING = ('Fashion-MNIST, 2,000 training images, shifted by up to 2 pixels and flipped, {}, 40 epochs. Attacks in '
            'training are one step from a random start, away from the true class where a row does not say otherwise')
_COST = 8 / 3  # of AdvProp with an attack of one step, in vanilla trainings
_row, _advprop = _RATES.row, _RATES.advprop

REGIMES: Dict[str, Row] = {
    'vanilla': _row('vanilla', 'vanilla'),
    'vanilla-long': _row('vanilla, for the cost of AdvProp', 'vanilla', '--epochs', str(round(_COST * _EPOCHS))),
    'vanilla-augmented': _row('vanilla, clean and RandAugment images', 'vanilla', *_SPLITS),
    'madry': _row('Madry, eps 2', 'madry', *_USUAL),
    'madry-4': _row('Madry, eps 4', 'madry', *attack_flags(4)),
    'joint-1': _row('joint, one norm, eps 1, random class', 'joint', *_WEAK),
    'joint': _row('joint, one norm, eps 2', 'joint', *_USUAL),
    'pretraining': Row('adversarial pre-training, Madry of eps 2', (
        _RATES.flags('madry', *_USUAL, *_HALF), _RATES.flags('vanilla', *_HALF))),
    'advprop-1': _advprop('AdvProp, eps 1, random class', *_WEAK),
    'advprop-2': _advprop('AdvProp, eps 2', *_USUAL, blends=(0.25, 0.5, 0.75)),
    'advprop-4': _advprop('AdvProp, eps 4', *attack_flags(4)),
    'advprop-1-4': _advprop('AdvProp, eps 1 and 4', '--adv-eps', '1', '4', '--adv-steps', '1', '--adv-target', 'none',
                            '--adv-random-start', '1', aux=2),
    'fine-grained': _advprop('AdvProp, eps 2, fine-grained (RandAugment)', *_USUAL, *_SPLITS, '--split-bn', aux=2),
    'fast-advprop': _row('Fast AdvProp, eps 2', 'fast-advprop', '--adv-eps', str(_EPS), '--adv-alpha', str(_EPS),
                         '--adv-random-start', '1', aux=1),
    'shared-statistics': _advprop('AdvProp, eps 2, shared statistics', *_USUAL, '--adv-share', 'statistics'),
    'trades': _row('TRADES, one norm, eps 2, 2 steps', 'trades', *_TRADES),
    'noise': _advprop('Gaussian noise of 4 for the attack', '--adv-source', f'gaussian-noise eps={2 * _EPS}'),
    'augmix': _advprop('AugMix for the attack', '--adv-source', 'augmix'),
    'augmax': _advprop('AugMax of 2 steps for the attack', '--adv-source', 'augmax steps=2'),
    'pyramid': _advprop('PyramidAT of 1 step for the attack', '--adv-source', _PYRAMID),
}
_COLUMNS = {
    'clean': 'clean', 'ece': 'ECE', 'corruption': 'corruptions', 'corruption_noise': 'noise', 'corruption_blur': 'blur',
    'corruption_weather': 'weather', 'corruption_digital': 'digital', 'pgd4_main': 'PGD, eps 4, main',
    'pgd8_main': 'PGD, eps 8, main', 'clean_aux': 'clean, aux', 'pgd4_aux': 'PGD, eps 4, aux',
    'pgd8_aux': 'PGD, eps 8, aux'}
_CLAIMS = (
    Claim('AdvProp of eps 1 improves clean accuracy', 'advprop-1', 'vanilla', 'clean'),
    Claim('AdvProp of eps 2 improves clean accuracy', 'advprop-2', 'vanilla', 'clean'),
    Claim('AdvProp of eps 1 is better than vanilla training of the same cost, clean', 'advprop-1', 'vanilla-long',
          'clean'),
    Claim('Adversarial images alone (Madry) lower clean accuracy', 'vanilla', 'madry', 'clean'),
    Claim('Adversarial images in the same norm (joint) lower clean accuracy', 'vanilla', 'joint', 'clean'),
    Claim('Auxiliary norms are better than one norm, eps 1, clean', 'advprop-1', 'joint-1', 'clean'),
    Claim('Auxiliary norms are better than one norm, eps 2, clean', 'advprop-2', 'joint', 'clean'),
    Claim('Adversarial pre-training improves clean accuracy', 'pretraining', 'vanilla', 'clean'),
    Claim('AdvProp is better than adversarial pre-training, clean', 'advprop-2', 'pretraining', 'clean'),
    Claim('Weak attacks suit a small network: eps 1 is better than 4, clean', 'advprop-1', 'advprop-4', 'clean'),
    Claim('Fine-grained AdvProp is better than AdvProp, clean', 'fine-grained', 'advprop-2', 'clean'),
    Claim('Fine-grained AdvProp is better than vanilla training on its images, clean', 'fine-grained',
          'vanilla-augmented', 'clean'),
    Claim('Fast AdvProp improves clean accuracy at vanilla cost', 'fast-advprop', 'vanilla', 'clean'),
    Claim('Separate statistics are better than separate affine parameters alone, eps 2, clean', 'advprop-2',
          'shared-statistics', 'clean'),
    Claim('AdvProp of eps 2 improves accuracy under corruptions', 'advprop-2', 'vanilla', 'corruption', 1.),
    Claim('AdvProp of eps 2 is better than vanilla training of the same cost, corruptions', 'advprop-2', 'vanilla-long',
          'corruption', 1.),
    Claim('One norm is better than auxiliary norms under corruptions, eps 2', 'joint', 'advprop-2', 'corruption', 1.),
    Claim('AdvProp of eps 2 improves accuracy under PGD (eps 8) through the main norms', 'advprop-2', 'vanilla',
          'pgd8_main', 1.),
)

_COMPARED = Study(
    name='fashion-mnist',
    about=_SETTING.format('test_resnet'),
    recipe='hparams/test_resnet_fashion_mnist.yaml',
    write_data=partial(write_fashion_mnist, num_train=2000, num_holdout=2000, padding=2),
    data='fashion-mnist-2000',
    rows=REGIMES,
    seeds=tuple(range(8)),
    measures=Measures(),
    columns=_COLUMNS,
    panels=('clean', 'corruption', 'pgd8_main'),
    curves=('vanilla', 'vanilla-long', 'madry', 'joint', 'advprop-1', 'advprop-2', 'advprop-4', 'fast-advprop',
            'trades', 'augmix'),
    claims=_CLAIMS,
    flags=('--val-interval', '1000'),  # the last epoch is always validated
)
_CHOICE = replace(
    _COMPARED,
    name='fashion-mnist-choice',
    rows={**rows_of_rates('vanilla', Row('vanilla', (['--regime', 'vanilla'],)), _CANDIDATES),
          **rows_of_rates('advprop', Row('advprop', (['--regime', 'advprop', *_WEAK],), aux=1), _CANDIDATES)},
    seeds=(100, 101, 102),
    measures=Measures(split='holdout', num_corrupted=0, num_attacked=0),
    columns={'clean': 'held-out images', 'ece': 'ECE'},
    panels=(),
    curves=(),
    reference='vanilla-lr0.1-wd5e-4',
    claims=(),
)
_LARGER_ROWS = dict.fromkeys(('vanilla', 'joint', 'advprop-1', 'advprop-2', 'fine-grained', 'fast-advprop'))
_LARGER = replace(
    _COMPARED,
    name='fashion-mnist-resnet18',
    about=_SETTING.format('resnet18'),
    rows={row: REGIMES[row] for row in _LARGER_ROWS},
    claims=tuple(claim for claim in _CLAIMS if {claim.row, claim.other} <= _LARGER_ROWS.keys()),
    curves=tuple(row for row in _COMPARED.curves if row in _LARGER_ROWS),
    seeds=tuple(range(4)),
    flags=(*_COMPARED.flags, '--model', 'resnet18'),
)
_BEYOND = replace(
    _COMPARED,
    name='fashion-mnist-beyond',
    rows={
        **{row: REGIMES[row] for row in (
            'vanilla', 'advprop-2', 'shared-statistics', 'trades', 'noise', 'augmix', 'augmax', 'pyramid')},
        'statistics-of-main': _advprop(
            'shared statistics, of clean images', *_USUAL, '--adv-share', 'statistics-of-main'),
        **{f'pairing-{pairing}': _advprop(f'logits paired by {title}', *_USUAL, '--adv-pairing', pairing)
           for pairing, title in (('alp', 'ALP'), ('kl', 'KL'), ('js', 'Jensen–Shannon'))},
        'trades-split': _row(
            'TRADES, split norms, eps 2, 2 steps', 'trades', *_TRADES, '--model', 'test_resnet_ap', aux=1),
        'corruption': _advprop('corruptions of the test for the attack', '--adv-source', 'corruption'),
        'amplitude-mix': _advprop('amplitude mix for the attack', '--adv-source', 'amplitude-mix'),
        'joint-pyramid': _row('PyramidAT of 1 step, one norm', 'joint', '--adv-source', _PYRAMID),
    },
    seeds=tuple(range(5)),
    panels=('clean', 'corruption', 'pgd4_main'),
    curves=(),
    reference='advprop-2',
    claims=(),
)
_AUTOATTACK = replace(
    _COMPARED,
    name='fashion-mnist-autoattack',
    measures=Measures(num_corrupted=0, num_attacked=500, strengths=(8,), num_autoattacked=500),
    columns={'clean': 'clean', 'pgd8_main': 'PGD, main', 'autoattack_main': 'AutoAttack, main', 'pgd8_aux': 'PGD, aux',
             'autoattack_aux': 'AutoAttack, aux'},
    panels=('clean', 'pgd8_main', 'autoattack_main'),
    curves=(),
    claims=(),
    seeds=tuple(range(3)),
)
_ABLATIONS = replace(
    _COMPARED,
    name='fashion-mnist-ablations',
    rows={
        'advprop-2': _advprop('AdvProp, eps 2', *_USUAL),
        'shared-statistics': REGIMES['shared-statistics'],
        'statistics-of-main': _BEYOND.rows['statistics-of-main'],
        'joint': REGIMES['joint'],
        'momentum-0.01': _advprop('momentum of aux norms 0.01', *_USUAL, '--adv-bn-momentum', '0.01'),
        'momentum-0.5': _advprop('momentum of aux norms 0.5', *_USUAL, '--adv-bn-momentum', '0.5'),
        'train-statistics': _advprop('attack by statistics of the batch', *_USUAL, '--adv-norm-stats', 'train'),
        'targeted': _advprop('attack on a random class', *attack_flags(_EPS, target='random')),
        'clean-start': _advprop('no random start', *_USUAL[:-1], '0'),
        **{f'weight-{weight}': _advprop(f'adversarial loss × {weight}', *_USUAL, '--adv-weight', weight)
           for weight in ('0.25', '0.5', '2')},
        **{f'steps-{steps}': _advprop(
            f'{steps} attack steps', *_USUAL, '--adv-steps', str(steps), '--adv-alpha', f'{_EPS * 1.5 / steps:g}')
            for steps in (2, 5)},
    },
    seeds=tuple(range(200, 205)),
    measures=Measures(split='holdout', num_attacked=500),
    panels=('clean', 'corruption', 'pgd8_main', 'pgd8_aux'),
    curves=(),
    reference='advprop-2',
    claims=(),
)
STUDIES = {study.name: study for study in (_COMPARED, _CHOICE, _LARGER, _ABLATIONS, _BEYOND, _AUTOATTACK)}
