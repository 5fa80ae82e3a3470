"""Published models whose norms share statistics."""
import json
import shutil

import pytest
import timm
import torch

import timm_advprop
from tests.hub.publishing import OVERLAY, REPO, equal_states, published
from timm_advprop.engine.figures import new_figure
from timm_advprop.errors import InputError
from timm_advprop.hub import card_pictures
from timm_advprop.hub.layout import write_publication
from timm_advprop.hub.push import push_to_hub
from timm_advprop.hub.release import release_model
from timm_advprop.norms import share_of, split_state_dict, strip_aux

SHARED = ('statistics', 'statistics-of-main')


@pytest.fixture(params=SHARED)
def share(request):
    return request.param


@pytest.fixture
def shared_model(share, randomize_norms):
    return randomize_norms(timm.create_model('test_resnet_ap', num_aux=2, num_classes=7, share=share))


@pytest.fixture
def folder(shared_model, tmp_path, monkeypatch):
    """A publication of the model in a local folder."""
    monkeypatch.setattr('timm_advprop.hub.layout.draw_pictures', lambda *args: None)
    path = tmp_path / 'folder'
    path.mkdir()
    write_publication(release_model(shared_model), str(path), REPO)
    return path


def test_a_model_of_the_hub_comes_back_as_it_was(hub, share, shared_model):
    push_to_hub(shared_model, REPO)
    config = json.loads(published(hub)['config.json'])
    assert config['timm_advprop']['share'] == share
    assert not {'num_aux', 'share'} & config.get('model_args', {}).keys()
    for model in (timm_advprop.create_model(f'hf-hub:{REPO}'), timm.create_model('test_resnet_ap', **OVERLAY)):
        assert share_of(model) == share and equal_states(model.state_dict(), shared_model.state_dict())
    plain = timm.create_model(f'hf-hub:{REPO}', pretrained=True)
    assert equal_states(plain.state_dict(), strip_aux(shared_model).state_dict())
    features = timm_advprop.create_model(f'hf-hub:{REPO}', features_only=True, out_indices=(1, 2))
    assert share_of(features) == share
    assert torch.equal(features.state_dict()['bn1.aux_bn.1.weight'], shared_model.bn1.aux_bn[1].weight)


def test_the_untrained_architecture_shares_too(folder, share):
    assert share_of(timm_advprop.create_model(f'local-dir:{folder}', pretrained=False)) == share


def test_the_card_says_what_is_shared(folder, share):
    assert f'Auxiliary norms: weight and bias; the {"statistics" if share == SHARED[0] else "running statistics"} are '\
        in (folder / 'README.md').read_text()


def test_norms_are_drawn_by_what_they_have_of_their_own(shared_model, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(card_pictures, 'new_figure', lambda size: drawn.append(size) or new_figure(size))
    card_pictures.draw_norms(shared_model, str(tmp_path / 'norms.png'))
    assert drawn == [(2.7 * 2, 2.7 * 2 + 0.3)]  # weight and bias, of two auxiliary norms


def test_norms_that_share_load_into_norms_that_do_not(folder, shared_model):
    model = timm_advprop.create_model(f'local-dir:{folder}', share='none').eval()
    images = torch.randn(2, 3, 64, 64)
    for route in range(3):
        outputs = []
        for each in (model, shared_model.eval()):
            with timm_advprop.norm_route(each, route):
                outputs.append(each(images))
        torch.testing.assert_close(*outputs)


def test_norms_that_do_not_share_are_refused_by_those_that_do(share, tmp_path, monkeypatch):
    monkeypatch.setattr('timm_advprop.hub.layout.draw_pictures', lambda *args: None)
    model = timm.create_model('test_resnet_ap')
    write_publication(release_model(model), str(tmp_path), REPO)
    assert 'share' not in json.loads((tmp_path / 'config.json').read_text())['timm_advprop']
    with pytest.raises(InputError, match="create the model with share='none'"):
        timm_advprop.create_model(f'local-dir:{tmp_path}', share=share)


@pytest.mark.parametrize('wrong', ['some', 3, ['statistics'], {}], ids=str)
@pytest.mark.parametrize('part', ['timm_advprop', 'model_args'])
def test_a_damaged_config_is_refused(part, wrong, folder, tmp_path):
    damaged = tmp_path / 'damaged'
    shutil.copytree(folder, damaged)
    config = json.loads((damaged / 'config.json').read_text())
    config.setdefault(part, {})['share'] = wrong
    (damaged / 'config.json').write_text(json.dumps(config))
    with pytest.raises(InputError, match='is damaged'):
        timm_advprop.create_model(f'local-dir:{damaged}')


def test_a_model_that_timm_saved_comes_back_as_it_was(share, shared_model, tmp_path):
    model_args = dict(num_aux=2, share=share)  # timm ≥ 1.0.31 remembers them itself
    timm.models.save_for_hf(shared_model, tmp_path, model_args=model_args, safe_serialization=True)
    loaded = timm_advprop.create_model(f'local-dir:{tmp_path}')
    assert share_of(loaded) == share and equal_states(loaded.state_dict(), shared_model.state_dict())
    plain = timm_advprop.create_model(f'local-dir:{tmp_path}', num_aux=0)
    assert equal_states(plain.state_dict(), split_state_dict(shared_model.state_dict())[0])
