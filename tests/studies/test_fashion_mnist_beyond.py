"""The study of what was proposed after the paper: corruptions, blends, paired differences."""
import csv
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

import timm_advprop
from studies.fashion_mnist import accuracy, corrupted
from studies.fashion_mnist.beyond import BEYOND
from studies.fashion_mnist.beyond_report import write_beyond_report
from studies.fashion_mnist.rows import RECIPE
from studies.fashion_mnist.values import paired_difference
from timm_advprop.cli.train import parse_args
from timm_advprop.corruptions import CORRUPTIONS
from timm_advprop.engine.placement import Placement

pytestmark = pytest.mark.usefixtures('one_thread')
CPU = Placement(torch.device('cpu'))


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    torch.manual_seed(0)
    model = timm_advprop.convert_split_norm(timm.create_model('test_resnet', in_chans=1, num_classes=10))
    for norm in timm_advprop.norms.split_norms(model):
        torch.nn.init.uniform_(norm.aux_bn[0].weight, 0.2, 3)
    args = Namespace(**parse_args(['--config', RECIPE]).given)
    path = str(tmp_path / 'last.pth.tar')
    torch.save(dict(state_dict=model.state_dict(), args=args, arch='test_resnet', epoch=0), path)
    return path


def test_corrupted_images_are_made_once_and_their_means_are_of_all_severities(
        few_digits, checkpoint, tmp_path, monkeypatch):
    data = str(tmp_path / 'digits')
    Path(data).symlink_to(few_digits)
    trained = accuracy.open_trained(checkpoint)
    seen = []

    def evaluate(model, loader, placement, log_name):
        seen.append(torch.cat([images for images, _ in loader]))
        return dict(top1=float(len(seen)))
    monkeypatch.setattr(corrupted, 'evaluate', evaluate)
    found = corrupted.measure_corruptions(trained.model, trained, data, 4, CPU)
    assert found['corruption_top1'] == 8 and found['noise_top1'] == 2  # of 1 to 15, and of the first three
    assert len(seen) == len(CORRUPTIONS) and len({len(images) for images in seen}) == 1
    with np.load(f'{data}-corrupted-4.npz') as kept:
        pixels, labels = kept['images'], kept['labels']
    expected = (torch.from_numpy(pixels[2]).flatten(0, 1).float() / 255 - 0.286) / 0.353
    torch.testing.assert_close(seen[2], expected)
    assert pixels.shape[:3] == (15, 5, len(labels)) and pixels.dtype == np.uint8
    monkeypatch.setattr(corrupted, 'Corruption', None)  # they are read, not made again
    assert corrupted.measure_corruptions(trained.model, trained, data, 4, CPU).keys() == found.keys()


def test_a_blend_is_measured_as_the_plain_model_that_it_is(few_digits, checkpoint, tmp_path, monkeypatch):
    data = str(tmp_path / 'digits')
    Path(data).symlink_to(few_digits)
    monkeypatch.setattr(accuracy, 'measure_corruptions', lambda *args: {})
    monkeypatch.setattr(accuracy, 'STRENGTHS', (4,))
    both = accuracy.measure_accuracy(checkpoint, data, 1, 8, CPU)
    ends = [accuracy.measure_blend(checkpoint, data, weight, 8, CPU) for weight in (0., 1.)]
    assert ends[0] == {name: value for name, value in both.items() if 'aux' not in name}
    assert ends[1]['pgd_eps4_main_top1'] == both['pgd_eps4_aux_top1']


def _results(values):
    results = []
    for name in BEYOND:
        for seed, clean in enumerate(values.get(name, (80., 81., 82.))):
            result = dict(name=name, seed=seed, clean_top1=clean, corruption_top1=clean - 20)
            result.update({f'pgd_eps4_{route}_top1': clean - 40 for route in ('main', 'aux')[:1 + BEYOND[name].aux]})
            if BEYOND[name].blends:
                result['blends'] = {'0.5': dict(clean_top1=clean + 1, corruption_top1=60., pgd_eps4_main_top1=50.)}
            results.append(result)
    return results


def test_the_report_compares_by_seed(tmp_path, capsys):
    results = _results(dict(vanilla=(79., 80.1, 80.9), augmix=(70., 91., 82.)))
    costs = {name: dict(cost=2.5, arithmetic=2.67) for name in BEYOND}
    write_beyond_report(str(tmp_path), results, costs, num_train=4000, num_attacked=1000)
    text = (tmp_path / 'fashion_mnist_beyond.md').read_text()
    assert text == capsys.readouterr().out
    lines = text.splitlines()
    assert '| vanilla | 80.0 ± 0.6 | 60.0 ± 0.6 | 40.0 ± 0.6 | – | 2.50 | 2.67 |' in lines
    # the differences of the seeds are -1, -0.9, -1.1: their deviation is a tenth of that of the values
    assert '| vanilla | **-1.0 ± 0.1** | **-1.0 ± 0.1** | **-1.0 ± 0.1** | – |' in lines
    assert '| AugMix | +0.0 ± 5.8 | +0.0 ± 5.8 | +0.0 ± 5.8 | +0.0 ± 5.8 |' in lines
    blend = [line for line in lines if line.startswith('| AdvProp, 50% of aux blended in |')]
    assert blend[0].startswith('| AdvProp, 50% of aux blended in | 82.0 ± 0.6 | 60.0 ± 0.0 |') and len(blend) == 2
    tests = sum(3 + bool(row.aux) for name, row in BEYOND.items() if name != 'advprop') + 3
    assert f'Of {tests} such tests' in text
    with open(tmp_path / 'fashion_mnist_beyond.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * len(BEYOND) + 3 and rows[0]['pgd_eps4_aux_top1'] == ''


def test_a_difference_is_of_the_seeds_that_both_have():
    results = [dict(name='a', seed=seed, x=value) for seed, value in ((0, 1.), (1, 3.), (2, 9.))]
    results += [dict(name='b', seed=seed, x=value) for seed, value in ((1, 2.), (0, 0.))]
    assert paired_difference(results, 'a', 'b', 'x') == (1., 0.)
