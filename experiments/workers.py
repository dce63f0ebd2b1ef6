"""Retraining several models at once on a CPU: one process a model, each on its share of the threads.

A training of a small net leaves threads waiting for each other: on two cores, two trainings with a thread each did
1.3 to 1.6 times as many images a second as one with two threads (LOG.md).
"""

from __future__ import annotations

import multiprocessing
import queue
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.context import SpawnProcess
from multiprocessing.queues import Queue, SimpleQueue
from pathlib import Path

import torch

from experiments.artifacts import RunFolder
from experiments.console import Screen
from experiments.experiment import Experiment
from experiments.models import Job
from experiments.plugins import import_plugins
from experiments.retraining import retrain_found
from experiments.run import Run
from supernet import UserError

REPORT_SECONDS = 0.5


@dataclass(frozen=True)
class Report:
    """How far a training is, or the user's mistake that ended it."""

    job: Job
    done: int = 0
    total: int = 0
    figures: dict[str, float] | None = None
    mistake: str | None = None


def retrain_at_once(run: Run, jobs: Sequence[Job], *, processes: int) -> None:
    """Train the architectures found for these jobs, which must differ, so many at a time.

    The number of processes decides the threads of each, and with them the last digits of every result. Raises
    `UserError` for a mistake in one of them, or a process that was killed; the others are then stopped. What was
    stopped goes on from its checkpoint, with the same result.
    """
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    waiting: SimpleQueue[Job | None] = context.SimpleQueue()
    reports: Queue[Report] = context.Queue()
    for job in (*jobs, *[None] * processes):
        waiting.put(job)
    experiment = run.experiment.model_copy(update={"threads": max(1, run.threads // processes)})
    words = (experiment, run.path, run.plugins, waiting, reports)
    workers = [context.Process(target=_work, args=words) for _ in range(min(processes, len(jobs)))]
    try:
        _start(workers)
        _follow(run, workers, reports, models=len(jobs))
    finally:
        started = [worker for worker in workers if worker.pid is not None]
        for worker in started:
            worker.terminate()
        for worker in started:
            worker.join()


def _start(workers: Sequence[SpawnProcess]) -> None:
    """Start processes that Ctrl-C does not reach, from their first moment on: the run ends them."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        for worker in workers:
            worker.start()
    finally:
        signal.signal(signal.SIGINT, before)


def _follow(run: Run, workers: Sequence[SpawnProcess], reports: Queue[Report], *, models: int) -> None:
    """Show the progress of all trainings as one, until all processes have ended."""
    steps: dict[Job, int] = {}
    with run.screen.bar(f"training {models} models, {len(workers)} at once") as advance:
        while any(worker.is_alive() for worker in workers) or not reports.empty():
            _check(workers)
            try:
                report = reports.get(timeout=REPORT_SECONDS)
            except queue.Empty:
                continue
            if report.mistake is not None:
                raise UserError(report.mistake)
            steps[report.job] = report.done
            advance(sum(steps.values()), models * report.total, report.figures or {})
    _check(workers)


def _check(workers: Sequence[SpawnProcess]) -> None:
    """Raise `UserError` if a process has ended badly."""
    for worker in workers:
        if worker.exitcode:
            killed = " (killed: is there memory enough?)" if worker.exitcode < 0 else ""
            raise UserError(
                f"a retraining process ended with exit code {worker.exitcode}{killed}; what it did is kept: run the"
                " same command again, with --set processes=1 to train one model at a time"
            )


def _work(
    experiment: Experiment,
    folder: Path,
    plugins: Sequence[Path],
    waiting: SimpleQueue[Job | None],
    reports: Queue[Report],
) -> None:
    """A process: train one job after the other. Ctrl-C is left to the run, which ends its processes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    torch.set_num_threads(experiment.threads)
    import_plugins(plugins)
    run = Run(experiment, RunFolder(folder), Screen(), command="", plugins=plugins)
    while (job := waiting.get()) is not None:
        told = 0.0

        def progress(done: int, total: int, figures: dict[str, float], job: Job = job) -> None:
            nonlocal told
            if not parent.is_alive():
                raise SystemExit("the run that this retraining belongs to is gone")
            if done == total or time.monotonic() - told > REPORT_SECONDS:
                told = time.monotonic()
                reports.put(Report(job, done, total, figures))

        try:
            retrain_found(run, job, progress=progress)
        except UserError as mistake:
            reports.put(Report(job, mistake=str(mistake)))
            return
