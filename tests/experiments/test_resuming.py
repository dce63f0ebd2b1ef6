"""Going on where a run stopped, to the same bytes; what is done is skipped, what was edited is refused."""

from __future__ import annotations

import csv
import io
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments.artifacts import RunFolder
from experiments.models import found
from experiments.scoring import Scorer
from experiments.stages import STAGES
from search.table_journal import Measurement
from train.retraining import Retraining
from train.supernet_training import SupernetTraining

Slimformer = Callable[..., Any]
Contents = Callable[[Path], dict[str, bytes]]

NAMES = [stage.name for stage in STAGES]


def interrupt(
    monkeypatch: pytest.MonkeyPatch, training: type, *, at_call: int, by: signal.Signals = signal.SIGINT
) -> list[int]:
    """Send this process a signal at a training's n-th step; counts the steps."""
    calls = [0]
    step = training.step  # type: ignore[attr-defined]

    def interrupted(self: Any, *words: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == at_call:
            signal.raise_signal(by)
        return step(self, *words, **options)

    monkeypatch.setattr(training, "step", interrupted)
    return calls


def test_finished_stages_are_skipped_and_no_byte_changes(
    copied: Path, slimformer: Slimformer, contents: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(copied)
    interrupt(monkeypatch, SupernetTraining, at_call=1)
    interrupt(monkeypatch, Retraining, at_call=1)
    outcome = slimformer("run", copied)
    assert outcome.code == 0, outcome.err
    assert outcome.skipped == NAMES
    assert contents(copied) == before


def test_the_same_seed_gives_the_same_bytes_twice_in_one_run_or_stage_by_stage(
    finished: Path, tiny: Callable[..., Path], tmp_path: Path, slimformer: Slimformer, repeatable: Contents
) -> None:
    path, out = tiny(), tmp_path / "run"
    assert "the stage 'search' needs 'supernet' first; run slimformer supernet" in (
        slimformer("search", path, "--out", out).mistake
    )
    assert not out.exists()
    for name in ("table", "supernet"):
        assert slimformer(name, path, "--out", out).code == 0
    for name in NAMES[2:-1]:
        assert "the stage 'report' needs " in slimformer("report", out).mistake
        assert slimformer(name, out).code == 0, name
    assert slimformer("report", out).code == 0
    first, again = repeatable(finished), repeatable(out)
    assert sorted(first) == sorted(again)
    assert [name for name in first if first[name] != again[name]] == []


@pytest.mark.parametrize(("at_call", "by"), [(1, signal.SIGINT), (9, signal.SIGINT), (14, signal.SIGTERM)])
def test_a_supernet_that_was_interrupted_goes_on_to_the_same_bytes(
    finished: Path,
    tiny: Callable[..., Path],
    tmp_path: Path,
    slimformer: Slimformer,
    repeatable: Contents,
    monkeypatch: pytest.MonkeyPatch,
    at_call: int,
    by: signal.Signals,
) -> None:
    words = ("run", tiny(), "--out", tmp_path / "run", "--until", "supernet")
    with monkeypatch.context() as patch:
        interrupt(patch, SupernetTraining, at_call=at_call, by=by)
        outcome = slimformer(*words)
    assert outcome.code == 130
    assert outcome.err == "slimformer: interrupted; the same command goes on from what was finished\n"
    manifest = RunFolder(tmp_path / "run").manifest
    assert manifest.begun["supernet"].seconds > 0
    assert not manifest.stages
    with monkeypatch.context() as patch:
        calls = interrupt(patch, SupernetTraining, at_call=-1)
        assert slimformer(*words).code == 0
    assert calls[0] == (16 if at_call <= 8 else 8)  # of two epochs of 8 steps, the finished one is not done again
    first, again = repeatable(finished), repeatable(tmp_path / "run")
    assert {"supernet/supernet.safetensors", "supernet/supernet-metrics.csv", "importance.json"} <= set(again)
    assert [name for name in again if again[name] != first[name]] == []
    assert RunFolder(tmp_path / "run").manifest.stages["supernet"].seconds >= manifest.begun["supernet"].seconds


def test_a_table_that_was_interrupted_goes_on_with_its_rounds_and_leaves_no_journal(
    tiny: Callable[..., Path], tmp_path: Path, slimformer: Slimformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, rounds = tmp_path / "run", [0]
    words = ("table", tiny(), "--out", out)
    add_round = Measurement.add_round

    def interrupted(self: Any, column: Any) -> None:
        add_round(self, column)
        rounds[0] += 1
        if rounds[0] == 2:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Measurement, "add_round", interrupted)
        assert slimformer(*words).code == 130
    journal = out / "latency-table.part.jsonl"
    assert journal.read_text().count("clean_ms") == 2
    outcome = slimformer(*words)
    assert outcome.code == 0, outcome.err
    assert "going on after 2 rounds that were measured before" in outcome.out
    assert not journal.exists()
    journal.write_text("of an earlier try\n")
    assert slimformer("table", out, "--redo").code == 0
    assert not journal.exists()


@pytest.mark.parametrize("at_call", [3, 35])
def test_a_retraining_that_was_interrupted_goes_on_to_the_same_bytes(
    finished: Path,
    copied: Path,
    slimformer: Slimformer,
    repeatable: Contents,
    monkeypatch: pytest.MonkeyPatch,
    at_call: int,
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, Retraining, at_call=at_call)
        assert slimformer("retrain", copied, "--redo").code == 130
    assert list(RunFolder(copied).manifest.begun) == ["retrain"]
    with monkeypatch.context() as patch:
        calls = interrupt(patch, Retraining, at_call=-1)
        outcome = slimformer("run", copied)
    assert outcome.code == 0, outcome.err
    assert outcome.skipped[:3] == ["supernet", "table", "search"]
    assert "retrain" not in outcome.skipped
    distinct = {model.digest for model in found(finished).models}
    whole = 22 * len(distinct)  # two epochs of 11 steps each
    epochs_done = (at_call - 1) // 11
    assert calls[0] == whole - 11 * epochs_done
    first, again = repeatable(finished), repeatable(copied)
    assert [name for name in first if first[name] != again.get(name)] == []


def test_a_search_that_was_interrupted_goes_on_to_the_same_bytes(
    finished: Path, copied: Path, slimformer: Slimformer, repeatable: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored = [0]
    of = Scorer.of

    def counted(self: Scorer, model: Any) -> float:
        scored[0] += 1
        if scored[0] == 5:
            raise KeyboardInterrupt
        return of(self, model)

    monkeypatch.setattr(Scorer, "of", counted)
    assert slimformer("search", copied, "--redo").code == 130
    assert len((copied / "scores.jsonl").read_text().splitlines()) == 4
    assert slimformer("search", copied).code == 0
    first, again = repeatable(finished), repeatable(copied)
    assert [name for name in first if first[name] != again.get(name)] == []
    assert scored[0] == 1 + len((finished / "scores.jsonl").read_text().splitlines())


@pytest.mark.parametrize(
    ("name", "spoil", "stage"),
    [
        ("importance.json", lambda path: path.write_text(path.read_text().replace("0.", "1.", 1)), "supernet"),
        ("supernet/supernet.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-4]), "supernet"),
        ("latency-audit.json", lambda path: path.unlink(), "table"),
        ("trajectory.jsonl", lambda path: path.write_text(path.read_text()[:-10]), "search"),
        ("evaluation.json", lambda path: path.write_text(path.read_text().replace("1", "9", 1)), "evaluate"),
    ],
)
def test_an_edited_artifact_is_refused_with_the_command_that_makes_it_again(
    copied: Path, slimformer: Slimformer, contents: Contents, name: str, spoil: Callable[[Path], object], stage: str
) -> None:
    spoil(copied / name)
    before = contents(copied)
    for words in (("run", copied), ("report", copied), ("run", copied, "--redo")):
        mistake = slimformer(*words).mistake
        assert str(copied / name) in mistake
        assert f"since the stage {stage!r} wrote it" in mistake
        assert mistake.endswith(f"slimformer {stage} {copied} --redo")
    assert contents(copied) == before


def test_the_command_that_is_named_repairs_an_edited_artifact(
    finished: Path, copied: Path, slimformer: Slimformer, repeatable: Contents
) -> None:
    (copied / "trajectory.jsonl").write_text("{}\n")
    command = slimformer("run", copied).mistake.rpartition("slimformer ")[2]
    assert slimformer(*command.split()).code == 0
    outcome = slimformer("run", copied)
    assert outcome.code == 0, outcome.err
    assert outcome.skipped == NAMES  # the same bytes again, so nothing that reads them has to be done again
    first, again = repeatable(finished), repeatable(copied)
    assert [name for name in first if first[name] != again.get(name)] == []


def test_a_run_stops_after_the_stage_that_it_is_told(
    tiny: Callable[..., Path], tmp_path: Path, slimformer: Slimformer
) -> None:
    assert slimformer("run", tiny(), "--out", tmp_path / "run", "--until", "table").code == 0
    assert list(RunFolder(tmp_path / "run").manifest.stages) == ["supernet", "table"]
    assert not (tmp_path / "run" / "found.json").exists()


def test_a_change_of_settings_does_again_what_it_touches_and_nothing_else(
    copied: Path, slimformer: Slimformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(monkeypatch, SupernetTraining, at_call=1)
    refused = slimformer("run", copied, "--set", "train.epochs=1").mistake
    assert "train.epochs (2 there, 1 here)" in refused
    outcome = slimformer("run", copied, "--set", "train.epochs=1", "--redo", "--until", "retrain")
    assert outcome.code == 0, outcome.err
    assert outcome.skipped == ["supernet", "table", "search"]
    outcome = slimformer("run", copied, "--set", "search.budgets_of_largest=[0.71]", "--redo", "--until", "search")
    assert outcome.code == 0, outcome.err
    assert outcome.skipped == ["supernet", "table"]
    assert len(found(copied).models) == 3


def test_a_trajectory_of_a_method_that_is_no_longer_asked_for_is_removed(copied: Path, slimformer: Slimformer) -> None:
    (copied / "trajectory-frontier.jsonl").write_text("stale\n")
    assert slimformer("search", copied, "--set", "search.methods=[uniform]", "--redo").code == 0
    assert list(copied.glob("trajectory*")) == []


def test_models_of_an_earlier_recipe_are_not_taken_for_this_ones(
    finished: Path, copied: Path, slimformer: Slimformer
) -> None:
    # a net that was once slimmed on, and is now found at once: its old weights lie in another folder
    name = found(copied).models[0].job.name
    stale = copied / "again" / "2" / name
    shutil.copytree(copied / "models" / name, stale)
    assert slimformer("retrain", copied, "--set", "train.epochs=1", "--redo").code == 0
    assert (copied / "models" / name / "retrain.safetensors").read_bytes() != (
        finished / "models" / name / "retrain.safetensors"
    ).read_bytes()
    rows = list(csv.reader(io.StringIO((copied / "models" / name / "retrain-metrics.csv").read_text())))
    assert len(rows) == 2  # a header and one epoch
