"""Parts timed alone: the plain sum that published tables are often made of, to compare a table in context with it.

Nothing in the project predicts with it. A part alone is fused with no neighbour, and a net of one part is mostly the
call that runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch
from torch import nn

from search.measure import Progress, measure
from search.net_building import runnable
from search.parts import LatencyKey, part_module
from search.runtimes import Runtime


def isolated_nets(
    parts: Iterable[LatencyKey], runtime: Runtime, *, batch_size: int
) -> dict[LatencyKey, Callable[[], object]]:
    """Every part in a net of its own, to be timed; a reshape is no module. Raises `CannotBuild`."""
    nets = {}
    for key in dict.fromkeys(parts):
        if key.part != "reshape":
            module, sizes = alone(key)
            shape = (batch_size, *sizes)
            nets[key] = runnable(f"{key} alone", runtime, shape, partial(runtime.build, module, shape))
    return nets


def isolated_ms(
    nets: Mapping[LatencyKey, Callable[[], object]],
    *,
    rounds: int,
    threads: int,
    generator: torch.Generator,
    progress: Progress | None = None,
) -> dict[LatencyKey, float]:
    """The median ms of every part that is a net of its own."""
    timings = measure(nets, rounds=rounds, warmup=3, generator=generator, threads=threads, progress=progress)
    return {key: timing.median_ms for key, timing in timings.items()}


def alone(key: LatencyKey) -> tuple[nn.Module, tuple[int, ...]]:
    """The module of a part, in eval mode, and the shape of its input without the batch. Not for a reshape."""
    height, width = key.grid
    tokens = key.part == "head" or (key.part == "block" and key.layout == "tokens")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return part_module(key), (height * width, key.in_channels) if tokens else (key.in_channels, height, width)
