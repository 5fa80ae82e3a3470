"""Fixtures that the tests of models share."""
import json

import pytest
import timm
from safetensors.torch import save_file
from timm.models import save_for_hf

from tests.models.split_states import SMALL_VARIANTS
from timm_advprop import split_state_dict
from timm_advprop.models import base_of


@pytest.fixture(params=SMALL_VARIANTS)
def variant(request):
    return request.param


@pytest.fixture
def save_weights(tmp_path, randomize_norms):
    """A function that saves weights of a registered model whose norms are not at their default initialisation."""
    def save(name, path=tmp_path / 'weights.safetensors', **kwargs):
        state = randomize_norms(timm.create_model(name, **kwargs)).state_dict()
        save_file(state, path)
        return str(path), state
    return save


@pytest.fixture
def published(tmp_path, randomize_norms):
    """A function that publishes a model of randomised norms in a folder, and returns the folder and the state dict."""
    def publish(name, num_aux=1, **kwargs):
        state = randomize_norms(timm.create_model(name, num_aux=num_aux, **kwargs)).state_dict()
        main, aux = split_state_dict(state)
        plain = timm.create_model(base_of(name), **kwargs)
        plain.load_state_dict(main)
        save_for_hf(plain, tmp_path, model_args=kwargs, safe_serialization=True)
        save_file(aux, tmp_path / 'aux.safetensors')
        config = tmp_path / 'config.json'
        config.write_text(json.dumps({**json.loads(config.read_text()), 'timm_advprop': dict(num_aux=num_aux)}))
        return tmp_path, state
    return publish
