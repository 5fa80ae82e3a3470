"""The model card: measured results, the recipe, and no secrets."""
import json
import logging
import re

import pytest
import timm
import torch
from huggingface_hub import ModelCard
from timm.models import save_for_hf

import timm_advprop
from tests.hub.publishing import REPO, RUN, equal_states, published
from timm_advprop.cli.train import parse_args
from timm_advprop.errors import InputError
from timm_advprop.hub import push_to_hub
from timm_advprop.hub.card import render_card
from timm_advprop.hub.release import release_model
from timm_advprop.weights import weights_digest


def test_checkpoint_is_published_with_recipe_summary_and_averaged_weights(hub, checkpoint, tmp_path):
    path, model = checkpoint(averaged=True)
    push_to_hub(path, REPO)
    assert equal_states(timm_advprop.create_model(f'hf-hub:{REPO}').state_dict(), model.state_dict())
    files = published(hub)
    assert files['summary.csv'] == (path.parent / 'summary.csv').read_bytes()
    assert str(tmp_path).encode() not in b''.join(files[name] for name in ('args.yaml', 'README.md', 'config.json'))
    (tmp_path / 'args.yaml').write_bytes(files['args.yaml'])
    recipe = parse_args(['--config', str(tmp_path / 'args.yaml'), '--data-dir', str(tmp_path / 'digits')]).given
    own = ('config', 'device', 'data_dir')
    expected = parse_args(['--data-dir', str(tmp_path / 'digits'), *RUN]).given
    assert {name: recipe[name] for name in recipe if name not in own} == {
        name: expected[name] for name in expected if name not in own}
    assert json.loads(files['config.json'])['pretrained_cfg']['input_size'] == [3, 32, 32]  # that of the run
    details = json.loads(files['config.json'])['timm_advprop']
    assert details['regime'] == 'advprop' and details['averaged']
    assert details['aux_norms'] == [dict(
        trained_on='adversarial images', attack='pgd', eps_px=1.0, alpha_px=1.0, steps=1, target='random',
        random_start=0.8)]


def test_card_shows_what_was_measured(hub, checkpoint):
    path, model = checkpoint()
    row = dict(model='test_resnet_ap', weights=weights_digest(model.state_dict(), 'aux'), route='aux', top1='70.5',
               top5='', adv_attack='PGD-10, eps 4/255', adv_top1='31.25', adv_top5='', dataset='digits', split='test')
    push_to_hub(path, REPO, results=[row])
    text = published(hub)['README.md'].decode()
    for line in ('| clean | main | 71.50 | 93.25 | digits | validation | train.py |',
                 '| clean | aux | 70.50 | – | digits | test | validate.py |',
                 '| under PGD-10, eps 4/255 | aux | 31.25 | – | digits | test | validate.py |',
                 '| 1 | adversarial images | PGD | 1/255 | 1/255 | 1 | random | 0.8 |',
                 'timm-advprop-train --config args.yaml --data-dir DATA',
                 f"timm.create_model('hf-hub:{REPO}', pretrained=True)",
                 f"timm_advprop.create_model('hf-hub:{REPO}')"):
        assert line in text
    card = ModelCard(text).data
    assert (card.library_name, card.license, card.datasets) == ('timm', 'apache-2.0', ['digits'])
    assert {(entry.metric_name, entry.metric_value, entry.dataset_split) for entry in card.eval_results} == {
        ('Top-1, clean, main norms (percent)', 71.5, 'validation'),
        ('Top-5, clean, main norms (percent)', 93.25, 'validation'),
        ('Top-1, clean, aux norms (percent)', 70.5, 'test'),
        ('Top-1, under PGD-10, eps 4/255, aux norms (percent)', 31.25, 'test'),
    }


