"""The programs: push, pull, dry runs, and training that publishes."""
import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import timm_advprop
from tests.hub.publishing import REPO, RUN, equal_states, error_line, published
from timm_advprop.cli.hub import main as hub_main
from timm_advprop.cli.train import main as train_main
from timm_advprop.cli.validate import main as validate_main
from timm_advprop.engine.loop import Trainer
from timm_advprop.engine.results_file import read_results
from timm_advprop.hub import layout, push_to_hub
from timm_advprop.hub.card_pictures import draw_adversarial_images
from timm_advprop.hub.release import open_release, release_model
from timm_advprop.weights import publication


def test_dry_run_writes_the_folder_with_pictures_and_sends_nothing(
        loopback_hub, use_hub, checkpoint, few_digits, tmp_path, capsys):
    use_hub(loopback_hub, token=None)
    path, model = checkpoint()
    content = torch.load(path, weights_only=False)
    content['args'].data_dir = few_digits
    torch.save(content, path)
    hub_main(['push', str(path), REPO, '--dry-run', '--to', str(tmp_path / 'folder')])
    out = capsys.readouterr().out
    card = (tmp_path / 'folder/README.md').read_text()
    assert card in out and 'Nothing was sent' in out
    for picture in ('norms.png', 'adversarial.png'):
        assert (tmp_path / 'folder' / picture).read_bytes()[:4] == b'\x89PNG' and f'({picture})' in card
    assert equal_states(timm_advprop.create_model(f'local-dir:{tmp_path / "folder"}').state_dict(), model.state_dict())
    draw_adversarial_images(open_release(path), 1, str(tmp_path / 'again.png'))
    assert (tmp_path / 'again.png').read_bytes() == (tmp_path / 'folder/adversarial.png').read_bytes()
    assert not any(request.startswith('POST') for request in loopback_hub.requests)


def test_dry_run_replaces_nothing_but_a_former_publication(hub, split_model, tmp_path, capsys):
    path, folder = tmp_path / 'weights.safetensors', tmp_path / 'run'
    save_file(split_model.state_dict(), path)
    push = ['push', str(path), REPO, '--model', 'test_resnet_ap', '--dry-run', '--to', str(folder)]
    folder.mkdir()
    (folder / 'summary.csv').write_text('of a run')
    assert 'holds something else than a publication' in error_line(capsys, hub_main, push)
    (folder / 'summary.csv').rename(tmp_path / 'elsewhere')
    hub_main(push)
    (folder / 'summary.csv').write_text('of a former publication')
    assert 'does not fit' in error_line(capsys, hub_main, [*push, '--model-kwargs', 'num_aux=3', 'num_classes=4'])
    assert (folder / 'summary.csv').exists()
    hub_main(push)
    assert not (folder / 'summary.csv').exists()


def test_without_matplotlib_the_pictures_are_left_out(split_model, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
    files = layout.write_publication(release_model(split_model), str(tmp_path), REPO)
    assert 'A picture is left out: Pictures need matplotlib' in caplog.text
    assert 'aux.safetensors' in files and 'norms.png' not in files
    assert 'norms.png' not in (tmp_path / 'README.md').read_text()


def test_pull_writes_one_file_with_all_norms(hub, split_model, tmp_path, monkeypatch, capsys):
    (tmp_path / 'work').mkdir()
    monkeypatch.chdir(tmp_path / 'work')
    push_to_hub(split_model, REPO)
    hub_main(['pull', REPO])
    assert equal_states(load_file('model.safetensors'), split_model.state_dict())
    assert 'exists: remove it' in error_line(capsys, hub_main, ['pull', REPO])
    assert 'give it that ending' in error_line(capsys, hub_main, ['pull', REPO, '--to', 'model.pth'])
    assert 'Cannot write' in error_line(capsys, hub_main, ['pull', REPO, '--to', 'missing/model.safetensors'])
    assert [file.name for file in Path().iterdir()] == ['model.safetensors']


def test_pull_reads_each_file_once_and_proves_that_it_loads_before_it_writes(
        hub, split_model, tmp_path, monkeypatch, capsys):
    push_to_hub(split_model, REPO)
    read = []
    for function in (publication.read_config, publication.load_file):
        monkeypatch.setattr(publication, function.__name__, lambda path, *args, function=function: (
            read.append(Path(path).name), function(path, *args))[1])
    old_mask = os.umask(0o022)
    try:
        hub_main(['pull', REPO, '--to', str(tmp_path / 'a.safetensors')])
    finally:
        os.umask(old_mask)
    assert sorted(read) == ['aux.safetensors', 'config.json', 'model.safetensors']
    assert (tmp_path / 'a.safetensors').stat().st_mode & 0o777 == 0o644  # others may read it

    folder = tmp_path / 'published'
    folder.mkdir()
    layout.write_publication(release_model(split_model), str(folder), REPO)
    config = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps(dict(config, architecture='test_vit')))
    error_line(capsys, hub_main, ['pull', f'local-dir:{folder}', '--to', str(tmp_path / 'b.safetensors')])
    assert not list(tmp_path.glob('b.safetensors*'))


