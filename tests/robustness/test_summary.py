"""Means over corruptions, and what stands for a row in an overview."""
import pytest

from timm_advprop.corruptions.severities import ALEXNET_ERRORS, ALL_CORRUPTIONS, CORRUPTIONS, GROUPS
from timm_advprop.robustness.summary import headline, newest, summary_rows


def row(suite, condition='', severity='', top1=50., route='main', **values):
    return dict(model='m', checkpoint='', route=route, suite=suite, condition=condition, severity=severity, top1=top1,
                top1_err=100 - top1, top5=top1 / 2, top5_err=100 - top1 / 2, cell='x', **values)


def corrupted(names=ALL_CORRUPTIONS, error=lambda name, severity: 10. * severity, **values):
    return [row('corruptions', name, severity, 100 - error(name, severity), **values)
            for name in names for severity in range(1, 6)]


def summaries(rows):
    return {(each['route'], each['condition']): each for each in summary_rows(rows)}


def test_the_mean_is_over_15_corruptions_and_5_severities():
    rows = corrupted(error=lambda name, severity: 20. if name in CORRUPTIONS else 90.)
    rows[0]['top1_err'] = 95.  # one of 75
    rows[0]['top1'] = 5.
    found = summaries(rows)
    assert found['main', 'mean']['top1_err'] == pytest.approx(21) and found['main', 'mean']['top1'] == pytest.approx(79)
    assert found['main', 'mean-noise']['top1_err'] == pytest.approx(25)
    assert found['main', 'mean-blur']['top1_err'] == 20 and found['main', 'mean-extra']['top1_err'] == 90
    assert {condition for _, condition in found} == {'mean', *(f'mean-{group}' for group in GROUPS)}
    assert all('mce' not in each and not each['cell'] and each['severity'] == '' for each in found.values())


def test_scores_of_classes_are_averaged_as_well():
    rows = corrupted()
    for number, each in enumerate(rows):
        each['macro_f1_score'] = float(number % 2)
    assert summaries(rows)['main', 'mean']['macro_f1_score'] == pytest.approx(0.5, abs=0.01)


def test_numbers_may_be_text_as_in_a_file():
    rows = [{name: str(value) for name, value in each.items()} for each in corrupted()]
    assert summaries(rows)['main', 'mean']['top1_err'] == 30.


def test_errors_of_alexnet_are_a_relative_error_of_100_percent():
    rows = corrupted(error=lambda name, severity: 100 * ALEXNET_ERRORS[name], imagenet_classes=True)
    assert summaries(rows)['main', 'mean']['mce'] == pytest.approx(100)
    for each in rows:
        if each['condition'] == 'fog':  # half of AlexNet's in one of 15
            each['top1_err'] /= 2
    found = summaries([{name: str(value) for name, value in each.items()} for each in rows])
    assert found['main', 'mean']['mce'] == pytest.approx(100 * 14.5 / 15, abs=1e-3)
    assert 'mce' not in found['main', 'mean-noise']


@pytest.mark.parametrize('lost', ['fog', 'jpeg_compression'])
def test_no_mean_without_all_corruptions(lost):
    rows = corrupted()
    rows.remove(next(each for each in rows if each['condition'] == lost))
    found = {condition for _, condition in summaries(rows)}
    group = next(group for group, names in GROUPS.items() if lost in names)
    assert found == {f'mean-{other}' for other in GROUPS if other != group}


def test_the_extra_corruptions_are_not_needed():
    assert {condition for _, condition in summaries(corrupted(CORRUPTIONS))} == {
        'mean', 'mean-noise', 'mean-blur', 'mean-weather', 'mean-digital'}


def test_routes_and_suites_have_means_of_their_own():
    rows = corrupted() + corrupted(error=lambda name, severity: 0., route='aux')
    rows += [{**each, 'suite': 'imagenet-c'} for each in corrupted(error=lambda name, severity: 100.)]
    found = summary_rows(rows)
    assert [(each['suite'], each['route'], each['top1']) for each in found if each['condition'] == 'mean'] == [
        ('corruptions', 'main', 70.), ('corruptions', 'aux', 100.), ('imagenet-c', 'main', 0.)]


def test_other_settings_have_a_mean_of_their_own():
    rows = corrupted(settings='a') + corrupted(error=lambda name, severity: 0., settings='b')
    assert [(each['settings'], each['top1']) for each in summary_rows(rows) if each['condition'] == 'mean'] == [
        ('a', 70.), ('b', 100.)]
    assert [each['settings'] for each in summary_rows(rows[5:]) if each['condition'] == 'mean'] == ['b']
    again = corrupted(['fog'], error=lambda name, severity: 100., settings='b')  # such as files in another folder
    *_, last = [each for each in summary_rows(rows + again) if each['condition'] == 'mean']
    assert last['top1'] == pytest.approx(100 * 14 / 15, abs=1e-3)


@pytest.mark.parametrize('values, text, title', [
    (('attacks', 'pgd', '4.0'), 'PGD-5 (L2), eps 4/255, alpha 1/255, untargeted', 'PGD (L2) 4/255'),
    (('attacks', 'pgd', '4.0'), 'PGD-5, eps 4/255, alpha 1/255, untargeted', 'PGD 4/255'),
    (('autoattack', 'total', 128), 'AutoAttack, l2, eps 128/255', 'AutoAttack (L2) 128/255'),
])
def test_strengths_in_l2_are_others_than_in_linf(values, text, title):
    assert headline(row(*values, adv_attack=text)) == title


def test_the_newest_rows_are_the_last_of_their_kind():
    rows = [row('clean', top1=1.), row('attacks', 'pgd', '2.0', top1=2.), row('clean', top1=3., route='aux'),
            row('attacks', 'pgd', '8.0', top1=4.), row('clean', top1=5.)]
    assert sorted(each['top1'] for each in newest(rows)) == [2., 3., 4., 5.]


@pytest.mark.parametrize('weights, kept', [('a', 1.), ('b', 2.)])  # fewer images of the same weights, or of others
def test_clean_accuracy_is_that_of_the_weights_evaluated_last(weights, kept):
    rows = [row('clean', top1=1., num_images='9', weights='a'), row('clean', top1=2., num_images='3', weights=weights)]
    assert [each['top1'] for each in newest(rows)] == [kept]


@pytest.mark.parametrize('values, title', [
    (('clean',), 'clean'), (('imagenet-a',), 'imagenet-a'), (('corruptions', 'fog', '3'), None),
    (('corruptions', 'mean'), 'corruptions'), (('corruptions', 'mean-noise'), 'noise'),
    (('imagenet-c', 'mean'), 'imagenet-c'), (('imagenet-c', 'mean-noise'), 'imagenet-c noise'),
    (('attacks', 'pgd', '4.0'), 'PGD 4/255'), (('attacks', 'ifgsm', 0.5), 'IFGSM 0.5/255'),
    (('autoattack', 'apgd-ce', '8.0'), None), (('autoattack', 'total', 8), 'AutoAttack 8/255'),
])
def test_what_stands_for_a_row_in_an_overview(values, title):
    assert headline(row(*values)) == title
