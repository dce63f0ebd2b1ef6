"""A runtime without attention: its table and whatever searches with it do without, and say so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from search.latency_table import LatencyTable
from search.runtimes import runtime
from supernet import Architecture

Slimformer = Callable[..., Any]
METHODS = ("search", "frontier", "exact", "evolution", "random_search", "uniform", "random")
PICKY = ("--set", "table.runtime=virtual_picky", "--redo")


def types(architecture: Architecture) -> set[str]:
    return {block.type for stage in architecture.stages for block in stage.blocks}


def test_every_method_searches_without_what_the_runtime_cannot_build(
    copied: Path, finished: Path, slimformer: Slimformer
) -> None:
    outcome = slimformer("table", copied, *PICKY)
    assert outcome.code == 0, outcome.err
    (warning,) = (line for line in outcome.out.splitlines() if "warning" in line)
    assert "stage 2 is searched without mb3d: virtual_picky 1 cannot run a small net of mb3d at 8 channels" in warning
    assert warning.endswith("(RuntimeError: no kernel for this)")
    (table,) = (LatencyTable.load(path) for path in copied.glob("latency-virtual*.json"))
    assert [(one.stage, one.candidate) for one in table.left_out] == [(2, "mb3d")]
    audited = json.loads((copied / "latency-audit.json").read_text())["pairs"]
    nets = [Architecture.model_validate(pair["architecture"], strict=False) for pair in audited]
    assert all("mb3d" not in types(net) for net in nets)

    methods = f"search.methods=[{','.join(METHODS)}]"
    outcome = slimformer("search", copied, "--set", methods, "--set", "search.budgets_of_largest=[0.6]", "--redo")
    assert outcome.code == 0, outcome.err
    found = json.loads((copied / "found.json").read_text())
    assert {model["job"]["method"] for model in found["models"]} == set(METHODS)
    trajectories = sorted(path.name for path in copied.glob("trajectory*"))
    assert trajectories == ["trajectory-frontier.jsonl", "trajectory.jsonl"]
    files = list((copied / "architectures").glob("*/architecture-*.yaml"))
    assert len(files) == len(found["models"])
    assert all("mb3d" not in types(Architecture.load(file)) for file in files)

    assert (copied / "importance.json").read_bytes() == (finished / "importance.json").read_bytes()
    outcome = slimformer("audit", copied, "--nets", "6", "--rounds", "2")
    assert outcome.code == 0, outcome.err
    outcome = slimformer("audit", copied, "--budgets", "3", "--rounds", "2", "--set", "search.slack=0.5")
    assert outcome.code == 0, outcome.err


def test_what_the_space_needs_and_the_runtime_cannot_build_is_one_line_and_loses_nothing(
    copied: Path, slimformer: Slimformer, contents: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(copied)
    monkeypatch.setattr(type(runtime("virtual_picky", threads=1)), "refuses", "PoolMixer")
    mistake = slimformer("table", copied, *PICKY).mistake
    assert mistake.startswith("stage 1: virtual_picky 1 cannot run a small net of mb4d at 8 channels and 8x8 px")
    assert mistake.endswith("take other candidates, or another runtime")
    lost = {name for name in before if not (copied / name).exists()}
    assert not lost
