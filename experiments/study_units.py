"""The units of work of a study: each is a small file, written whole when it is done, that no later study does again.

A unit lies in a folder named after the digest of all that it depends on (recipe, images, the supernet it starts from):
with another recipe there are other units, and what was done stays.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from torch import nn

from experiments.artifacts import digest_of, folder_digest, sha256
from experiments.external_nets import EXTERNAL, ExternalNet, initial_external
from experiments.run import Run
from supernet import Architecture
from supernet.schema import Record, load, plain, save
from train.distillation import teacher_files
from train.evaluation import accuracy
from train.loop import LossDiverged, Progress
from train.retraining import initial_model, retrain
from train.supernet_training import weights_path


@dataclass(frozen=True)
class Training:
    """One net to train with one seed, and where its result goes; what a process is handed.

    `name` is the architecture's digest, `architecture` the file that holds it, `macs` what one image costs.
    """

    name: str
    seed: int
    architecture: Path
    unit: Path
    macs: int


class TrainedNet(Record):
    """The result of one training: test images are counted once, here.

    `seconds` are those of the try that finished it.
    """

    schema_version: Literal[1] = 1
    name: str
    seed: int
    depends_on: str
    correct: int
    total: int
    seconds: float

    @property
    def accuracy_percent(self) -> float:
        """Correct test images in percent."""
        return 100 * self.correct / self.total


class FailedTraining(Record):
    """A training that diverged, and where: it would again, so it is not tried again while this file is there."""

    schema_version: Literal[1] = 1
    name: str
    seed: int
    depends_on: str
    reason: str
    seconds: float


class StudyFolder:
    """Where a study keeps its units, and the digests of what they depend on."""

    def __init__(self, path: Path, run: Run) -> None:
        self.path, self.run = path, run

    @cached_property
    def images(self) -> list[Any]:
        """What the images are, and how they are divided."""
        data = {name: value for name, value in plain(self.run.experiment.data).items() if name != "workers"}
        return [data, folder_digest(self.run.experiment.data.path), self.run.experiment.seeds.data]

    @cached_property
    def supernet(self) -> list[Any]:
        """The supernet's files, and what was plugged into it."""
        return [self.run.folder.manifest.stages["supernet"].artifacts, self.plugins]

    @cached_property
    def recipe(self) -> str:
        """The digest of all that a training depends on besides its architecture and seed."""
        train = self.run.experiment.train
        inherited = sha256(weights_path(self.run.supernet_directory)) if train.start == "inherited" else None
        teachers = [sha256(path) for path in teacher_files(train.distillation)]
        return digest_of([plain(train), self.images, inherited, teachers, self.plugins])[:16]

    @property
    def plugins(self) -> list[str]:
        """The digests of the files that were plugged in, those with search methods alone left out."""
        return [sha256(path) for path in self.run.plugins_of_models]

    def training(self, architecture: Architecture | ExternalNet, seed: int, *, macs: int) -> Training:
        """The training of a net with a seed; writes the net down."""
        digest = architecture.digest
        path = self.path / "architectures" / f"{digest}.yaml"
        if not path.exists():
            save(architecture, path)
        unit = self.path / "trained" / self.recipe / f"{digest}-seed{seed}.json"
        return Training(name=digest, seed=seed, architecture=path, unit=unit, macs=macs)


def trained(task: Training) -> TrainedNet | None:
    """The result of a training that is done. Raises `UserError` for a file that was damaged."""
    return load(TrainedNet, task.unit) if task.unit.exists() else None


def failed(task: Training) -> FailedTraining | None:
    """The failure of a training that diverged. Raises `UserError` for a file that was damaged."""
    path = _failure(task)
    return load(FailedTraining, path) if path.exists() else None


def failures(tasks: Iterable[Training]) -> tuple[FailedTraining, ...]:
    """The trainings that diverged."""
    return tuple(failure for task in tasks if (failure := failed(task)) is not None)


def left_of(tasks: Iterable[Training]) -> list[Training]:
    """The trainings that are still to do: neither done nor failed."""
    return [task for task in tasks if trained(task) is None and failed(task) is None]


def distinct(tasks: Iterable[Training]) -> list[Training]:
    """The same trainings, each once: who asks for the same net and seed shares the result."""
    return list({task.unit: task for task in tasks}.values())


def train_net(run: Run, task: Training, progress: Progress) -> None:
    """Train one net by the run's recipe and count the test images, unless that is done; an interrupted one goes on.

    One that diverges leaves its `FailedTraining` in the place of a result, so that the other trainings go on.
    """
    if not left_of([task]):
        return
    began = time.monotonic()
    working, train = task.unit.with_suffix(""), run.experiment.train
    try:
        net = retrain(
            _fresh(run, task),
            run.data,
            train,
            digest=task.name,
            seed=task.seed,
            directory=working,
            progress=progress,
            device=run.device,
        )
    except LossDiverged as diverged:
        failure = FailedTraining(
            name=task.name,
            seed=task.seed,
            depends_on=task.unit.parent.name,
            reason=diverged.what,
            seconds=round(time.monotonic() - began, 2),
        )
        save(failure, _failure(task))
        shutil.rmtree(working)
        return
    counted = accuracy(net, run.data.test, batch_size=run.experiment.evaluate.batch_size, precision="fp32")
    result = TrainedNet(
        name=task.name,
        seed=task.seed,
        depends_on=task.unit.parent.name,
        correct=counted.correct,
        total=counted.total,
        seconds=round(time.monotonic() - began, 2),
    )
    save(result, task.unit)
    shutil.rmtree(working)


def _failure(task: Training) -> Path:
    return task.unit.with_suffix(".failed.json")


def _fresh(run: Run, task: Training) -> nn.Module:
    """The net to train: an architecture of ours, or what its name says is one of timm's."""
    train = run.experiment.train
    if task.name.startswith(EXTERNAL):
        return initial_external(load(ExternalNet, task.architecture), train, seed=task.seed)
    supernet = run.supernet if train.start == "inherited" else None
    return initial_model(Architecture.load(task.architecture), train, supernet=supernet, seed=task.seed)
