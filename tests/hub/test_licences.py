"""Licences: the Hub knows some by name and refuses a card with another."""
import json

import pytest
import timm
from huggingface_hub import ModelCard

from tests.hub.publishing import REPO, published
from timm_advprop import create_model, push_to_hub
from timm_advprop.hub.licences import licence_metadata
from timm_advprop.hub.release import release_model


def front_matter(hub, repo_id=REPO):
    data = ModelCard(published(hub, repo_id)['README.md'].decode()).data
    return data.license, data.license_name


@pytest.mark.parametrize('name, expected', [
    ('apache-2.0', dict(license='apache-2.0')),
    ('Apache-2.0', dict(license='apache-2.0')),  # SPDX's
    ('openrail++', dict(license='openrail++')),
    ('dinov3-license', dict(license='other', license_name='dinov3-license')),  # timm's
    ('My Licence, v1.0', dict(license='other', license_name='my-licence-v1.0')),
], ids=str)
def test_a_licence_is_one_of_the_hubs_or_another_with_a_name(name, expected):
    assert licence_metadata(name) == expected


def test_the_hub_takes_the_card_of_weights_under_a_licence_that_it_does_not_know(hub):
    model = timm.create_model('test_resnet_ap', num_classes=3)
    model.pretrained_cfg['license'] = 'cvnets-license'  # as timm's weights of MobileViT have it
    push_to_hub(model, REPO)
    assert front_matter(hub) == ('other', 'cvnets-license')
    assert b'\n\ncvnets-license. Made with' in published(hub)['README.md']


def test_a_licence_goes_from_a_publication_to_the_next(hub):
    push_to_hub(timm.create_model('test_resnet_ap', num_classes=3), REPO, license='cc-by-nc-4.0')
    assert json.loads(published(hub)['config.json'])['pretrained_cfg']['license'] == 'cc-by-nc-4.0'
    tuned = create_model(f'hf-hub:{REPO}')
    assert release_model(tuned, dict(regime='vanilla', pretrained=True)).license == 'cc-by-nc-4.0'
    push_to_hub(tuned, 'user/tuned')
    assert front_matter(hub, 'user/tuned') == ('cc-by-nc-4.0', None)
