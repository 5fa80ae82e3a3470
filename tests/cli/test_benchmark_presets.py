"""`--preset`: several models at once, a table that grows, a file that is whole after each row."""
import csv
import re

import pytest
import timm
import torch

from timm_advprop.cli import benchmark, benchmark_presets
from timm_advprop.cli.benchmark_presets import PRESETS
from timm_advprop.models import split_models

pytestmark = pytest.mark.usefixtures('one_thread')
SMALL = ['--preset', 'gpu', '--img-size', '32', '-b', '10', '--rounds', '1', '--threads', '1']
TINY = [*SMALL, '--device', 'cpu', '--model', 'test_resnet_ap']
CASES = ['vanilla', 'advprop PGD-1', 'advprop PGD-5', 'fast-advprop']


@pytest.fixture(autouse=True)
def compiled(request, monkeypatch):
    """The modules that were to be compiled, in place of a compiler, which takes long."""
    modules = []
    if not request.node.get_closest_marker('slow') and not request.node.get_closest_marker('gpu'):
        monkeypatch.setattr(torch, 'compile', lambda module, **_: modules.append(module) or module)
    return modules


def table(text):
    """Cells of the printed table, by line."""
    return [[cell.strip() for cell in line.strip('|').split('|')] for line in text.splitlines() if line[:1] == '|']


def read(path):
    with open(path, newline='') as file:
        return list(csv.DictReader(file))


def test_a_model_is_measured_eager_and_compiled(capsys, tmp_path, compiled):
    benchmark.main([*TINY, '--output', str(tmp_path / 'rows.csv')])
    text = capsys.readouterr().out
    assert re.fullmatch(r'CPU, 1 thread, torch \S+, bfloat16, channels-last, 32 px, batches of 10, median of 1 rounds',
                        text.splitlines()[0])
    head, line, *rows = table(text)
    assert head == ['model', 'mode', 'case', 'images/s', '× vanilla', 'floor', '× floor', 'peak MiB', 'error']
    assert set(line) == {'---'}
    assert [row[:3] for row in rows] == [['test_resnet_ap', mode, case] for mode in ('eager', 'compiled')
                                         for case in CASES]
    assert [row[5] for row in rows] == ['1.00', '2.67', '5.33', '1.20'] * 2
    assert all(float(cell) > 0 for row in rows for cell in row[3:8]) and not any(row[8] for row in rows)

    written = read(tmp_path / 'rows.csv')
    assert len(written) == 8 and len(compiled) == 4
    for row, printed in zip(written, rows):
        assert [row['model'], row['mode'], row['case']] == printed[:3]
        assert (row['device'], row['amp_dtype'], row['batch_size']) == ('CPU, 1 thread', 'bfloat16', '10')
        assert float(row['images_per_second']) == pytest.approx(float(printed[3]), abs=0.05)
        assert float(row['times_vanilla']) == pytest.approx(float(row['times_floor']) * float(row['floor']))
    assert float(written[1]['peak_mib']) > float(written[0]['peak_mib'])


def test_images_a_second_follow_from_seconds(capsys, monkeypatch):
    seconds = [[0.5, 0.4], [1., 1.6], [2., 2.], [0.5, 0.8]]
    monkeypatch.setattr(benchmark_presets, 'time_in_turn', lambda cases, *_: dict(zip(cases, seconds)))
    benchmark.main([*TINY, '--torchcompile'])
    rows = table(capsys.readouterr().out)[2:]
    assert [row[1] for row in rows] == ['compiled'] * 4
    assert [[float(cell) for cell in row[3:5]] for row in rows] == [
        [22.2, 1.], [7.7, 3.], [5., 4.5], [15.4, 1.5]]  # 10 images in the median second; ratios within a round


def test_a_case_that_fails_is_a_row_and_the_others_are_measured(capsys, monkeypatch):
    step_memory = benchmark_presets.step_memory
    calls = []

    def failing(step, device):
        calls.append(step)
        if len(calls) == 3:
            raise torch.OutOfMemoryError('CUDA out of memory.\nTried to allocate 20.00 GiB.')
        return step_memory(step, device)

    monkeypatch.setattr(benchmark_presets, 'step_memory', failing)
    benchmark.main([*TINY, '--torchcompile'])
    rows = {row[2]: row[3:] for row in table(capsys.readouterr().out)[2:]}
    assert list(rows) == CASES
    assert rows.pop('advprop PGD-5') == [''] * 5 + ['CUDA out of memory. Tried to allocate 20.00 GiB.']
    assert all(row[0] and row[1] and not row[5] for row in rows.values())


