"""Suites through validate.py: what is measured, kept, and measured again."""
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.cli.programs import MODEL, run_validate
from tests.robustness.suite_runs import FLAGS, digit_images, read_rows, run_suites, train_digits
from timm_advprop.cli.validate import main
from timm_advprop.corruptions import corruptions
from timm_advprop.errors import InputError
from timm_advprop.robustness import attack_suites, evaluate_suites, image_suites, kept_results
from timm_advprop.robustness.corrupted_images import Corruption

pytestmark = pytest.mark.usefixtures('one_thread')
ATTACK = ['--adv-steps', '2', '--adv-alpha', '16', '--adv-eps', '2', '32']


@pytest.fixture(scope='module')
def checkpoint(few_digits, tmp_path_factory):
    return train_digits(few_digits, tmp_path_factory.mktemp('checkpoint') / 'last.pth', steps=25)


@pytest.fixture(scope='module')
def finished(few_digits, checkpoint, tmp_path_factory):
    """The results file of a curve of two strengths."""
    path = tmp_path_factory.mktemp('finished') / 'r.csv'
    assert len(run_suites(few_digits, checkpoint, path, '--suite', 'attacks', *ATTACK)) == 3
    return path


@pytest.fixture
def few_corruptions(monkeypatch):
    monkeypatch.setattr(image_suites, 'ALL_CORRUPTIONS', ('gaussian_noise', 'contrast'))


@pytest.fixture
def measured(monkeypatch):
    """Names of the cells that are measured."""
    names = []
    complete = evaluate_suites.complete_rows
    monkeypatch.setattr(evaluate_suites, 'complete_rows', lambda tested, cell, rows: (
        names.append(f'{tested.settings.model.route} {cell.describe()}') or complete(tested, cell, rows)))
    return names


def only(rows, **values):
    return [row for row in rows if all(row[name] == value for name, value in values.items())]


def test_clean_and_attacked_accuracy_are_those_without_suites(few_digits, checkpoint, tmp_path, capsys):
    rows = run_suites(few_digits, checkpoint, tmp_path / 'r.csv', '--route', 'main', 'aux', '--suite', 'attacks',
                      *ATTACK)
    assert list(rows[0])[:10] == ['model', 'checkpoint', 'route', 'suite', 'condition', 'severity', 'top1', 'top1_err',
                                  'top5', 'top5_err']
    for route in ('main', 'aux'):
        alone = run_validate(few_digits, capsys, '--checkpoint', checkpoint, '--route', route, *FLAGS[6:],
                             '--adv-attack', 'pgd', *ATTACK[:-2], '32')
        clean, = only(rows, route=route, suite='clean')
        attacked, = only(rows, route=route, suite='attacks', severity='32.0')
        assert {name: clean[name] for name in ('top1', 'top5_err', 'weights', 'dataset', 'num_images')} == {
            name: str(alone[name]) for name in ('top1', 'top5_err', 'weights', 'dataset', 'num_images')}
        assert (attacked['top1'], attacked['top5']) == (str(alone['adv_top1']), str(alone['adv_top5']))
        assert attacked['adv_attack'] == alone['adv_attack'] and attacked['condition'] == 'pgd'
        assert float(attacked['top1_err']) == pytest.approx(100 - float(attacked['top1']))
    assert [row['severity'] for row in only(rows, route='aux', suite='attacks')] == ['2.0', '32.0']
    assert len({row['top1'] for row in rows}) > 3  # routes and strengths can be told apart


def test_strengths_of_a_curve_where_none_are_given(few_digits, checkpoint, tmp_path):
    rows = run_suites(few_digits, checkpoint, tmp_path / 'r.csv', '--suite', 'attacks', '--adv-steps', '1')
    assert [float(row['severity']) for row in only(rows, suite='attacks')] == list(attack_suites.STRENGTHS)
    given = run_suites(few_digits, checkpoint, tmp_path / 'r.csv', '--suite', 'attacks', '--adv-steps', '1',
                       '--adv-eps', *map('{:g}'.format, attack_suites.STRENGTHS))
    assert given == rows  # none is measured again


