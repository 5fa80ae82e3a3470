"""What is known of what is published: the regime, what trained its norms, and runs of the version before."""
import sys
from argparse import Namespace

import pytest
import timm
import torch

from tests.hub.publishing import equal_states
from timm_advprop.engine.datasets import open_split
from timm_advprop.errors import InputError
from timm_advprop.hub import card_pictures
from timm_advprop.hub import release as release_module
from timm_advprop.hub.card import render_card
from timm_advprop.hub.release import open_release, release_model


@pytest.mark.parametrize('recipe, num_aux, trained_on, attacked', [
    (dict(regime='vanilla'), 1, ['nothing'], []),
    (dict(regime='madry', adv_eps=[4.0]), 1, ['nothing'], []),
    (dict(regime='joint'), 2, ['nothing', 'nothing'], []),
    (dict(regime='fast-advprop'), 1, ['adversarial images'], [1]),
    (dict(regime='advprop', split_bn=True, aug_splits=2), 2, ['augmented images', 'adversarial images'], [2]),
    (dict(regime='advprop', adv_source='gaussian-noise', adv_eps=[8.0]), 1, ['gaussian-noise'], []),
    (dict(regime='advprop', adv_source='not_here:noise'), 1, ['images of not_here:noise'], []),
    (dict(regime='advprop', adv_source='not_here:noise', split_bn=True, aug_splits=2), 2,
     ['augmented images', 'images of not_here:noise'], []),
    (dict(regime=None, adv_eps=[1.0]), 2, ['adversarial images', 'nothing'], [1]),
    (dict(), 1, [None], []),
], ids=str)
def test_a_release_tells_what_its_auxiliary_norms_were_trained_on(
        recipe, num_aux, trained_on, attacked, monkeypatch, tmp_path):
    release = release_model(timm.create_model('test_resnet_ap', num_aux=num_aux), dict(recipe, data_dir='/digits'))
    assert [norm.get('trained_on') for norm in release.aux_norms] == trained_on
    routes = []
    monkeypatch.setattr(card_pictures, 'draw_norms', lambda model, path: None)
    monkeypatch.setattr(
        card_pictures, 'draw_adversarial_images', lambda release, route, path: routes.append(route))
    card_pictures.draw_pictures(release, str(tmp_path), images=True)
    assert routes == attacked


@pytest.mark.parametrize('recipe, line', [
    (dict(regime='joint', adv_source=['corruption severities=[1,2]'], adv_pairing='js', adv_match_masks=True),
     "`joint`, given `--adv-match-masks --adv-pairing js --adv-source 'corruption severities=[1,2]'`"),
    (dict(regime='trades', adv_eps=[4.0], adv_weight=3.0, adv_match_masks=False, adv_pairing='none'),
     '`trades`, given `--adv-eps 4 --adv-weight 3`'),
    (dict(regime='madry', adv_source='not_here:noise'), '`madry`, given `--adv-source not_here:noise`'),
    (dict(regime=None, split_bn=True, aug_splits=2), '`advprop`, given `--aug-splits 2 --split-bn`'),
    (dict(regime='joint'), '`joint`'),
    (dict(regime='vanilla', adv_source='pyramid', adv_pairing='kl'), '`vanilla`'),  # which passes over them
], ids=str)
def test_a_card_says_what_the_regime_was_given(recipe, line):
    card = render_card(release_model(timm.create_model('test_resnet_ap', num_aux=2), recipe), 'user/name', [])
    assert f'- Regime: {line}\n' in card


def test_a_release_of_arguments_that_the_regime_has_no_use_for_is_one_line():
    with pytest.raises(InputError, match='no use for --adv-steps'):
        release_model(timm.create_model('test_resnet_ap'), dict(regime='fast-advprop', adv_steps=3))


def test_a_checkpoint_has_no_code_run_or_fetched_for_it(checkpoint, digits, tmp_path, monkeypatch):
    (tmp_path / 'named_in_checkpoint.py').write_text('def noise(model, images, target):\n    return images, target\n')
    monkeypatch.syspath_prepend(tmp_path)
    path, _ = checkpoint()
    content = torch.load(path, weights_only=False)
    vars(content['args']).update(
        adv_source='named_in_checkpoint:noise', data_dir=digits, dataset_download=True,
        dataset_trust_remote_code=True)
    torch.save(content, path)
    release = open_release(path)
    assert release.aux_norms == [dict(trained_on='images of named_in_checkpoint:noise')]
    assert 'named_in_checkpoint' not in sys.modules

    opened = []
    monkeypatch.setattr(card_pictures, 'open_split', lambda data, *args, **kwargs: (
        opened.append(data), open_split(data, *args, **kwargs))[1])
    images, names = card_pictures._validation_images(release)
    assert images.shape == (8, 3, 32, 32) and names[0] == '0'
    assert not opened[0].dataset_download and not opened[0].dataset_trust_remote_code


