"""`slimformer audit`: a table against whole nets that it has never seen, beside plainer predictors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments import run as running
from experiments.artifacts import RunFolder
from experiments.auditing import spread_nets
from experiments.console import Screen
from experiments.run import Run
from search.isolated import alone, isolated_ms, isolated_nets
from search.parts import keys
from search.runtimes import runtime
from supernet import UserError, published_architecture

Slimformer = Callable[..., Any]


@pytest.fixture
def run(finished: Path) -> Run:
    folder = RunFolder(finished)
    return Run(folder.config, folder, Screen(), command="")


def test_an_audit_says_how_wrong_the_table_is(copied: Path, slimformer: Slimformer) -> None:
    outcome = slimformer("audit", copied, "--nets", "12", "--rounds", "2")
    assert outcome.code == 0, outcome.err
    record = json.loads((copied / "audit.json").read_text())
    assert record["num_architectures"] == 12
    assert record["mean_absolute_error_percent"] < 0.5  # virtual time adds up
    assert record["kendall_tau"] > 0.95
    assert record["parameters"]["mean_absolute_error_percent"] < 0.5  # it is a line of the parameters
    assert record["macs"]["mean_absolute_error_percent"] > 2
    seen = {pair["digest"] for pair in json.loads((copied / "latency-audit.json").read_text())["pairs"]}
    assert not seen & {pair["digest"] for pair in record["pairs"]}
    for words in ("table, corrected", "MACs, line", "Written"):
        assert words in outcome.out


def test_a_machine_twice_as_slow_changes_no_error(copied: Path, slimformer: Slimformer, device: Any) -> None:
    device.slowdown = 2.0
    assert slimformer("audit", copied, "--nets", "6", "--rounds", "2").code == 0
    record = json.loads((copied / "audit.json").read_text())
    assert record["mean_absolute_error_percent"] < 0.5


def test_a_machine_that_changed_otherwise_is_told_from_a_wrong_table(
    copied: Path, slimformer: Slimformer, device: Any
) -> None:
    device.overhead_ns = 200_000
    assert slimformer("audit", copied, "--nets", "6", "--rounds", "2").code == 0
    record = json.loads((copied / "audit.json").read_text())
    assert record["mean_absolute_error_percent"] > 2
    assert record["recalibrated"]["mean_absolute_error_percent"] < 0.5
    assert record["slowdown"] > 1


@pytest.mark.parametrize("words", [("--nets", "5"), ("--budgets", "5")])
def test_the_speed_is_told_by_all_nets_of_the_tables_audit_and_by_six_where_one_net_is_measured(
    copied: Path, slimformer: Slimformer, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    assert slimformer("table", copied, "--set", "table.audit_nets=9", "--redo").code == 0
    audited = {pair["digest"] for pair in json.loads((copied / "latency-audit.json").read_text())["pairs"]}
    assert len(audited) == 9
    measured: list[set[str]] = []
    virtual = vars(running)["measure"]  # the one of conftest.py

    def watched(nets: Any, **options: Any) -> Any:
        measured.append({net.digest for net in nets})
        return virtual(nets, **options)

    monkeypatch.setattr(running, "measure", watched)
    assert slimformer("audit", copied, *words, "--rounds", "2", "--set", "table.audit_nets=9").code == 0
    *single, last = measured
    assert audited < last
    assert bool(single) == ("--budgets" in words)
    assert {len(nets & audited) for nets in single} <= {6, 7}  # the one net may be of the audit itself
    assert {len(nets) for nets in single} <= {6, 7}


@pytest.mark.parametrize("slowdown", [1.0, 2.0])
def test_nets_delivered_for_budgets_over_the_range_keep_them(
    copied: Path, slimformer: Slimformer, device: Any, slowdown: float
) -> None:
    device.slowdown = slowdown
    outcome = slimformer("audit", copied, "--budgets", "7", "--rounds", "2", "--set", "search.slack=0.2")
    assert outcome.code == 0, outcome.err
    record = json.loads((copied / "delivery.json").read_text())
    nets = record["nets"]
    assert record["budgets"] == len(nets) == 7
    assert record["within_budget_at_tables_speed"] == 7
    assert record["within_budget"] == (7 if slowdown == 1 else 0)
    assert record["speed"] == pytest.approx(slowdown, rel=1e-3)
    for net in nets:
        assert net["at_tables_speed_ms"] <= (1 - record["margin"]) * net["budget_ms"]
        assert net["measured_ms"] == pytest.approx(slowdown * net["at_tables_speed_ms"], rel=1e-3)
        assert net["at_tables_speed_ms"] == pytest.approx(net["found_ms"], rel=1e-3)
    budgets = [net["budget_ms"] for net in nets]
    assert budgets == sorted(budgets)
    assert budgets[-1] > 2 * budgets[0]
    assert "7 at the table's speed" in " ".join(outcome.out.split())


def test_a_budget_that_cannot_be_kept_is_written_down_and_the_others_are_delivered(
    copied: Path, slimformer: Slimformer
) -> None:
    outcome = slimformer("audit", copied, "--budgets", "7", "--rounds", "2", "--set", "search.margin=0.3")
    assert outcome.code == 0, outcome.err
    record = json.loads((copied / "delivery.json").read_text())
    assert record["unreachable"]
    assert len(record["nets"]) + len(record["unreachable"]) == 7
    assert "out of reach" in record["unreachable"][0]["reason"]


def test_a_table_that_is_measured_twice_on_a_slower_machine_agrees(
    copied: Path, finished: Path, slimformer: Slimformer, device: Any
) -> None:
    device.slowdown = 1.5
    assert slimformer("table", copied, "--redo").code == 0
    outcome = slimformer("audit", copied, "--against", finished, "--nets", "30")
    assert outcome.code == 0, outcome.err
    record = json.loads((copied / "agreement.json").read_text())
    assert record["speed"] == pytest.approx(1 / 1.5, rel=1e-3)
    assert record["num_architectures"] == 30
    assert record["nets"]["worst_percent"] < 0.1
    assert record["entries"]["within_3_percent"] > 99
    assert "The second took 0.667 times as long" in " ".join(outcome.out.split())


def test_tables_that_cannot_be_compared_are_refused(
    copied: Path, finished: Path, slimformer: Slimformer, tmp_path: Path
) -> None:
    assert "no such file" in slimformer("audit", copied, "--against", tmp_path / "none.json").mistake
    both = slimformer("audit", copied, "--against", finished, "--budgets", "5")
    assert "give one of them" in both.mistake
    assert slimformer("table", copied, "--set", "table.precision=bf16", "--redo").code == 0
    assert "are of two conditions" in slimformer("audit", copied, "--against", finished).mistake


def test_an_audit_under_another_condition_is_refused(copied: Path, slimformer: Slimformer) -> None:
    assert "but this would measure" in slimformer("audit", copied, "--set", "table.threads=2").mistake


def test_a_run_without_a_table_is_refused(tiny: Callable[..., Path], tmp_path: Path, slimformer: Slimformer) -> None:
    out = tmp_path / "run"
    assert slimformer("run", tiny(), "--until", "supernet", "--out", out).code == 0
    assert "has no latency table yet" in slimformer("audit", out).mistake


def test_nets_are_spread_over_the_range(run: Run) -> None:
    nets = spread_nets(run.space, run.table, count=10, seen=set(), generator=torch.Generator().manual_seed(0))
    latencies = sorted(run.table.latency_ms(net) for net in nets)
    assert len({net.digest for net in nets}) == 10
    smallest_ms, largest_ms = run.table.latency_ms(run.space.smallest), run.table.latency_ms(run.space.largest)
    assert latencies[0] < smallest_ms + 0.3 * (largest_ms - smallest_ms)
    assert latencies[-1] > smallest_ms + 0.7 * (largest_ms - smallest_ms)
    seen = {nets[0].digest}
    again = spread_nets(run.space, run.table, count=10, seen=seen, generator=torch.Generator().manual_seed(0))
    assert nets[0].digest not in {net.digest for net in again}


def test_a_space_whose_nets_are_all_in_the_tables_audit_is_one_line(run: Run) -> None:
    stages = [stage.model_copy(update={"candidates": stage.candidates[:1]}) for stage in run.space.stages]
    widths = [stage.width_channels.model_copy(update={"largest": 8}) for stage in stages]
    stages = [one.model_copy(update={"width_channels": two}) for one, two in zip(stages, widths, strict=True)]
    space = run.space.model_copy(update={"stages": tuple(stages)})
    with pytest.raises(UserError, match="the space has 1 net, and the table's audit has measured all of them"):
        spread_nets(space, run.table, count=3, seen={space.largest.digest}, generator=torch.Generator().manual_seed(0))


def test_every_part_of_a_net_runs_alone() -> None:
    net = published_architecture("efficientformer_l1").model_copy(update={"resolution_px": (64, 64)})
    for key in set(keys(net)):
        if key.part != "reshape":
            module, shape = alone(key)
            with torch.no_grad():
                assert module(torch.zeros(1, *shape)).shape[0] == 1
    parts = list(dict.fromkeys(keys(net)))
    nets = isolated_nets(parts, runtime("onnxruntime", threads=1), batch_size=1)
    found = isolated_ms(nets, rounds=2, threads=1, generator=torch.Generator().manual_seed(0))
    assert list(found) == [key for key in parts if key.part != "reshape"]
    assert all(ms > 0 for ms in found.values())


def test_a_part_that_cannot_run_alone_costs_the_audit_nothing_else(
    copied: Path, slimformer: Slimformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    virtual: Any = type(runtime("virtual", threads=1))
    build = virtual.build

    def picky(self: Any, module: Any, input_shape: tuple[int, ...]) -> Any:
        if len(input_shape) == 3:
            raise RuntimeError("tokens are no images")
        return build(self, module, input_shape)

    monkeypatch.setattr(virtual, "build", picky)
    outcome = slimformer("audit", copied, "--nets", 6, "--rounds", 2)
    assert outcome.code == 0, outcome.err
    assert "parts are not timed alone: virtual 1 cannot run " in outcome.out
    assert "tokens are no images" in outcome.out
    record = json.loads((copied / "audit.json").read_text())
    assert (record["isolated_blocks"], record["isolated_sum"]) == (None, None)
    assert record["num_architectures"] == 6