def test_card_shows_suites_of_the_published_weights_alone(hub, checkpoint):
    path, model = checkpoint()
    of = dict(model='test_resnet_ap', route='main', weights=weights_digest(model.state_dict()), condition='',
              severity='', dataset='photos', split='validation', top5='')
    rows = [
        dict(of, suite='clean', top1='72', num_images='100'),
        dict(of, suite='corruptions', condition='fog', severity='3', top1='11'),
        dict(of, suite='corruptions', condition='mean', top1='61'),
        dict(of, suite='imagenet-a', top1='6', dataset='imagenet-a', split=''),
        dict(of, suite='attacks', condition='pgd', severity='4.0', top1='41', adv_attack='PGD-20, eps 4/255'),
        dict(of, suite='autoattack', condition='apgd-ce', top1='39', adv_attack='AutoAttack, eps 4/255'),
        dict(of, suite='autoattack', condition='total', severity='4.0', top1='37', adv_attack='AutoAttack, eps 4/255'),
        dict(of, suite='clean', top1='99', model='resnet50', weights='0' * 16),
    ]
    push_to_hub(path, REPO, results=rows, dataset='digits')
    text = published(hub)['README.md'].decode()
    for line in ('| clean | main | 71.50 | 93.25 | digits | validation | train.py |',  # of all images
                 '| clean | main | 72.00 | – | digits | validation, 100 images | validate.py |',
                 '| corruptions | main | 61.00 | – | digits | validation | validate.py |',
                 '| imagenet-a | main | 6.00 | – | imagenet-a | test | validate.py |',
                 '| under PGD-20, eps 4/255 | main | 41.00 | – | digits | validation | validate.py |',
                 '| under AutoAttack, eps 4/255 | main | 37.00 | – | digits | validation | validate.py |'):
        assert line in text
    assert 'Corruptions are those of ImageNet-C' in text and 'the norms that its images pass' in text
    assert all(f'| {other}.00 |' not in text for other in ('11', '39', '99'))
    with pytest.raises(InputError, match='results are of resnet50'):
        push_to_hub(path, REPO, results=rows[-1:])


def test_code_on_a_card_runs_and_leaves_the_model_as_it_was_published(hub, split_model):
    push_to_hub(split_model, REPO)
    blocks = re.findall('```python\n(import timm.*?)```', published(hub)['README.md'].decode(), re.S)
    assert len(blocks) == 2
    for block in blocks:
        names = dict(images=torch.randn(2, 3, 32, 32))
        exec(block, names)
        state = names['model'].state_dict()
        assert not names['model'].training and all(
            torch.equal(value, split_model.state_dict()[name]) for name, value in state.items())


def test_card_of_a_model_alone_has_no_numbers_that_were_not_measured(hub, split_model):
    push_to_hub(split_model, REPO)
    text = published(hub)['README.md'].decode()
    assert 'Measured results' not in text and 'Training' not in text and 'None' not in text
    assert ModelCard(text).data.eval_results is None


@pytest.mark.parametrize('change, message', [
    (dict(model='test_vit'), 'results are of test_vit, the published model is test_resnet'),
    (dict(model='hf-hub:user/other', weights='0' * 16), 'are of other weights .* validate with --use-ema'),
    (dict(route='aux'), 'are of other weights'),
    (dict(weights=None), 'do not say which model and weights'),
    (dict(model=None), 'do not say which model and weights'),
    (dict(top1='many'), 'lack a number'),
    (dict(top1='nan'), 'not accuracies in percent'),
    (dict(adv_attack='PGD'), 'lack a number'),
])
def test_results_of_something_else_are_refused(change, message, hub, checkpoint):
    path, model = checkpoint(averaged=True)
    row = dict(model='test_resnet_ap', top1=1., route='main', weights=weights_digest(model.state_dict()))
    for route in ('main', 'clean'):  # as the version before called it
        push_to_hub(path, 'user/right', results=[dict(row, route=route)])
    row.update(change)
    with pytest.raises(InputError, match=message):
        push_to_hub(path, REPO, results=[row])
    assert REPO not in hub.repos


def test_card_names_the_images_of_each_norm():
    model = timm.create_model('test_resnet_ap', num_aux=5)
    release = release_model(model, dict(regime='advprop', adv_source=[
        'pgd eps=2 norm=l2 steps=3', 'augmix severity=5', 'corruption names=[fog,snow]', 'gaussian-noise',
        'package.module:make']))
    text = render_card(release, REPO, [])
    for line in ('| 1 | adversarial images (norm l2) | PGD | 2/255 | 1/255 | 3 | random | 0.8 |',
                 '| 2 | augmix (width 3; depth -1; severity 5; alpha 1) | – | – | – | – | – | – |',
                 '| 3 | corruption (severities 1, 3; names fog, snow) | – | – | – | – | – | – |',
                 '| 4 | gaussian-noise | – | 4/255 | – | – | – | – |',
                 '| 5 | images of package.module:make | – | – | – | – | – | – |'):
        assert line in text
    json.dumps(release.aux_norms)  # for config.json


def test_numbers_of_weights_that_were_not_validated_are_left_out(hub, checkpoint):
    path, _ = checkpoint(averaged=True)
    content = torch.load(path, weights_only=False)
    content['args'].model_ema_force_cpu = True  # the program validates the weights themselves then
    torch.save(content, path)
    push_to_hub(path, REPO)
    assert '71.5' not in published(hub)['README.md'].decode()