def test_a_case_that_takes_no_batches_of_the_size_is_a_row_too(capsys):
    benchmark.main([*TINY, '--torchcompile', '--adv-steps', '1', '-b', '5'])
    rows = {row[2]: row[3:] for row in table(capsys.readouterr().out)[2:]}
    assert rows['fast-advprop'][:-1] == [''] * 5 and 'attacks 1 image of a batch of 5' in rows['fast-advprop'][-1]
    assert rows['advprop PGD-1'][0]


def test_what_was_measured_is_in_the_file_when_a_run_is_cut_off(monkeypatch, tmp_path):
    cases, seen = benchmark._training_cases, []

    def cut_off(settings, placement):
        seen.append(read(tmp_path / 'rows.csv') if (tmp_path / 'rows.csv').exists() else [])
        if len(seen) == 2:
            raise KeyboardInterrupt
        return cases(settings, placement)

    monkeypatch.setattr(benchmark, '_training_cases', cut_off)
    with pytest.raises(SystemExit) as exit:
        benchmark.main([*TINY, '--output', str(tmp_path / 'rows.csv')])
    assert exit.value.code == 130
    assert [row['case'] for row in seen[1]] == CASES == [row['case'] for row in read(tmp_path / 'rows.csv')]


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a CUDA device')
@pytest.mark.parametrize('device', [[], ['--device', 'cuda'], ['--device', 'cuda:0']], ids=' '.join)
def test_without_a_gpu_it_ends_in_one_line(capsys, device):
    with pytest.raises(SystemExit) as exit:
        benchmark.main([*SMALL, *device])
    out, err = capsys.readouterr()
    assert exit.value.code == 2 and len(err.splitlines()) == 1 and not out
    assert '--preset gpu needs a CUDA device, and there is none' in err


@pytest.mark.parametrize('arguments, words', [
    (['--preset', 'cpu'], "gpu"),
    ([*TINY, '--eval'], 'leave out --eval'),
    ([*TINY, '--memory'], 'leave out --memory'),
    ([*TINY, '--eager', '--torchcompile'], 'leave out --eager'),
    ([*TINY, '--output', '/nosuch/rows.csv'], 'Cannot write /nosuch/rows.csv: No such file'),
    (['--output', 'rows.csv'], '--output is the file of a --preset'),
    ([*TINY, '-b', '4'], 'fast-advprop needs batches of at least 5'),
])
def test_wrong_input_is_one_line(capsys, arguments, words):
    with pytest.raises(SystemExit) as exit:
        benchmark.main(arguments)
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith('[1/')]
    assert exit.value.code == 2 and len(lines) == 1 and words in lines[0]


def test_flags_narrow_a_preset(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    preset = PRESETS['gpu']
    whole = benchmark._parse(['--preset', 'gpu'])
    assert [(settings.model, settings.torchcompile) for settings in whole] == [
        (model, compiled) for model in preset.models for compiled in (False, True)]
    assert {settings.device for settings in whole} == {'cuda'} and whole[0].img_size == 224
    narrowed, = benchmark._parse(['--preset', 'gpu', '--torchcompile', '--model', 'resnet18_ap', '-b', '7',
                                  '--adv-steps', '3', '--amp-dtype', 'float16', '--device', 'cuda:1'])
    assert (narrowed.model, narrowed.batch_size, narrowed.img_size) == ('resnet18_ap', 7, 224)
    assert (narrowed.adv_steps, narrowed.amp_dtype, narrowed.device) == ((3,), 'float16', 'cuda:1')


def test_its_models_are_those_of_the_zoo():
    names = [name for preset in PRESETS.values() for name in preset.models]
    assert set(names) <= set(split_models()) and all(map(timm.is_model, names))


@pytest.mark.slow
def test_models_are_compiled(capsys):
    benchmark.main([*TINY, '--torchcompile'])
    rows = table(capsys.readouterr().out)[2:]
    assert [row[1:3] for row in rows] == [['compiled', case] for case in CASES] and not any(row[8] for row in rows)


@pytest.mark.gpu
def test_a_gpu_is_named(capsys):
    benchmark.main([*SMALL, '--model', 'test_resnet_ap'])
    text = capsys.readouterr().out
    assert text.startswith(torch.cuda.get_device_name())
    assert len(table(text)) == 10 and not any(row[8] for row in table(text)[2:])