def test_checkpoint_that_does_not_say_its_model(hub, split_model, tmp_path, capsys):
    save_file(split_model.state_dict(), tmp_path / 'weights.safetensors')
    push = ['push', str(tmp_path / 'weights.safetensors'), REPO]
    assert 'give --model' in error_line(capsys, hub_main, push)
    hub_main([*push, '--model', 'test_resnet_ap', '--license', 'mit', '--message', 'By hand'])
    assert equal_states(timm_advprop.create_model(f'hf-hub:{REPO}').state_dict(), split_model.state_dict())
    assert hub.commits(REPO)[-1].message == 'By hand'
    assert 'license: mit' in published(hub)['README.md'].decode()


def test_train_pushes_its_best_checkpoint_and_trains_on(hub, few_digits, tmp_path, capsys):
    data = ['--data-dir', few_digits, '--output', str(tmp_path), '--workers', '0', '--device', 'cpu', '-b', '16',
            '--epochs', '1', '--warmup-epochs', '0', '--adv-eps', '1']
    train_main([*data, *RUN, '--experiment', 'run', '--model-ema', '--push-to-hub', REPO, '--hub-private'])
    out = capsys.readouterr().out
    assert f'Published {REPO}: ' in out and '--result' in out
    assert hub.repos[REPO].private
    best = torch.load(tmp_path / 'run/model_best.pth.tar', weights_only=False)
    assert equal_states(timm_advprop.create_model(f'hf-hub:{REPO}').state_dict(), best['state_dict_ema'])
    top1 = f'{best["metric"]:.2f}'
    assert f'| clean | main | {top1} |' in published(hub)['README.md'].decode()
    assert 'lr: null\n' in published(hub)['args.yaml'].decode()  # as given: the run computed one

    train_main([*data, '--model', f'hf-hub:{REPO}', '--pretrained', '--experiment', 'on', '--lr', '1e-9'])
    trained_on = torch.load(tmp_path / 'on/last.pth.tar', weights_only=False)['state_dict']
    assert torch.allclose(trained_on['conv1.0.weight'], best['state_dict_ema']['conv1.0.weight'], atol=1e-5)
    assert trained_on['bn1.aux_bn.0.num_batches_tracked'] > best['state_dict_ema']['bn1.aux_bn.0.num_batches_tracked']
    push_to_hub(tmp_path / 'on/last.pth.tar', REPO)
    assert json.loads(published(hub)['config.json'])['architecture'] == 'test_resnet'

    results = tmp_path / 'results'
    validate_main(['--model', f'hf-hub:{REPO}', '--route', 'aux', '--data-dir', few_digits, '-j', '0',
                   '--device', 'cpu', '--results-file', str(results), '--results-format', 'json'])
    row, = read_results(str(results))
    assert (row['route'], row['dataset']) == ('aux', Path(few_digits).name)
    push_to_hub(tmp_path / 'on/last.pth.tar', REPO, results=[row])
    assert '| clean | aux |' in published(hub)['README.md'].decode()


def test_interrupted_training_is_not_published(hub, few_digits, tmp_path, monkeypatch, capsys):
    train_epoch = Trainer.train_epoch

    def interrupted_in_the_second(self, epoch, start=None):
        if epoch:
            signal.raise_signal(signal.SIGINT)
        return train_epoch(self, epoch, start)

    monkeypatch.setattr(Trainer, 'train_epoch', interrupted_in_the_second)
    with pytest.raises(SystemExit):
        train_main(['--data-dir', few_digits, '--output', str(tmp_path), '--experiment', 'run', *RUN, '--epochs', '2',
                    '--push-to-hub', REPO])
    assert (tmp_path / 'run/model_best.pth.tar').exists()
    assert '--result' in capsys.readouterr().out
    assert not hub.repos


def test_train_finds_out_before_the_training_that_it_cannot_push(hub, few_digits, tmp_path, use_hub, capsys):
    use_hub(hub, token=None)
    run = ['--data-dir', few_digits, '--output', str(tmp_path / 'out'), *RUN]
    assert 'no Hub token' in error_line(capsys, train_main, [*run, '--push-to-hub', REPO])
    use_hub(hub, token='hf_wrong' * 4)
    assert 'refuses the token' in error_line(capsys, train_main, [*run, '--push-to-hub', REPO])
    use_hub(hub)
    assert 'give user/name' in error_line(capsys, train_main, [*run, '--push-to-hub', 'name'])
    assert 'does not own' in error_line(capsys, train_main, [*run, '--push-to-hub', 'somebody/name'])
    assert not (tmp_path / 'out').exists()
    hub.fail('POST .*/commit/', status=400)
    line = error_line(capsys, train_main, [*run, '--experiment', 'run', '--push-to-hub', REPO])
    assert f'python -m timm_advprop.hub push {tmp_path / "out/run/model_best.pth.tar"} {REPO}' in line
