"""Parts timed alone: the plain sum that published tables are often made of, to compare a table in context with it.

Nothing in the project predicts with it. A part alone is fused with no neighbour, and a net of one part is mostly the
call that runs it.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from search.latency_table import LatencyKey, record_of
from search.measure import Progress, measure
from search.runtimes import Runtime
from supernet.architecture import Head
from supernet.blocks import build_block
from supernet.stem import HeadModule, build_downsampling, build_stem


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
    record, (height, width) = record_of(key), key.grid
    shape: tuple[int, ...] = (key.in_channels, height, width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        match key.part:
            case "stem":
                module = build_stem(record, in_channels=key.in_channels)
            case "downsampling":
                module = build_downsampling(
                    record, in_channels=key.in_channels, out_channels=key.out_channels, grid=key.grid
                )
            case "head":
                assert isinstance(record, Head)
                module, shape = HeadModule(record, width_channels=key.in_channels), (height * width, key.in_channels)
            case "block":
                module = build_block(record, width_channels=key.in_channels, grid=key.grid)
                if key.layout == "tokens":
                    shape = (height * width, key.in_channels)
            case _:
                raise ValueError(f"{key.part}: has no module of its own")
    return module.eval(), shape
