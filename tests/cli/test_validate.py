"""validate.py as a program: what it prints and writes, several models, a smaller batch where memory runs out."""
import csv
import json
from pathlib import Path

import pytest
import timm
import torch

from tests.cli.programs import MODEL, run_validate
from tests.engine.test_validation import images_of
from timm_advprop import norm_route
from timm_advprop.cli import validate as program
from timm_advprop.cli.validate import list_runs, main, parse_args
from timm_advprop.engine.results_file import write_results
from timm_advprop.engine.validation import validate
from timm_advprop.errors import InputError
from timm_advprop.regimes import Attack


@pytest.fixture
def checkpoint(trained):
    return ['--checkpoint', str(trained / 'last.pth.tar')]


@pytest.fixture
def validated(monkeypatch):
    """The settings that are validated, in order; each model has its number for an accuracy."""
    runs = []

    def record(settings):
        runs.append(settings)
        if settings.model.model == 'broken':
            raise InputError('No such thing.')
        return dict(model=settings.model.model, top1=float(len(runs)))

    monkeypatch.setattr(program, 'validate', record)
    return runs


def results_of(capsys):
    return json.loads(capsys.readouterr().out.split('--result\n')[1])


def test_the_results_are_those_of_the_engine(few_digits, checkpoint, capsys):
    flags = [*checkpoint, '--route', 'aux', '--adv-attack', 'pgd', '--adv-eps', '2', '--adv-steps', '1', '--split',
             'train']
    results = run_validate(few_digits, capsys, *flags)
    (run,), several = list_runs(parse_args(['--data-dir', few_digits, *MODEL, *flags]))
    assert not several and results == validate(run)
    assert results['adv_attack'].startswith('PGD-1, eps 2/255')


def test_flags_reach_the_settings():
    settings = parse_args(['--adv-attack', 'ifgsm', '--adv-eps', '2', '--adv-norm-stats', 'train', '--route', 'clean',
                           '--batch-size', '7', '--mean', '.5', '--metrics-avg', 'macro'])
    (run,), _ = list_runs(settings)
    assert run.attack.attack == Attack(
        kind='ifgsm', eps_px=2., norm_stats='train', target='none', random_start=1.)
    assert (run.model.route, run.loader.batch_size, run.image.mean) == ('main', 7, (.5,))
    assert run.data.metrics_avg == 'macro'


def test_each_auxiliary_norm_and_each_strength_has_a_result(few_digits, tmp_path, capsys, randomize_norms):
    model = randomize_norms(timm.create_model('test_resnet_ap', num_classes=10, num_aux=3)).eval()
    torch.save(model.state_dict(), tmp_path / 'model.pth')
    flags = ['--checkpoint', str(tmp_path / 'model.pth'), '--crop-pct', '1']
    attack = ['--adv-attack', 'pgd', '--adv-steps', '1']
    results = run_validate(
        few_digits, capsys, *flags, '--route', 'main', '1', '2', '3', *attack, '--adv-eps', '0', '64')
    found = {(result['route'], result['adv_attack'].split(',')[1]): result for result in results}
    assert set(found) == {(route, f' eps {eps}/255') for route in ('main', 'aux', '2', '3') for eps in (0, 64)}
    assert len(results) == len(found) == 8
    images, labels = images_of(few_digits)
    for number, route in enumerate(('main', 'aux', '2', '3')):
        weak, strong = (found[route, f' eps {eps}/255'] for eps in (0, 64))
        with norm_route(model, number), torch.no_grad():
            top5 = 100 * (model(images).topk(5).indices == labels.unsqueeze(1)).any(1).double().mean().item()
        assert weak['top5'] == strong['top5'] == weak['adv_top5'] == pytest.approx(top5)
    assert len({result['top5'] for result in results}) > 2
    assert any(result['adv_top5'] != result['top5'] for result in results)
    alone = run_validate(few_digits, capsys, *flags, '--route', '3', *attack, '--adv-eps', '64')
    assert {name: found['3', ' eps 64/255'][name] for name in alone} == alone


@pytest.mark.parametrize('format', ['csv', 'json'])
def test_results_are_written(few_digits, checkpoint, tmp_path, capsys, format):
    path = tmp_path / 'results'
    results = run_validate(few_digits, capsys, *checkpoint, '--results-file', str(path), '--results-format', format)
    if format == 'json':
        assert json.loads(path.read_text()) == results
    else:
        with open(path, newline='') as file:
            (row,) = csv.DictReader(file)
        assert row == {name: str(value) for name, value in results.items()}
    assert list(tmp_path.iterdir()) == [path]


def test_the_folder_of_the_results_is_made(validated, tmp_path):
    path = tmp_path / 'no' / 'where' / 'results.csv'
    main(['--model', 'test_resnet', '--results-file', str(path)])
    assert path.read_text().splitlines() == ['model,top1', 'test_resnet,1.0']


