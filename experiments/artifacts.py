"""The run folder: its files, their hashes, and the manifest that says which stage wrote what from what."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Literal

from pydantic import Field

from experiments.experiment import Experiment, differences
from experiments.locking import LOCK, held
from search.measure import Machine, machine
from supernet.schema import Record, UserError, load, save
from train.images import list_splits

PACKAGES = ("torch", "torchvision", "timm", "onnxruntime", "onnx", "numpy", "scipy")


class Environment(Record):
    """What a stage ran with."""

    python: str
    packages: dict[str, str]
    machine: Machine
    threads: int
    commit: str | None
    dirty: bool | None
    command: str


class StageRecord(Record):
    """A finished stage: the digest of all that went in, and the sha256 of every file it read and wrote."""

    key: str
    started: str
    seconds: float
    inputs: dict[str, str]
    artifacts: dict[str, str]
    seeds: dict[str, int]
    environment: Environment


class BegunStage(Record):
    """A stage that was begun and not finished: the digest of what goes in, and the seconds spent before this try.

    `replaces` are the files that it wrote when it was last finished.
    """

    key: str
    seconds: float
    replaces: tuple[str, ...] = ()


class Manifest(Record):
    """The finished stages of a run folder. `environment` is that of the stage that finished last."""

    schema_version: Literal[1] = 1
    experiment: str
    environment: Environment | None = None
    stages: dict[str, StageRecord] = Field(default_factory=dict)
    begun: dict[str, BegunStage] = Field(default_factory=dict)


StageSettings = Callable[[str, Experiment], object]  # what a stage depends on, by its name


def _everything(stage: str, experiment: Experiment) -> object:
    return experiment


class RunFolder:
    """One experiment's folder: `config.json`, `manifest.json` and the stages' files."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def exists(self) -> bool:
        """Whether the folder holds a run."""
        return (self.path / "config.json").exists()

    @property
    def config(self) -> Experiment:
        """The experiment that the folder holds, with every default written out."""
        return load(Experiment, self.path / "config.json")

    @property
    def manifest(self) -> Manifest:
        """What has been finished so far."""
        return load(Manifest, self.path / "manifest.json")

    def claim(self, experiment: Experiment, *, redo: bool, settings: StageSettings = _everything) -> None:
        """Make the folder this experiment's, or check that it is already. Raises as `check` does."""
        self.check(experiment, redo=redo, settings=settings)
        if not self.exists:
            save(Manifest(experiment=experiment.name), self.path / "manifest.json")
            save(experiment, self.path / "config.json")  # last: its presence says that the folder is a run
        elif self.config != experiment:
            save(experiment, self.path / "config.json")

    def check(self, experiment: Experiment, *, redo: bool, settings: StageSettings = _everything) -> None:
        """Raise `UserError` for a folder that cannot be this experiment's.

        That is one with other files, of another experiment, or, without `redo`, of the same where a stage that is
        finished or begun had other `settings`, which are all fields unless a function says which a stage depends on.
        """
        if not self.exists:
            if self.path.is_dir() and any(entry.name not in (LOCK, "manifest.json") for entry in self.path.iterdir()):
                raise UserError(f"{self.path}: is not empty and holds no run; name another folder with --out")
            return
        there = self.config
        if there.name != experiment.name:
            raise UserError(
                f"{self.path}: belongs to the experiment {there.name!r}, not to {experiment.name!r};"
                " name another folder with --out"
            )
        changed = self.changed_settings(experiment)
        manifest = self.manifest
        before, after = _without_place(there), _without_place(experiment)
        touched = any(settings(name, before) != settings(name, after) for name in (*manifest.stages, *manifest.begun))
        if touched and not redo:
            raise UserError(
                f"{self.path}: holds this experiment with other settings: {', '.join(changed)}; name another folder"
                " with --out, or add --redo to do again the stages that they touch"
            )

    def changed_settings(self, experiment: Experiment) -> list[str]:
        """The fields in which the experiment differs from the folder's, those that say where it runs left out."""
        return differences(_without_place(self.config), _without_place(experiment))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder, so that two runs cannot write into it at once."""
        with held(self.path, as_what="a run folder", busy="another run is at work in this folder"):
            yield

    def record(self, stage: str, record: StageRecord) -> None:
        """Write down a finished stage."""
        manifest = self.manifest
        stages = manifest.stages | {stage: record}
        begun = {name: value for name, value in manifest.begun.items() if name != stage}
        update = {"stages": stages, "environment": record.environment, "begun": begun}
        save(manifest.model_copy(update=update), self.path / "manifest.json")

    def begin(self, stage: str, begun: BegunStage) -> None:
        """Write down a stage that is under way; what it wrote in an earlier, finished try no longer counts."""
        manifest = self.manifest
        stages = {name: value for name, value in manifest.stages.items() if name != stage}
        update = {"stages": stages, "begun": manifest.begun | {stage: begun}}
        save(manifest.model_copy(update=update), self.path / "manifest.json")

    def hashes(self, paths: list[Path]) -> dict[str, str]:
        """The sha256 of files in the folder, by their names in it."""
        return {self.relative(path): sha256(path) for path in paths}

    def relative(self, path: Path) -> str:
        """A file's name inside the folder."""
        return path.relative_to(self.path).as_posix()

    def check_artifacts(self, stage: str) -> dict[str, str]:
        """The hashes of a finished stage's files. Raises `UserError` for one that was changed, cut short or removed."""
        artifacts = self.manifest.stages[stage].artifacts
        for name, expected in artifacts.items():
            path = self.path / name
            if not path.is_file() or sha256(path) != expected:
                what = "is missing" if not path.is_file() else "was changed or cut short (hash mismatch)"
                raise UserError(
                    f"{path}: {what} since the stage {stage!r} wrote it;"
                    f" restore it, or do the stage again: slimformer {stage} {self.path} --redo"
                )
        return artifacts


def _without_place(experiment: Experiment) -> Experiment:
    """The experiment without what says where it runs: a run may go on with other threads or on another device."""
    data = experiment.data.model_copy(update={"workers": 0})
    return experiment.model_copy(update={"device": "auto", "threads": 0, "processes": 0, "data": data})


def sha256(path: Path) -> str:
    """The hex digest of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def digest_of(value: object) -> str:
    """The sha256 of plain data's canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def folder_digest(path: str) -> str:
    """The identity of a data set on disk: the names and sizes of its images (the embedded digits are their name)."""
    root = Path(path)
    if not root.is_dir():
        return path
    images = [Path(file) for split in list_splits(root) for file in split.paths]
    return digest_of([(file.relative_to(root).as_posix(), file.stat().st_size) for file in images])


def environment(*, threads: int, command: str) -> Environment:
    """The versions, machine and commit of this process."""
    commit, dirty = _commit()
    return Environment(
        python=platform.python_version(),
        packages={name: metadata.version(name) for name in PACKAGES},
        machine=machine(),
        threads=threads,
        commit=commit,
        dirty=dirty,
        command=command,
    )


def _commit() -> tuple[str | None, bool | None]:
    """The commit of the checkout this file lies in and whether it has changes, or None outside of one."""

    def git(*arguments: str) -> str | None:
        root = Path(__file__).resolve().parent.parent
        try:
            done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    status = git("status", "--porcelain")
    return commit, None if status is None else bool(status)
