"""Accuracy and loss of a model, compared with what they are by definition."""
import os
from datetime import timedelta
from pathlib import Path

import pytest
import timm
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn as nn
import torch.nn.functional as F

from tests.engine.runs import CONFIG, CPU, eval_settings
from timm_advprop import Attack, norm_route
from timm_advprop.engine.datasets import make_loader, open_split
from timm_advprop.engine.evaluation import evaluate
from timm_advprop.engine.placement import Placement

LABELS = torch.tensor([0, 1, 2, 3, 4, 5, 6, 0])


@pytest.fixture
def batches():
    images = torch.randn(8, 3, 32, 32).double()
    return list(zip(images.split(5), LABELS.split(5)))  # of different size


@pytest.fixture
def model(randomize_norms):
    return randomize_norms(timm.create_model('test_resnet_ap', num_classes=8)).double()


def expected(outputs, labels):
    order = outputs.argsort(1, descending=True)
    found = (order == labels.unsqueeze(1))
    return dict(loss=pytest.approx(F.cross_entropy(outputs, labels).item()),
                top1=pytest.approx(100 * found[:, 0].double().mean().item(), abs=1e-4),
                top5=pytest.approx(100 * found[:, :5].any(1).double().mean().item(), abs=1e-4))


def outputs_of(model, batches):
    with torch.no_grad():
        return torch.cat([model.eval()(images) for images, _ in batches])


def test_results_are_of_all_images_in_eval_mode(model, batches):
    model.train()
    results = evaluate(model, batches, CPU)
    assert not model.training
    assert results == expected(outputs_of(model, batches), LABELS)
    assert len({results['top1'], results['top5'], 0., 100.}) == 4  # neither all right nor all wrong


def test_the_route_is_the_one_the_model_is_on(model, batches):
    main = evaluate(model, batches, CPU)
    with norm_route(model, 'aux'):
        results = evaluate(model, batches, CPU)
        assert results == expected(outputs_of(model, batches), LABELS)
    assert results['loss'] != main['loss']


def test_some_of_the_classes(model, batches):
    keep = torch.tensor([7, 2, 5, 1, 0, 3, 4])
    results = evaluate(model, batches, CPU, output_indices=keep)
    assert results == expected(outputs_of(model, batches)[:, keep], LABELS)
    assert results != evaluate(model, batches, CPU)


def test_the_first_of_several_outputs_counts(model, batches):
    class Two(nn.Sequential):
        def forward(self, images):
            return super().forward(images), None

    assert evaluate(Two(model), batches, CPU) == evaluate(model, batches, CPU)


@pytest.mark.parametrize('route', ['main', 'aux'])
def test_adversarial_images_are_evaluated_beside_the_clean_ones(model, batches, route):
    attack = Attack(eps_px=16, alpha_px=8, steps=2, target='none', random_start=0., mean=(.5,) * 3, std=(.5,) * 3)
    with norm_route(model, route):
        results = evaluate(model, batches, CPU, attack=attack)
        images = [(attack(model, *batch)[0], batch[1]) for batch in batches]
        adversarial = outputs_of(model, images)
        clean = evaluate(model, batches, CPU)
    assert results == {
        **clean, **{f'adv_{name}': value for name, value in expected(adversarial, LABELS).items()}}
    assert results['adv_loss'] > results['loss']
    assert list(results) == ['loss', 'top1', 'top5', 'adv_loss', 'adv_top1', 'adv_top5']


def test_an_attack_of_no_size_changes_nothing(model, batches):
    attack = Attack(eps_px=0, alpha_px=0, steps=1, target='none', mean=(.5,) * 3, std=(.5,) * 3)
    batches = [(images.clamp(-1, 1), target) for images, target in batches]
    results = evaluate(model, batches, CPU, attack=attack)
    assert all(results[f'adv_{name}'] == results[name] for name in ('loss', 'top1', 'top5'))


def test_outputs_are_handed_out(model, batches):
    seen = []
    evaluate(model, batches, CPU, on_output=lambda *batch: seen.append(batch))
    kinds, *parts = zip(*seen)
    outputs, labels = (torch.cat(values) for values in parts)
    assert torch.equal(outputs, outputs_of(model, batches)) and torch.equal(labels, LABELS)
    assert kinds == ('', '')


def test_images_take_type_format_and_precision_of_the_placement():
    seen = {}

    class Model(nn.Module):
        def forward(self, images):
            seen.update(dtype=images.dtype, autocast=torch.is_autocast_enabled('cpu'),
                        last=images.is_contiguous(memory_format=torch.channels_last))
            return torch.zeros(len(images), 8)

    batches = [(torch.rand(3, 3, 4, 4).double(), LABELS[:3])]
    evaluate(Model(), batches, Placement(torch.device('cpu'), dtype=torch.float32))
    assert seen == dict(dtype=torch.float32, autocast=False, last=False)
    evaluate(Model(), batches, Placement(torch.device('cpu'), amp_dtype=torch.bfloat16, channels_last=True))
    assert seen == dict(dtype=torch.float64, autocast=True, last=True)


