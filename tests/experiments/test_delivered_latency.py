"""Delivered models over their budgets: measured again while the machine is to blame, given up when they are."""

from __future__ import annotations

import pytest

from experiments import delivered_latency
from experiments.delivered_latency import Latency, least_disturbed
from experiments.models import Job
from search.measure import Timing


def latency(ms: float, speed: float = 1.0) -> Latency:
    return Latency((Timing(samples_ms=(ms,), runs=1),), (speed,))


@pytest.fixture
def paused(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    pauses: list[float] = []
    monkeypatch.setattr(delivered_latency, "FIRST_PAUSE_SECONDS", 0.5)
    monkeypatch.setattr(delivered_latency, "PAUSES", 5)
    monkeypatch.setattr("experiments.delivered_latency.time.sleep", pauses.append)
    return pauses


@pytest.mark.parametrize(
    ("measured", "expected", "pauses"),
    [
        ([(1.1, 1.0), (1.0, 1.0)], 1.1, []),
        ([(0.4, 1.0)], 0.4, []),
        ([(1.6, 1.5), (1.05, 1.0), (1.0, 1.0)], 1.05, [0.5]),
        ([(1.6, 1.6), (1.4, 1.4), (1.5, 1.5), (1.3, 1.3), (1.7, 1.7), (1.6, 1.6)], 1.3, [0.5, 1.0, 2.0, 4.0, 8.0]),
        ([(1.6, 1.0), (1.4, 1.0), (1.5, 1.0), (1.3, 1.0), (1.0, 1.0)], 1.3, [0.5, 1.0, 2.0]),  # the net is too slow
    ],
)
def test_the_least_disturbed_measurement_counts_and_a_slow_machine_is_waited_for(
    measured: list[tuple[float, float]], expected: float, pauses: list[float], paused: list[float]
) -> None:
    left, job = [latency(*each) for each in measured], Job(method="search", budget_ms=1.1)

    def measured_again(jobs: list[Job]) -> dict[str, Latency]:
        assert jobs == [job]
        return {job.name: left.pop(0)}

    found = least_disturbed(measured_again([job]), [job], measured_again)[job.name]
    assert found.timing.median_ms == expected
    assert len(found.timings) == 1 + len(pauses) == len(measured) - len(left)
    assert paused == pauses


def test_all_models_share_the_pauses_and_one_within_its_budget_is_left_alone(paused: list[float]) -> None:
    jobs = [Job(method="search", budget_ms=budget_ms) for budget_ms in (1.0, 2.0, 3.0)]
    ms = {job.name: 0.9 * job.budget_ms for job in jobs}
    asked: list[list[Job]] = []

    def measured_again(over: list[Job]) -> dict[str, Latency]:
        asked.append(over)
        slow = 1.5 if len(asked) < 3 else 1.0
        return {job.name: latency(slow * ms[job.name], slow) for job in over}

    first = {job.name: latency(1.5 * ms[job.name], 1.5) for job in jobs} | {jobs[0].name: latency(0.9)}
    found = least_disturbed(first, jobs, measured_again)
    assert asked == [jobs[1:]] * 3
    assert paused == [0.5, 1.0, 2.0]
    assert [len(found[job.name].timings) for job in jobs] == [1, 4, 4]
    for job in jobs:
        assert found[job.name].timing.median_ms == pytest.approx(ms[job.name])
        assert found[job.name].at_tables_speed_ms == pytest.approx(ms[job.name])
