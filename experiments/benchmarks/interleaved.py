"""Timing several kinds of work side by side, so that a slow minute of the machine hits all of them alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch

from search.measure import stopwatch_seconds
from train.randomness import generator_for

Key = TypeVar("Key")


def interleaved_seconds(
    work: Mapping[Key, Callable[[], object]], *, rounds: int, warmup: int
) -> dict[Key, list[float]]:
    """Seconds of every kind of work, one a round, in random order within a round; `warmup` calls of each come first."""
    for call in work.values():
        for _ in range(warmup):
            call()
    generator, keys = generator_for(0, "benchmark order"), list(work)
    seconds: dict[Key, list[float]] = {key: [] for key in keys}
    for _ in range(rounds):
        for index in torch.randperm(len(keys), generator=generator).tolist():
            seconds[keys[index]].append(stopwatch_seconds(work[keys[index]]))
    return seconds
