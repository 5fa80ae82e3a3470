"""A new regime is a file and a line, and so is a new kind of image: each trains through the program."""
import sys
from pathlib import Path

import pytest
import torch

from tests.cli.programs import WITHOUT_ATTACK, run_train
from tests.engine.runs import load, read_summary
from timm_advprop.norms import num_aux_norms
from timm_advprop.regimes import REGIMES, SOURCES, AugmentedView, RegimeTask, Source

pytestmark = pytest.mark.usefixtures('one_thread')


class TwiceTask(RegimeTask):
    """Train on each image as it is and mirrored, through the norms of the plain model."""
    name = 'twice'
    default_budget = 'vanilla'
    smallest_batch = 3
    no_use_for = {'adv_weight': 'both views weigh the same'}

    def __init__(self, model, criterion=None, *, mean=None, std=None, **kwargs):
        super().__init__(model, criterion, **kwargs)
        self.announce()

    @classmethod
    def arguments(cls, settings):
        return {}

    def describe(self):
        return 'twice'

    def relative_cost(self):
        return 2.

    def forward(self, input, target):
        output, mirrored = (self.trainable_module(images) for images in (input, input.flip(3)))
        loss, mirror_loss = self.criterion(output, target), self.criterion(mirrored, target)
        return {'loss': loss + mirror_loss, 'output': output, 'mirror_loss': mirror_loss.detach()}


@pytest.fixture
def twice(monkeypatch):
    monkeypatch.setitem(REGIMES, TwiceTask.name, TwiceTask)


def test_a_new_regime_trains_through_the_program(twice, few_digits, tmp_path, caplog):
    with caplog.at_level('INFO'):
        run = run_train(few_digits, tmp_path, '--regime', 'twice', '--model', 'test_resnet', '--epochs', '2')
    # its budget is of two epochs of vanilla, which its cost makes one
    row, = read_summary(run)
    assert float(row['train_loss']) > float(row['train_mirror_loss']) > 0
    assert 'twice: 2.0 × the arithmetic of vanilla' in caplog.text
    checkpoint = load(run / 'last.pth.tar')
    assert checkpoint['args'].regime == 'twice'
    assert checkpoint['state_dict']['bn1.num_batches_tracked'] == 2 * 4  # two passes of 64 images in batches of 16


@pytest.mark.parametrize('flags, words', [
    (['--adv-weight', '2'], 'Regime twice has no use for --adv-weight (both views weigh the same): leave it out.'),
    (['--batch-size', '2'], '--regime twice needs batches of at least 3 images, got --batch-size 2'),
    (['--regime', 'thrice'], 'twice'),
])
def test_what_a_new_regime_says_of_itself_is_checked(twice, few_digits, tmp_path, capsys, flags, words):
    with pytest.raises(SystemExit) as exit_info:
        run_train(few_digits, tmp_path, '--regime', 'twice', *flags)
    assert exit_info.value.code == 2
    message = capsys.readouterr().err
    assert words in message and message.count('\n') == 1
    assert not Path(tmp_path, 'run').exists()


def test_a_new_regime_with_a_norm_of_its_own_gets_it(monkeypatch, few_digits, tmp_path):
    class AugmentedTask(TwiceTask):
        name = 'augmented'
        default_budget = 'epochs'

        @classmethod
        def sources_of_aux_norms(cls, settings):
            return [AugmentedView(), AugmentedView(2)]

        def forward(self, input, target):
            assert num_aux_norms(self.unwrapped_module) == 2
            return {**super().forward(input, target), 'norms': torch.tensor(2.)}

    monkeypatch.setitem(REGIMES, 'augmented', AugmentedTask)
    for model in ('test_resnet', 'test_resnet_ap'):
        run = run_train(few_digits, tmp_path / model, '--regime', 'augmented', '--model', model)
        state = load(run / 'last.pth.tar')['state_dict']
        assert 'bn1.aux_bn.1.weight' in state and 'bn1.aux_bn.2.weight' not in state


USERS_FILE = '''
from timm_advprop.regimes import Source

seen = []


class Darker(Source):
    part = 'dark'

    def __init__(self, eps_px):
        self.eps_px = eps_px

    def __call__(self, model, images, target):
        seen.append((self.eps_px, model.bn1.route))
        return images - self.eps_px / 255, target

    def describe(self):
        return f'images darker by {self.eps_px:g}'


def model_aware(model, images, target):
    return images, model(images).argmin(dim=1)
'''


@pytest.fixture
def users_module(tmp_path, monkeypatch):
    (tmp_path / 'darker_images.py').write_text(USERS_FILE)
    monkeypatch.syspath_prepend(tmp_path)
    yield 'darker_images'
    sys.modules.pop('darker_images', None)


def test_a_class_in_the_users_file_trains_through_the_program(users_module, few_digits, tmp_path, caplog):
    with caplog.at_level('INFO'):
        run = run_train(few_digits, tmp_path, '--adv-source', f'{users_module}:Darker', '--adv-eps', '8', '64')
    row, = read_summary(run)
    assert float(row['train_dark_loss']) > 0 and 'train_adv_loss' not in row
    assert 'advprop, images darker by 8; images darker by 64' in caplog.text
    assert sys.modules[users_module].seen == [(8, 1), (64, 2)] * 4
    assert 'bn1.aux_bn.1.weight' in load(run / 'last.pth.tar')['state_dict']


def test_a_function_that_asks_the_model_trains_through_the_program(users_module, few_digits, tmp_path):
    run = run_train(few_digits, tmp_path, '--adv-source', f'{users_module}:model_aware', common=WITHOUT_ATTACK)
    row, = read_summary(run)
    # labels are what the model holds least likely
    assert float(row['train_adv_top1']) < 30 and float(row['train_adv_loss']) > float(row['train_clean_loss'])


def test_a_source_in_the_registry_is_chosen_by_its_name(monkeypatch, few_digits, tmp_path):
    class Erased(Source):
        part = 'erased'

        def __init__(self, eps_px):
            pass

        def __call__(self, model, images, target):
            return images * 0, target

        def describe(self):
            return 'nothing'

    monkeypatch.setitem(SOURCES, 'erased', Erased)
    row, = read_summary(run_train(few_digits, tmp_path, '--adv-source', 'erased'))
    assert float(row['train_erased_loss']) > 0
