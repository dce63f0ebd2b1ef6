"""Arguments and options that several commands of `slimformer` share, and what they mean."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from experiments.artifacts import RunFolder
    from experiments.experiment import Experiment


def there(path: Path) -> Path:
    """A mistyped name is answered at once: before torch is loaded, which takes seconds."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    return path


ExperimentArgument = Annotated[
    Path, typer.Argument(help="An experiment's YAML file, or the folder of a run.", callback=there)
]
OutOption = Annotated[Path | None, typer.Option("--out", help="The run folder (default: runs/NAME).")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Override a field, such as train.epochs=5; may be repeated.")
]
RedoOption = Annotated[bool, typer.Option("--redo", help="Do again what the settings, or this command, touch.")]
PluginOption = Annotated[
    list[Path] | None,
    typer.Option("--plugin", help="Your Python file with blocks, runtimes or search methods; may be repeated."),
]


def opened(path: Path, out: Path | None, overrides: tuple[str, ...]) -> tuple[Experiment, RunFolder]:
    """The experiment that a YAML file or a run folder describes, and its folder."""
    from experiments.artifacts import RunFolder
    from experiments.experiment import load_experiment
    from supernet.schema import UserError

    if path.is_dir():
        if not (path / "config.json").exists():
            raise UserError(f"{path}: holds no run (no config.json); give an experiment's YAML file")
        if out is not None and out != path:
            raise UserError(f"--out {out}: the run folder {path} is given already")
        return load_experiment(path / "config.json", overrides=overrides), RunFolder(path)
    described = load_experiment(path, overrides=overrides)
    return described, RunFolder(out if out is not None else Path("runs") / described.name)


def command_line() -> str:
    """What was typed, for the records."""
    return shlex.join(["slimformer", *sys.argv[1:]])
