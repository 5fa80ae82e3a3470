"""What the tests of the Hub share: names, a run's flags, and looks at a repository."""

import pytest
import torch

TOKEN = 'hf_loopback_token_of_user'


REPO = 'user/model'


OVERLAY = dict(pretrained=True, pretrained_cfg_overlay=dict(hf_hub_id=REPO))


RECIPE = dict(
    regime='advprop', model='test_resnet_ap', adv_attack='pgd', adv_eps=[4.], adv_alpha=1., adv_steps=None,
    adv_target='random', adv_random_start=0.8)


RUN = ['--model', 'test_resnet_ap', '--num-classes', '10', '--img-size', '32', '--workers', '0', '--device', 'cpu',
       '--batch-size', '16', '--epochs', '1', '--warmup-epochs', '0', '--adv-eps', '1', '--log-interval', '100']


def url_template(hub):
    """Where the client finds the files of a Hub."""
    return hub.endpoint + '/{repo_id}/resolve/{revision}/{filename}'


def equal_states(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def published(hub, repo_id=REPO, revision='main'):
    """Files of the head of a branch."""
    return hub.commits(repo_id, revision)[-1].files


def files_asked_for(hub):
    return {request.split('/')[-1] for request in hub.requests if '/resolve/' in request}


def state_of(hub):
    return {name: {branch: [commit.sha for commit in commits] for branch, commits in repo.branches.items()}
            for name, repo in hub.repos.items()}


def error_line(capsys, function, *args):
    """The one line with which a program ends."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        function(*args)
    assert exit_info.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error: ')]
    assert len(lines) == 1
    return lines[0]
