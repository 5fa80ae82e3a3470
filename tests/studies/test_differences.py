"""Paired differences, Holm's method and what is said of a claim."""
import pytest
from scipy.stats import ttest_rel

from studies.comparison.differences import Difference, difference, holm_levels, test_claims
from studies.comparison.study import Claim


def _results(**rows):
    return [dict(row=row, seed=seed, clean=value) for row, values in rows.items() for seed, value in enumerate(values)]


def test_a_difference_is_paired_by_seed():
    results = _results(a=(80., 90., 70.), b=(79., 88., 70.5))[::-1]
    found = difference(results, 'a', 'b', 'clean')
    assert sorted(found.values) == [-0.5, 1., 2.]
    expected = ttest_rel((80., 90., 70.), (79., 88., 70.5))
    interval = expected.confidence_interval(0.95)
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.mean - found.margin(), found.mean + found.margin()) == pytest.approx(tuple(interval))


def test_only_seeds_of_both_rows_count():
    results = _results(a=(80., 90., 70.), b=(79., 88.))
    assert list(difference(results, 'a', 'b', 'clean').values) == [1., 2.]
    assert difference(_results(a=(80., 81.), b=(80.,)), 'a', 'b', 'clean') is None
    assert difference(results, 'a', 'b', 'corruption') is None


@pytest.mark.parametrize('values, p', [((1., 1., 1.), 0.), ((0., 0.), 1.)])
def test_differences_without_variation_have_a_p(values, p):
    assert Difference(values).p == p


def test_holm_tests_the_smallest_first_and_stops_at_the_first_that_fails():
    levels = holm_levels({0: 0.03, 1: 0.001, 2: 0.04, 3: 0.012}, level=0.05)
    assert levels == pytest.approx({1: 0.05 / 4, 3: 0.05 / 3, 0: 0.05 / 2, 2: 0.05 / 2})


@pytest.mark.parametrize('values, verdict', [
    ((1.0, 1.1, 0.9, 1.2), 'reproduced'),
    ((-1.0, -1.1, -0.9, -1.2), 'not reproduced'),
    ((0.01, -0.01, 0.02, -0.02), 'not reproduced'),  # a gain of 0.2 is ruled out
    ((1.0, -1.1, 0.9, -0.5), 'cannot tell at this scale'),
])
def test_a_verdict_is_of_the_interval(values, verdict):
    claim = Claim('a is better', 'a', 'b', 'clean', margin=0.2)
    tested, = test_claims(_results(a=values, b=(0.,) * 4), [claim])
    assert tested.verdict == verdict


def test_many_claims_make_each_of_them_harder_and_missing_ones_do_not():
    values = (0.5, 0.1, 0.7, 0.3, 0.2)
    results = _results(a=values, b=(0.,) * 5, c=(0.3, -0.2, 0.4, -0.3, 0.1))
    claim, other, missing = (Claim('', row, 'b', 'clean') for row in ('a', 'c', 'd'))
    assert [tested.verdict for tested in test_claims(results, [claim])] == ['reproduced']
    assert [tested.verdict for tested in test_claims(results, [claim, missing])] == ['reproduced', 'not measured']
    assert test_claims(results, [claim, *[other] * 9])[0].verdict == 'cannot tell at this scale'
