"""The examples run, and do what they say; each says how to run it, and docs/interoperability.md leads to it."""
import ast
import importlib
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

import timm_advprop
from timm_advprop.models import split_models

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / 'examples').glob('*.py'))
HELPER = 'digits'


@pytest.fixture
def example(monkeypatch):
    """A function that imports an example as `python examples/NAME.py` would, or skips where a package is missing."""
    monkeypatch.syspath_prepend(str(ROOT / 'examples'))
    names = {path.stem for path in EXAMPLES}

    def load(name, *packages):
        for package in packages:
            pytest.importorskip(package)
        return importlib.import_module(name)
    yield load
    for name in names & sys.modules.keys():
        del sys.modules[name]


@pytest.mark.parametrize('path', EXAMPLES, ids=lambda path: path.stem)
def test_an_example_says_how_to_run_it_and_is_linked(path):
    text = ast.get_docstring(ast.parse(path.read_text()))
    assert len(path.read_text().splitlines()) < 60
    if path.stem != HELPER:
        assert f'python examples/{path.name}' in text
        assert f'(../examples/{path.name})' in (ROOT / 'docs' / 'interoperability.md').read_text()


@pytest.mark.slow
def test_own_loop_learns(example):
    results = example('own_loop', 'sklearn').main(epochs=3)
    assert all(metrics['top1'] > 40 for metrics in results.values())  # of ten classes
    assert all(metrics['adv_loss'] > metrics['loss'] for metrics in results.values())
    assert results['main'] != results['aux']


@pytest.mark.slow
def test_accelerate(example):
    assert 0 <= example('accelerate_loop', 'accelerate', 'sklearn').main(epochs=1)['top1'] <= 100


@pytest.mark.slow
def test_accelerate_in_two_processes(example, monkeypatch):
    module = example('accelerate_loop', 'accelerate', 'sklearn')
    command = next(line for line in module.__doc__.splitlines() if 'torchrun' in line).partition('#')[0].split()
    monkeypatch.setenv('PYTHONPATH', str(ROOT), prepend=os.pathsep)
    output = subprocess.run([sys.executable, '-m', 'torch.distributed.run', *command[1:]], cwd=ROOT, check=True,
                            capture_output=True, text=True).stdout
    assert 'in 2 process' in output


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')
def test_lightning(example, tmp_path):
    metrics = example('lightning_module', 'lightning', 'sklearn').main(epochs=2, folder=tmp_path)
    assert {'clean_loss', 'adv_loss', 'top1'} <= metrics.keys()
    assert metrics['clean_loss'] < 1


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')
def test_attacks_of_other_libraries(example):
    results = example('other_attacks', 'torchattacks', 'pyautoattack', 'sklearn').main(
        epochs=2, num_images=32, num_of_autoattack=1)
    for found in results.values():
        assert 0 < found['distance'] <= 8 / 255 + 1e-6
        assert found['pgd'] <= found['clean']
    assert results['main'] != results['aux']


@pytest.mark.slow
def test_features(example):
    stages, features = example('features').main()
    assert [maps.shape[1] for maps in stages] == [24, 32, 48]
    assert features['main'].shape == (2, 256) and not torch.equal(features['main'], features['aux'])


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')
def test_export(example, tmp_path):
    differences = example('export', 'onnxruntime', 'onnxscript').main(tmp_path)
    assert set(differences) == {'main', 'aux'} and max(differences.values()) < 1e-5
    assert (tmp_path / 'main.onnx').read_bytes() != (tmp_path / 'aux.onnx').read_bytes()


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')
def test_transformers(example):
    module = example('transformers_pipeline', 'transformers', 'sklearn')
    difference, answers = module.main()
    assert difference == 0
    assert {answer['label'] for answer in answers} < set(module.NAMES)


@pytest.mark.slow
def test_timms_own_script(example, tmp_path, monkeypatch):
    script = Path(os.environ.get('TIMM_REPOSITORY', ''), 'train.py')
    if not os.environ.get('TIMM_REPOSITORY') or not script.is_file():
        pytest.skip('timm\'s train.py is not in its wheel: TIMM_REPOSITORY is the folder of a checkout')
    monkeypatch.setenv('PYTHONPATH', str(ROOT), prepend=os.pathsep)
    plain, advprop = example('timm_script', 'sklearn').main(str(script), str(tmp_path))
    for path, has_aux in ((plain, True), (advprop, True)):
        state = timm_advprop.weights.read_checkpoint(str(path))
        main, aux = timm_advprop.split_state_dict(state)
        moved = not torch.equal(main['layer1.0.bn1.running_mean'], aux['layer1.0.bn1.aux_bn.0.running_mean'])
        assert bool(aux) == has_aux and moved
    model = timm.create_model('test_resnet', num_classes=10)
    model.load_state_dict(main)


# torch.hub

def test_torch_hub_has_the_zoo():
    names = runpy.run_path(str(ROOT / 'hubconf.py'))
    assert {name for name, value in names.items() if callable(value) and name[0] != '_'} == set(split_models())


def test_torch_hub_loads_models_and_weights(tmp_path):
    model = torch.hub.load(str(ROOT), 'test_resnet_ap', source='local', num_classes=3, num_aux=2)
    assert timm_advprop.has_split_norm(model) and model.num_classes == 3
    file = tmp_path / 'model.safetensors'
    save_file(model.state_dict(), file)
    loaded = torch.hub.load(
        str(ROOT), 'test_resnet_ap', source='local', pretrained=True, num_classes=3, num_aux=2,
        pretrained_cfg_overlay=dict(file=str(file), num_classes=3))
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_torch_hub_asks_for_the_packages_that_are_needed():
    hubconf = ast.parse((ROOT / 'hubconf.py').read_text())
    dependencies = next(ast.literal_eval(node.value) for node in hubconf.body if isinstance(node, ast.Assign))
    assert all(importlib.util.find_spec(name) for name in dependencies)
