"""Intervals of a few trainings against scipy's."""

from __future__ import annotations

import pytest
from scipy import stats

from analysis.intervals import paired_interval, strata_interval, t_interval, together, welch_interval, widest

FIRST, SECOND = [80.1, 80.9, 81.4], [79.0, 80.2, 79.9]


def test_the_interval_of_a_mean_is_students() -> None:
    expected = stats.ttest_1samp(FIRST, 0).confidence_interval(0.95)
    assert t_interval(FIRST) == pytest.approx((expected.low, expected.high))


def test_the_interval_of_a_paired_difference_is_students() -> None:
    expected = stats.ttest_rel(FIRST, SECOND).confidence_interval(0.95)
    assert paired_interval(FIRST, SECOND) == pytest.approx((expected.low, expected.high))


def test_the_interval_of_an_unpaired_difference_is_welchs() -> None:
    expected = stats.ttest_ind(FIRST, [*SECOND, 77.0], equal_var=False).confidence_interval(0.95)
    assert welch_interval(FIRST, [*SECOND, 77.0]) == pytest.approx((expected.low, expected.high))
    assert welch_interval([1.0, 1.0], [3.0, 3.0]) == (-2, -2)


def test_one_value_has_no_interval() -> None:
    assert t_interval([80.0]) is None
    assert paired_interval([80.0], [79.0]) is None
    assert welch_interval([80.0], SECOND) is None


def test_the_widest_interval_is_named() -> None:
    assert widest({"a": (0.0, 1.0), "b": None, "c": (-1.0, 0.5)}) == ((-1.0, 0.5), "c")
    assert widest({"b": None}) == (None, None)


def test_strata_are_averaged_and_their_differences_are_no_noise() -> None:
    shifted = [value + 10 for value in FIRST]
    assert strata_interval([[FIRST, SECOND]]) == welch_interval(FIRST, SECOND)
    low, high = strata_interval([[FIRST], [shifted]])
    assert (low + high) / 2 == pytest.approx(sum(FIRST) / 3 + 5)
    freedom, error = 4, stats.sem(FIRST) / 2**0.5  # two samples of equal spread
    assert (high - low) / 2 == pytest.approx(stats.t.ppf(0.975, freedom) * error)
    assert strata_interval([[FIRST], [[80.0]]]) is None
    assert strata_interval([]) is None


def test_what_a_seed_has_in_common_in_all_strata_does_not_average_out() -> None:
    shifted = [value + 10 for value in FIRST]
    assert together([[FIRST], [shifted]]) == pytest.approx(t_interval([value + 5 for value in FIRST]))
    opposite = [-value for value in FIRST]
    assert together([[FIRST], [opposite]]) == pytest.approx((0, 0))
    assert together([[FIRST, SECOND]]) == pytest.approx(welch_interval(FIRST, SECOND))
    assert together([[FIRST], [FIRST[:2]]]) is None
    assert together([]) is None
