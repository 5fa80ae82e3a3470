"""Runs whose norms share statistics: trained, resumed, validated, published, and what is refused in one line."""
import json

import pytest
import timm
import torch
import yaml

import timm_advprop
from tests.cli.programs import FAST, run_train, run_validate
from tests.engine.runs import equal_states, load, read_summary, run
from tests.stock_timm import read_folder
from timm_advprop.cli.train import main as train_main
from timm_advprop.hub.layout import write_publication
from timm_advprop.hub.release import open_release
from timm_advprop.norms import configure_batch_norm, share_in, share_of, split_norms, split_state_dict, strip_aux
from timm_advprop.regimes import AdvPropTask
from timm_advprop.weights import load_checkpoint, load_read_checkpoint, open_checkpoint, read_checkpoint

SHARED = ('statistics', 'statistics-of-main')


@pytest.fixture(scope='module', params=SHARED)
def trained(request, few_digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp('trained')
    return request.param, run(few_digits, folder, adv_share=request.param, epochs=2)


def error_of(capsys, *flags):
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        train_main([*FAST, *flags])
    assert exit_info.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.fixture
def plain_checkpoint(tmp_path):
    """A checkpoint of norms that share nothing."""
    path = tmp_path / 'full.pth'
    torch.save(timm.create_model('test_resnet_ap', num_classes=10).state_dict(), path)
    return str(path)


def test_a_run_trains_weights_and_biases_of_its_own_and_one_kind_of_statistics(trained):
    share, folder = trained
    main, aux = split_state_dict(load(folder / 'last.pth.tar')['state_dict'])
    assert {key.rpartition('.')[2] for key in aux} == {'weight', 'bias'}
    assert any(not torch.equal(value, main[key.replace('aux_bn.0.', '')]) for key, value in aux.items())
    assert main['bn1.num_batches_tracked'] == 8  # 64 images in batches of 16, 2 epochs
    assert yaml.safe_load((folder / 'args.yaml').read_text())['adv_share'] == share
    assert open_checkpoint(str(folder / 'last.pth.tar')).share == share


@pytest.mark.parametrize('regime', ['advprop', 'fast-advprop'])
def test_a_plain_model_is_split_as_asked_for(regime, few_digits, tmp_path):
    flags = ('--model', 'test_resnet', '--regime', regime, '--adv-budget', 'epochs', '--adv-share', 'statistics')
    state = load(run_train(few_digits, tmp_path, *flags) / 'last.pth.tar')['state_dict']
    assert share_in(state) == 'statistics'
    # the pass of the attack that trains updates them, too
    assert state['bn1.num_batches_tracked'] == (4 if regime == 'advprop' else 8)


def test_a_resumed_run_ends_as_one_that_ran_through(trained, few_digits, tmp_path):
    share, folder = trained
    flags = ('--adv-share', share, '--epochs', '2')
    resumed = run_train(few_digits, tmp_path, *flags, '--resume', str(folder / 'checkpoint-0.pth.tar'))
    assert equal_states(*(load(path / 'last.pth.tar')['state_dict'] for path in (folder, resumed)))


def test_resuming_as_norms_that_share_nothing_is_refused(trained, few_digits, tmp_path, capsys):
    share, folder = trained
    line = error_of(capsys, '--data-dir', few_digits, '--output', str(tmp_path), '--resume',
                    str(folder / 'last.pth.tar'))
    assert line.endswith(f'its norms share statistics: give --adv-share {share}, or begin another run with '
                         '--initial-checkpoint.')


def test_both_routes_are_validated(trained, few_digits, capsys):
    _, folder = trained
    path = str(folder / 'last.pth.tar')
    main = run_validate(few_digits, capsys, '--checkpoint', path, '--crop-pct', '1')
    assert main['top1'] == round(float(read_summary(folder)[-1]['eval_top1']), 4)
    for model in ('test_resnet_ap', 'test_resnet'):
        aux = run_validate(few_digits, capsys, '--checkpoint', path, '--crop-pct', '1', '--model', model, '--route',
                           'aux', '--adv-attack', 'pgd', '--adv-eps', '1')
        assert aux['weights'] != main['weights'] and 'adv_top1' in aux


def test_a_run_can_begin_with_a_shared_checkpoint(trained, few_digits, tmp_path):
    share, folder = trained
    for i, (asked, expected) in enumerate([((), 'statistics'), (('--adv-share', 'none'), 'none')]):
        state = load(run_train(
            few_digits, tmp_path / str(i), '--initial-checkpoint', str(folder / 'last.pth.tar'), *asked,
        ) / 'last.pth.tar')['state_dict']
        assert share_in(state) == expected


@pytest.mark.parametrize('model', ['test_resnet_ap', 'test_resnet'])
def test_beginning_with_a_checkpoint_of_norms_that_share_nothing_is_refused(
        model, plain_checkpoint, few_digits, tmp_path, capsys):
    line = error_of(capsys, '--data-dir', few_digits, '--output', str(tmp_path), '--model', model, '--regime',
                    'advprop', '--adv-share', 'statistics', '--initial-checkpoint', plain_checkpoint)
    assert "have statistics of their own" in line and "share='none'" in line


def test_momentum_of_the_auxiliary_statistics(few_digits, tmp_path, monkeypatch):
    seen = []
    step = AdvPropTask.forward

    def forward(self, *args):
        seen.append({(norm.momentum, norm.aux_bn[0].momentum) for norm in split_norms(self.unwrapped_module)})
        return step(self, *args)

    monkeypatch.setattr(AdvPropTask, 'forward', forward)
    for i, model in enumerate(('test_resnet', 'test_resnet_ap')):
        run_train(few_digits, tmp_path / str(i), '--model', model, '--regime', 'advprop', '--adv-bn-momentum', '0.01')
    assert seen == [{(0.1, 0.01)}] * 8


def test_momentum_of_what_is_not_there_is_refused(few_digits, tmp_path, capsys):
    line = error_of(capsys, '--data-dir', few_digits, '--output', str(tmp_path), '--model', 'test_vit_ap', '--img-size',
                    '32', '--adv-bn-momentum', '0.01')
    assert 'has no auxiliary statistics' in line


def test_loading_tells_what_the_norms_share(trained):
    share, folder = trained
    path = str(folder / 'last.pth.tar')
    model = timm.create_model('test_resnet_ap', num_classes=10)
    load_checkpoint(model, path)
    assert share_of(model) == 'none'
    configure_batch_norm(model, aux_momentum=0.5)  # each norm has statistics
    shared = timm.create_model('test_resnet_ap', num_classes=10, share=share)
    load_checkpoint(shared, path)
    images = torch.randn(2, 3, 32, 32)
    for route in ('main', 'aux'):
        outputs = []
        for each in (model.eval(), shared.eval()):
            with timm_advprop.norm_route(each, route):
                outputs.append(each(images))
        torch.testing.assert_close(*outputs)


def test_a_plain_model_gets_the_norms_of_a_checkpoint(trained):
    _, folder = trained
    path = str(folder / 'last.pth.tar')
    model = timm.create_model('test_resnet', num_classes=10)
    load_read_checkpoint(model, read_checkpoint(path), path, convert=True)
    assert share_of(model) == 'statistics' and equal_states(model.state_dict(), load(path)['state_dict'])


# Publishing


@pytest.fixture
def published(trained, tmp_path):
    share, folder = trained
    target = tmp_path / 'published'
    target.mkdir()
    write_publication(open_release(folder / 'last.pth.tar'), str(target), 'user/model')
    return share, folder, target


def test_a_published_model_comes_back_as_it_was(published, tmp_path):
    share, folder, target = published
    state = load(folder / 'last.pth.tar')['state_dict']
    config = json.loads((target / 'config.json').read_text())
    assert config['timm_advprop']['share'] == share and 'share' not in config.get('model_args', {})
    model = timm_advprop.create_model(f'local-dir:{target}')
    assert share_of(model) == share and equal_states(model.state_dict(), state)
    assert (target / 'norms.png').is_file()
    assert equal_states(read_folder(target).state_dict(), strip_aux(model).state_dict())
    assert 'Auxiliary norms: weight and bias;' in (target / 'README.md').read_text()


def test_training_goes_on_from_a_published_model(published, few_digits, tmp_path):
    share, folder, target = published
    folder = run_train(few_digits, tmp_path, '--model', f'local-dir:{target}', '--pretrained')
    assert share_in(load(folder / 'last.pth.tar')['state_dict']) == 'statistics'
