"""--resume is exact: stopped anywhere and resumed, a run leaves what one leaves that was never stopped."""
import pytest

from tests.engine.runs import read_summary
from tests.reliability.stopped_runs import RANDOM, check_equal_runs, run_in_two_parts, run_stopped
from timm_advprop.engine import epoch_validation
from timm_advprop.regimes import REGIMES


@pytest.mark.parametrize('update', [1, pytest.param(4, marks=pytest.mark.slow), 6])
def test_stopped_within_an_epoch_at_its_end_and_in_the_next(few_digits, tmp_path, update):
    values = dict(RANDOM, workers=1)
    run_stopped(few_digits, tmp_path / 'whole', **values)
    run_in_two_parts(few_digits, tmp_path / 'parts', update, **values)
    check_equal_runs(tmp_path / 'whole' / 'run', tmp_path / 'parts' / 'run')


def test_a_schedule_that_follows_the_metric(few_digits, tmp_path, monkeypatch):
    monkeypatch.setattr(epoch_validation, 'evaluate', lambda *args, **kwargs: dict(loss=1., top1=50., top5=60.))
    values = dict(RANDOM, sched='plateau', patience_epochs=1, decay_rate=.5, epochs=6)
    run_stopped(few_digits, tmp_path / 'whole', **values)
    rates = {row['lr'] for row in read_summary(tmp_path / 'whole' / 'run')}
    assert len(rates) > 2
    run_in_two_parts(few_digits, tmp_path / 'parts', 14, **values)
    check_equal_runs(tmp_path / 'whole' / 'run', tmp_path / 'parts' / 'run')


@pytest.mark.parametrize('regime', REGIMES)
def test_every_regime(few_digits, tmp_path, regime):
    values = dict(RANDOM, regime=regime, epochs=1, adv_budget='epochs', adv_steps=None)
    run_stopped(few_digits, tmp_path / 'whole', **values)
    run_in_two_parts(few_digits, tmp_path / 'parts', 2, **values)
    check_equal_runs(tmp_path / 'whole' / 'run', tmp_path / 'parts' / 'run')


EVERY_SOURCE = ['pgd', 'augmix', 'augmax steps=1', 'corruption', 'amplitude-mix', 'gaussian-noise']
QUICK = [dict(mixup=.5, cutmix=.5, workers=2), dict(grad_accum_steps=3), dict(adv_source=EVERY_SOURCE)]
OTHERS = [
    dict(mixup=.5, mixup_off_epoch=1, workers=2),
    dict(cutmix=.5, no_prefetcher=True), dict(sched='step', decay_epochs=1, lr_noise=[0, 2]),
    dict(sched_on_updates=True, warmup_epochs=1), dict(opt='adamw', lr=.001), dict(opt='lookahead_sgd'),
    dict(aug_splits=2, split_bn=True), dict(val_interval=2), dict(adv_eps=[1., 2.]),
    dict(val_routes=['aux'], val_adv_eps=2., val_extra_interval=2, eval_metric='adv_top1'),
]


@pytest.mark.parametrize(
    'values', [*QUICK, *(pytest.param(values, marks=pytest.mark.slow) for values in OTHERS)], ids=str)
def test_what_else_has_a_state(few_digits, tmp_path, values):
    values = {**RANDOM, **values}
    run_stopped(few_digits, tmp_path / 'whole', **values)
    run_in_two_parts(few_digits, tmp_path / 'parts', 3, **values)
    check_equal_runs(tmp_path / 'whole' / 'run', tmp_path / 'parts' / 'run')
