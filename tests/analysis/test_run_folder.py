"""Reading a run folder: refusing what is wrong, naming what is missing, following what the other rooms write."""

from __future__ import annotations

import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

import experiments.artifacts
import experiments.experiment
import experiments.models
import search.actions
import search.importance
import search.latency_audit
import search.latency_table
import search.trajectory
import supernet.architecture
import supernet.block_types
from analysis import architecture_outline, files
from analysis.run_folder import outline, read_run
from supernet.schema import UserError
from train.supernet_training import SupernetTraining

Change = Callable[[str, Callable[[Any], object]], None]


def test_a_finished_run_lacks_nothing(run_directory: Path) -> None:
    run = read_run(run_directory)
    assert run.missing == ()
    assert run.name == "cifar10"
    assert run.budgets_ms == (0.8, 2.0)
    assert len(run.trajectory) == 4
    assert [row.held_out_loss for row in run.metrics] == [None, None, 1.5, 1.5, 1.5]


@pytest.mark.parametrize(
    ("file", "command"),
    [
        ("importance.json", "slimformer supernet"),
        ("supernet/supernet-metrics.csv", "slimformer supernet"),
        ("latency-audit.json", "slimformer table"),
        ("trajectory.jsonl", "slimformer search"),
        ("models/search-0.8ms/architecture.yaml", "slimformer export"),
        ("evaluation.json", "slimformer evaluate"),
        ("manifest.json", "slimformer run"),
    ],
)
def test_a_missing_file_is_named_with_the_command_that_makes_it(run_directory: Path, file: str, command: str) -> None:
    (run_directory / file).unlink()
    (missing,) = read_run(run_directory).missing
    assert missing.file == file
    assert missing.command == f"{command} cifar10"


def test_the_kinds_of_importance_are_read_and_missed_where_they_were_asked_for(
    three_kinds: Path, change: Change
) -> None:
    run = read_run(three_kinds)
    assert [found.kind for found in run.further_importances] == ["removal", "taylor"]
    assert run.importance is not None
    assert run.importance.kind == "alpha"  # whose file does not say so
    for asked in ({"importance": "taylor"}, {"further_importances": ["taylor"]}):
        change("config.json", lambda data, asked=asked: data.update(search={"budgets_ms": [0.8], **asked}))
        assert read_run(three_kinds).missing == ()
        (three_kinds / "importance-taylor.json").rename(three_kinds / "aside")
        (missing,) = read_run(three_kinds).missing
        assert (missing.file, missing.command) == ("importance-taylor.json", "slimformer search cifar10")
        (three_kinds / "aside").rename(three_kinds / "importance-taylor.json")


def test_importances_of_other_metapaths_are_refused(three_kinds: Path, change: Change) -> None:
    change("importance-removal.json", lambda data: data["metapaths"][0].update(block=2))
    with pytest.raises(UserError, match=r"importance-removal\.json: has other MetaPaths than importance\.json"):
        read_run(three_kinds)


def test_the_command_names_the_folder_as_one_would_type_it(
    run_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run_directory / "evaluation.json").unlink()
    monkeypatch.chdir(run_directory.parent.parent)
    (missing,) = read_run(run_directory).missing
    assert missing.command == f"slimformer evaluate {run_directory.parent.name}/cifar10"


def test_the_audit_does_not_pass_for_a_latency_table(run_directory: Path) -> None:
    (run_directory / "latency-onnxruntime-amd-epyc-float32-b1-t1.json").unlink()
    run = read_run(run_directory)
    assert run.tables == {}
    assert [missing.file for missing in run.missing] == ["latency-*.json"]


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no experiment"):
        read_run(tmp_path)


def test_a_trajectory_cut_short_is_refused_with_its_line(run_directory: Path) -> None:
    path = run_directory / "trajectory.jsonl"
    path.write_text(path.read_text()[:-40])
    with pytest.raises(UserError, match=r"line 4 is not valid JSON.*redo the search"):
        read_run(run_directory)


def test_the_frontiers_trajectory_is_missed_where_the_method_was_asked_for_alone(
    run_directory: Path, change: Change
) -> None:
    frontier = run_directory / "trajectory-frontier.jsonl"
    frontier.write_bytes((run_directory / "trajectory.jsonl").read_bytes())
    assert read_run(run_directory).frontier == ()  # another run's
    change("config.json", lambda data: data["search"].update(methods=["frontier"]))
    run = read_run(run_directory)
    assert (len(run.frontier), run.trajectory, run.missing) == (4, (), ())
    assert run.largest == run.frontier[0]
    frontier.unlink()
    (missing,) = read_run(run_directory).missing
    assert (missing.file, missing.command) == (frontier.name, "slimformer search cifar10")


