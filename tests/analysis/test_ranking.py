"""Tau, precision and regret against scipy's and hand-counted values."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from analysis.ranking import kendall_tau, latency_groups, precision_at, ranking, regret, tau_interval, taus

TRUTH = [70.0, 71.0, 72.5, 73.0, 74.0, 76.0, 77.0, 79.0, 80.0]


def test_a_perfect_score_has_tau_one_and_no_regret() -> None:
    found = ranking([10 * value for value in TRUTH], TRUTH, latencies_ms=range(9), seed=0)
    assert (found.tau, found.spearman, found.precision_at_5, found.regret) == (1, pytest.approx(1), 1, 0)
    assert (found.tercile_tau, found.tercile_regret) == (1, 0)
    assert found.tau_interval_95 == (1, 1)


def test_a_reversed_score_has_tau_minus_one_and_the_whole_range_as_regret() -> None:
    found = ranking([-value for value in TRUTH], TRUTH, latencies_ms=range(9), seed=0)
    assert (found.tau, found.spearman, found.precision_at_5) == (-1, pytest.approx(-1), 0.2)
    assert found.regret == 10.0
    assert found.tercile_regret == pytest.approx((2.5 + 3.0 + 3.0) / 3)
    assert found.tau_interval_95 == (-1, -1)


def test_tau_is_scipys_with_and_without_ties() -> None:
    generator = np.random.default_rng(0)
    for levels in (3, 8, 1000):
        for _ in range(10):
            first, second = generator.integers(levels, size=30), generator.integers(levels, size=30)
            assert kendall_tau(first, second) == pytest.approx(stats.kendalltau(first, second).statistic)


def test_a_bootstrap_sample_has_the_tau_of_the_nets_that_it_repeats() -> None:
    generator = np.random.default_rng(1)
    first, second = generator.normal(size=12), generator.normal(size=12).round(1)
    counts = generator.multinomial(12, np.full(12, 1 / 12), size=5)
    found = taus(first, second, counts.astype(float))
    for tau, count in zip(found, counts, strict=True):
        expected = stats.kendalltau(np.repeat(first, count), np.repeat(second, count)).statistic
        assert tau == pytest.approx(expected)


def test_the_interval_contains_tau_and_narrows_with_more_nets() -> None:
    generator = np.random.default_rng(2)
    widths = []
    for nets in (20, 200):
        truth = generator.normal(size=nets)
        found = ranking(truth + generator.normal(size=nets), truth, latencies_ms=range(nets), seed=0)
        assert found.tau_interval_95 is not None
        assert found.tau is not None
        low, high = found.tau_interval_95
        assert low < found.tau < high
        widths.append(high - low)
    assert widths[1] < 0.5 * widths[0]


def test_the_interval_of_an_uninformative_score_contains_zero_about_19_times_in_20() -> None:
    generator = np.random.default_rng(3)
    misses = 0
    for number in range(60):
        found = ranking(generator.normal(size=30), generator.normal(size=30), latencies_ms=range(30), seed=number)
        assert found.tau_interval_95 is not None
        misses += not found.tau_interval_95[0] <= 0 <= found.tau_interval_95[1]
    assert 1 <= misses <= 9  # 5 % are 3


def test_the_same_seed_gives_the_same_interval() -> None:
    generator = np.random.default_rng(4)
    scores, truth = generator.normal(size=(2, 30))
    found = [ranking(scores, truth, latencies_ms=range(30), seed=seed) for seed in (5, 5, 6)]
    assert found[0] == found[1]
    assert found[0].tau == found[2].tau
    assert found[0].tau_interval_95 != found[2].tau_interval_95


def test_the_interval_of_two_trainings_is_that_of_a_score() -> None:
    again = [71.0, 70.0, 72.0, 75.0, 73.0, 76.5, 79.0, 78.0, 81.0]
    assert tau_interval(again, TRUTH, seed=3) == ranking(again, TRUTH, latencies_ms=range(9), seed=3).tau_interval_95
    assert tau_interval(TRUTH, TRUTH, seed=0) == (1, 1)


def test_size_alone_ranks_over_the_whole_range_and_not_among_nets_of_like_size() -> None:
    latencies_ms = [1.0, 1.01, 1.02, 5.0, 5.01, 5.02, 9.0, 9.01, 9.02]
    truth = [3.0, 2.0, 1.0, 6.0, 5.0, 4.0, 9.0, 8.0, 7.0]
    found = ranking(latencies_ms, truth, latencies_ms=latencies_ms, seed=0)
    assert found.tau == pytest.approx((27 - 9) / 36)
    assert found.tercile_tau == -1
    assert found.tercile_regret == 2


def test_terciles_have_as_many_nets_each() -> None:
    assert latency_groups([3.0, 1.0, 2.0, 9.0, 8.0, 7.0, 5.0, 4.0]).tolist() == [0, 0, 0, 2, 2, 1, 1, 1]


def test_a_score_that_cannot_tell_nets_apart_picks_by_chance() -> None:
    accuracy = np.array([1.0, 2.0, 3.0, 4.0])
    assert regret(np.array([7.0, 7.0, 7.0, 0.0]), accuracy) == 2
    assert regret(np.array([7.0, 7.0, 7.0, 7.0]), accuracy) == 1.5
    assert precision_at(2, np.array([7.0, 7.0, 7.0, 7.0]), accuracy) == 0.5
    assert precision_at(2, np.array([0.0, 7.0, 7.0, 9.0]), accuracy) == 0.75
    assert precision_at(5, np.array([0.0, 7.0, 7.0, 9.0]), accuracy) is None


def test_too_few_nets_and_constant_scores_have_no_tau() -> None:
    assert kendall_tau([1.0, 2.0], [1.0, 2.0]) is None
    assert tau_interval([1.0, 2.0], [1.0, 2.0], seed=0) is None
    assert tau_interval([1.0] * 9, TRUTH, seed=0) is None
    found = ranking([1.0] * 9, TRUTH, latencies_ms=range(9), seed=0)
    assert (found.tau, found.tau_interval_95, found.spearman, found.tercile_tau) == (None, None, None, None)
    assert ranking([], [], latencies_ms=[], seed=0).regret is None
