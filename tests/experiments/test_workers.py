"""Retraining several models at once: the same files as one at a time, one clear line for what goes wrong."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments import stages, workers
from experiments.models import found
from experiments.workers import retrain_at_once

Slimformer = Callable[..., Any]
Contents = Callable[[Path], dict[str, bytes]]

TWO = ("--set", "threads=2", "--set", "processes=2")


def trained(contents: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in contents.items() if name.startswith("models/") and "tensorboard" not in name}


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many processes every retraining stage asked for."""
    asked: list[int] = []

    def watched(run: Any, jobs: Any, *, processes: int) -> None:
        asked.append(processes)
        retrain_at_once(run, jobs, processes=processes)

    monkeypatch.setattr(stages, "retrain_at_once", watched)
    return asked


def test_so_many_models_are_retrained_at_once(
    finished: Path, copied: Path, slimformer: Slimformer, contents: Contents, at_once: list[int]
) -> None:
    before = trained(contents(finished))
    outcome = slimformer("retrain", copied, "--redo", *TWO)
    assert outcome.code == 0, outcome.err
    assert at_once == [2]
    assert trained(contents(copied)) == before  # a thread a process, as in the run that trained one at a time
    assert len(before) == 3 * len(found(finished).models)
    outcome = slimformer("run", copied)
    assert outcome.code == 0, outcome.err
    assert at_once == [2]


@pytest.mark.parametrize("setting", ["threads=1", "processes=1"])
def test_one_thread_or_one_process_trains_one_model_after_the_other(
    copied: Path, slimformer: Slimformer, at_once: list[int], setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)  # two wait for each other beside other tests
    assert slimformer("retrain", copied, "--redo", "--set", "threads=2", "--set", setting).code == 0
    assert at_once == []


def test_a_loss_that_diverges_in_a_process_ends_the_run_with_its_line(copied: Path, slimformer: Slimformer) -> None:
    mistake = slimformer("retrain", copied, "--redo", *TWO, "--set", "train.learning_rate=1e30").mistake
    assert "became nan" in mistake
    assert "learning_rate" in mistake
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGKILL])
def test_an_interruption_or_a_killed_process_ends_all_and_the_run_goes_on_later(
    finished: Path,
    copied: Path,
    slimformer: Slimformer,
    contents: Contents,
    monkeypatch: pytest.MonkeyPatch,
    by: signal.Signals,
) -> None:
    follow = workers._follow

    def disturbed(processes: Any, reports: Any, tell: Any) -> None:
        reports.get()  # a training has begun
        os.kill(os.getpid() if by == signal.SIGINT else processes[0].pid, by)
        follow(processes, reports, tell)

    with monkeypatch.context() as patch:
        patch.setattr(workers, "_follow", disturbed)
        outcome = slimformer("retrain", copied, "--redo", *TWO)
    assert outcome.code == (130 if by == signal.SIGINT else 2)
    if by == signal.SIGKILL:
        assert "exit code -9 (killed: is there memory enough?)" in outcome.mistake
    assert multiprocessing.active_children() == []
    assert slimformer("retrain", copied, *TWO).code == 0
    assert trained(contents(copied)) == trained(contents(finished))
