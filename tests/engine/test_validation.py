"""A validation run: every flag's result, compared with a model that is evaluated by hand on the same images."""
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn as nn
from PIL import Image
from sklearn.metrics import precision_recall_fscore_support
from timm.layers import apply_test_time_pool

import timm_advprop
from tests.engine.runs import equal_states, eval_settings
from timm_advprop.engine.tested_model import open_tested_model
from timm_advprop.engine.validation import open_test_images, read_valid_labels, validate
from timm_advprop.errors import InputError
from timm_advprop.norms import strip_aux
from timm_advprop.weights import weights_digest


def images_of(data, split='validation', size=32):
    """Normalised images in the order of timm's reader, resized with PIL alone, and labels."""
    files = sorted(Path(data, split).glob('*/*'), key=lambda file: (file.parent.name, file.name))
    pixels = [np.asarray(Image.open(file).convert('RGB').resize((size, size), Image.BICUBIC)) for file in files]
    images = torch.tensor(np.stack(pixels)).movedim(-1, 1).float() / 255
    return (images - .5) / .5, torch.tensor([int(file.parent.name) for file in files])


@pytest.fixture(scope='module')
def checkpoint(few_digits, tmp_path_factory):
    """Main norms that know some digits, aux norms that say other things, an average that says others again."""
    torch.manual_seed(0)
    model = timm.create_model('test_resnet_ap', num_classes=10).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    images, labels = images_of(few_digits, 'train')
    timm_advprop.norms.configure_batch_norm(model, momentum=.5)
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    average = {name: value.clone() for name, value in model.state_dict().items()}
    average['fc.weight'][5:] *= .1
    for norm in timm_advprop.norms.split_norms(model):
        for aux in norm.aux_bn:
            aux.load_state_dict(
                {name: value for name, value in norm.state_dict().items() if not name.startswith('aux_bn')})
            nn.init.uniform_(aux.weight, .5, 1.5)
    path = tmp_path_factory.mktemp('checkpoint') / 'last.pth'
    torch.save(dict(state_dict=model.state_dict(), state_dict_ema=average), path)
    return str(path)


@pytest.fixture
def model(checkpoint):
    model = timm.create_model('test_resnet_ap', num_classes=10)
    model.load_state_dict(torch.load(checkpoint)['state_dict'])
    return model.eval()


@pytest.fixture
def run(few_digits, checkpoint):
    def validate_with(**values):
        return validate(eval_settings(**{
            'data_dir': few_digits, 'checkpoint': checkpoint, 'crop_pct': 1., 'mean': [.5], 'std': [.5],
            'interpolation': 'bicubic', **values}))
    return validate_with


def accuracy(model, data, route='main', k=1, **kwargs):
    images, labels = images_of(data, **kwargs)
    with torch.no_grad():
        if timm_advprop.has_split_norm(model):
            timm_advprop.set_norm_route(model, route)
        best = model.eval()(images).topk(k).indices
    return round(100 * (best == labels.unsqueeze(1)).any(1).double().mean().item(), 4)


def test_the_reference_can_tell_models_apart(few_digits, checkpoint, model):
    averaged = timm.create_model('test_resnet_ap', num_classes=10)
    averaged.load_state_dict(torch.load(checkpoint)['state_dict_ema'])
    found = {accuracy(model, few_digits), accuracy(model, few_digits, 'aux'), accuracy(averaged, few_digits)}
    assert len(found) == 3 and all(10 < top1 < 100 for top1 in found)


def test_results(run, few_digits, model, checkpoint):
    results = run()
    assert results == dict(
        model='test_resnet_ap',
        top1=accuracy(model, few_digits), top1_err=pytest.approx(100 - accuracy(model, few_digits)),
        top5=accuracy(model, few_digits, k=5), top5_err=pytest.approx(100 - accuracy(model, few_digits, k=5)),
        param_count=round(sum(value.numel() for value in model.parameters()) / 1e6, 2), img_size=32, crop_pct=1.,
        interpolation='bicubic', route='main', dataset=Path(few_digits).name, split='validation',
        weights=weights_digest(model.state_dict(), 'main'), num_images=len(images_of(few_digits)[1]))
    assert list(results)[:9] == ['model', 'top1', 'top1_err', 'top5', 'top5_err', 'param_count', 'img_size',
                                 'crop_pct', 'interpolation']


