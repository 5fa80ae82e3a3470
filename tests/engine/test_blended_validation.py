"""Validation runs of blends, and of statistics that are taken from images."""
import os
from pathlib import Path

import pytest
import timm
import torch

import timm_advprop
from tests.engine.runs import eval_settings
from tests.engine.test_validation import accuracy, images_of
from timm_advprop.engine import tested_model
from timm_advprop.engine.tested_model import open_tested_model
from timm_advprop.engine.validation import validate
from timm_advprop.errors import InputError
from timm_advprop.norms import strip_aux
from timm_advprop.weights import weights_digest

ATTACK = dict(adv_attack='pgd', adv_eps=8., adv_alpha=4., adv_steps=2, adv_random_start=0.)


@pytest.fixture(scope='module')
def checkpoint(few_digits, tmp_path_factory):
    """Main norms that know some digits, and aux norms that are far from them."""
    torch.manual_seed(0)
    model = timm.create_model('test_resnet_ap', num_classes=10).train()
    timm_advprop.norms.configure_batch_norm(model, momentum=.5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    images, labels = images_of(few_digits, 'train')
    for _ in range(20):
        optimizer.zero_grad()
        for route, batch in (('main', images), ('aux', images + .3 * torch.randn_like(images))):
            with timm_advprop.norm_route(model, route):
                torch.nn.functional.cross_entropy(model(batch), labels).backward()
        optimizer.step()
    path = tmp_path_factory.mktemp('checkpoint') / 'last.pth'
    torch.save(model.state_dict(), path)
    return str(path)


@pytest.fixture
def model(checkpoint):
    model = timm.create_model('test_resnet_ap', num_classes=10)
    model.load_state_dict(torch.load(checkpoint))
    return model.eval()


@pytest.fixture
def settings(few_digits, checkpoint):
    return lambda **values: eval_settings(**{
        'data_dir': few_digits, 'checkpoint': checkpoint, 'crop_pct': 1., 'mean': [.5], 'std': [.5],
        'interpolation': 'bicubic', **values})


@pytest.fixture
def run(settings):
    return lambda **values: validate(settings(**values))


def recalibrated(plain, batches):
    """Statistics by torch's cumulative average over equal batches."""
    for module in plain.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
            module.train()
    with torch.no_grad():
        for batch in batches:
            plain(batch)
    return plain.eval()


def test_a_blend_is_evaluated_and_attacked_as_its_plain_model(run, few_digits, model):
    blend = timm_advprop.blend_routes(model, .4)
    results = run(route='.40', **ATTACK)
    assert (results['route'], results['top1']) == ('0.4', accuracy(blend, few_digits))
    attack = timm_advprop.Attack(eps_px=8., alpha_px=4., steps=2, random_start=0., target='none', mean=(.5,) * 3,
                                 std=(.5,) * 3)
    images, labels = images_of(few_digits)
    with torch.no_grad():
        hits = blend(attack(blend, images, labels)[0]).argmax(1) == labels
    assert results['adv_top1'] == round(100 * hits.double().mean().item(), 4)
    assert results['param_count'] == round(sum(value.numel() for value in blend.parameters()) / 1e6, 2)


def test_the_ends_of_a_curve_are_the_routes_themselves(run):
    assert run(route='0.0') == run(route='main') and run(route='1.0') == run(route='aux')


def test_every_blend_has_weights_of_its_own(run, model):
    found = {route: run(route=route, num_samples=2)['weights'] for route in ('main', '0.25', '0.5', 'aux')}
    assert len(set(found.values())) == 4
    assert found['0.5'] == weights_digest(timm_advprop.blend_routes(model, .5).state_dict())  # as it is once published
    again = {run(route='0.5', num_samples=2, **values)['weights'] for values in (
        dict(recalibrate=20), dict(recalibrate=30), dict(recalibrate=20, recalibrate_split='validation'))}
    assert len(again | set(found.values())) == 7


@pytest.mark.parametrize('values', [dict(torchscript=True), dict(reparam=True)], ids=str)
def test_a_blend_is_scripted_and_reparameterised_as_a_plain_model(run, values):
    assert run(route='0.5', **values) == run(route='0.5')


def test_statistics_are_those_of_training_images_evenly_spread_over_the_split(settings, few_digits, model):
    images, _ = images_of(few_digits, 'train')
    chosen = images[[i * len(images) // 30 for i in range(30)]]
    for route, share in (('main', 0), ('0.5', .5), ('aux', 1)):
        tested = open_tested_model(settings(route=route, recalibrate=30))
        expected = recalibrated(timm_advprop.blend_routes(model, share), [chosen]).state_dict()
        for key, value in tested.model.state_dict().items():
            torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-5)
        assert tested.recalibrated.startswith('30 images of split train of') and tested.route == 'main'


def test_statistics_of_more_images_than_a_batch_are_their_average(settings, digits, model):
    images, _ = images_of(digits, 'train')
    chosen = images[[i * len(images) // 200 for i in range(200)]]
    # each batch is spread over the split: images of a class lie together in it
    expected = recalibrated(strip_aux(model), [chosen[::2], chosen[1::2]]).state_dict()
    for batch_size in (16, 256):  # of the evaluation, which does not matter
        tested = open_tested_model(settings(data_dir=digits, recalibrate=200, batch_size=batch_size))
        for key, value in tested.model.state_dict().items():
            torch.testing.assert_close(value, expected[key], rtol=1e-3, atol=1e-4)
    in_order = recalibrated(strip_aux(model), chosen.split(100)).state_dict()
    last = [key for key in expected if key.endswith('running_var')][-1]
    assert not torch.allclose(in_order[last], expected[last], rtol=1e-1)


def test_what_was_recalibrated_is_said_and_attacked(run):
    results = run(route='aux', recalibrate=30, **ATTACK)
    assert results['route'] == 'aux' and results['recalibrated'].startswith('30 images')
    assert results['adv_top1'] < results['top1'] and 'recalibrated' not in run(route='aux')


def test_a_plain_model_is_recalibrated_too(run):
    assert run(model='test_resnet', recalibrate=30, route='main')['weights'] != run()['weights']


def test_lower_precision_takes_the_same_statistics(settings):
    wide = open_tested_model(settings(route='0.5', recalibrate=30))
    half = open_tested_model(settings(route='0.5', recalibrate=30, model_dtype='bfloat16'))
    assert half.weights == wide.weights
    assert all(torch.equal(value, wide.model.state_dict()[key].to(value.dtype))
               for key, value in half.model.state_dict().items())


def link_classes(source, target):
    for file in Path(source).glob('*/*'):
        (target / file.parent.name).mkdir(parents=True, exist_ok=True)
        os.link(file, target / file.parent.name / file.name)


def test_test_images_are_never_taken_for_training_images(run, few_digits, tmp_path, monkeypatch):
    link_classes(Path(few_digits, 'validation'), tmp_path)
    monkeypatch.setattr(tested_model, 'open_model', None)  # told before a model is opened
    with pytest.raises(InputError, match='No split \'train\' in .* to recalibrate with'):
        run(data_dir=str(tmp_path), route='0.5', recalibrate=30)


def test_test_images_are_taken_where_they_are_asked_for(run, few_digits, tmp_path):
    link_classes(Path(few_digits, 'validation'), tmp_path)
    expected = run(recalibrate=30, recalibrate_split='validation')
    results = run(data_dir=str(tmp_path), recalibrate=30, recalibrate_split='validation')
    assert results['top1'] == expected['top1']


@pytest.mark.parametrize('values, message', [
    (dict(route='0.3', model='test_resnet', plain=True), '--route 0.3 needs auxiliary norms, test_resnet has none'),
    (dict(recalibrate=30, model='test_vit_ap', img_size=32), 'no batch norms with running statistics: leave --recal'),
    (dict(recalibrate=2000), '--recalibrate 2000: split train of .* has [0-9]+ images'),
    (dict(recalibrate=30, recalibrate_split='test'), 'No split \'test\''),
    (dict(recalibrate_split='validation'), '--recalibrate-split belongs to --recalibrate N'),
    (dict(route='0.3', torchscript=True, **ATTACK), '--torchscript takes no attack'),
], ids=str)
def test_what_does_not_go_together_is_one_line(run, tmp_path, model, values, message):
    values = dict(values)
    if values.pop('plain', False):
        torch.save(strip_aux(model).state_dict(), tmp_path / 'model.pth')
        values['checkpoint'] = str(tmp_path / 'model.pth')
    if 'test_vit_ap' in values.values():
        torch.save(timm.create_model('test_vit_ap', num_classes=10, img_size=32).state_dict(), tmp_path / 'model.pth')
        values.update(checkpoint=str(tmp_path / 'model.pth'), model_kwargs=dict(img_size=32))
    with pytest.raises(InputError, match=message):
        run(**values)
