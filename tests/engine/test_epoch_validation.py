"""Auxiliary norms and attacked images validated during a run, and the best checkpoint by them."""
import pytest
import torch
from sklearn.metrics import f1_score

from tests.engine.runs import equal_states, eval_settings, load, read_summary, run, train_settings
from timm_advprop.engine import epoch_validation
from timm_advprop.engine.training import check_settings, train
from timm_advprop.engine.validation import validate
from timm_advprop.engine.validation_settings import METRICS, ValidationSettings
from timm_advprop.errors import InputError

EXTRAS = dict(val_routes=['aux'], val_adv_eps=2.)


def measured(row):
    return {name[len('eval_'):] for name, value in row.items() if name.startswith('eval_') and value}


def validated(data, folder, **values):
    return validate(eval_settings(
        data_dir=data, checkpoint=str(folder / 'last.pth.tar'), batch_size=16, **values))


@pytest.mark.parametrize('ema', [False, True])
def test_the_validation_program_finds_what_was_measured_in_training(few_digits, tmp_path, ema):
    folder = run(few_digits, tmp_path, adv_eps=[1., 4.], val_routes=['2', 'aux', '1'], val_adv_eps=2., epochs=2, lr=.1,
                 model_ema=ema, model_ema_decay=.5)
    row = read_summary(folder)[-1]
    assert measured(row) == {kind + name for kind in ('', 'aux_', 'aux2_', 'adv_') for name in METRICS}
    found = {prefix: validated(few_digits, folder, use_ema=ema, route=route, metrics_avg='macro')
             for prefix, route in (('', 'main'), ('aux_', 'aux'), ('aux2_', '2'))}
    attacked = validated(few_digits, folder, use_ema=ema, adv_attack='pgd', adv_eps=2.)
    for prefix, results in found.items():
        for name, column in (('top1', 'top1'), ('top5', 'top5'), ('macro_f1_score', 'macro_f1'),
                             ('macro_recall', 'balanced_accuracy')):
            assert float(row[f'eval_{prefix}{column}']) == pytest.approx(results[name], abs=1e-4)
    for name in ('top1', 'top5'):
        assert float(row[f'eval_adv_{name}']) == pytest.approx(attacked[f'adv_{name}'], abs=1e-4)
    assert len({row[f'eval_{kind}loss'] for kind in ('', 'aux_', 'aux2_', 'adv_')}) == 4


@pytest.fixture(scope='module')
def sparse(few_digits, tmp_path_factory):
    return run(few_digits, tmp_path_factory.mktemp('sparse'), **EXTRAS, epochs=5, val_extra_interval=2,
               eval_metric='adv_loss')


def test_epochs_without_the_extras_have_empty_columns_and_the_last_has_them(sparse):
    rows = read_summary(sparse)
    assert [row['epoch'] for row in rows] == ['0', '1', '2', '3', '4']
    for row in rows:
        extras = row['epoch'] in '134'
        kinds = ['', 'aux_', 'adv_'] if extras else ['']
        assert measured(row) == {kind + name for kind in kinds for name in METRICS}


def test_an_epoch_without_the_metric_is_no_candidate(sparse):
    losses = {int(row['epoch']): float(row['eval_adv_loss']) for row in read_summary(sparse) if row['eval_adv_loss']}
    best = min(losses, key=losses.get)
    assert load(sparse / 'model_best.pth.tar')['epoch'] == best
    assert load(sparse / 'last.pth.tar')['epoch'] == 4
    kept = {load(path)['epoch']: load(path)['metric'] for path in sparse.glob('checkpoint-*')}
    assert kept == losses


def test_extras_change_no_training(few_digits, tmp_path, sparse):
    plain = run(few_digits, tmp_path, epochs=5)
    assert equal_states(load(plain / 'last.pth.tar')['state_dict'], load(sparse / 'last.pth.tar')['state_dict'])
    assert [row['eval_top1'] for row in read_summary(plain)] == [row['eval_top1'] for row in read_summary(sparse)]


@pytest.mark.parametrize('metric', ['macro_f1', 'aux_balanced_accuracy', 'adv_top5'])
def test_the_best_checkpoint_is_that_of_the_metric(few_digits, tmp_path, metric):
    ran = train(train_settings(data_dir=few_digits, output=str(tmp_path), experiment='run', **EXTRAS, epochs=4,
                               eval_metric=metric))
    values = {int(row['epoch']): float(row[f'eval_{metric}']) for row in read_summary(tmp_path / 'run')}
    best = load(tmp_path / 'run/model_best.pth.tar')
    assert best['epoch'] == max(values, key=values.get) and best['metric'] == pytest.approx(max(values.values()))
    assert [result['validation'][metric] for result in ran.results] == pytest.approx(sorted(values.values()))


