"""Retraining the models of a run, each in a folder of its own."""

from __future__ import annotations

from pathlib import Path

from experiments.models import Job
from experiments.run import Run
from experiments.solving import architecture_path
from supernet import Architecture
from supernet.schema import write_atomically
from train.checkpoint import load_weights, save_weights
from train.loop import Progress, checkpoint_path, metrics_path
from train.retraining import NAME, initial_model, retrain, weights_path


def retrain_found(run: Run, job: Job, *, progress: Progress) -> list[Path]:
    """Train the architecture that was found for a job, and return its files."""
    return retrain_model(run, found_architecture(run, job), job, progress=progress)


def found_architecture(run: Run, job: Job) -> Architecture:
    """The architecture that the search left for a job."""
    return Architecture.load(architecture_path(run.path, job))


def retrain_model(
    run: Run, architecture: Architecture, job: Job, *, progress: Progress, into: str = "models"
) -> list[Path]:
    """Train one architecture and return its files; an interrupted training goes on, an identical one is shared.

    Two methods or budgets can ask for the same architecture: with the same recipe and seed it is the same model, so
    its weights are copied.
    """
    directory = run.path / into / job.name
    train, seed = run.experiment.train, run.experiment.seeds.train
    twin = _twin(run, architecture, directory)
    if twin == directory:
        return trained_files(directory)
    supernet = run.supernet if train.start == "inherited" else None
    model = initial_model(architecture, train, supernet=supernet, seed=seed)
    if twin is not None:
        load_weights(model, weights_path(twin))
        save_weights(model, weights_path(directory))
        write_atomically(metrics_path(directory, NAME), metrics_path(twin, NAME).read_bytes())
    else:
        retrain(
            model,
            run.data,
            train,
            digest=architecture.digest,
            seed=seed,
            directory=directory,
            progress=progress,
            device=run.device,
        )
    architecture.save(trained_files(directory)[0])  # its presence says that the training is complete
    checkpoint_path(directory, NAME).unlink(missing_ok=True)
    return trained_files(directory)


def trained_files(directory: Path) -> list[Path]:
    """The files of a finished retraining; the architecture is the first of them."""
    return [directory / "architecture.yaml", weights_path(directory), metrics_path(directory, NAME)]


def _twin(run: Run, architecture: Architecture, directory: Path) -> Path | None:
    """A folder of this run, this one included, in which the same architecture has been trained to the end."""
    for done in sorted((*run.path.glob("models/*/architecture.yaml"), *run.path.glob("again/*/*/architecture.yaml"))):
        if Architecture.load(done) == architecture:
            directory.mkdir(parents=True, exist_ok=True)
            return done.parent
    return None