@pytest.mark.parametrize('values', [
    dict(batch_size=7), dict(channels_last=True), dict(no_prefetcher=True), dict(torchscript=True),
    dict(torchcompile='eager'), dict(num_classes=10), dict(fast_norm=True), dict(route='clean'), dict(seed=1),
    dict(crop_mode='squash'), dict(retry=True), dict(amp_dtype='bfloat16'), dict(crop_border_pixels=0),
], ids=str)
def test_what_must_not_change_the_result(run, values):
    assert run(**values) == run()


@pytest.mark.parametrize('values', [dict(amp=True, amp_dtype='bfloat16'), dict(model_dtype='bfloat16')], ids=str)
def test_lower_precision_is_that_of_the_model(run, few_digits, model, values):
    images, labels = images_of(few_digits)
    with torch.no_grad():
        if 'amp' in values:
            with torch.autocast('cpu', dtype=torch.bfloat16):
                output = model(images)
        else:
            output = model.bfloat16()(images.bfloat16())
    assert output.dtype == torch.bfloat16
    assert run(**values)['top1'] == round(100 * (output.argmax(1) == labels).double().mean().item(), 4)


def test_the_split_is_the_one_asked_for(run, few_digits, model):
    assert run(split='train')['top1'] == accuracy(model, few_digits, split='train') != run()['top1']