@pytest.mark.parametrize('size', [1, 3, 8])
def test_results_do_not_depend_on_the_size_of_batches(model, batches, size):
    images = torch.cat([images for images, _ in batches])
    whole = evaluate(model, batches, CPU)
    results = evaluate(model, list(zip(images.split(size), LABELS.split(size))), CPU)
    assert (results['top1'], results['top5']) == (whole['top1'], whole['top5'])
    assert results['loss'] == pytest.approx(whole['loss'], rel=1e-6)


def test_an_attack_sees_some_of_the_classes_too(model, batches):
    keep = torch.tensor([7, 2, 5, 1, 0, 3, 4])
    attack = Attack(eps_px=16, alpha_px=8, steps=2, target='none', random_start=0., mean=(.5,) * 3, std=(.5,) * 3)
    results = evaluate(model, batches, CPU, attack=attack, output_indices=keep)
    head = model.get_classifier()
    with torch.no_grad():
        head.weight, head.bias = nn.Parameter(head.weight[keep]), nn.Parameter(head.bias[keep])
    assert results == pytest.approx(evaluate(model, batches, CPU, attack=attack))


@pytest.mark.parametrize('mean', [None, (.5,) * 3])
def test_an_attack_takes_the_first_output_and_the_models_normalisation(model, batches, mean):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.pretrained_cfg = model, dict(mean=(.5,) * 3, std=(.5,) * 3)

        def forward(self, images):
            return self.model(images), None

    attack = Attack(eps_px=16, alpha_px=8, steps=2, target='none', random_start=0., mean=mean, std=mean)
    whole = evaluate(model, batches, CPU, attack=attack.normalised_by((.5,) * 3, (.5,) * 3))
    assert evaluate(Two(), batches, CPU, attack=attack) == whole


def test_an_attack_has_the_precision_of_the_placement_and_the_model_its_state(model, batches):
    seen = []

    def attack(model, images, target):
        seen.append((torch.is_autocast_enabled('cpu'), torch.is_inference_mode_enabled(), model.training))
        return images, target

    for amp_dtype in (None, torch.bfloat16):
        evaluate(model, batches[:1], Placement(CPU.device, amp_dtype=amp_dtype, dtype=torch.float64), attack=attack)
    assert seen == [(False, False, False), (True, False, False)]


# several processes

def _odd_loader(data, placement, batch_size):
    settings = eval_settings(data_dir=data)
    dataset = open_split(settings.data, 'validation', CONFIG)
    return make_loader(dataset, CONFIG, placement, settings.loader, batch_size)


def _evaluate_on(rank, data, model, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        'gloo', init_method=f'file://{folder}/rendezvous', rank=rank, world_size=2, timeout=timedelta(seconds=60))
    placement, seen = Placement(CPU.device, rank=rank, world_size=2, distributed=True), []
    results = evaluate(
        model, _odd_loader(data, placement, 2), placement, attack=_negative,
        on_output=lambda kind, output, target: seen.append((kind, len(output), len(target))))
    torch.save((dict(results), seen), f'{folder}/{rank}.pt')
    dist.destroy_process_group()


def _negative(model, images, target):  # as a fork must not run backward passes
    return -images, target


@pytest.mark.skipif('fork' not in mp.get_all_start_methods(), reason='starts processes by fork')
def test_each_image_counts_once_over_processes(few_digits, tmp_path, randomize_norms, monkeypatch):
    files = sorted(Path(few_digits, 'validation').glob('*/*'))
    for index, file in enumerate(files[::3][:13]):
        folder = tmp_path / 'data/validation' / str(index % 10)
        folder.mkdir(parents=True, exist_ok=True)
        os.link(file, folder / file.name)
    data, model = str(tmp_path / 'data'), randomize_norms(timm.create_model('test_resnet_ap', num_classes=10)).eval()
    whole = evaluate(model, _odd_loader(data, CPU, 13), CPU, attack=_negative)
    monkeypatch.setenv('GLOO_SOCKET_IFNAME', 'lo')
    mp.start_processes(_evaluate_on, args=(data, model, str(tmp_path)), nprocs=2, start_method='fork')
    for rank, own in enumerate([(2, 2, 2, 1), (2, 2, 2, 0)]):  # the second has an image of the first once more
        results, seen = torch.load(tmp_path / f'{rank}.pt')
        assert seen == [(kind, count, count) for count in own for kind in ('', 'adv_')]
        for name, value in whole.items():
            assert results[name] == (pytest.approx(value, rel=1e-6) if 'loss' in name else value), name


def test_progress_lines(model, batches, caplog):
    with caplog.at_level('INFO'):
        evaluate(model, batches * 3, CPU, log_name='Test', log_interval=2)
        lines = [text for text in caplog.messages if text.startswith('Test: ')]
        assert [line.split(']')[0] for line in lines] == [f'Test: [{index:>4d}/5' for index in (0, 2, 4, 5)]
        assert all('top1: ' in line and 'ETA ' in line for line in lines)
        caplog.clear()
        evaluate(model, batches, CPU, log_name=None)
    assert not caplog.messages