@pytest.mark.parametrize("file", ["importance.json", "evaluation.json", "latency-audit.json", "manifest.json"])
def test_an_unknown_schema_version_is_refused(run_directory: Path, change: Change, file: str) -> None:
    change(file, lambda data: data.update(schema_version=2))
    with pytest.raises(UserError, match=rf"{file}: schema_version"):
        read_run(run_directory)


def test_an_accuracy_that_contradicts_its_count_is_refused(run_directory: Path, change: Change) -> None:
    change("evaluation.json", lambda data: data["models"][0].update(accuracy_percent=99.0))
    with pytest.raises(UserError, match=r"search-0.8ms: 8460 of 10000 images correct is 84.60 %, not 99 %"):
        read_run(run_directory)


def test_probabilities_that_do_not_add_to_one_are_refused(run_directory: Path, change: Change) -> None:
    change("importance.json", lambda data: data["metapaths"][0].update(probabilities=[0.8, 0.8]))
    with pytest.raises(UserError, match=r"stage 1 block 1: probabilities add to 1.6, not 1"):
        read_run(run_directory)


def test_a_metric_that_is_no_number_is_refused_with_its_line(run_directory: Path) -> None:
    path = run_directory / "supernet" / "supernet-metrics.csv"
    path.write_text(path.read_text().replace("2.0,", "two,", 1))
    with pytest.raises(UserError, match="line 2, train_loss: 'two' is not a number"):
        read_run(run_directory)


def test_budgets_given_as_shares_become_milliseconds_of_the_largest(run_directory: Path, change: Change) -> None:
    (run_directory / "evaluation.json").unlink()
    change("config.json", lambda data: data.update(search={"budgets_of_largest": [0.5, 0.25]}))
    assert read_run(run_directory).budgets_ms == pytest.approx((0.7, 1.4))


@pytest.mark.parametrize(
    ("reader", "writer"),
    [
        (files.ExperimentFile, experiments.experiment.Experiment),
        (files.SearchSettings, experiments.experiment.SearchConfig),
        (files.ManifestFile, experiments.artifacts.Manifest),
        (files.StageRun, experiments.artifacts.StageRecord),
        (files.Environment, experiments.artifacts.Environment),
        (files.EvaluationFile, experiments.models.Evaluation),
        (files.ModelRecord, experiments.models.EvaluatedModel),
        (files.UnreachableRecord, experiments.models.UnreachableModel),
        (files.JobRecord, experiments.models.Job),
        (files.ImportanceFile, search.importance.Importance),
        (files.MetaPathImportance, search.importance.MetaPathImportance),
        (files.StageImportance, search.importance.StageImportance),
        (files.DiscretizationGap, search.importance.DiscretizationGap),
        (files.LatencyAuditFile, search.latency_audit.LatencyAudit),
        (files.LatencyPair, search.latency_audit.LatencyPair),
        (files.HeldOut, search.latency_audit.HeldOut),
        (files.Correction, search.latency_table.Correction),
        (files.LatencyTableFile, search.latency_table.LatencyTable),
        (files.StepRecord, search.trajectory.Step),
        (files.AlternativeRecord, search.trajectory.Alternative),
        (architecture_outline.ArchitectureOutline, supernet.architecture.Architecture),
        (architecture_outline.StageOutline, supernet.architecture.Stage),
        (architecture_outline.StemOutline, supernet.architecture.Stem),
    ],
)
def test_every_field_that_is_read_is_written(reader: type[BaseModel], writer: type[BaseModel]) -> None:
    assert set(reader.model_fields) <= set(writer.model_fields)


def test_every_kind_of_action_is_read() -> None:
    written = typing.get_args(typing.get_args(search.actions.SlimmingAction)[0])
    assert len(written) == 4
    assert set(files.ActionRecord.model_fields) == {name for action in written for name in action.model_fields}


def test_every_metric_that_is_read_is_written() -> None:
    assert set(files.MetricRow.model_fields) <= {"epoch", *SupernetTraining.columns}


def test_an_outline_reads_what_an_architecture_saves_and_block_types_that_nobody_registered(tmp_path: Path) -> None:
    value = supernet.architecture.Architecture(
        in_channels=3,
        resolution_px=(33, 32),
        stem=supernet.architecture.Stem(width_channels=16, hidden_channels=8),
        stages=(
            supernet.architecture.Stage(
                width_channels=16, downsampling=None, blocks=(supernet.block_types.MB4D(mlp_channels=32),)
            ),
            supernet.architecture.Stage(
                width_channels=32, downsampling=supernet.architecture.Downsampling(), blocks=()
            ),
        ),
        head=supernet.architecture.Head(num_classes=10),
    )
    data = value.model_dump(mode="json")
    read = architecture_outline.ArchitectureOutline.model_validate_json(value.model_dump_json())
    assert read.grids == value.grids == ((9, 8), (5, 4))
    data["stages"][0]["blocks"] = [{"type": "somebodys_own", "mystery": 3}]
    assert outline(data, source="x").stages[0].blocks[0].type == "somebodys_own"