@pytest.mark.parametrize('num_samples', [1, 17, 10 ** 6])
def test_some_images_of_a_split(run, few_digits, model, num_samples):
    images, labels = images_of(few_digits)
    indices = [i * len(labels) // num_samples for i in range(num_samples)] if num_samples < len(labels) else slice(None)
    with torch.no_grad():
        right = model(images[indices]).argmax(1) == labels[indices]
    results = run(num_samples=num_samples)
    assert results['num_images'] == len(right)
    assert results['top1'] == round(100 * right.double().mean().item(), 4)
    if num_samples == 17:
        assert len(set(labels[indices].tolist())) == 10  # not the first ones, which are of two classes


def test_the_number_of_a_route_is_its_norms(run, few_digits):
    assert run(route='1') == run(route='aux') != run(route='0') == run(route='clean') == run()
    with pytest.raises(InputError, match='Route 2 needs 2 auxiliary norms, the model has 1'):
        run(route='2')


@pytest.mark.parametrize('values', [dict(batch_size=7), dict(workers=2)], ids=str)
def test_random_starts_do_not_follow_batches_and_workers(run, few_digits, values):
    settings = dict(adv_attack='pgd', adv_eps=8., adv_steps=2)
    torch.rand(7)  # nor what was drawn before
    assert run(**settings, **values) == run(**settings)


def test_images_are_of_the_size_asked_for(run, few_digits, model):
    assert run(img_size=24)['top1'] == accuracy(model, few_digits, size=24)
    assert run(img_size=24)['img_size'] == 24


def test_images_are_normalised_as_asked_for(run, few_digits, model):
    images, labels = images_of(few_digits)
    with torch.no_grad():
        expected = (model((images * .5 + .5 - .2) / .1).argmax(1) == labels).double().mean()
    assert run(mean=[.2], std=[.1])['top1'] == round(100 * expected.item(), 4) != run()['top1']


def test_a_crop_is_taken_of_larger_images(run, few_digits, model):
    larger, labels = images_of(few_digits, size=40)
    with torch.no_grad():
        expected = (model(larger[:, :, 4:36, 4:36]).argmax(1) == labels).double().mean()
    assert run(crop_pct=.8)['top1'] == round(100 * expected.item(), 4)


@pytest.mark.parametrize('average', ['macro', 'weighted', 'micro'])
def test_precision_recall_and_f1_are_those_of_sklearn(run, few_digits, model, average):
    images, labels = images_of(few_digits)
    with torch.no_grad():
        predicted = model(images).argmax(1)
    scores = precision_recall_fscore_support(labels, predicted, average=average, zero_division=0)
    results = run(metrics_avg=average)
    assert [results[f'{average}_{name}'] for name in ('precision', 'recall', 'f1_score')] == [
        round(100 * score, 4) for score in scores[:3]]
    assert {name: value for name, value in results.items() if average not in name} == run()
    if average == 'macro':  # by hand, too
        recalls = [(predicted[labels == digit] == digit).double().mean().item() for digit in range(10)]
        assert results['macro_recall'] == pytest.approx(100 * np.mean(recalls), abs=1e-3)
        assert results['macro_precision'] != results['macro_recall'] != results['macro_f1_score']


def test_test_time_pooling_looks_at_larger_images(run, few_digits, model):
    size = 288 if model.default_cfg['input_size'][-1] == 160 else 0
    assert size, 'the test model has another size now'
    pooled, changed = apply_test_time_pool(model, dict(input_size=(3, size, size)))
    assert changed
    results = run(img_size=size, test_pool=True, crop_pct=.9)
    assert results['top1'] == accuracy(pooled, few_digits, size=size)
    assert results['crop_pct'] == 1. and results['img_size'] == size
    assert run(test_pool=True) == run()  # these images are not larger


def test_averaged_weights(run, few_digits, checkpoint):
    averaged = timm.create_model('test_resnet_ap', num_classes=10)
    averaged.load_state_dict(torch.load(checkpoint)['state_dict_ema'])
    results = run(use_ema=True)
    assert results['top1'] == accuracy(averaged, few_digits) != run()['top1']
    assert results['weights'] == weights_digest(averaged.state_dict(), 'main')


# labels

def test_real_labels_take_the_place_of_the_folders(few_digits, checkpoint, model, tmp_path):
    images, labels = images_of(few_digits)
    folder = tmp_path / 'imagenet' / 'validation'
    for digit in range(10):
        (folder / str(digit)).mkdir(parents=True)
    real = []
    for index, (file, label) in enumerate(zip(sorted(Path(few_digits, 'validation').glob('*/*'), key=lambda file: (
            file.parent.name, file.name)), labels.tolist())):
        name = f'ILSVRC2012_val_{index + 1:08d}.JPEG'
        Image.open(file).save(folder / str(label) / name, 'PNG')
        # the second image of each digit has no label, the third two, of which the first is another digit
        real.append([[label], [], [(label + 1) % 10, label], [(label + 5) % 10]][index % 4])
    (tmp_path / 'real.json').write_text(json.dumps(real))

    with torch.no_grad():
        order = model(images).topk(5).indices.tolist()
    counted = [(best, allowed) for best, allowed in zip(order, real) if allowed]
    assert len(counted) == 30
    results = validate(eval_settings(
        data_dir=str(tmp_path / 'imagenet'), checkpoint=checkpoint, crop_pct=1., mean=[.5], std=[.5],
        interpolation='bicubic', real_labels=str(tmp_path / 'real.json')))
    for k in (1, 5):
        hits = [bool(set(best[:k]) & set(allowed)) for best, allowed in counted]
        assert results[f'top{k}'] == round(100 * np.mean(hits), 4)
        assert results[f'top{k}_err'] == round(100 - 100 * np.mean(hits), 4)
    assert results['top1'] != accuracy(model, few_digits)

    # so they do for adversarial images, which the attack pushes away from the folders' labels
    attack = timm_advprop.Attack(eps_px=8., alpha_px=4., steps=2, random_start=0., target='none', mean=(.5,) * 3,
                                 std=(.5,) * 3)
    with torch.no_grad():
        order = model(attack(model, images, labels)[0]).topk(5).indices.tolist()
    attacked = validate(eval_settings(
        data_dir=str(tmp_path / 'imagenet'), checkpoint=checkpoint, crop_pct=1., mean=[.5], std=[.5],
        interpolation='bicubic', real_labels=str(tmp_path / 'real.json'), adv_attack='pgd', adv_eps=8., adv_alpha=4.,
        adv_steps=2, adv_random_start=0.))
    for k in (1, 5):
        hits = [bool(set(best[:k]) & set(allowed)) for best, allowed in zip(order, real) if allowed]
        assert attacked[f'adv_top{k}'] == round(100 * np.mean(hits), 4)
    assert {name: value for name, value in attacked.items() if 'adv' not in name} == results


def test_an_attack_sees_the_classes_that_the_labels_stand_for(run, few_digits, model, tmp_path):
    # the same model as classes 10 to 19 of 20
    head = model.get_classifier()
    state = {**model.state_dict(), 'fc.weight': torch.cat([torch.randn_like(head.weight), head.weight]).detach(),
             'fc.bias': torch.cat([torch.randn_like(head.bias) + 3, head.bias]).detach()}
    torch.save(state, tmp_path / 'model.pth')
    (tmp_path / 'valid.txt').write_text('\n'.join(map(str, range(10, 20))))
    attack = dict(adv_attack='pgd', adv_eps=8., adv_alpha=4., adv_steps=2, adv_random_start=0.)
    expected = run(**attack)
    results = run(num_classes=20, checkpoint=str(tmp_path / 'model.pth'), valid_labels=str(tmp_path / 'valid.txt'),
                  **attack)
    for name in ('top1', 'top5', 'adv_top1', 'adv_top5'):
        assert results[name] == expected[name]
    assert expected['adv_top1'] < expected['top1']


def test_valid_labels_are_the_classes_that_the_labels_stand_for(few_digits, tmp_path):
    torch.manual_seed(1)
    model = timm.create_model('test_resnet', num_classes=13).eval()
    torch.save(model.state_dict(), tmp_path / 'model.pth')
    valid = [12, 3, 7, 0, 1, 10, 4, 5, 8, 9]
    (tmp_path / 'valid.txt').write_text('\n'.join(map(str, valid)) + '\n\n')
    results = validate(eval_settings(
        model='test_resnet', num_classes=13, data_dir=few_digits, checkpoint=str(tmp_path / 'model.pth'), crop_pct=1.,
        mean=[.5], std=[.5], interpolation='bicubic', valid_labels=str(tmp_path / 'valid.txt')))
    images, labels = images_of(few_digits)
    with torch.no_grad():
        order = model(images)[:, valid].argsort(1, descending=True)
    for k in (1, 5):
        hits = (order[:, :k] == labels.unsqueeze(1)).any(1).double().mean()
        assert results[f'top{k}'] == round(100 * hits.item(), 4)
    assert results['top5'] != accuracy(model, few_digits, k=5)  # of all 13


@pytest.mark.parametrize('flag', ['real_labels', 'valid_labels'])
def test_labels_that_cannot_be_read_are_one_line(run, tmp_path, flag):
    (tmp_path / 'wrong').write_text('a\nb\n')
    for file in ('wrong', 'nowhere'):
        with pytest.raises(InputError, match=f'--{flag.replace("_", "-")} .*{file}'):
            run(**{flag: str(tmp_path / file)})


def test_real_labels_need_the_names_of_images(run, few_digits, tmp_path):
    (tmp_path / 'real.json').write_text('[[0]]')
    with pytest.raises(InputError, match='--real-labels needs the names of images'):
        run(real_labels=str(tmp_path / 'real.json'), dataset='torch/image_folder')


@pytest.mark.parametrize('labels', ['', '0\n10\n', '-1\n3\n'])
def test_valid_labels_are_classes_of_the_model(run, tmp_path, labels):
    (tmp_path / 'labels').write_text(labels)
    with pytest.raises(InputError, match='--valid-labels .*labels is not .*: the model has the classes 0 to 9'):
        run(valid_labels=str(tmp_path / 'labels'))


@pytest.mark.parametrize('labels', [[0, 1, 2], [0] * 11], ids=['too few', 'too many'])
def test_valid_labels_are_as_many_as_the_classes_of_the_data_set(run, tmp_path, labels):
    (tmp_path / 'labels').write_text('\n'.join(map(str, labels)))
    with pytest.raises(InputError, match=f"split 'validation' has 10 classes, --valid-labels .* has {len(labels)}: "):
        run(valid_labels=str(tmp_path / 'labels'))


DIGITS = tuple(map(str, range(10)))
SWAPPED = ('0', '2', '1', *DIGITS[3:])


@pytest.mark.parametrize('names, values, refused', [
    ((), {}, False),
    (DIGITS, {}, False),
    (SWAPPED, {}, True),
    (('zero', '2', 'one', *DIGITS[3:]), {}, True),  # which has some of the names
    (tuple('abcdefghij'), {}, False),  # names of another kind
    (SWAPPED, dict(class_map=DIGITS), False),  # somebody says what they are
    (SWAPPED, dict(valid_labels=SWAPPED), False),
    (DIGITS, dict(valid_labels=SWAPPED), True),
    (SWAPPED, dict(real_labels='file'), False),
], ids=str)
def test_a_class_that_model_and_data_set_know_by_one_name_is_one_class(
        few_digits, checkpoint, tmp_path, names, values, refused):
    for flag in {'class_map', 'valid_labels'} & values.keys():
        (tmp_path / f'{flag}.txt').write_text('\n'.join(values[flag]))
        values = {flag: str(tmp_path / f'{flag}.txt')}
    settings = eval_settings(data_dir=few_digits, checkpoint=checkpoint, **values)
    tested = replace(open_tested_model(settings), label_names=names)
    classes = read_valid_labels(settings.data, 10)
    if not refused:
        assert open_test_images(tested, settings.data, classes=classes)
        return
    with pytest.raises(InputError, match=r"Class '\d' of the split 'validation' is class \d of the model, by the"):
        open_test_images(tested, settings.data, classes=classes)


# routes, attacks, surgery

@pytest.mark.parametrize('name', ['test_resnet_ap', 'test_resnet'])
def test_the_route_chooses_the_norms(run, few_digits, model, name):
    for route in ('main', 'aux'):
        results = run(model=name, route=route)
        assert (results['route'], results['top1']) == (route, accuracy(model, few_digits, route))
    assert run(route='aux')['weights'] == weights_digest(model.state_dict(), 'aux') != run()['weights']


@pytest.mark.parametrize('route', ['main', 'aux'])
@pytest.mark.parametrize('kind', ['pgd', 'ifgsm', 'gd'])
def test_an_attack_goes_through_the_route(run, few_digits, model, kind, route):
    results = run(route=route, adv_attack=kind, adv_eps=8., adv_alpha=4., adv_steps=2, adv_random_start=0.)
    attack = timm_advprop.Attack(
        kind=kind, eps_px=8., alpha_px=4., steps=2, random_start=0., target='none', mean=(.5,) * 3, std=(.5,) * 3)
    images, labels = images_of(few_digits)
    timm_advprop.set_norm_route(model, route)
    with torch.no_grad():
        order = model(attack(model, images, labels)[0]).topk(5).indices
    for k in (1, 5):
        hits = (order[:, :k] == labels.unsqueeze(1)).any(1).double().mean()
        assert results[f'adv_top{k}'] == round(100 * hits.item(), 4)
    assert results['top1'] == accuracy(model, few_digits, route) > results['adv_top1']
    assert results['adv_attack'] == attack.describe()
    assert list(results)[-3:] == ['adv_top1', 'adv_top5', 'adv_attack']


def test_reparameterised_models_say_the_same_and_are_other_models(few_digits, tmp_path, randomize_norms, monkeypatch):
    model = randomize_norms(timm.create_model('repghostnet_050_ap', num_classes=10)).eval()
    torch.save(model.state_dict(), tmp_path / 'model.pth')
    evaluated = []

    def keep(model, loader, placement, **kwargs):
        evaluated.append((model, next(iter(loader))[0]))
        return dict(top1=0., top5=0.)

    monkeypatch.setattr('timm_advprop.engine.validation.evaluate', keep)
    for reparam in (False, True):
        validate(eval_settings(model='repghostnet_050_ap', data_dir=few_digits, batch_size=4, reparam=reparam,
                               checkpoint=str(tmp_path / 'model.pth')))
    (whole, images), (fused, _) = evaluated
    with torch.no_grad():
        expected, output = whole(images), fused(images)
    torch.testing.assert_close(output, expected, rtol=1e-3, atol=1e-3)
    assert expected.std() > .01

    def count(model):
        return sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())

    assert count(fused) < count(strip_aux(whole))
    assert not timm_advprop.has_split_norm(fused)


