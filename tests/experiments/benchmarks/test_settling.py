"""The benchmark of settling: nets that are slow at first are seen to be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from experiments.benchmarks.settling import calls_ms, main, rows_of


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
    assert found[0] == pytest.approx([6.0, 3.0, 3.0, 3.0, 3.0])
    assert found[1] == pytest.approx([2.0, 1.0, 1.0, 1.0, 1.0])
    assert [row[0] for row in rows_of(found)] == ["1.00", "3.00"]
    assert all(row[2:] == ["1.000"] * 4 for row in rows_of(found))


def test_the_command_prints_a_row_a_group_of_nets(
    tiny: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(tiny()), "--nets", "4", "--rounds", "2", "--calls", "4"])
    printed = capsys.readouterr().out
    assert "call 4" in printed
    assert "threads: 1" in printed