def test_results_of_several_models_have_every_column(tmp_path):
    write_results(str(tmp_path / 'r.csv'), [dict(model='a', top1=1.), dict(model='b', adv_top1=2.)])
    assert (tmp_path / 'r.csv').read_text().splitlines() == ['model,top1,adv_top1', 'a,1.0,', 'b,,2.0']


def test_a_file_that_cannot_be_written_is_told_before_the_work(validated, tmp_path, capsys):
    (tmp_path / 'file').touch()
    with pytest.raises(SystemExit) as error:
        main(['--results-file', str(tmp_path / 'file' / 'where.csv')])
    assert error.value.code == 2 and not validated
    assert 'where.csv: its folder cannot be made' in capsys.readouterr().err
    with pytest.raises(InputError, match='Cannot write'):
        write_results(str(tmp_path), {})


def test_a_folder_of_checkpoints_is_validated_best_first(few_digits, trained, capsys):
    results = run_validate(few_digits, capsys, '--checkpoint', str(trained))
    assert {Path(result['checkpoint']) for result in results} == set(trained.glob('*.pth.tar'))
    top1 = [result['top1'] for result in results]
    assert top1 == sorted(top1, reverse=True)
    by_name = {Path(result['checkpoint']).name: result['top1'] for result in results}
    for name in ('last', 'checkpoint-0'):
        alone = run_validate(few_digits, capsys, '--checkpoint', str(trained / f'{name}.pth.tar'))
        assert alone['top1'] == by_name[f'{name}.pth.tar']


def test_a_file_of_names_is_validated_without_what_fails(validated, tmp_path, capsys, caplog):
    (tmp_path / 'names').write_text('one\n\nbroken\n two \n')
    main(['--model', str(tmp_path / 'names')])
    assert [settings.model.model for settings in validated] == ['one', 'broken', 'two']
    assert results_of(capsys) == [dict(model='two', top1=3.), dict(model='one', top1=1.)]
    assert 'broken left out: No such thing.' in caplog.text


def test_where_each_model_fails_the_results_stay(validated, tmp_path, capsys):
    (tmp_path / 'names').write_text('broken\nbroken\n')
    (tmp_path / 'results.csv').write_text('of before\n')
    with pytest.raises(SystemExit) as stop:
        main(['--model', str(tmp_path / 'names'), '--results-file', str(tmp_path / 'results.csv')])
    captured = capsys.readouterr()
    assert stop.value.code == 2 and 'each model was left out' in captured.err and '--result' not in captured.out
    assert (tmp_path / 'results.csv').read_text() == 'of before\n'


@pytest.mark.parametrize('names, words', [
    ('one\ntwo\n', 'error: The checkpoint x.pth is not one for each of 2 models (--model): give one model, or as many'),
    ('\n', 'is a file without names.')], ids=str)
def test_a_file_of_names_does_not_go_with_one_checkpoint(validated, tmp_path, capsys, names, words):
    (tmp_path / 'names').write_text(names)
    with pytest.raises(SystemExit) as error:
        main(['--model', str(tmp_path / 'names'), '--checkpoint', 'x.pth'])
    said = capsys.readouterr().err
    assert error.value.code == 2 and not validated
    assert words in said and said.count('\n') == 1


def test_a_file_of_one_name_goes_with_a_checkpoint(validated, tmp_path):
    (tmp_path / 'names').write_text('one\n')
    main(['--model', str(tmp_path / 'names'), '--checkpoint', 'x.pth'])
    assert asked(validated) == [('one', 'x.pth', 'main')]


@pytest.mark.parametrize('name, expected', [
    ('test_resnet*', {'test_resnet.r160_in1k', 'test_resnet_ap.plain_r160_in1k'}),
    ('efficientnet_b[01]_ap.ap*', {'efficientnet_b0_ap.ap_in1k', 'efficientnet_b1_ap.ap_in1k'}),
])
def test_a_name_with_wildcards_is_all_models_with_weights(validated, name, expected):
    main(['--model', name])
    assert {settings.model.model for settings in validated} == expected


def test_all_models_are_those_of_imagenet(validated, monkeypatch):
    monkeypatch.setattr(program, 'list_models', lambda pretrained, exclude_filters: [
        'a'] if pretrained and '*_in21k' in exclude_filters else ['wrong'])
    main(['--model', 'all'])
    assert [settings.model.model for settings in validated] == ['a']


def test_wildcards_that_match_nothing_are_one_line(validated, capsys):
    with pytest.raises(SystemExit) as error:
        main(['--model', 'nope*'])
    assert error.value.code == 2 and not validated
    assert "No model with published weights matches 'nope*'." in capsys.readouterr().err