def test_a_scripted_model_is_scripted(run, monkeypatch):
    seen = []
    monkeypatch.setattr('timm_advprop.engine.validation.evaluate',
                        lambda model, *args, **kwargs: seen.append(model) or dict(top1=0., top5=0.))
    run(torchscript=True)
    run(torchcompile='eager')
    run(channels_last=True, model_dtype='bfloat16')
    assert isinstance(seen[0], torch.jit.ScriptModule)
    assert type(seen[1]).__name__ == 'OptimizedModule'
    weight = seen[2].layer1[0].conv1.weight
    assert weight.dtype == torch.bfloat16 and weight.is_contiguous(memory_format=torch.channels_last)


def test_published_weights_are_taken_where_there_is_no_checkpoint(few_digits, monkeypatch):
    seen = []

    def create(*args, **kwargs):
        seen.append(kwargs['pretrained'])
        raise InputError('enough')

    monkeypatch.setattr('timm_advprop.engine.tested_model.open_model', create)
    for values in (dict(), dict(pretrained=True)):
        with pytest.raises(InputError, match='enough'):
            validate(eval_settings(data_dir=few_digits, **values))
    assert seen == [True, True]


@pytest.mark.parametrize('values, words', [
    (dict(torchscript=True, route='aux'), '--torchscript has only the main route'),
    (dict(torchscript=True, adv_attack='pgd'), '--torchscript takes no attack'),
    (dict(torchscript=True, torchcompile='eager'), 'exclude each other'),
    (dict(reparam=True, route='aux'), '--reparam folds the main norms only: use --route main'),
    (dict(num_gpu=99), '--num-gpu 99'),
    (dict(amp=True, model_dtype='bfloat16'), '--amp needs --model-dtype float32'),
    (dict(data_dir='nowhere'), 'nowhere'),
    (dict(split='nope'), "No split 'nope'"),
    (dict(mean=[.5, .5]), '--mean takes 1 or 3 values'),
    (dict(num_classes=12), 'does not fit'),
], ids=str)
def test_what_does_not_go_together_is_one_line(run, values, words):
    with pytest.raises(InputError, match=words) as error:
        run(**values)
    assert '\n' not in str(error.value)


