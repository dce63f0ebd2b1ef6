"""The line of stages, end to end on real digits: its files, its resumption, its repeatability, its promises."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from experiments.artifacts import RunFolder, sha256
from experiments.experiment import load_experiment
from experiments.models import Evaluation, exported, found
from experiments.stages import STAGES
from search.importance import Importance
from search.latency_table import LatencyTable
from search.slimming import WalkEnded
from search.trajectory import Trajectory
from supernet import Architecture, cost
from supernet.onnx_export import open_session
from supernet.schema import load
from train.data import open_data
from train.splits import evaluation_batches

Slimformer = Callable[..., Any]
Contents = Callable[[Path], dict[str, bytes]]

NAMES = [stage.name for stage in STAGES]
ROOT = Path(__file__).resolve().parents[2]


def disturb(monkeypatch: pytest.MonkeyPatch, name: str, device: Any, *, calls: int) -> list[int]:
    """Make the virtual device half as fast during the first calls of a function; counts all of them."""
    module, _, function = name.rpartition(".")
    original, count = vars(importlib.import_module(module))[function], [0]

    def disturbed(*words: Any, **options: Any) -> Any:
        count[0] += 1
        device.slowdown = 2.0 if count[0] <= calls else 1.0
        try:
            return original(*words, **options)
        finally:
            device.slowdown = 1.0

    monkeypatch.setattr(name, disturbed)
    return count


def test_a_new_table_takes_the_place_of_the_runs_old_one_alone_and_only_when_it_is_there(
    copied: Path, slimformer: Slimformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    (old,) = copied.glob("latency-virtual-*.json")
    others = copied / "latency-phone.json"
    others.write_bytes(old.read_bytes())

    def stopped(*words: Any) -> None:
        raise KeyboardInterrupt

    words = ("table", copied, "--set", "table.runtime=virtual_too", "--redo")
    with monkeypatch.context() as patch:
        patch.setattr(LatencyTable, "save", stopped)
        assert slimformer(*words).code == 130
    assert old.exists()
    assert slimformer(*words[:-1]).code == 0
    (new,) = copied.glob("latency-virtual_too-*.json")
    assert {path.name for path in copied.glob("latency-*.json")} == {new.name, others.name, "latency-audit.json"}


def test_the_table_says_how_many_of_its_entries_lie_between_measured_ones(
    tiny: Callable[..., Path], tmp_path: Path, slimformer: Slimformer
) -> None:
    wide = [word for stage in (1, 2) for word in ("--set", f"space.stages.{stage}.width_channels.largest=72")]
    outcome = slimformer("table", tiny(), "--out", tmp_path / "run", *wide)
    assert outcome.code == 0, outcome.err
    assert f" entries, {9 * 9 - 4 * 4} of them between measured ones" in outcome.out
    assert "between" not in slimformer("table", tiny(), "--out", tmp_path / "small").out


def test_a_whole_run_leaves_every_file_of_the_design(finished: Path) -> None:
    (table,) = finished.glob("latency-*-b1-t1.json")
    assert table.name == LatencyTable.load(table).file_name
    jobs = [model.job for model in found(finished).models]
    assert {job.method for job in jobs} == {"search", "uniform", "random"}
    assert len(jobs) == 6
    expected = {
        "config.json",
        "manifest.json",
        "supernet/supernet.safetensors",
        "supernet/supernet-metrics.csv",
        "importance.json",
        "latency-audit.json",
        "trajectory.jsonl",
        "found.json",
        "exported.json",
        "evaluation.json",
        "report.html",
    }
    for job in jobs:
        expected.add(f"architectures/{job.method}/architecture-{job.budget_ms:g}ms.yaml")
        expected |= {f"models/{job.name}/{name}" for name in ("architecture.yaml", "retrain.safetensors")}
        expected |= {f"delivered/{job.name}/{n}" for n in ("architecture.yaml", "model.safetensors", "model.onnx")}
    assert [name for name in sorted(expected) if not (finished / name).is_file()] == []
    assert load_experiment(finished / "config.json").name == "tiny"


def test_the_manifest_holds_the_hashes_of_every_file_that_a_stage_wrote_and_read(finished: Path) -> None:
    manifest = RunFolder(finished).manifest
    assert list(manifest.stages) == NAMES
    assert not manifest.begun
    artifacts = {name: digest for record in manifest.stages.values() for name, digest in record.artifacts.items()}
    assert all(sha256(finished / name) == digest for name, digest in artifacts.items())
    written = {path.relative_to(finished).as_posix() for path in finished.rglob("*") if path.is_file()}
    aside = {name for name in written if "tensorboard" in name}
    assert written - aside - set(artifacts) == {"manifest.json", "config.json", ".lock", "scores.jsonl"}
    for record in manifest.stages.values():
        assert all(artifacts[name] == digest for name, digest in record.inputs.items())
        assert record.environment.command.startswith("slimformer run ")


def test_no_stage_reads_what_a_later_one_writes(finished: Path) -> None:
    manifest = RunFolder(finished).manifest
    written: set[str] = set()
    for name in NAMES:
        assert set(manifest.stages[name].inputs) <= written
        written |= set(manifest.stages[name].artifacts)


def test_delivered_models_are_within_their_budgets_and_their_figures_are_their_own(finished: Path) -> None:
    evaluation = load(Evaluation, finished / "evaluation.json")
    assert len(evaluation.models) == 6
    test = open_data(load_experiment(finished / "config.json").data, seed=0).test
    ((images, labels),) = evaluation_batches(test, len(test))
    assert evaluation.test_images == len(labels) == 359
    for model in evaluation.models:
        assert model.within_budget
        assert model.measured_ms <= model.budget_ms
        assert model.accuracy_percent == pytest.approx(100 * model.correct / 359)
        size = cost(Architecture.load(finished / model.architecture))
        assert (model.parameters, model.macs) == (size.parameters, size.macs)
        session = open_session(finished / model.onnx, threads=1)
        (logits,) = session.run(None, {"images": images.numpy()})
        correct = int((np.asarray(logits).argmax(axis=1) == labels.numpy()).sum())
        assert abs(correct - model.correct) <= 1  # a tie may fall otherwise
        assert model.onnx_max_difference < 1e-3
    assert max(model.accuracy_percent for model in evaluation.models) > 30  # chance is 10


def test_the_found_architectures_lie_on_a_trajectory_that_replays_digest_for_digest(finished: Path) -> None:
    trajectory = Trajectory.load(finished / "trajectory.jsonl")
    steps = {step.digest for step in trajectory.steps}
    space_digest = load(Importance, finished / "importance.json").space_digest
    for model in found(finished).models:
        path = finished / "architectures" / model.job.method / f"architecture-{model.job.budget_ms:g}ms.yaml"
        assert Architecture.load(path).digest == model.digest in [round_.digest for round_ in model.rounds]
        if model.job.method == "search":
            assert model.digest in steps
    assert len(trajectory.steps) > 3
    assert len(space_digest) == 16


def test_the_same_architecture_is_trained_once_for_all_who_ask_for_it(finished: Path) -> None:
    by_digest: dict[str, set[bytes]] = {}
    for model in found(finished).models:
        weights = (finished / "models" / model.job.name / "retrain.safetensors").read_bytes()
        by_digest.setdefault(model.digest, set()).add(weights)
    assert all(len(weights) == 1 for weights in by_digest.values())
    assert len(set().union(*by_digest.values())) == len(by_digest)


@pytest.mark.parametrize("disturbed", [1, 2])
def test_a_delivered_model_that_others_disturbed_is_measured_again_before_it_is_slimmed_on(
    finished: Path,
    copied: Path,
    slimformer: Slimformer,
    contents: Contents,
    device: Any,
    monkeypatch: pytest.MonkeyPatch,
    disturbed: int,
) -> None:
    count = disturb(monkeypatch, "experiments.run.measure", device, calls=disturbed)
    assert slimformer("export", copied, "--redo").code == 0
    assert count[0] > disturbed
    assert all(model.tries == 1 for model in exported(copied).models)
    measured = {model.job.name: model.measured_ms for model in exported(finished).models}
    for model in exported(copied).models:
        assert model.within_budget
        assert (model.measurements > 1) == (2 * measured[model.job.name] > model.job.budget_ms)
        assert model.measured_ms in (measured[model.job.name], pytest.approx(2 * measured[model.job.name]))
    assert not (copied / "again").exists()


def test_a_model_that_measures_over_its_budget_is_slimmed_on_and_trained_again(
    finished: Path, copied: Path, slimformer: Slimformer, device: Any
) -> None:
    device.slowdown = 1.05  # since the search, the machine has become slower
    assert slimformer("export", copied, "--redo").code == 0
    models = {model.job.name: model for model in exported(copied).models}
    original = {model.job.name: model for model in exported(finished).models}
    for model in (*models.values(), *original.values()):
        slowdown = 1.05 if model in models.values() else 1.0
        assert model.at_tables_speed_ms == pytest.approx(model.measured_ms / slowdown, rel=1e-3)
    over = [name for name, model in original.items() if 1.05 * model.measured_ms > model.job.budget_ms]
    assert 0 < len(over) < len(models)
    for name, model in models.items():
        assert model.within_budget == (model.measured_ms <= model.job.budget_ms)
        assert model.within_budget
        assert (model.tries > 1) == (name in over)
        delivered = Architecture.load(copied / "delivered" / name / "architecture.yaml")
        assert delivered.digest == model.digest
        assert (model.digest != original[name].digest) == (name in over)
    for name in ("evaluate", "report"):
        assert slimformer(name, copied).code == 0
    for record in load(Evaluation, copied / "evaluation.json").models:
        assert record.measured_ms == models[record.name].measured_ms


def test_a_model_that_stays_over_its_budget_is_flagged_and_not_hidden(
    copied: Path, slimformer: Slimformer, device: Any
) -> None:
    device.slowdown = 20.0  # even the smallest architecture is too slow now
    for name in ("export", "evaluate", "report"):
        outcome = slimformer(name, copied, *(["--redo"] if name == "export" else []))
        assert outcome.code == 0, outcome.err
    models = load(Evaluation, copied / "evaluation.json").models
    assert models
    assert not any(model.within_budget for model in models)
    assert all(model.measured_ms > model.budget_ms for model in models)


def test_a_budget_that_a_baseline_cannot_reach_is_written_down_with_its_reason(
    copied: Path, slimformer: Slimformer
) -> None:
    smallest_ms = found(copied).smallest_ms
    budget_ms = round(1.1 * smallest_ms, 5)  # a uniformly scaled net keeps a block a stage, and is larger
    words = ("--set", "search.budgets_of_largest=null", "--set", f"search.budgets_ms=[{budget_ms}]", "--redo")
    outcome = slimformer("run", copied, *words, "--set", "train.epochs=1", "--until", "evaluate")
    assert outcome.code == 0, outcome.err
    (missing,) = load(Evaluation, copied / "evaluation.json").unreachable
    assert missing.job.method == "uniform"
    assert "out of reach" in missing.reason


def test_slimming_that_ends_above_a_budget_is_written_down_and_other_methods_go_on(
    copied: Path, slimformer: Slimformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(self: Any, asked_ms: float, *, method: str) -> Architecture:
        raise WalkEnded(asked_ms, 2 * asked_ms)

    monkeypatch.setattr("experiments.solving.Solver.slimmed", ended)
    outcome = slimformer("search", copied, "--redo", "--set", "search.methods=[search, exact]")
    assert outcome.code == 0, outcome.err
    assert {model.job.method for model in found(copied).models} == {"exact"}
    assert {one.job.method for one in found(copied).unreachable} == {"search"}
    assert all("out of reach of greedy slimming" in one.reason for one in found(copied).unreachable)


def test_a_run_with_inherited_weights_starts_from_the_supernets(
    finished: Path, copied: Path, slimformer: Slimformer
) -> None:
    words = ("--set", "train.start=inherited", "--set", "train.epochs=1", "--redo", "--until", "evaluate")
    outcome = slimformer("run", copied, *words)
    assert outcome.code == 0, outcome.err
    record = RunFolder(copied).manifest.stages["retrain"]
    assert "supernet/supernet.safetensors" in record.inputs
    assert "supernet/supernet.safetensors" not in RunFolder(finished).manifest.stages["retrain"].inputs
    assert {model.start for model in load(Evaluation, copied / "evaluation.json").models} == {"inherited"}


def test_the_whole_line_runs_on_a_real_runtime(
    tiny: Callable[..., Path], tmp_path: Path, slimformer: Slimformer
) -> None:
    path = tiny(
        **{
            "table.runtime": "onnxruntime",
            "search.methods": ["search"],
            "search.budgets_of_largest": None,
            "search.budgets_ms": [1000.0],  # a real machine's disturbances are no matter of this test
            "train.epochs": 1,
        }
    )
    outcome = slimformer("run", path, "--out", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    (table,) = (tmp_path / "run").glob("latency-onnxruntime-*.json")
    assert min(entry.median_ms for entry in LatencyTable.load(table).entries) > 0
    (model,) = load(Evaluation, tmp_path / "run" / "evaluation.json").models
    assert model.within_budget
    assert 0 < model.measured_ms < 1000.0
    assert model.onnx_max_difference < 1e-3
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000


@pytest.mark.long
def test_the_quickstart_delivers_models_within_their_budgets_that_read_97_percent_of_the_digits(
    tmp_path: Path, slimformer: Slimformer
) -> None:
    outcome = slimformer("quickstart", "--out", tmp_path / "quickstart")
    assert outcome.code == 0, outcome.err
    expected = yaml.safe_load((ROOT / "experiments" / "quickstart.yaml").read_text())
    models = load(Evaluation, tmp_path / "quickstart" / "evaluation.json").models
    searched = [model for model in models if model.method == "search"]
    assert len(searched) == len(expected["search"]["budgets_of_largest"])
    assert all(model.within_budget for model in models)
    assert min(model.accuracy_percent for model in searched) >= 97
