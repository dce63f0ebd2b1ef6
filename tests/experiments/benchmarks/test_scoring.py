"""The benchmark of scoring: both ways give figures, and the run's folder stays as it was."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.benchmarks import scoring
from supernet import UserError


def test_both_ways_are_timed_and_nothing_is_kept(
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    contents: Callable[[Path], dict[str, bytes]],
) -> None:
    before, out = contents(finished), tmp_path / "scoring.json"
    monkeypatch.setattr(sys, "argv", ["scoring", str(finished), "--groups", "2", "--out", str(out)])
    scoring.main()
    record = json.loads(out.read_text())
    assert {way: len(seconds) for way, seconds in record["seconds"].items()} == {"one by one": 2, "side by side": 2}
    assert record["images"] == 128 + 64
    assert "minutes for 1,000" in capsys.readouterr().out
    assert contents(finished) == before


def test_a_folder_without_a_supernet_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["scoring", str(tmp_path)])
    with pytest.raises(UserError, match="holds no finished supernet"):
        scoring.main()