def test_corruptions_are_of_the_images_that_are_evaluated(few_digits, checkpoint, tmp_path, few_corruptions):
    rows = run_suites(few_digits, checkpoint, tmp_path / 'r.csv', '--suite', 'corruptions')
    assert [(row['suite'], row['condition'], row['severity']) for row in rows] == [
        ('clean', '', ''), *(('corruptions', name, str(severity)) for name in ('gaussian_noise', 'contrast')
                             for severity in range(1, 6))]
    images, labels = digit_images(few_digits, 'validation')
    corrupt = Corruption('contrast', 4, seed=42)
    pixels = (images * 255).round().byte().movedim(1, -1).numpy()
    corrupted = torch.tensor(np.stack([corrupt(Image.fromarray(each)) for each in pixels]))
    model = timm.create_model('test_resnet_ap', num_classes=10)
    model.load_state_dict(torch.load(checkpoint)['state_dict'])
    with torch.no_grad():
        right = model.eval()((corrupted.movedim(-1, 1).float() / 255 - .5) / .5).argmax(1) == labels
    row, = only(rows, condition='contrast', severity='4')
    assert float(row['top1']) == pytest.approx(100 * right.double().mean().item(), abs=1e-3)


def test_severity_orders_accuracy(few_digits, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(image_suites, 'ALL_CORRUPTIONS', ('contrast', 'fog', 'snow'))
    rows = run_suites(few_digits, checkpoint, tmp_path / 'r.csv', '--suite', 'corruptions')
    clean, *means = [sum(float(row['top1']) for row in only(rows, severity=severity)) / divisor
                     for severity, divisor in (('', 1), *((str(severity), 3) for severity in range(1, 6)))]
    assert clean >= means[0] > means[2] > means[4] and means == sorted(means, reverse=True)


@pytest.mark.parametrize('flags', [
    ['--batch-size', '1'], pytest.param(['--workers', '2'], marks=pytest.mark.slow),
    pytest.param(['--workers', '4', '--batch-size', '256'], marks=pytest.mark.slow),
    pytest.param(['--no-prefetcher'], marks=pytest.mark.slow),
], ids=str)
def test_the_same_file_whatever_the_batches_and_workers(few_digits, checkpoint, tmp_path, few_corruptions, flags):
    flags = ['--batch-size', '16', *flags]
    one, other = tmp_path / 'one.csv', tmp_path / 'other.csv'
    suites = ['--suite', 'corruptions', 'attacks', *ATTACK]
    run_suites(few_digits, checkpoint, one, *suites)
    torch.rand(3)
    run_suites(few_digits, checkpoint, other, *suites, *flags)
    assert one.read_bytes() == other.read_bytes()
    assert one.with_suffix('.md').read_bytes() == other.with_suffix('.md').read_bytes()


@pytest.mark.parametrize('format', ['csv', pytest.param('json', marks=pytest.mark.slow)])
def test_an_interrupted_evaluation_goes_on_where_it_stopped(
        few_digits, checkpoint, tmp_path, few_corruptions, measured, monkeypatch, format):
    suites = ['--suite', 'corruptions', 'attacks', '--route', 'main', 'aux', *ATTACK, '--results-format', format]
    whole, stopped = tmp_path / 'whole', tmp_path / 'stopped'
    flags = ['--data-dir', few_digits, *FLAGS, '--checkpoint', checkpoint, *suites]
    main([*flags, '--results-file', str(whole)])
    assert len(measured) == len(set(measured)) == 26
    all_cells = measured.copy()
    measured.clear()

    measure = image_suites.measure

    def killed(tested, *args, **kwargs):
        if len(measured) == 7:
            raise SystemExit(9)
        return measure(tested, *args, **kwargs)

    monkeypatch.setattr(image_suites, 'measure', killed)
    with pytest.raises(SystemExit):
        main([*flags, '--results-file', str(stopped)])
    kept = stopped.read_text()
    assert kept.count('gaussian_noise') == 5 and kept.count('contrast') == 1
    monkeypatch.setattr(image_suites, 'measure', measure)
    main([*flags, '--results-file', str(stopped)])
    assert measured == all_cells
    assert stopped.read_bytes() == whole.read_bytes()
    main([*flags, '--results-file', str(stopped)])
    assert measured == all_cells and stopped.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize('flags, again', [
    ([], 0), (['--batch-size', '7', '--log-freq', '1'], 0), (['--seed', '1'], 3), (['--num-samples', '20'], 3),
    (['--mean', '.4'], 3), (['--adv-eps', '2', '4'], 1), (['--adv-alpha', '2'], 2), (['--route', 'aux'], 3),
    (['--split', 'train'], 3), (['--channels-last'], 3),
], ids=str)
def test_what_has_an_effect_is_measured_again(few_digits, checkpoint, finished, tmp_path, measured, flags, again):
    path = shutil.copy(finished, tmp_path)
    run_suites(few_digits, checkpoint, path, '--suite', 'attacks', *ATTACK, *flags)
    assert len(measured) == again


def test_other_weights_are_measured_again(few_digits, checkpoint, tmp_path, measured):
    other = tmp_path / 'last.pth'
    other.write_bytes(open(checkpoint, 'rb').read())
    run_suites(few_digits, other, tmp_path / 'r.csv', '--suite', 'attacks', *ATTACK)
    content = torch.load(other)
    content['state_dict']['fc.bias'] += .1
    torch.save(content, other)
    rows = run_suites(few_digits, other, tmp_path / 'r.csv', '--suite', 'attacks', *ATTACK)
    assert len(measured) == 6 and len({row['weights'] for row in rows}) == 2


def test_other_data_are_measured_again_and_the_same_folder_is_not(
        few_digits, checkpoint, tmp_path, measured, monkeypatch):
    for data, cells in ((few_digits, 2), (tmp_path / 'link', 4), ('link', 4)):
        monkeypatch.chdir(tmp_path)
        if not os.path.exists('link'):
            os.symlink(few_digits, 'link')
        run_suites(data, checkpoint, tmp_path / 'r.csv', '--suite', 'attacks', '--adv-steps', '1', '--adv-eps', '2')
        assert len(measured) == cells


def test_reports_show_what_was_asked_for_last(few_digits, checkpoint, tmp_path, few_corruptions, measured):
    path, tables = tmp_path / 'r.csv', []
    for num_samples in ('40', '23', '40'):
        run_suites(few_digits, checkpoint, path, '--suite', 'corruptions', 'attacks', *ATTACK, '--num-samples',
                   num_samples)
        tables.append(path.with_suffix('.md').read_text())
    assert tables[0] == tables[2] != tables[1] and len(measured) == 26


def test_how_images_are_normalised_may_come_with_the_model(few_digits, checkpoint, tmp_path, measured):
    path, folder = tmp_path / 'r.csv', tmp_path / 'model'
    folder.mkdir()
    model = timm.create_model('test_resnet', num_classes=10)
    save_file(model.state_dict(), folder / 'model.safetensors')
    for mean in (.5, .4):
        (folder / 'config.json').write_text(json.dumps(dict(
            architecture='test_resnet', num_classes=10, pretrained_cfg=dict(mean=[mean] * 3, input_size=[3, 32, 32]))))
        main(['--data-dir', str(few_digits), '--model', f'local-dir:{folder}', '--suite', 'attacks', '--adv-steps', '1',
              '--adv-eps', '8', '--workers', '0', '--device', 'cpu', '--results-file', str(path)])
    assert len(measured) == 4


def test_several_models_and_what_fails_is_left_out(few_digits, checkpoint, tmp_path, capsys, caplog):
    path = tmp_path / 'r.csv'
    with pytest.raises(SystemExit) as error:
        run_suites(few_digits, checkpoint, path, '--route', 'main', '3', '--suite', 'attacks', *ATTACK)
    rows, said = read_rows(path), capsys.readouterr()
    assert error.value.code == 1 and '1 of 2 models were left out' in said.err.splitlines()[-1]
    assert {row['route'] for row in rows} == {'main'} and len(rows) == 3
    assert '(3) left out: Route 3 needs 3 auxiliary norms' in caplog.text
    assert f'| test_resnet_ap {Path(checkpoint).parent.name} |' in said.out


def test_ctrl_c_waits_for_the_end_of_a_batch(few_digits, checkpoint, tmp_path, measured, monkeypatch, caplog):
    measure, handler = attack_suites.measure, signal.getsignal(signal.SIGINT)

    def interrupted(*args, **kwargs):
        signal.raise_signal(signal.SIGINT)  # as while a loader starts its processes, where an exception would be lost
        return measure(*args, **kwargs)

    monkeypatch.setattr(attack_suites, 'measure', interrupted)
    with pytest.raises(SystemExit) as error:
        run_suites(few_digits, checkpoint, tmp_path / 'r.csv', '--suite', 'attacks', *ATTACK)
    assert error.value.code == 130 and len(measured) == 1 and len(read_rows(tmp_path / 'r.csv')) == 1
    assert 'has 1 finished conditions; the same command goes on' in caplog.text
    assert signal.getsignal(signal.SIGINT) is handler


def test_ctrl_c_among_several_models_is_no_finished_evaluation(few_digits, checkpoint, tmp_path, monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt
    monkeypatch.setattr(attack_suites, 'measure', interrupted)
    with pytest.raises(SystemExit) as error:
        run_suites(few_digits, checkpoint, tmp_path / 'r.csv', '--route', 'main', 'aux', '--suite', 'attacks')
    assert error.value.code == 130 and capsys.readouterr().err.endswith('Interrupted.\n')
    assert [row['suite'] for row in read_rows(tmp_path / 'r.csv')] == ['clean']


def test_a_full_disk_ends_the_run_and_is_no_matter_of_the_model(
        few_digits, checkpoint, tmp_path, measured, monkeypatch, capsys):
    write = kept_results.write_results

    def full(path, rows, format):
        if len(rows) == 2:
            raise InputError(f'Cannot write {path}.') from OSError(28, 'No space left on device', path)
        write(path, rows, format)

    monkeypatch.setattr(kept_results, 'write_results', full)
    with pytest.raises(SystemExit) as error:
        run_suites(few_digits, checkpoint, tmp_path / 'r.csv', '--route', 'main', 'aux', '--suite', 'attacks', *ATTACK)
    assert error.value.code == 1 and len(measured) == 2 and len(read_rows(tmp_path / 'r.csv')) == 1
    assert capsys.readouterr().err.splitlines()[-1] == f'error: {tmp_path / "r.csv"}: No space left on device.'


def test_each_model_left_out_is_an_error_whatever_the_file_has(few_digits, checkpoint, tmp_path, capsys):
    path = tmp_path / 'r.csv'
    run_suites(few_digits, checkpoint, path, '--suite', 'attacks', *ATTACK)
    with pytest.raises(SystemExit) as error:
        run_suites(few_digits, checkpoint, path, '--suite', 'attacks', *ATTACK, '--route', '3', '4')
    assert error.value.code == 2 and 'each model was left out' in capsys.readouterr().err


def test_results_as_json(few_digits, checkpoint, tmp_path):
    path = tmp_path / 'r.json'
    main(['--data-dir', few_digits, *FLAGS, '--checkpoint', checkpoint, '--suite', 'attacks', *ATTACK,
          '--results-file', str(path), '--results-format', 'json'])
    rows = json.loads(path.read_text())
    assert [type(row['top1']) for row in rows] == [float] * 3


def test_smaller_batches_go_on_with_the_cells_that_are_there(few_digits, checkpoint, tmp_path, measured, monkeypatch):
    measure, failed = attack_suites.measure, []

    def out_of_memory(tested, *args, **kwargs):
        if tested.settings.loader.batch_size > 100:
            failed.append(tested.settings.loader.batch_size)
            raise RuntimeError('CUDA out of memory')
        return measure(tested, *args, **kwargs)

    monkeypatch.setattr(attack_suites, 'measure', out_of_memory)
    rows = run_suites(few_digits, checkpoint, tmp_path / 'r.csv', '--suite', 'attacks', *ATTACK, '--retry')
    assert failed[0] == 256 and len(rows) == len(measured) == 3


@pytest.mark.parametrize('flags, words', [
    (['--suite', 'corruption'], 'must be one of corruptions, imagenet-c'),
    (['--suite', 'corruptions=here'], 'must be corruptions alone'),
    (['--suite', 'corruptions='], 'must be corruptions alone'),
    (['--suite', 'imagenet-a='], 'must have a folder behind imagenet-a='),
    (['--suite', 'imagenet-a=nowhere'], 'imagenet-a: no folder nowhere.'),
    (['--suite', 'imagenet-v2=one', 'imagenet-v2=other'], 'Suite imagenet-v2 has two folders'),
    (['--suite', 'imagenet-a', 'corruptions'], '--suite imagenet-a=DIR'),
    (['--suite', 'imagenet-a'], 'imagenet-a: no class folders such as'),
    (['--suite', 'imagenet-real'], 'imagenet-real evaluates models of the 1,000 ImageNet classes, this one has 10.'),
    (['--suite', 'corruptions', '--data-dir', 'nowhere'], 'nowhere'),
    (['--suite', 'corruptions', '--adv-eps', '4'], 'belong to a suite that attacks'),
    (['--suite', 'autoattack', '--model-dtype', 'bfloat16'], 'autoattack needs --model-dtype float32'),
    (['--suite', 'autoattack', '--real-labels', 'real.json'], 'leave out --real-labels'),
    (['--suite', 'autoattack', '--adv-steps', '9'], 'Suite autoattack takes --adv-eps and --adv-norm'),
    (['--suite', 'autoattack', '--adv-attack', 'pgd'], 'Suite autoattack takes --adv-eps and --adv-norm'),
    (['--suite', 'attacks', '--torchscript'], '--torchscript takes no attack'),
    (['--suite', 'attacks', '--split', 'nope'], "No split 'nope'"),
    (['--suite', 'attacks', '--input-img-mode', 'L'], 'Images of mode L (--input-img-mode) have 1 channels'),
    (['--suite', 'attacks', '--adv-eps', '-1'], '--adv-eps'),
    (['--suite', 'attacks', '--results-file', '/dev/null/r.csv'], 'r.csv: its folder cannot be made (File exists).'),
], ids=str)
def test_bad_input_is_one_line_and_status_2(few_digits, checkpoint, tmp_path, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as error:
        main(['--data-dir', few_digits, *FLAGS, '--checkpoint', checkpoint, *flags])
    *logged, said = capsys.readouterr().err.splitlines()
    assert error.value.code == 2 and said.startswith('error: ') and words in said
    assert not any('error' in line or 'Traceback' in line for line in logged)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('suite, module', [('corruptions', 'cv2'), ('autoattack', 'pyautoattack')])
def test_a_missing_extra_is_one_line_before_the_work(
        few_digits, checkpoint, monkeypatch, capsys, tmp_path, suite, module):
    corruptions._functions.cache_clear()
    for name in corruptions._MODULES:
        monkeypatch.delitem(sys.modules, f'timm_advprop.corruptions.{name}', raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluate_suites, 'open_tested_model', lambda *args: pytest.fail('opened a model'))
    with pytest.raises(SystemExit) as error:
        main(['--data-dir', few_digits, *MODEL, '--checkpoint', checkpoint, '--suite', suite])
    said = capsys.readouterr().err
    assert error.value.code == 2 and "pip install 'timm-advprop[robustness]'" in said and said.count('\n') == 1


def test_a_results_file_of_another_kind_is_not_overwritten(few_digits, checkpoint, tmp_path, capsys):
    path = tmp_path / 'r.csv'
    run_validate(few_digits, capsys, '--checkpoint', checkpoint, '--results-file', str(path))
    before = path.read_bytes()
    with pytest.raises(SystemExit) as error:
        run_suites(few_digits, checkpoint, path, '--suite', 'attacks')
    assert error.value.code == 2 and path.read_bytes() == before
    assert 'results that are not of --suite' in capsys.readouterr().err