def test_the_classes_of_the_data_are_those_of_the_model(few_digits, tmp_path):
    torch.save(timm.create_model('test_resnet', num_classes=12).state_dict(), tmp_path / 'model.pth')
    with pytest.raises(InputError, match='10 classes, the model 12'):
        validate(eval_settings(model='test_resnet', num_classes=12, data_dir=few_digits,
                               checkpoint=str(tmp_path / 'model.pth')))


def test_aux_route_of_a_plain_model_is_refused(few_digits, tmp_path):
    torch.save(timm.create_model('test_resnet', num_classes=10).state_dict(), tmp_path / 'plain.pth')
    with pytest.raises(InputError, match='--route aux needs auxiliary norms'):
        validate(eval_settings(model='test_resnet', data_dir=few_digits, checkpoint=str(tmp_path / 'plain.pth'),
                               route='aux'))


def test_the_main_route_equals_stock_timm(run, checkpoint, tmp_path, few_digits, model):
    plain, _ = timm_advprop.split_state_dict(torch.load(checkpoint)['state_dict'])
    torch.save(plain, tmp_path / 'plain.pth')
    stock = timm.create_model('test_resnet', num_classes=10)
    stock.load_state_dict(plain)
    expected = accuracy(stock, few_digits)
    for values in (dict(), dict(model='test_resnet'), dict(checkpoint=str(tmp_path / 'plain.pth')),
                   dict(model='test_resnet', checkpoint=str(tmp_path / 'plain.pth'))):
        assert run(**values)['top1'] == expected
    assert equal_states(strip_aux(model).state_dict(), stock.state_dict())
