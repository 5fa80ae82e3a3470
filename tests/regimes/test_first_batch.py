"""A task looks at its first batch, and warns of images that cannot be normalised."""
import pickle
from copy import deepcopy

import pytest
import torch

from tests.regimes.regime_models import make_batch, split_model, task_of
from timm_advprop import AdvPropTask, Attack
from timm_advprop.regimes import REGIMES
from timm_advprop.regimes.pixels import warn_of_pixels

pytestmark = pytest.mark.usefixtures('one_thread')
IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
ATTACKING = [name for name in REGIMES if name != 'vanilla']
WEAK = Attack(steps=1)


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if 'Images have values up to' in record.getMessage()]


@pytest.mark.parametrize('name', ATTACKING)
def test_pixels_in_0_255_are_warned_of_once(name, caplog):
    task = task_of(name, split_model())
    images, target = make_batch(10)
    for factor in (255, 255, 255):
        task(factor * images.abs(), target)
    assert len(warnings_of(caplog)) == 1
    assert 'divide pixels in 0–255 by 255' in warnings_of(caplog)[0]


def test_inputs_by_name_are_seen_too(caplog):
    images, target = make_batch()
    AdvPropTask(split_model(), sources=WEAK, verbose=False)(input=255 * images, target=target)
    assert len(warnings_of(caplog)) == 1


@pytest.mark.parametrize('mean, std, low, high', [
    (*IMAGENET.values(), -2.2, 2.7), ((.5,) * 3, (.5,) * 3, -5., 5.), ((0.,) * 3, (1.,) * 3, -5., 5.),
    ((0.,) * 3, (1 / 255,) * 3, 0., 255.)], ids=['imagenet', 'erasing', 'unit', '0-255'])
def test_images_that_mean_and_std_allow_are_not(mean, std, low, high, caplog):
    images, target = make_batch()
    task = AdvPropTask(split_model(), sources=WEAK, verbose=False, mean=mean, std=std)
    task(low + (high - low) * torch.rand_like(images), target)
    assert not warnings_of(caplog)


def test_later_batches_are_not_looked_at(caplog):
    images, target = make_batch()
    task = AdvPropTask(split_model(), sources=WEAK, verbose=False)
    task(images, target)
    task(255 * images, target)
    assert not warnings_of(caplog)


def test_tasks_can_be_copied_and_pickled():
    task = AdvPropTask(split_model(), sources=WEAK, verbose=False)
    assert len(deepcopy(task)._forward_pre_hooks) == len(task._forward_pre_hooks) == 1
    module = torch.nn.Linear(1, 1)
    warn_of_pixels(module, **IMAGENET)
    assert len(pickle.loads(pickle.dumps(module))._forward_pre_hooks) == 1
