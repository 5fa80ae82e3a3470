"""Publishing is one commit, and no more, whatever goes wrong on the way."""
import json
import time

import pytest
import timm
import torch
from huggingface_hub import HfApi

import timm_advprop
from tests.hub.publishing import RECIPE, REPO, TOKEN, equal_states, published, state_of
from timm_advprop.errors import InputError
from timm_advprop.hub import push_to_hub


def test_publishing_the_same_again_makes_no_commit(hub, split_model):
    assert push_to_hub(split_model, REPO) == push_to_hub(split_model, REPO)
    assert len(hub.commits(REPO)) == 2


def test_publication_without_auxiliary_norms_removes_former_ones(hub, split_model):
    push_to_hub(split_model, REPO, recipe=RECIPE)
    assert {'aux.safetensors', 'args.yaml'} <= published(hub).keys()
    push_to_hub(timm_advprop.strip_aux(split_model), REPO)
    assert not {'aux.safetensors', 'args.yaml'} & published(hub).keys()
    assert json.loads(published(hub)['config.json'])['timm_advprop']['num_aux'] == 0
    timm_advprop.create_model(f'hf-hub:{REPO}')


def test_branch_and_private_repository_are_made(hub, split_model):
    push_to_hub(split_model, REPO, private=True, revision='v2')
    assert hub.repos[REPO].private
    assert 'model.safetensors' in published(hub, revision='v2')
    assert 'model.safetensors' not in published(hub)
    model = timm_advprop.create_model(f'hf-hub:{REPO}@v2')
    assert equal_states(model.state_dict(), split_model.state_dict())


@pytest.mark.parametrize('pattern, status', [
    ('POST .*/preupload/', 500),
    ('POST .*/objects/batch', 503),
    ('PUT /lfs/', 500),
    ('PUT /lfs/', None),
    ('POST .*/commit/', 500),
    ('POST .*/commit/', 400),
    ('POST .*/commit/', 403),
    ('POST .*/commit/', None),
    ('POST .*/validate-yaml', None),
])
def test_failed_publication_leaves_the_repository_as_it_was(pattern, status, hub, split_model):
    push_to_hub(split_model, REPO)
    before = state_of(hub)
    with torch.no_grad():
        split_model.fc.weight.add_(1)
    hub.fail(pattern, times=100, status=status)
    with pytest.raises(InputError, match=f'^Cannot publish {REPO}: .*No file of {REPO} was changed') as error:
        push_to_hub(split_model, REPO)
    assert '\n' not in str(error.value) and TOKEN not in str(error.value)
    assert state_of(hub) == before
    assert sum('/commit/' in request for request in hub.requests) <= 5  # retried, with a bound


@pytest.mark.parametrize('status, effect', [(None, 'after'), (None, 'before'), (503, 'before'), (429, 'before')])
@pytest.mark.parametrize('times', [1, 2])
def test_commit_whose_answer_is_an_error_is_made_once(times, status, effect, hub, split_model):
    hub.fail('POST .*/commit/', times=times, status=status, effect=effect)
    url = push_to_hub(split_model, REPO)
    assert len(hub.commits(REPO)) == 2
    assert url.endswith(hub.commits(REPO)[-1].sha)


def test_commit_that_only_deletes_is_made_in_spite_of_an_error(hub, split_model):
    push_to_hub(split_model, REPO)
    hub.add_repo(REPO, {**published(hub), 'pytorch_model.bin': b'former weights'})
    hub.fail('POST .*/commit/', status=503)
    push_to_hub(split_model, REPO)
    assert 'pytorch_model.bin' not in published(hub)


def test_what_fails_once_is_tried_again(hub, split_model):
    for pattern in ('GET /api/whoami', 'POST /api/repos/create', f'GET /api/models/{REPO}', 'GET .*/config.json'):
        hub.fail(pattern, status=503)
    hub.fail('POST /api/repos/create', effect='after')
    push_to_hub(split_model, REPO)
    assert equal_states(timm_advprop.create_model(f'hf-hub:{REPO}').state_dict(), split_model.state_dict())
    assert len(hub.commits(REPO)) == 2


def test_model_without_norms_is_published(hub):
    model = timm.create_model('test_nfnet', num_classes=3)
    push_to_hub(model, REPO)
    assert equal_states(timm_advprop.create_model(f'hf-hub:{REPO}', num_aux=0).state_dict(), model.state_dict())


@pytest.mark.parametrize('name, kwargs', [
    ('test_vit_ap', dict(img_size=64)), ('test_resnet_ap', dict(global_pool='max')),
    ('test_resnet', dict(global_pool='', num_classes=0))])
def test_model_arguments_are_published(name, kwargs, hub):
    model = timm.create_model(name, **kwargs).eval()
    push_to_hub(model, REPO, model_kwargs=kwargs)
    images = torch.randn(1, 3, 64, 64)
    for loaded in (timm_advprop.create_model(f'hf-hub:{REPO}'), timm.create_model(f'hf-hub:{REPO}', pretrained=True)):
        torch.testing.assert_close(loaded.eval()(images), model(images))


def test_lost_answer_and_a_hub_that_cannot_be_asked(hub, split_model):
    push_to_hub(split_model, REPO)
    with torch.no_grad():
        split_model.fc.weight.add_(1)
    hub.fail('POST .*/commit/', effect='after')
    hub.fail('HEAD .*/model.safetensors', times=100, status=503)
    with pytest.raises(InputError, match='Whether the commit was made is not known: look at http'):
        push_to_hub(split_model, REPO)
    assert len(hub.commits(REPO)) == 3


def test_change_by_somebody_else_is_not_overwritten(hub, split_model, monkeypatch):
    push_to_hub(split_model, REPO)
    with torch.no_grad():
        split_model.fc.weight.add_(1)
    hub.fail('POST .*/commit/', status=503)
    monkeypatch.setattr(time, 'sleep', lambda seconds: hub.add_repo(REPO, {'notes.txt': 'from elsewhere'}))
    with pytest.raises(InputError, match='was changed meanwhile: push again'):
        push_to_hub(split_model, REPO)
    assert set(published(hub)) >= {'notes.txt'} and len(hub.commits(REPO)) == 3


def test_commit_of_somebody_else_is_not_taken_for_ours(hub, split_model, monkeypatch):
    push_to_hub(split_model, REPO)
    with torch.no_grad():
        split_model.fc.weight.add_(1)
    preupload = HfApi.preupload_lfs_files

    def preupload_while_somebody_commits(*args, **kwargs):
        preupload(*args, **kwargs)
        hub.add_repo(REPO, {**published(hub), 'notes.txt': 'from elsewhere'})  # files of all our names, not ours

    monkeypatch.setattr(HfApi, 'preupload_lfs_files', preupload_while_somebody_commits)
    with pytest.raises(InputError, match='was changed meanwhile: push again'):
        push_to_hub(split_model, REPO)
    assert {commit.message for commit in hub.commits(REPO)[2:]} == {'Commit of the test'}
