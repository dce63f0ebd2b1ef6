"""The line of stages: what is done is skipped by hash, what was interrupted goes on, what was edited is refused."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterable
from typing import Any

import torch

from experiments.artifacts import BegunStage, RunFolder, StageRecord, digest_of, folder_digest, sha256
from experiments.experiment import Experiment
from experiments.plugins import file_of_method
from experiments.run import Run
from experiments.stages import STAGES, Stage, clear_checkpoint, clear_working_files
from supernet import UserError
from supernet.schema import plain
from train.data import count_images


def run_stages(run: Run, *, until: str | None = None) -> None:
    """Run every stage up to `until`, the last by default; finished ones are checked and skipped."""
    for stage in up_to(until):
        run_stage(run, stage, redo=False)


def check_ahead(run: Run, stages: Iterable[Stage], *, redo: bool) -> None:
    """Raise `UserError`, before anything is written, for what would stop one of these stages that is still to do."""
    for stage in stages:
        if redo or not run.folder.exists or stage.name not in run.folder.manifest.stages:
            _check_beginning(run, stage)


def _check_beginning(run: Run, stage: Stage) -> None:
    if stage.reads_images:
        count_images(run.experiment.data)
    stage.check(run)


def up_to(until: str | None) -> tuple[Stage, ...]:
    """The stages up to this one, or all."""
    names = [stage.name for stage in STAGES]
    return STAGES if until is None else STAGES[: names.index(until) + 1]


def run_stage(run: Run, stage: Stage, *, redo: bool) -> None:
    """Run one stage, unless it is finished with the same settings and inputs; `redo` does it again in any case.

    Raises `UserError` if a stage that it reads is not finished, or if a file was changed since it was written.
    """
    key, inputs = _key(run, stage)
    manifest = run.folder.manifest
    record = manifest.stages.get(stage.name)
    if record is not None and record.key == key and not redo:
        run.folder.check_artifacts(stage.name)
        run.screen.line(f"{stage.name}: done before, in {minutes(record.seconds)}")
        return
    begun = manifest.begun.get(stage.name)
    replaces = tuple(record.artifacts) if record is not None else begun.replaces if begun is not None else ()
    if begun is None or begun.key != key or redo:
        _check_beginning(run, stage)  # before what an earlier try left is removed
        clear_working_files(stage.name, run.path)
        begun = BegunStage(key=key, seconds=0.0, replaces=replaces)
    run.folder.begin(stage.name, begun)
    run.screen.line(f"{stage.name} ..." + (" (going on)" if begun.seconds else ""))
    torch.set_num_threads(run.threads)
    started = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    clock = time.monotonic()
    try:
        paths = stage.run(run)
    finally:
        seconds = begun.seconds + time.monotonic() - clock
        run.folder.begin(stage.name, begun.model_copy(update={"seconds": seconds}))
    run.folder.record(
        stage.name,
        StageRecord(
            key=key,
            started=started,
            seconds=round(seconds, 2),
            inputs=inputs,
            artifacts=run.folder.hashes(paths),
            seeds=run.experiment.seeds.model_dump(),
            environment=run.environment,
        ),
    )
    clear_checkpoint(stage.name, run.path)
    run.screen.line(f"{stage.name}: {minutes(seconds)}")


def check_startable(stage: Stage, experiment: Experiment, folder: RunFolder) -> None:
    """Raise `UserError`, before anything is written, for a new folder where this stage could not even begin."""
    if folder.exists:
        return
    for needed in stage.reads(experiment):
        raise _needs(needed, stage=stage, folder=folder)


def _needs(needed: str, *, stage: Stage, folder: RunFolder) -> UserError:
    where = folder.path if folder.exists else "EXPERIMENT.yaml"
    return UserError(
        f"{folder.path}: the stage {stage.name!r} needs {needed!r} first; run slimformer {needed} {where},"
        " or slimformer run on the experiment"
    )


def _key(run: Run, stage: Stage) -> tuple[str, dict[str, str]]:
    """The digest of all that goes into a stage, and the hashes of the files it reads."""
    finished = run.folder.manifest.stages
    inputs: dict[str, str] = {}
    for needed in stage.reads(run.experiment):
        if needed not in finished:
            raise _needs(needed, stage=stage, folder=run.folder)
        inputs |= run.folder.check_artifacts(needed)
    content: dict[str, Any] = {"settings": stage.settings(plain(run.experiment)), "inputs": inputs}
    if stage.reads_images:
        content["images"] = folder_digest(run.experiment.data.path)
    elif stage.builds:
        content["classes"] = run.space.num_classes
    if stage.builds:
        content |= {f"plugin {path.name}": sha256(path) for path in run.plugins_of_models}
    if stage.searches:
        files = {name: file_of_method(name) for name in run.experiment.search.methods}
        content |= {f"method {name}": sha256(path) for name, path in files.items() if path is not None}
    content |= {f"file {path}": sha256(path) for path in stage.reads_files(run.experiment)}
    return digest_of(content), inputs


def minutes(seconds: float) -> str:
    """A duration for people."""
    return f"{seconds:.1f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
