"""Publications of one route: a plain model, whose norms may be a blend."""
import json
import os

import pytest
import timm
import torch

import timm_advprop
from tests.hub.publishing import RECIPE, REPO, equal_states, error_line, published
from timm_advprop.cli.hub import main as hub_main
from timm_advprop.cli.validate import main as validate_main
from timm_advprop.engine.results_file import read_results
from timm_advprop.errors import InputError
from timm_advprop.hub import layout, push_to_hub

EVALUATED = ['--model', 'test_resnet_ap', '--num-classes', '10', '--img-size', '32', '--workers', '0', '--device',
             'cpu']


def card_of(hub):
    return published(hub)['README.md'].decode()


@pytest.mark.parametrize('route, weights', [
    (.3, (.7, .3, 0)), ('0.30', (.7, .3, 0)), ('aux', (0, 1, 0)), (2, (0, 0, 1)), (0, (1, 0, 0)), (1., (0, 1, 0))])
def test_stock_timm_loads_the_plain_model_of_a_route(hub, split_model, route, weights):
    push_to_hub(split_model, REPO, route=route)
    expected = timm_advprop.blend_routes(split_model, weights).eval()
    loaded = timm.create_model(f'hf-hub:{REPO}', pretrained=True).eval()
    assert equal_states(loaded.state_dict(), expected.state_dict()) and not timm_advprop.has_split_norm(loaded)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(images), expected(images))
    assert published(hub).keys() - {'.gitattributes'} == {'model.safetensors', 'config.json', 'README.md'}
    config = json.loads(published(hub)['config.json'])
    assert config['architecture'] == 'test_resnet' and config['timm_advprop']['num_aux'] == 0


def test_an_efficientnet_is_published_under_its_base(hub):
    push_to_hub(timm.create_model('efficientnet_b0_ap', num_classes=3), REPO, route=.5)
    assert json.loads(published(hub)['config.json'])['architecture'] == 'tf_efficientnet_b0'


def test_the_card_says_what_the_norms_are_made_of(hub, split_model):
    push_to_hub(split_model, REPO, route=.3, recipe=dict(RECIPE, adv_eps=[4., 2.]))
    card = card_of(hub)
    assert '70% main norm and 30% auxiliary norm' in card and 'without auxiliary norms' in card
    assert '| 1 | adversarial images | PGD | 4/255' in card and '2/255' not in card  # the second takes no part
    assert 'push CHECKPOINT user/model --route 0.3`' in card and 'advprop' in card
    for word in ('aux.safetensors', 'norm_route', '--route aux', 'in auxiliary norms', 'running statistics were'):
        assert word not in card
    assert json.loads(published(hub)['config.json'])['timm_advprop']['route'] == '0.3'


@pytest.mark.parametrize('route, words, others', [
    ('main', 'the main norms of a training run', 'adversarial images'),
    ('2', 'the auxiliary norms of a training run', 'main norms of'),
])
def test_the_card_of_one_of_the_norms(hub, split_model, route, words, others):
    push_to_hub(split_model, REPO, route=route, recipe=dict(RECIPE, adv_eps=[4., 2.]))
    card = card_of(hub)
    assert f'Its norms are {words}' in card and others not in card
    assert ('| 2 | adversarial images | PGD | 2/255' in card) == (route == '2')


def test_metrics_of_the_main_norms_are_not_those_of_a_blend(hub, checkpoint):
    path, _ = checkpoint()
    push_to_hub(str(path), REPO)
    assert '71.50' in card_of(hub)
    push_to_hub(str(path), REPO, route=.3)
    assert '71.50' not in card_of(hub) and 'measured through the main norms' in card_of(hub)
    assert 'aux.safetensors' not in published(hub)  # that of the publication before


