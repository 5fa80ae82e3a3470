"""Models of published weights; how they are published, and from the Hub: tests/hub."""
import copy
import pickle

import pytest
import timm
import torch

from tests.models.split_states import SMALL_VARIANTS, aux_equals_main, equal_states
from tests.stock_timm import read_folder
from timm_advprop import create_model, has_split_norm, split_state_dict
from timm_advprop.errors import InputError
from timm_advprop.models import base_of
from timm_advprop.norms import num_aux_norms
from timm_advprop.weights import Publication, open_publication


@pytest.fixture
def opened(monkeypatch):
    """The folders that are opened, one entry each time."""
    folders, in_folder = [], Publication.in_folder
    monkeypatch.setattr(Publication, 'in_folder', lambda folder: folders.append(folder) or in_folder(folder))
    return folders


@pytest.mark.parametrize('kwargs', [
    {}, dict(num_classes=7), dict(num_classes=0), dict(in_chans=1), dict(features_only=True),
    dict(features_only=True, feature_cls='hook', in_chans=1),
], ids=str)
@pytest.mark.parametrize('name', SMALL_VARIANTS)
def test_published_auxiliary_norms_load_whatever_is_adapted(name, kwargs, published, opened):
    folder, state = published(name, num_aux=2)
    model = create_model(f'local-dir:{folder}', **kwargs)
    assert opened == [str(folder)]
    assert num_aux_norms(model) == 2
    names = {key.replace('.', '_'): key for key in state}  # features_only makes stem.0 stem_0, or body.stem.0
    main, aux = split_state_dict(model.state_dict())
    assert aux and all(
        torch.equal(value, state[names[key.removeprefix('body.').replace('.', '_')]]) for key, value in aux.items())
    if not kwargs:
        assert equal_states(model.state_dict(), state)
    plain = read_folder(folder, **kwargs).state_dict()
    assert main.keys() == plain.keys()
    classifier = 'num_classes' in kwargs and f'{model.pretrained_cfg["classifier"]}.'  # a new one: random values
    assert all(torch.equal(value, plain[key]) for key, value in main.items()
               if not (classifier and key.startswith(classifier)))


def test_a_publication_that_is_open_is_not_opened_again(published, opened):
    folder, state = published('test_resnet_ap')
    publication = open_publication('local-dir', str(folder))
    model = create_model(publication)
    assert opened == [str(folder)]
    assert equal_states(model.state_dict(), state)
    assert equal_states(dict(sorted(publication.load_state_dict().items())), dict(sorted(state.items())))


def test_model_does_not_keep_the_publication(published):
    folder, state = published('test_resnet_ap', num_classes=7)
    model = create_model(f'local-dir:{folder}')
    assert not any(isinstance(value, Publication) for value in getattr(model, '_model_args', {}).values())
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert equal_states(copied.state_dict(), state)
    assert model.pretrained_cfg['file'] == str(folder)
    assert model.num_classes == 7


def test_an_overlay_that_leads_elsewhere_wins_over_the_publication(published, save_weights, tmp_path):
    folder, _ = published('test_resnet_ap')
    file, state = save_weights('test_resnet_ap', path=tmp_path / 'others.pt')
    overlay = dict(source=None, file=None, state_dict=state)
    assert equal_states(create_model(f'local-dir:{folder}', pretrained_cfg_overlay=overlay).state_dict(), state)


def test_published_weights_are_not_loaded_where_that_is_asked_for(published):
    folder, state = published('test_resnet_ap', num_aux=2)
    model = create_model(f'local-dir:{folder}', pretrained=False)
    assert num_aux_norms(model) == 2
    assert aux_equals_main(model)
    assert not torch.equal(model.state_dict()['bn1.weight'], state['bn1.weight'])


def test_plain_model_of_a_publication(published, opened):
    folder, state = published('test_resnet_ap')
    model = create_model(f'local-dir:{folder}', num_aux=0)
    assert opened == [str(folder)]
    assert not has_split_norm(model)
    assert equal_states(model.state_dict(), split_state_dict(state)[0])
    assert 'state_dict' not in model.pretrained_cfg


def test_other_number_of_auxiliary_norms_than_published_is_refused_if_less_and_filled_if_more(published):
    folder, state = published('test_resnet_ap', num_aux=2)
    with pytest.raises(InputError, match=r'auxiliary norms of .* do not fit test_resnet, such as \S+aux_bn\.1'):
        create_model(f'local-dir:{folder}', num_aux=1)
    model = create_model(f'local-dir:{folder}', num_aux=3)
    assert equal_states({key: model.state_dict()[key] for key in state}, state)
    assert torch.equal(model.bn1.aux_bn[2].running_mean, state['bn1.running_mean'])


def test_registered_name_is_timms(variant):
    torch.manual_seed(1)
    expected = timm.create_model(variant, num_aux=2)
    torch.manual_seed(1)
    assert equal_states(create_model(variant, num_aux=2).state_dict(), expected.state_dict())


def test_publication_of_another_model_is_refused(published):
    folder, _ = published('test_resnet_ap')
    with pytest.raises(InputError, match='holds test_resnet, not test_efficientnet, the base of test_efficientnet_ap'):
        timm.create_model('test_efficientnet_ap', pretrained=True,
                          pretrained_cfg_overlay=dict(source='local-dir', file=str(folder)))
    assert base_of('test_efficientnet_ap') == 'test_efficientnet'