def test_an_interrupt_ends_the_list_with_what_there_is(validated, tmp_path, capsys, monkeypatch):
    record = program.validate

    def interrupted(settings):
        if settings.model.model == 'two':
            raise KeyboardInterrupt
        return record(settings)

    monkeypatch.setattr(program, 'validate', interrupted)
    (tmp_path / 'names').write_text('one\ntwo\nthree\n')
    main(['--model', str(tmp_path / 'names')])
    assert [result['model'] for result in results_of(capsys)] == ['one']


def asked(runs):
    return [(run.model.model, Path(run.model.checkpoint).name, run.model.route) for run in runs]


@pytest.mark.parametrize('flags, expected', [
    (['--model', 'a', 'b', '--route', 'main', 'aux'], [('a', '', 'main'), ('a', '', 'aux'), ('b', '', 'main'),
                                                     ('b', '', 'aux')]),
    (['--model', 'a', '--checkpoint', 'x.pth', 'y.pth'], [('a', 'x.pth', 'main'), ('a', 'y.pth', 'main')]),
    (['--model', 'a', 'b', '--checkpoint', 'x.pth', 'y.pth'], [('a', 'x.pth', 'main'), ('b', 'y.pth', 'main')]),
    (['--model', 'a', '--route', '0', '1', '2'], [('a', '', 'main'), ('a', '', 'aux'), ('a', '', '2')]),
    (['--model', 'a', '--route', '.5', 'aux', '0.50', '1', '1.0'], [('a', '', '0.5'), ('a', '', 'aux')]),
    (['--checkpoint', 'x.pth', 'y.pth'], [('', 'x.pth', 'main'), ('', 'y.pth', 'main')]),
    (['--model', 'hf-hub:me/a', 'local-dir:b', '--route', 'clean'], [('hf-hub:me/a', '', 'main'),
                                                                    ('local-dir:b', '', 'main')]),
], ids=str)
def test_models_checkpoints_and_routes_are_validated_one_by_one(validated, capsys, flags, expected):
    main(flags)
    assert asked(validated) == expected
    assert len(results_of(capsys)) == len(expected)


@pytest.mark.parametrize('flags, words', [
    (['--model', 'a', 'b', '--checkpoint', 'x', 'y', 'z'], '3 checkpoints (--checkpoint) are not one for each of 2'),
    (['--route', 'sideways'], 'must be main, aux, the number of an auxiliary norm, or a share'),
    (['--route', '1.5'], 'must be main, aux, the number of an auxiliary norm, or a share'),
    (['--route', '-0.2'], 'must be main, aux, the number of an auxiliary norm, or a share'),
    (['--route', 'nan'], 'must be main, aux, the number of an auxiliary norm, or a share'),
    (['--recalibrate', '1'], 'must be 0 for none, or at least 2'),
    (['--route', '-1'], '--route'),
    (['--adv-eps', '4'], '--adv-eps: these belong to an attack'),
    (['--adv-eps', '2', '4'], '--adv-eps: these belong to an attack'),
], ids=str)
def test_flags_that_do_not_go_together_are_one_line(validated, capsys, flags, words):
    with pytest.raises(SystemExit) as error:
        main(flags)
    said = capsys.readouterr().err
    assert error.value.code == 2 and not validated
    assert words in said and said.count('\n') == 1


def out_of_memory_above(size, sizes):
    def validate(settings):
        sizes.append(settings.loader.batch_size)
        if settings.loader.batch_size > size:
            raise RuntimeError('CUDA out of memory')
        return dict(top1=1.)
    return validate


def test_retrying_takes_smaller_batches_until_memory_suffices(monkeypatch, capsys, caplog):
    sizes = []
    monkeypatch.setattr(program, 'validate', out_of_memory_above(40, sizes))
    main(['--model', 'a', '--batch-size', '128', '--retry'])
    assert sizes[0] == 128 and sizes == sorted(sizes, reverse=True) and sizes[-1] <= 40 < sizes[-2]
    assert f'Retrying with --batch-size {sizes[-1]}' in caplog.text
    assert results_of(capsys) == dict(top1=1.)


def test_without_retrying_and_with_no_batch_left_the_error_stands(monkeypatch):
    sizes = []
    monkeypatch.setattr(program, 'validate', out_of_memory_above(0, sizes))
    with pytest.raises(RuntimeError, match='out of memory'):
        main(['--model', 'a', '--batch-size', '128'])
    assert sizes == [128]
    with pytest.raises(RuntimeError, match='out of memory'):
        main(['--model', 'a', '--batch-size', '4', '--retry'])
    assert sizes[-1] == 1


def test_other_errors_are_not_retried(monkeypatch):
    def fail(settings):
        raise RuntimeError('shapes do not match')

    monkeypatch.setattr(program, 'validate', fail)
    with pytest.raises(RuntimeError, match='shapes'):
        main(['--model', 'a', '--retry'])