@pytest.mark.parametrize('secret', ['a-token-like-no-other', 'hf_' + 'a' * 34])
@pytest.mark.parametrize('as_argument', [True, False])
def test_token_is_nowhere(secret, as_argument, hub, use_hub, checkpoint, caplog, capsys):
    caplog.set_level(logging.DEBUG)
    hub.tokens = {secret: 'user'}
    use_hub(hub, token=None if as_argument else secret)
    path, _ = checkpoint(summary=f'epoch,eval_top1,note\n3,71.5,{secret}\n')
    content = torch.load(path, weights_only=False)
    vars(content['args']).update(
        dataset='wds/https://me:password@host/data', val_split=secret, opt_kwargs=dict(note=secret),
        adv_source=f'package:{secret}')  # named on the card and in config.json
    torch.save(content, path)
    hub.fail('POST .*/commit/', status=503)
    push_to_hub(path, REPO, message=f'With {secret}', token=secret if as_argument else None)
    with pytest.raises(InputError) as error:
        hub.fail('POST .*/commit/', status=400)
        push_to_hub(timm.create_model('test_resnet', num_classes=2), REPO, token=secret if as_argument else None)
    texts = b''.join(value for name, value in published(hub).items() if not name.endswith('.safetensors')).decode()
    output = capsys.readouterr()
    own = '\n'.join(record.getMessage() for record in caplog.records if not record.name.startswith('httpcore'))
    for text in (texts, hub.commits(REPO)[-1].message, output.out, output.err, own, str(error.value)):
        assert secret not in text and 'me:password' not in text
    assert hub.commits(REPO)[-1].message == 'With <token>'


def test_folders_of_the_machine_are_nowhere(hub, checkpoint, tmp_path):
    path, model = checkpoint()
    published_folder = tmp_path / 'home of me' / 'plain'
    of_machine = str(tmp_path / 'home of me')
    save_for_hf(timm.create_model('test_resnet'), published_folder, safe_serialization=True)
    content = torch.load(path, weights_only=False)
    vars(content['args']).update(
        dataset=f'hfds/{of_machine}/digits', val_split=f'{of_machine}/{{0..3}}.tar', data_dir=of_machine,
        class_map=f'{of_machine}/labels.txt', model=f'local-dir:{published_folder}', output=of_machine,
        initial_checkpoint=f'{of_machine}/first.pth', pretrained_path=f'{of_machine}/first.pth',
        resume=f'{of_machine}/last.pth.tar', opt_kwargs=dict(file=f'{of_machine}/x'))
    torch.save(content, path)
    row = dict(model='test_resnet_ap', weights=weights_digest(model.state_dict()), route='main', top1='70.5',
               dataset=f'{of_machine}/digits', split=f'{of_machine}/{{4..5}}.tar')  # of the version before
    push_to_hub(path, REPO, results=[row])
    files = published(hub)
    texts = {name: value.decode() for name, value in files.items() if not name.endswith('.safetensors')}
    assert {'args.yaml', 'summary.csv', 'config.json', 'README.md'} <= texts.keys()
    for name, text in texts.items():
        assert 'home of me' not in text and str(tmp_path) not in text, name
    assert ModelCard(texts['README.md']).data.datasets == ['digits']
    for line in ('timm-advprop-train --config args.yaml --dataset hfds/DATA\n', 'The run began with `first.pth`',
                 '| clean | main | 70.50 | – | digits | {4..5}.tar | validate.py |'):
        assert line in texts['README.md']


@pytest.mark.parametrize('dataset, flag', [
    ('', ' --data-dir DATA'), ('wds/digits', ' --data-dir DATA'), ('torch/cifar10', ' --data-dir DATA'),
    ('hfds/mnist', ''), ('HFIDS/user/name', ''), ('tfds/mnist', ''), ('hfids//data/digits', ' --dataset hfids/DATA'),
], ids=str)
def test_the_command_on_a_card_asks_for_the_data_that_a_reader_needs(dataset, flag):
    release = release_model(timm.create_model('test_resnet'), dict(regime='vanilla', dataset=dataset))
    assert f'timm-advprop-train --config args.yaml{flag}\n' in render_card(release, REPO, [])


def test_recipe_has_nothing_of_one_machine():
    release = release_model(timm.create_model('test_resnet'), dict(
        model='resnet18_ap', data_dir='/data/imagenet', output='out', initial_checkpoint='/home/me/w.pth', lr=0.1,
        rank=0, push_to_hub='user/name', class_map=('/a/b.txt',), resume='last.pth.tar', note='hf_' + 'a' * 34,
        teacher='local-dir:/home/me/teacher', dataset='wds/https://host/a/b'))
    assert release.published_recipe == dict(
        model='resnet18_ap', initial_checkpoint='w.pth', lr=0.1, class_map=['b.txt'], note='<token>',
        teacher='local-dir:teacher', dataset='wds/https://host/a/b')
