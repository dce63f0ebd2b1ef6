"""The benchmark of settling: nets that are slow at first are seen to be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.benchmarks.settling import calls_ms, certainty_rows, main, rows_of


def test_calls_are_compared_with_the_last_ones_of_their_visit() -> None:
    now_ns, last, calls = 0, "", 0

    def net(name: str, warm_ns: int) -> Callable[[], None]:
        def run() -> None:
            nonlocal now_ns, last, calls
            last, calls = name, calls + 1 if last == name else 1
            now_ns += 2 * warm_ns if calls == 1 else warm_ns

        return run

    nets = {"slow": net("slow", 3_000_000), "fast": net("fast", 1_000_000)}
    found = calls_ms(nets, calls=5, rounds=7, generator=torch.Generator().manual_seed(0), clock=lambda: now_ns)
    assert found.shape == (7, 2, 5)
    median_ms = np.median(found, axis=0)  # a net that begins a round after it has ended one is warm
    assert median_ms[0] == pytest.approx([6.0, 3.0, 3.0, 3.0, 3.0])
    assert median_ms[1] == pytest.approx([2.0, 1.0, 1.0, 1.0, 1.0])
    assert [row[0] for row in rows_of(found)] == ["1.00", "3.00"]
    assert all(row[2:] == ["1.000"] * 4 for row in rows_of(found))


def test_visits_that_count_by_more_calls_are_more_certain_and_drift_is_divided_out() -> None:
    draw = np.random.default_rng(0)
    noise, drift = draw.lognormal(0.0, 0.1, (400, 200, 16)), draw.lognormal(0.0, 0.5, (400, 1, 1))
    rows = certainty_rows(3.0 * noise * drift)
    assert [calls for calls, _ in rows] == ["1", "2", "4", "8"]
    differences = [float(percent) for _, percent in rows]
    assert differences == sorted(differences, reverse=True)
    # The median of n normal values has 1.25 / sqrt(n) of their deviation, the mean distance of two is 1.13 of it.
    assert differences[0] == pytest.approx(100 * 0.1 * 1.25 / 200**0.5 * 1.13, rel=0.35)


def test_the_command_prints_a_row_a_group_of_nets(
    tiny: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(tiny()), "--nets", "4", "--rounds", "2", "--calls", "4"])
    printed = capsys.readouterr().out
    assert "call 4" in printed
    assert "halves of the rounds differ" in printed
    assert "threads: 1" in printed