def test_another_metric_seeks_the_best_anew(few_digits, tmp_path, caplog):
    run(few_digits, tmp_path, epochs=1)
    run(few_digits, tmp_path, epochs=2, eval_metric='loss', resume='auto')
    assert 'ranks epochs by top1: the best by loss is sought from here on' in caplog.text
    loss = float(read_summary(tmp_path / 'run')[1]['eval_loss'])
    best = load(tmp_path / 'run/model_best.pth.tar')
    assert (best['epoch'], best['metric']) == (1, pytest.approx(loss))


def test_macro_f1_of_a_run_is_that_of_scikit_learn(few_digits, tmp_path):
    folder = run(few_digits, tmp_path, epochs=2)
    answers = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epoch_validation.ClassCounts, 'add', lambda self, kind, output, target: answers.append(
            (target, output.argmax(1))))
        patch.setattr(epoch_validation.ClassCounts, 'scores', lambda self, placement: dict(
            f1_score=0., balanced_accuracy=0.))
        run(few_digits, tmp_path / 'again', epochs=2)
    labels, predicted = (torch.cat(values[-3:]) for values in zip(*answers))
    expected = 100 * f1_score(labels, predicted, average='macro', zero_division=0)
    assert float(read_summary(folder)[1]['eval_macro_f1']) == pytest.approx(expected)


@pytest.mark.parametrize('values, words', [
    (dict(eval_metric='aux_top1'), '--eval-metric aux_top1 is not measured'),
    (dict(eval_metric='adv_top1', val_routes=['aux']), '--eval-metric adv_top1 is not measured'),
    (dict(eval_metric='aux2_top1', val_routes=['aux']), '--eval-metric aux2_top1 is not measured'),
    (dict(eval_metric='macro-f1'), r'did you mean macro_f1\?'),
    (dict(val_split='', eval_metric='loss', val_adv_eps=1.), '--val-adv-eps need a validation split'),
], ids=str)
def test_a_metric_that_is_not_measured_is_told_before_training(few_digits, values, words):
    with pytest.raises(InputError, match=words) as error:
        check_settings(train_settings(data_dir=few_digits, **values))
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('values, words', [
    (dict(val_extra_interval=3, val_interval=2), '--val-extra-interval 3 must be a multiple of --val-interval 2'),
    (dict(val_routes=('0.3',)), 'must be aux or the number of an auxiliary norm'),
    (dict(val_routes=('split',)), 'must be aux or the number of an auxiliary norm'),
    (dict(val_adv_eps=0.), 'must be above 0, at most 255'),
], ids=str)
def test_settings_out_of_range(values, words):
    with pytest.raises(ValueError, match=words):
        ValidationSettings(**values)


@pytest.mark.parametrize('values, words', [
    (dict(model='test_resnet', regime='vanilla'), '--val-routes aux needs auxiliary norms, ResNet has none in this'),
    (dict(val_routes=['2']), 'Route 2 needs 2 auxiliary norms, the model has 1'),
], ids=str)
def test_norms_that_are_not_there_are_told_before_the_folder_is_made(few_digits, tmp_path, values, words):
    with pytest.raises(InputError, match=words):
        run(few_digits, tmp_path, **{'val_routes': ['aux'], **values})
    assert not list(tmp_path.iterdir())


def test_main_stands_for_no_extra_route(few_digits, tmp_path):
    folder = run(few_digits, tmp_path, model='test_resnet', regime='vanilla', val_routes=['main'], val_adv_eps=1.)
    assert measured(read_summary(folder)[0]) == {kind + name for kind in ('', 'adv_') for name in METRICS}


def test_the_attack_is_that_of_the_validation_program_and_starts_alike_in_each_epoch(few_digits, tmp_path):
    folder = run(few_digits, tmp_path, val_adv_eps=8., epochs=3, lr=1e-12, bn_momentum=0.)
    rows = read_summary(folder)  # of a model that does not change
    assert len({row['eval_adv_loss'] for row in rows}) == 1 and rows[0]['eval_adv_loss'] != rows[0]['eval_loss']
    attack = ValidationSettings(val_adv_eps=8.).attack
    assert (attack, ValidationSettings().attack) == (eval_settings(adv_attack='pgd', adv_eps=8.).attack.attack, None)
