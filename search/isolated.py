"""Parts timed alone: the plain sum that published tables are often made of, to compare a table in context with it.

Nothing in the project predicts with it. A part alone is fused with no neighbour, and a net of one part is mostly the
call that runs it.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from search.measure import Progress, measure
from search.parts import LatencyKey, part_module
from search.runtimes import Runtime


def isolated_ms(
    parts: Iterable[LatencyKey],
    runtime: Runtime,
    *,
    batch_size: int,
    rounds: int,
    generator: torch.Generator,
    progress: Progress | None = None,
) -> dict[LatencyKey, float]:
    """The median ms of every part in a net of its own; a reshape, which is no module, takes none."""
    parts = dict.fromkeys(parts)
    nets = {}
    for key in parts:
        if key.part != "reshape":
            module, shape = alone(key)
            nets[key] = runtime.build(module, (batch_size, *shape))
    timings = measure(nets, rounds=rounds, warmup=3, generator=generator, progress=progress)
    return {key: timings[key].median_ms if key in timings else 0.0 for key in parts}


def alone(key: LatencyKey) -> tuple[nn.Module, tuple[int, ...]]:
    """The module of a part, in eval mode, and the shape of its input without the batch. Not for a reshape."""
    height, width = key.grid
    tokens = key.part == "head" or (key.part == "block" and key.layout == "tokens")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return part_module(key), (height * width, key.in_channels) if tokens else (key.in_channels, height, width)
