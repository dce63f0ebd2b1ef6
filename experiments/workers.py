"""Training several models at once on a CPU: one process a model, each on its share of the threads.

A training of a small net leaves threads waiting for each other: on two cores, two trainings with a thread each did
1.3 to 1.6 times as many images a second as one with two threads (LOG.md).
"""

from __future__ import annotations

import multiprocessing
import queue
import signal
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue, SimpleQueue
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch

from experiments.artifacts import RunFolder
from experiments.console import Screen
from experiments.experiment import Experiment
from experiments.models import Job
from experiments.plugins import import_plugins
from experiments.retraining import retrain_found
from experiments.run import Run
from supernet import UserError
from train.loop import Progress

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext

REPORT_SECONDS = 0.5

TaskT = TypeVar("TaskT", bound=Hashable)


@dataclass(frozen=True)
class Report(Generic[TaskT]):
    """How far a training is, that its task is finished, or the user's mistake that ended it."""

    task: TaskT
    done: int = 0
    total: int = 0
    figures: dict[str, float] | None = None
    finished: bool = False
    mistake: str | None = None


def retrain_at_once(run: Run, jobs: Sequence[Job], *, processes: int) -> None:
    """Train the architectures found for these jobs, which must differ, so many at a time; raises as `train_at_once`."""
    steps: dict[Job, int] = {}
    with run.screen.bar(f"training {len(jobs)} models, {min(processes, len(jobs))} at once") as advance:

        def tell(report: Report[Job]) -> None:
            if not report.finished:
                steps[report.task] = report.done
                advance(sum(steps.values()), len(jobs) * report.total, report.figures or {})

        train_at_once(run, jobs, processes=processes, train=_retrain, tell=tell)


def _retrain(run: Run, job: Job, progress: Progress) -> None:
    retrain_found(run, job, progress=progress)


def train_at_once(
    run: Run,
    tasks: Sequence[TaskT],
    *,
    processes: int,
    train: Callable[[Run, TaskT, Progress], None],
    tell: Callable[[Report[TaskT]], None],
) -> None:
    """Call `train`, a module's own function, for every task, so many at a time; `tell` hears how far each is.

    The number of processes decides the threads of each, and with them the last digits of every result. Raises
    `UserError` for a mistake in one of them, or a process that was killed; the others are then stopped. What was
    stopped goes on from its checkpoint, with the same result.
    """
    context = _context()
    waiting: SimpleQueue[int | None] = context.SimpleQueue()  # of numbers: its pipe holds thousands of them
    reports: Queue[Report[TaskT]] = context.Queue()
    for number in (*range(len(tasks)), *[None] * processes):
        waiting.put(number)
    experiment = run.experiment.model_copy(update={"threads": max(1, run.threads // processes)})
    words = (experiment, run.path, run.plugins, tuple(tasks), train, waiting, reports)
    workers = [context.Process(target=_work, args=words) for _ in range(min(processes, len(tasks)))]
    try:
        _start(workers)
        _follow(workers, reports, tell)
    finally:
        started = [worker for worker in workers if worker.pid is not None]
        for worker in started:
            worker.terminate()
        for worker in started:
            worker.join()


def _context() -> ForkServerContext | SpawnContext:
    """How processes begin: as copies of one that has imported everything and computed nothing, where there are copies.

    Not as copies of this one, because torch's threads do not survive a fork. To import everything takes seconds.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _start(workers: Sequence[BaseProcess]) -> None:
    """Start processes that Ctrl-C does not reach, from their first moment on: the run ends them."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        for worker in workers:
            worker.start()
    finally:
        signal.signal(signal.SIGINT, before)


def _follow(workers: Sequence[BaseProcess], reports: Queue[Report[Any]], tell: Callable[[Report[Any]], None]) -> None:
    """Pass on how far the trainings are, until all processes have ended."""
    while any(worker.is_alive() for worker in workers) or not reports.empty():
        _check(workers)
        try:
            report = reports.get(timeout=REPORT_SECONDS)
        except queue.Empty:
            continue
        if report.mistake is not None:
            raise UserError(report.mistake)
        tell(report)
    _check(workers)


def _check(workers: Sequence[BaseProcess]) -> None:
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
    tasks: Sequence[TaskT],
    train: Callable[[Run, TaskT, Progress], None],
    waiting: SimpleQueue[int | None],
    reports: Queue[Report[TaskT]],
) -> None:
    """A process: train one task after the other. Ctrl-C is left to the run, which ends its processes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    torch.set_num_threads(experiment.threads)
    import_plugins(plugins)
    run = Run(experiment, RunFolder(folder), Screen(), command="", plugins=plugins)
    while (number := waiting.get()) is not None:
        task, told = tasks[number], 0.0

        def progress(done: int, total: int, figures: dict[str, float], task: TaskT = task) -> None:
            nonlocal told
            if not parent.is_alive():
                raise SystemExit("the run that this retraining belongs to is gone")
            if done == total or time.monotonic() - told > REPORT_SECONDS:
                told = time.monotonic()
                reports.put(Report(task, done, total, figures))

        try:
            train(run, task, progress)
        except UserError as mistake:
            reports.put(Report(task, mistake=str(mistake)))
            return
        reports.put(Report(task, finished=True))
