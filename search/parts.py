"""Parts: what the latency of a net is the sum of, and what everything that adds up over a net is looked up by."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from supernet.activation_memory import peak_activations_of
from supernet.architecture import AnyDownsampling, AnyStem, Architecture, Head
from supernet.block_types import AnyBlock, Identity
from supernet.blocks import build_block
from supernet.cost import cost_of_model
from supernet.schema import Record, canonical
from supernet.stem import HeadModule, build_downsampling, build_stem

Part = Literal["stem", "block", "reshape", "downsampling", "head"]
Grid = tuple[int, int]


class LatencyKey(NamedTuple):
    """One part of a net with its sizes: what latency is looked up by.

    `spec` is the canonical JSON of the part's record (`Stem`, `Block`, `Downsampling`, `Head`) with all sizes in it.
    `grid` is the height and width of the part's input. A "reshape" is the way from a map to tokens and back, once for
    each time that a stage changes to token blocks. `layout` is what a block works on, and what a head is given.
    """

    part: Part
    spec: str
    layout: Literal["map", "tokens"]
    in_channels: int
    out_channels: int
    grid: Grid

    def __str__(self) -> str:
        sizes = f"{self.in_channels} to {self.out_channels} channels at {self.grid[0]}x{self.grid[1]}"
        return f"{self.part} {self.spec} ({self.layout}, {sizes})"


@lru_cache(maxsize=65536)  # a search asks for the same parts over and over
def key_of(
    part: Part,
    record: Record | None,
    *,
    in_channels: int,
    out_channels: int,
    grid: Grid,
    layout: Literal["map", "tokens"] = "map",
) -> LatencyKey:
    """The key of a part; `record` is None for a reshape, which has no options."""
    spec = "{}" if record is None else canonical(record)
    return LatencyKey(part, spec, layout, in_channels, out_channels, grid)


def keys(architecture: Architecture) -> list[LatencyKey]:
    """The parts of an architecture in the order they run; skipped positions cost nothing and have none."""
    stem, width = architecture.stem, architecture.stem.width_channels
    found = [
        key_of("stem", stem, in_channels=architecture.in_channels, out_channels=width, grid=architecture.resolution_px)
    ]
    grid = stem.grid(architecture.resolution_px)
    layout: Literal["map", "tokens"] = "map"
    for stage in architecture.stages:
        if stage.downsampling is not None:
            found.append(
                key_of(
                    "downsampling",
                    stage.downsampling,
                    in_channels=width,
                    out_channels=stage.width_channels,
                    grid=grid,
                )
            )
            grid = stage.grid(grid)
        width, layout = stage.width_channels, "map"
        for block in stage.blocks:
            if isinstance(block, Identity):
                continue
            if block.layout == "tokens" and layout == "map":
                found.append(reshape_key(width, grid))
            layout = block.layout
            found.append(key_of("block", block, in_channels=width, out_channels=width, grid=grid, layout=block.layout))
    classes = architecture.head.num_classes
    found.append(key_of("head", architecture.head, in_channels=width, out_channels=classes, grid=grid, layout=layout))
    return found


def reshape_key(width_channels: int, grid: Grid) -> LatencyKey:
    """The key of the way from a map of this size to tokens and back."""
    return key_of("reshape", None, in_channels=width_channels, out_channels=width_channels, grid=grid)


_RECORDS: dict[str, TypeAdapter[Any]] = {
    "stem": TypeAdapter(AnyStem),
    "downsampling": TypeAdapter(AnyDownsampling),
    "head": TypeAdapter(Head),
    "block": TypeAdapter(AnyBlock),
}


def record_of(key: LatencyKey) -> Any:
    """The record of a part: stem, downsampling, head or block. Raises `ValueError` for a reshape, which has none."""
    if key.part not in _RECORDS:
        raise ValueError(f"{key.part}: has no record")
    return _RECORDS[key.part].validate_json(key.spec)


@lru_cache(maxsize=65536)
def canonical_spec(part: Part, spec: str) -> str:
    """The canonical JSON of a part that was written down when its record had fewer or more fields at their defaults."""
    if part not in _RECORDS:
        return spec
    try:
        return canonical(_RECORDS[part].validate_json(spec))
    except ValueError:  # a block of a plugin that is not loaded: no architecture here can ask for it
        return spec


@lru_cache(maxsize=65536)
def kind_of(key: LatencyKey) -> str:
    """What a correction treats alike: a part, or the blocks of one type, on maps of one size ("conv 4x4")."""
    name = json.loads(key.spec)["type"] if key.part == "block" else key.part
    return f"{name} {key.grid[0]}x{key.grid[1]}"


def part_module(key: LatencyKey) -> nn.Module:
    """The module of a part, in eval mode. Raises `ValueError` for a reshape, which has none."""
    record = record_of(key)
    match key.part:
        case "stem":
            return build_stem(record, in_channels=key.in_channels).eval()
        case "downsampling":
            channels = {"in_channels": key.in_channels, "out_channels": key.out_channels}
            return build_downsampling(record, **channels, grid=key.grid).eval()
        case "head":
            return HeadModule(record, width_channels=key.in_channels).eval()
        case _:
            return build_block(record, width_channels=key.in_channels, grid=key.grid).eval()


@lru_cache(maxsize=65536)
def numbers_of(key: LatencyKey, *, batch_size: int) -> int:
    """How many numbers a part moves: its parameters, and the maps at its ends for so many images.

    A map between two parts counts once, as the input of the second; within a block's residual sum it is read again.
    """
    ends = key.in_channels + (key.out_channels if key.part == "block" else 0)
    return parameters_of(key) + batch_size * key.grid[0] * key.grid[1] * ends


@lru_cache(maxsize=65536)
def parameters_of(key: LatencyKey) -> int:
    """How many parameters a part has: those of its parts are a net's."""
    if key.part == "reshape":
        return 0
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in part_module(key).parameters())


@lru_cache(maxsize=65536)
def macs_of(key: LatencyKey) -> int:
    """How many multiply-accumulates a part takes for one image: those of its parts are a net's."""
    if key.part == "reshape":
        return 0
    with torch.device("meta"):
        return cost_of_model(part_module(key), _input_of(key)).macs


@lru_cache(maxsize=65536)
def peak_activations_of_part(key: LatencyKey) -> int:
    """The most numbers alive at once in a part, for one image: a net's is that of its largest part."""
    if key.part == "reshape":  # the same numbers, seen otherwise
        return key.in_channels * key.grid[0] * key.grid[1]
    with torch.device("meta"):
        return peak_activations_of(part_module(key), _input_of(key))


def _input_of(key: LatencyKey) -> Tensor:
    """One input of a part: a map 1,C,H,W, or tokens 1,N,C."""
    height, width = key.grid
    if key.part == "head" or key.layout == "tokens":
        return torch.empty(1, height * width, key.in_channels)
    return torch.empty(1, key.in_channels, height, width)
