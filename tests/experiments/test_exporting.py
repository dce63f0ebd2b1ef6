"""Exporting: measurements that other programs disturb are taken again."""

from __future__ import annotations

import pytest

from experiments.exporting import least_disturbed
from search.measure import Timing


@pytest.mark.parametrize(
    ("measured", "expected", "pauses"),
    [
        ([1.1, 1.0, 1.0], 1.1, []),
        ([0.4], 0.4, []),
        ([1.6, 1.05, 1.0], 1.05, [0.5]),
        ([1.6, 1.4, 1.5, 1.3, 1.7, 1.6, 1.0], 1.3, [0.5, 1.0, 2.0, 4.0, 8.0]),
    ],
)
def test_the_least_disturbed_measurement_counts_and_one_below_what_is_enough_ends_the_pauses(
    measured: list[float], expected: float, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    left, paused = list(measured), list[float]()
    monkeypatch.setattr("experiments.exporting.FIRST_PAUSE_SECONDS", 0.5)
    monkeypatch.setattr("experiments.exporting.PAUSES", 5)
    monkeypatch.setattr("experiments.exporting.time.sleep", paused.append)

    def measured_again() -> Timing:
        return Timing(samples_ms=(left.pop(0),), runs=1)

    timing, taken = least_disturbed(measured_again(), measured_again, enough_ms=1.1)
    assert timing.median_ms == expected
    assert taken == 1 + len(pauses)
    assert paused == pauses
    assert len(measured) - len(left) == 1 + len(pauses)


def test_a_first_measurement_that_is_fast_enough_is_not_repeated() -> None:
    first = Timing(samples_ms=(1.0,), runs=1)
    assert least_disturbed(first, lambda: pytest.fail("measured again"), enough_ms=1.1) == (first, 1)
