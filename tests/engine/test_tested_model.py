"""The model of a validation run: what its checkpoint, or publication, says of weights and classes."""
import pytest
import timm
import torch
from timm.models import save_for_hf

from tests.engine.runs import eval_settings
from timm_advprop.engine.tested_model import open_tested_model
from timm_advprop.errors import InputError
from timm_advprop.regimes import AdvPropTask

FRUIT = ['pear', 'apple', 'plum']


def opened(**values):
    return open_tested_model(eval_settings(num_classes=3, **values))


@pytest.fixture
def model():
    return timm.create_model('test_resnet_ap', num_classes=3)


def test_averaged_weights_that_are_not_there_are_not_those_of_training(model, tmp_path):
    path = str(tmp_path / 'last.pth')
    torch.save(dict(state_dict=model.state_dict()), path)
    with pytest.raises(InputError, match='--use-ema: .*last.pth has no averaged weights, leave it out'):
        opened(checkpoint=path, use_ema=True)


def averaging_task(model):
    task = AdvPropTask(model, torch.nn.CrossEntropyLoss())
    task.setup_ema()
    return task


@pytest.mark.parametrize('content_of, use_ema, told', [
    (lambda model: dict(state_dict=model.state_dict()), False, False),
    (lambda model: dict(state_dict=model.state_dict(), state_dict_ema=model.state_dict()), False, True),
    (lambda model: dict(state_dict=model.state_dict(), state_dict_ema=model.state_dict()), True, False),
    (lambda model: averaging_task(model).state_dict(), False, True),
    (lambda model: averaging_task(model).state_dict(), True, False),
], ids=['none', 'of a run', 'of a run, used', 'of a task', 'of a task, used'])
def test_averaged_weights_that_are_not_used_are_told(model, tmp_path, caplog, content_of, use_ema, told):
    torch.save(content_of(model), tmp_path / 'last.pth')
    with caplog.at_level('INFO'):
        opened(checkpoint=str(tmp_path / 'last.pth'), use_ema=use_ema)
    assert ('last.pth has averaged weights too: --use-ema takes them' in caplog.text) == told


def test_names_of_classes_are_those_of_the_weights(model, tmp_path):
    content = dict(state_dict=model.state_dict(), label_names=FRUIT)
    torch.save(content, tmp_path / 'last.pth')
    assert opened(checkpoint=str(tmp_path / 'last.pth')).label_names == tuple(FRUIT)
    torch.save({**content, 'label_names': FRUIT[:2]}, tmp_path / 'last.pth')
    assert opened(checkpoint=str(tmp_path / 'last.pth')).label_names == ()
    plain = timm.create_model('test_resnet', num_classes=3)
    save_for_hf(plain, tmp_path / 'published', model_config=dict(label_names=FRUIT), safe_serialization=True)
    published = f'local-dir:{tmp_path / "published"}'
    assert opened(model=published).label_names == tuple(FRUIT)
    torch.save(plain.state_dict(), tmp_path / 'other.pth')  # whose classes may be others
    assert opened(model=published, checkpoint=str(tmp_path / 'other.pth')).label_names == ()
