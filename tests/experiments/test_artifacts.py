"""The run folder: whose it is, what was finished from what, and what an edit is answered with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.artifacts import (
    BegunStage,
    RunFolder,
    StageRecord,
    digest_of,
    environment,
    folder_digest,
    sha256,
)
from experiments.experiment import Experiment, load_experiment
from experiments.stages import stage_settings
from supernet.schema import UserError

ENVIRONMENT = environment(threads=1, command="slimformer run tiny.yaml")


def experiment(file: Path, *overrides: str) -> Experiment:
    return load_experiment(file, overrides=overrides)


@pytest.fixture
def first(tiny: Callable[..., Path]) -> Experiment:
    return experiment(tiny())


@pytest.fixture
def folder(tmp_path: Path, first: Experiment) -> RunFolder:
    """A claimed folder whose table stage is finished with two files."""
    run = RunFolder(tmp_path / "run")
    run.claim(first, redo=False)
    for name, text in (("latency.json", "1 ms"), ("deep/audit.json", "2 ms")):
        path = run.path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    finish(run, "table", [run.path / "latency.json", run.path / "deep" / "audit.json"])
    return run


def finish(run: RunFolder, stage: str, paths: list[Path], *, key: str = "key") -> None:
    run.record(
        stage,
        StageRecord(
            key=key,
            started="2026-01-01T00:00:00+00:00",
            seconds=1.0,
            inputs={},
            artifacts=run.hashes(paths),
            seeds={},
            environment=ENVIRONMENT,
        ),
    )


def test_a_new_folder_is_claimed_with_every_default_written_out(tmp_path: Path, first: Experiment) -> None:
    run = RunFolder(tmp_path / "deep" / "run")
    run.claim(first, redo=False)
    assert run.config == first
    assert run.manifest.experiment == "tiny"
    written = json.loads((run.path / "config.json").read_text())
    assert written["supernet"]["alpha"]["every"] == 1  # not in the YAML file
    run.claim(first, redo=False)  # again is no difference


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path: Path, first: Experiment) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="run: is not empty and holds no run; name another folder with --out"):
        RunFolder(tmp_path / "run").claim(first, redo=True)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("redo", [False, True])
def test_a_folder_of_another_experiment_is_refused(folder: RunFolder, tiny: Callable[..., Path], redo: bool) -> None:
    other = experiment(tiny(name="huge"))
    with pytest.raises(UserError, match="belongs to the experiment 'tiny', not to 'huge'; name another folder"):
        folder.claim(other, redo=redo)
    assert folder.config.name == "tiny"


def test_other_settings_are_refused_with_the_fields_and_nothing_is_lost(
    folder: RunFolder, tiny: Callable[..., Path], contents: Callable[[Path], dict[str, bytes]]
) -> None:
    before = contents(folder.path)
    other = experiment(tiny(), "train.epochs=7", "search.margin=0.1")
    with pytest.raises(UserError) as refused:
        folder.claim(other, redo=False)
    line = str(refused.value)
    assert "holds this experiment with other settings: " in line
    assert "search.margin (0.02 there, 0.1 here), train.epochs (2 there, 7 here)" in line
    assert "--out" in line
    assert "--redo" in line
    assert contents(folder.path) == before
    folder.claim(other, redo=True)
    assert folder.config == other
    assert folder.check_artifacts("table")  # what is finished stays


def test_settings_may_change_that_no_finished_or_begun_stage_depends_on(
    folder: RunFolder, tiny: Callable[..., Path]
) -> None:
    assert list(folder.manifest.stages) == ["table"]
    other = experiment(tiny(), "train.epochs=7", "search.margin=0.1")
    folder.claim(other, redo=False, settings=stage_settings)
    assert folder.config == other
    with pytest.raises(UserError, match=r"table\.rounds \(2 there, 5 here\)"):
        folder.claim(experiment(tiny(), "table.rounds=5"), redo=False, settings=stage_settings)
    folder.begin("retrain", BegunStage(key="key", seconds=0.0))
    with pytest.raises(UserError, match=r"train\.epochs \(7 there, 2 here\)"):
        folder.claim(experiment(tiny(), "search.margin=0.1"), redo=False, settings=stage_settings)


def test_settings_may_change_while_nothing_has_begun(tmp_path: Path, tiny: Callable[..., Path]) -> None:
    run = RunFolder(tmp_path / "run")
    run.claim(experiment(tiny()), redo=False)
    run.claim(experiment(tiny(), "train.epochs=7"), redo=False)
    assert run.config.train.epochs == 7
    run.begin("supernet", BegunStage(key="key", seconds=0.0))
    with pytest.raises(UserError, match=r"train\.epochs"):
        run.claim(experiment(tiny()), redo=False)


def test_a_run_may_go_on_with_other_threads_or_on_another_device(folder: RunFolder, tiny: Callable[..., Path]) -> None:
    folder.claim(experiment(tiny(), "threads=3", "device=auto"), redo=False)
    assert (folder.config.threads, folder.config.device) == (3, "auto")


@pytest.mark.parametrize("name", ["latency.json", "deep/audit.json"])
@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda path: path.write_text("9 ms"), r"was changed or cut short \(hash mismatch\)"),
        (lambda path: path.write_text(path.read_text()[:-1]), r"was changed or cut short \(hash mismatch\)"),
        (lambda path: path.unlink(), "is missing"),
    ],
    ids=["changed", "cut", "removed"],
)
def test_a_spoilt_artifact_is_named_with_the_command_that_makes_it_again(
    folder: RunFolder, name: str, spoil: Callable[[Path], object], what: str
) -> None:
    spoil(folder.path / name)
    message = rf"{name}: {what} since the stage 'table' wrote it;.* slimformer table {folder.path} --redo"
    with pytest.raises(UserError, match=message):
        folder.check_artifacts("table")


def test_untouched_artifacts_are_given_with_their_hashes(folder: RunFolder) -> None:
    assert folder.check_artifacts("table") == {
        "latency.json": sha256(folder.path / "latency.json"),
        "deep/audit.json": sha256(folder.path / "deep" / "audit.json"),
    }


def test_a_stage_that_begins_again_is_no_longer_finished(folder: RunFolder) -> None:
    folder.begin("table", BegunStage(key="other", seconds=2.5))
    assert "table" not in folder.manifest.stages
    assert folder.manifest.begun["table"] == BegunStage(key="other", seconds=2.5)
    finish(folder, "table", [folder.path / "latency.json"])
    assert "table" in folder.manifest.stages
    assert not folder.manifest.begun
    assert folder.manifest.environment == ENVIRONMENT


@pytest.mark.parametrize("name", ["config.json", "manifest.json"])
def test_a_damaged_config_or_manifest_is_one_clear_line(folder: RunFolder, first: Experiment, name: str) -> None:
    path = folder.path / name
    path.write_text(path.read_text()[:-20])
    with pytest.raises(UserError, match=rf"{name}: not valid JSON"):
        folder.claim(first, redo=False)


def test_two_runs_cannot_hold_one_folder_at_once(folder: RunFolder) -> None:
    other = RunFolder(folder.path)
    message = "run: another run is at work in this folder"
    with folder.locked(), pytest.raises(UserError, match=message), other.locked():
        pass
    with other.locked():
        pass


def test_a_lock_is_released_when_its_run_fails(folder: RunFolder) -> None:
    with pytest.raises(KeyboardInterrupt), folder.locked():
        raise KeyboardInterrupt
    with folder.locked():
        pass


def test_a_file_cannot_be_a_run_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match="cannot be a run folder"), RunFolder(path).locked():
            pass


def test_a_digest_does_not_depend_on_the_order_of_keys_and_depends_on_every_value() -> None:
    assert digest_of({"a": 1, "b": [2]}) == digest_of({"b": [2], "a": 1})
    assert len({digest_of(value) for value in ({"a": 1}, {"a": 2}, {"b": 1}, {"a": [1]}, {"a": "1"}, {"a": None})}) == 6


def test_images_on_disk_are_known_by_their_names_and_sizes(image_folder: Path) -> None:
    before = folder_digest(str(image_folder))
    assert folder_digest(str(image_folder)) == before
    last = image_folder / "val" / "dog" / "03.png"
    pixels = last.read_bytes()
    last.write_bytes(pixels + b"x")
    assert folder_digest(str(image_folder)) != before
    last.write_bytes(pixels)
    last.rename(last.with_name("04.png"))
    assert folder_digest(str(image_folder)) != before
    assert folder_digest("digits") == "digits"


def test_the_environment_says_what_a_stage_ran_with() -> None:
    assert set(ENVIRONMENT.packages) >= {"torch", "timm", "onnxruntime"}
    assert all(version[0].isdigit() for version in ENVIRONMENT.packages.values())
    assert (ENVIRONMENT.threads, ENVIRONMENT.command) == (1, "slimformer run tiny.yaml")
    assert (ENVIRONMENT.commit is None) == (ENVIRONMENT.dirty is None)
