"""The benchmark of fronts: on a small space it says what it did, every program solved to a gap of zero."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from experiments.artifacts import RunFolder
from experiments.benchmarks import exact_front


def test_fronts_are_solved_and_written_down(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (table,) = (name for name in RunFolder(finished).manifest.stages["table"].artifacts if "audit" not in name)
    out = tmp_path / "fronts.json"
    words = [finished / "config.json", finished / table, "--budgets", 3, "--fronts", 2, "--out", out]
    monkeypatch.setattr(sys, "argv", ["exact_front", *map(str, words)])
    exact_front.main()
    record = json.loads(out.read_text())
    assert [(front["seed"], front["limits"]) for front in record["fronts"]] == [
        (seed, limits) for seed in (0, 1) for limits in ("ms", "ms and three sizes")
    ]
    for front in record["fronts"]:
        assert len(front["seconds"]) == 3
        assert 0 <= front["largest_gap_percent"] < 1e-4
    assert "fronts of 3 budgets" in capsys.readouterr().out