@pytest.mark.parametrize('flags', [[], ['--recalibrate', '40']], ids=str)
def test_results_of_the_blend_come_on_the_card(hub, checkpoint, few_digits, tmp_path, monkeypatch, capsys, flags):
    path, model = checkpoint()
    results = tmp_path / 'r.csv'
    evaluated = ['--data-dir', few_digits, *EVALUATED, '--checkpoint', str(path), '--results-file', str(results)]
    push = ['push', str(path), REPO, '--route', '.3', *flags, '--results', str(results)]
    push += ['--data-dir', few_digits] if flags else []
    validate_main([*evaluated, '--route', '0.3', *flags])
    hub_main(push)
    card = card_of(hub)
    row, = read_results(str(results))
    assert f'| clean | blend 0.3 | {float(row["top1"]):.2f} |' in card
    expected = timm_advprop.blend_routes(model, .3).state_dict()
    loaded = timm.create_model(f'hf-hub:{REPO}', pretrained=True)
    assert equal_states(loaded.state_dict(), expected) != bool(flags)
    assert ('taken again from 40 images of split train' in card) == ('--route 0.3 --recalibrate 40`' in card) == bool(
        flags)
    # of the model that is published, validated as such
    validate_main(['--data-dir', few_digits, *EVALUATED[2:], '--model', f'hf-hub:{REPO}', '--results-file',
                   str(results)])
    assert read_results(str(results))[0]['top1'] == row['top1']
    hub_main(push)
    assert f'| clean | blend 0.3 | {float(row["top1"]):.2f} |' in card_of(hub)
    # of another route
    validate_main([*evaluated, '--route', '0.4', *flags])
    assert 'of other weights' in error_line(capsys, hub_main, push)


def test_results_of_many_routes_are_those_of_the_published_one(hub, checkpoint, few_digits, tmp_path, capsys):
    path, _ = checkpoint()
    results = tmp_path / 'r.csv'
    validate_main(['--data-dir', few_digits, *EVALUATED, '--checkpoint', str(path), '--results-file', str(results),
                   '--route', 'main', '0.3', 'aux'])
    top1 = {row['route']: float(row['top1']) for row in read_results(str(results))}
    for route, norms in (('main', 'main'), ('0.3', 'blend 0.3'), ('1.0', 'aux')):
        hub_main(['push', str(path), REPO, '--route', route, '--results', str(results)])
        measured = [line for line in card_of(hub).splitlines() if line.startswith('| clean |')]
        assert len(measured) == 1 and f'| {norms} | {top1["aux" if norms == "aux" else route]:.2f} |' in measured[0]
    assert 'of other weights' in error_line(
        capsys, hub_main, ['push', str(path), REPO, '--route', '0.4', '--results', str(results)])


def test_a_dry_run_writes_the_plain_model(hub, checkpoint, tmp_path, capsys):
    path, model = checkpoint()
    folder = str(tmp_path / 'folder')
    hub_main(['push', str(path), REPO, '--dry-run', '--to', folder, '--route', '0.5'])
    assert 'aux.safetensors' not in os.listdir(folder) and '50% main norm' in capsys.readouterr().out
    loaded = timm.create_model(f'local-dir:{folder}', pretrained=True)
    assert equal_states(loaded.state_dict(), timm_advprop.blend_routes(model, .5).state_dict())


@pytest.mark.parametrize('flags, words', [
    (['--route', '1.5'], '--route must be main, aux'),
    (['--route', '-0.2'], '--route must be main, aux'),
    (['--route', 'nan'], '--route must be main, aux'),
    (['--route', '2'], 'Route 2 needs 2 auxiliary norms, the model has 1'),
    (['--route', '0.3', '--recalibrate', '1'], '--recalibrate must be 0 for none, or at least 2'),
    (['--recalibrate', '20'], 'give --route'),
    (['--data-dir', 'x'], 'give --route'),
    (['--route', '0.3', '--data-dir', 'x'], '--data-dir is for the images of --recalibrate'),
    (['--route', '0.3', '--recalibrate', '20', '--data-dir', 'nowhere'], 'No data folder nowhere'),
], ids=str)
def test_bad_input_is_one_line_and_nothing_is_sent(hub, checkpoint, tmp_path, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(tmp_path)
    path, _ = checkpoint()
    assert words in error_line(capsys, hub_main, ['push', str(path), REPO, *flags])
    assert not hub.repos


def test_a_plain_model_has_no_blend(hub, monkeypatch):
    monkeypatch.setattr(layout, 'save_for_hf', None)
    with pytest.raises(InputError, match='--route 0.3 needs auxiliary norms, the model has none'):
        push_to_hub(timm.create_model('test_resnet', num_classes=3), REPO, route=.3)
