"""The intervals of a comparison: over searches and over retrainings, and how two methods differ."""

from __future__ import annotations

import pytest

from experiments.compare_record import difference_of, interval_of


def test_the_interval_of_a_method_covers_its_searches_and_its_retrainings() -> None:
    searches_differ = {0: (80.0, 80.2), 1: (84.0, 84.2)}
    interval, by = interval_of(searches_differ)
    assert by == "Student's t over search seeds"
    assert interval is not None
    assert interval[0] < 80 < 84 < interval[1]
    one_net = {0: (80.0, 82.0, 81.0), 1: (80.0, 82.0, 81.0)}  # both searches found it
    interval, by = interval_of(one_net)
    assert by == "Student's t over retraining seeds"
    assert interval == pytest.approx((81 - 2.4841, 81 + 2.4841), abs=1e-3)
    assert interval_of({0: (80.0,)}) == (None, None)
    assert interval_of({}) == (None, None)


def test_a_difference_is_paired_by_seeds_and_says_how() -> None:
    reference = {0: (80.0, 80.4), 1: (81.0, 81.2)}
    better = {seed: tuple(percent + 1 for percent in percents) for seed, percents in reference.items()}
    found, interval, by = difference_of(better, reference)
    assert found == pytest.approx(1)
    assert interval == pytest.approx((1, 1))
    assert by is not None
    assert by.startswith("paired t")
    found, interval, by = difference_of({0: (82.0, 82.4)}, reference)  # a method without randomness
    assert found == pytest.approx(82.2 - 80.65)
    assert by == "Welch's t, retraining seeds against search seeds"
    assert interval is not None
    assert interval[0] < 0 < interval[1]  # two seeds say little
    assert difference_of({}, reference) == (None, None, None)
    assert difference_of({0: (82.0,)}, {0: (81.0,)}) == (1.0, None, None)
