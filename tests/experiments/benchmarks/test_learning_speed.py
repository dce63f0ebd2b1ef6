"""The benchmark of learning speed: it trains for the time it is given, and learns."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from experiments.benchmarks.learning_speed import Learned, learned, main
from experiments.experiment import load_experiment
from train.data import open_data

CPU = torch.device("cpu")


def test_a_net_trains_for_the_time_given_and_learns(tiny: Callable[..., Path]) -> None:
    experiment = load_experiment(tiny())
    data = open_data(experiment.data, seed=0)
    largest = experiment.search_space(num_classes=10).largest

    def after(steps: int) -> Learned:
        a_step_a_second = itertools.count().__next__
        return learned(largest, data, experiment, seconds=steps + 1, device=CPU, clock=a_step_a_second)

    short, longer = after(2), after(200)
    assert short.epochs == round(2 * experiment.train.batch_size / len(data.train), 2)
    assert longer.accuracy_percent > max(25, short.accuracy_percent)
    assert after(2) == short


def test_the_command_says_what_was_learned_and_where(
    tiny: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(tiny()), "--seconds", "0.2", "--set", "train.batch_size=16"])
    line = capsys.readouterr().out
    assert "% of the held-out images" in line
    assert "threads: 1" in line