@pytest.mark.parametrize('model', [None, 'test_resnet_ap'])
@pytest.mark.parametrize('arguments', [
    dict(pretrained=True, pretrained_cfg_overlay=dict(url='http://localhost/x.pth', hf_hub_id=None)),
    dict(checkpoint_path='x.pth'), dict(num_aux=20000)], ids=str)
def test_a_checkpoint_does_not_say_what_is_loaded_into_its_model(arguments, model, checkpoint, monkeypatch):
    path, _ = checkpoint()
    content = torch.load(path, weights_only=False)
    content['args'].model_kwargs = arguments
    torch.save(content, path)
    monkeypatch.setattr(release_module, 'open_model', lambda *args, **kwargs: pytest.fail('a model was created'))
    with pytest.raises(InputError, match=f'model_best.pth.tar has the model argument {min(arguments)}'):
        open_release(path, model)


@pytest.mark.parametrize('channels', [2, 4, 5])
def test_images_that_are_neither_grey_nor_coloured_are_not_drawn(channels, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(card_pictures, '_validation_images', lambda release: (
        torch.zeros(2, *release.data_config['input_size']), ['a', 'b']))
    monkeypatch.setattr(card_pictures, 'draw_norms', lambda model, path: None)
    release = release_model(
        timm.create_model('test_resnet_ap', in_chans=channels), dict(regime='advprop', data_dir='/digits', img_size=32))
    card_pictures.draw_pictures(release, str(tmp_path), images=True)
    assert f'A picture is left out: images of {channels} channels are neither grey nor coloured.' in caplog.text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('dataset', ['', 'torch/image_folder'])
def test_pictures_name_classes_whatever_reads_the_images(checkpoint, digits, dataset):
    path, _ = checkpoint()
    content = torch.load(path, weights_only=False)
    vars(content['args']).update(data_dir=digits, dataset=dataset)
    torch.save(content, path)
    images, names = card_pictures._validation_images(open_release(path))
    assert len(images) == len(names) == 8 and len(set(names)) > 4 and set(names) <= set('0123456789')


def test_checkpoint_of_the_version_before_is_published(checkpoint):
    """That version's runs wrote what they found out into their arguments."""
    path, model = checkpoint()
    content = torch.load(path, weights_only=False)
    content['args'] = Namespace(**{
        **vars(content['args']), 'lr': 0.00625, 'device': 'cpu', 'distributed': False, 'world_size': 2, 'rank': 0,
        'local_rank': 0, 'prefetcher': True, 'grad_accum_steps': 1, 'adv_eps': [1.0], 'regime': None})
    torch.save(content, path)
    (path.parent / 'args.yaml').write_text('lr: null\n')
    release = open_release(path)
    assert equal_states(release.model.state_dict(), model.state_dict())
    assert (release.regime, release.epoch, release.averaged) == ('advprop', 3, False)
    assert [(norm['attack'], norm['eps_px'], norm['steps']) for norm in release.aux_norms] == [('pgd', 1.0, 1)]
    assert release.data_config['input_size'] == (3, 32, 32)
    assert [(result.top1, result.top5) for result in release.results] == [(71.5, 93.25)]
    left_out = {'device', 'distributed', 'world_size', 'rank', 'local_rank', 'prefetcher', 'data_dir'}
    assert not left_out & release.published_recipe.keys() and release.published_recipe['lr'] == 0.00625


def test_weights_from_within_an_epoch_have_no_accuracy_of_its_end(checkpoint):
    path, _ = checkpoint()
    assert '- Epoch: 4 of 1\n' in render_card(open_release(path), 'user/name', [])
    content = torch.load(path, weights_only=False)
    torch.save(dict(content, position=dict(epoch=3, update=1), shares=[]), path.with_name('recovery-3-0.pth.tar'))
    release = open_release(path.with_name('recovery-3-0.pth.tar'))
    assert not release.results and release.within_epoch
    card = render_card(release, 'user/name', [])
    assert '- Epoch: 4 of 1, from within it: the run did not validate these weights\n' in card and '71.5' not in card


@pytest.mark.parametrize('about, license', [
    (dict(), 'mit'), (dict(model_kwargs=dict(drop_rate=0.1)), 'mit'), (dict(recipe=dict(pretrained=True)), 'mit'),
    (dict(recipe=dict(pretrained=False)), 'apache-2.0'), (dict(license='cc-by-4.0'), 'cc-by-4.0'),
], ids=str)
def test_the_licence_is_that_of_the_weights_a_run_began_with(about, license):
    model = timm.create_model('test_resnet_ap')
    model.pretrained_cfg['license'] = 'mit'
    assert release_model(model, **about).license == license


def test_a_model_is_published_with_the_size_and_the_normalisation_of_its_recipe():
    """As a checkpoint of the run is."""
    recipe = dict(regime='advprop', img_size=32, mean=[.1, .2, .3], std=[.4], crop_pct=1.)
    config = release_model(timm.create_model('test_resnet_ap'), recipe).data_config
    assert (config['input_size'], config['mean'], config['std'], config['crop_pct']) == (
        (3, 32, 32), (.1, .2, .3), (.4, .4, .4), 1.)
