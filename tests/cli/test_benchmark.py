import re

import pytest
import torch
from timm.models import VisionTransformer

from timm_advprop.cli import benchmark

pytestmark = pytest.mark.usefixtures('one_thread')
SMALL = ['--model', 'test_resnet_ap', '--img-size', '32', '-b', '10', '--rounds', '1']


def _floors(text):
    """The printed cases and their floors."""
    lines = [re.split(r'\s{2,}', line.strip()) for line in text.splitlines()[2:]]
    return [(case, float(floor)) for case, _, _, floor, _ in lines]


def test_a_training_step_of_each_regime_has_its_floor(capsys):
    regimes = ['vanilla', 'madry', 'joint', 'advprop', 'fast-advprop']
    benchmark.main([*SMALL, '--regime', *regimes, '--adv-steps', '1', '2', '--threads', '1'])
    text = capsys.readouterr().out
    assert text.splitlines()[0] == 'test_resnet_ap, training, 32 px, batch 10, float32, CPU, 1 thread'
    assert _floors(text) == [
        ('vanilla', 1.),  # timm's own task
        ('vanilla', 1.),
        ('madry PGD-1', 1.667), ('madry PGD-2', 2.333),
        ('joint PGD-1', 2.667), ('joint PGD-2', 3.333),
        ('advprop PGD-1', 2.667), ('advprop PGD-2', 3.333),
        ('fast-advprop', 1.2),
    ]


def test_attacks_alone_are_compared_with_a_vanilla_step(capsys):
    benchmark.main([*SMALL, '--attack', '--adv-steps', '1', '3', '--regime', 'advprop', 'joint', '--threads', '1'])
    assert _floors(capsys.readouterr().out) == [
        ('vanilla', 1.), ('advprop PGD-1', 2.667), ('attack PGD-1', 0.667), ('advprop PGD-3', 4.), ('attack PGD-3', 2.),
        ('joint PGD-1', 2.667), ('joint PGD-3', 4.)]


def test_eval_passes_of_split_norms_are_compared_with_the_plain_model(capsys):
    benchmark.main([*SMALL, '--eval', '--amp-dtype', 'bfloat16', '--channels-last', '--threads', '1'])
    text = capsys.readouterr().out
    assert text.splitlines()[0] == (
        'test_resnet_ap, eval, 32 px, batch 10, bfloat16, channels-last, CPU, 1 thread')
    assert _floors(text) == [('plain', 1.), ('split norms', 1.)]


def test_evaluation_under_attack_is_compared_with_clean_evaluation(capsys):
    benchmark.main([*SMALL, '--eval', '--attack', '--adv-steps', '1', '3', '--threads', '1'])
    assert _floors(capsys.readouterr().out) == [
        ('plain', 1.), ('split norms', 1.), ('under PGD-1', 4.), ('under PGD-3', 8.)]


@pytest.mark.parametrize('flags, cases', [
    ([], ['vanilla', 'advprop PGD-1']),
    (['--eager'], ['vanilla', 'advprop PGD-1', 'eager vanilla', 'eager advprop PGD-1'])])
def test_eager_models_are_measured_beside_compiled_ones(capsys, monkeypatch, flags, cases):
    compiled = []
    monkeypatch.setattr(torch, 'compile', lambda model, **_: compiled.append(model) or model)
    benchmark.main([*SMALL, '--torchcompile', '--adv-steps', '1', '--threads', '1', *flags])
    assert [case for case, _ in _floors(capsys.readouterr().out)] == cases
    assert len(compiled) == 2


def test_cases_are_timed_in_turn_after_one_call_that_is_not():
    calls = []
    seconds = benchmark.time_in_turn(
        {name: lambda name=name: calls.append(name) for name in 'ab'}, 3, torch.device('cpu'))
    assert ''.join(calls) == 'abababab'
    assert {name: len(times) for name, times in seconds.items()} == dict(a=3, b=3)


@pytest.mark.parametrize('flags', [[], ['--eval']], ids=str)
@pytest.mark.parametrize('model', ['vit_tiny_patch16_224', 'deit_tiny_patch16_224_ap'])
def test_a_model_of_one_size_is_built_for_the_images(capsys, monkeypatch, model, flags):
    sizes, forward = [], VisionTransformer.forward_features  # DeiT's are VisionTransformers, too

    def noted(self, images, *args, **kwargs):
        sizes.append(tuple(images.shape[2:]))
        return forward(self, images, *args, **kwargs)

    monkeypatch.setattr(VisionTransformer, 'forward_features', noted)
    benchmark.main([
        *SMALL, '--model', model, '--img-size', '48', '-b', '2', '--adv-steps', '1', '--threads', '1', *flags])
    assert capsys.readouterr().out.startswith(f'{model}, {"eval" if flags else "training"}, 48 px')
    assert set(sizes) == {(48, 48)}


