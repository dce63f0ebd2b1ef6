"""`--plan`: what a run would do, and an estimate of its minutes and memory from a few timed steps on this machine."""

from __future__ import annotations

from experiments.artifacts import RunFolder
from experiments.console import Screen
from experiments.experiment import Experiment


def print_plan(experiment: Experiment, folder: RunFolder, screen: Screen) -> None:
    raise NotImplementedError