@pytest.mark.parametrize('arguments, words', [
    (['--model', 'nosuch'], 'Unknown model'),
    (['-b', '1'], 'must be at least 2'),
    (['--regime', 'nosuch'], 'nosuch'),
    (['--devise', 'cpu'], '--device'),
    (['--memory', '--eval', *SMALL], 'leave out --eval'), (['--memory', '--attack', *SMALL], '--attack'),
    (['--attack', '--regime', 'joint', 'madry', *SMALL], '--regime joint madry has none of'),
    ([*SMALL, '--model', 'test_convnext', '--img-size', '2'], 'does not take images of 3x2x2 (--img-size'),
    (['--grad-checkpointing', '--model', 'dla34'], 'checkpointing not supported'),
])
def test_wrong_input_is_one_line(capsys, arguments, words):
    with pytest.raises(SystemExit) as exit:
        benchmark.main(arguments)
    lines = capsys.readouterr().err.splitlines()
    assert exit.value.code == 2 and len(lines) == 1 and words in lines[0]


@pytest.mark.parametrize('flags', [
    [], pytest.param(['--torchcompile'], marks=pytest.mark.slow),
    pytest.param(['--torchcompile', '--memory'], marks=pytest.mark.slow),
])
def test_one_attacked_image_too_few_for_batch_statistics_is_one_line(capsys, monkeypatch, flags):
    torch._dynamo.reset()
    compiler = torch.compile
    monkeypatch.setattr(torch, 'compile', lambda model, **_: compiler(model, backend='eager'))  # inductor takes long
    with pytest.raises(SystemExit) as exit:
        benchmark.main([*SMALL, '--regime', 'fast-advprop', '-b', '5', '--threads', '1', '--device', 'cpu', *flags])
    lines = capsys.readouterr().err.splitlines()
    assert exit.value.code == 2 and len(lines) == 1 and 'attacks 1 image of a batch of 5' in lines[0]


def test_a_profile_compares_operations_with_those_of_the_first_case(capsys):
    benchmark.main([*SMALL, '--regime', 'advprop', '--adv-steps', '1', '--threads', '1', '--profile'])
    table = capsys.readouterr().out.split('ms and calls of operations')[1].splitlines()
    assert table[0].split() == ['vanilla', 'advprop', 'PGD-1', '×', 'first']
    rows = {line[:60].strip(): [float(value) for value in line[60:].split()] for line in table[1:]}
    forward_calls = rows['aten::convolution_backward'][1::2][:2]
    assert forward_calls[1] == 2 * forward_calls[0]  # a pass of the attack, and one of all images
    assert rows['all'][0] > rows['aten::convolution_backward'][0]


def _memory(capsys, *arguments):
    """The printed numbers, by case."""
    benchmark.main([*SMALL, '--memory', '--threads', '1', '--device', 'cpu', *arguments])
    rows = [re.split(r'\s{2,}', line.strip()) for line in capsys.readouterr().out.splitlines()[1:]]
    return {name: dict(zip(rows[0][1:], map(float, values))) for name, *values in rows[1:]}


def test_memory_of_each_regime_is_relative_to_vanilla(capsys):
    rows = _memory(capsys, '--regime', 'vanilla', 'advprop', '--adv-steps', '1', '2')
    first, *others = rows.values()
    assert list(rows) == ['vanilla', 'advprop PGD-1', 'advprop PGD-2']
    assert list(first) == ['kept', 'activations', '× first', 'peak', 'accumulating']
    assert first['× first'] == 1
    assert others[0] == others[1] and 1.5 < others[0]['activations'] / first['activations'] <= 2.1


def test_checkpointed_models_keep_fewer_activations(capsys):
    usual, checkpointed = (_memory(capsys, '--regime', 'vanilla', '--img-size', '64', *flags)
                           for flags in ((), ('--grad-checkpointing',)))
    assert checkpointed['vanilla']['activations'] < 0.9 * usual['vanilla']['activations']
