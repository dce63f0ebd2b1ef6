"""Bench: many nets on one runtime, built and timed in chunks that fit into memory, all at the speed of the first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from search.latency_audit import fresh_model
from search.measure import Clock, Net, Progress, Rounds, Timing, measure
from search.runtimes import Runtime
from search.skeletons import Skeleton, build_skeleton
from supernet.architecture import Architecture
from supernet.schema import UserError

CHUNK_NETS = 600  # nets held in memory and measured together
CHUNK_PARAMETERS = 500_000_000  # of all nets of a chunk, 2 GB

Timed = Skeleton | Architecture


class CannotBuild(UserError):
    """A runtime refuses a net; `reason` names it, its shape, and the runtime with its words, in one line."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}; take other candidates, or another runtime")
        self.reason = reason


@dataclass
class Bench:
    """What all measurements of one table have in common; `built` keeps nets that are measured on, a chunk of them."""

    runtime: Runtime
    batch_size: int
    rounds: int
    warmup: int
    generator: torch.Generator
    clock: Clock
    built: dict[Timed, Net] = field(default_factory=dict)
    kept_parameters: int = 0

    def measure(self, todo: Sequence[Timed], progress: Progress | None = None) -> tuple[dict[Timed, Timing], Rounds]:
        """Time nets in chunks that fit into memory; the first net is in every chunk and links their speeds.

        Raises `CannotBuild`.
        """
        reference, remaining = todo[0], list(reversed(todo))
        timings: dict[Timed, Timing] = {}
        rounds, of_chunk = Rounds(), list[Rounds]()
        tally = _Tally(progress, total=(1 + self.rounds) * len(todo))  # each net is built once, and visited every round
        while remaining:
            nets = self._build_chunk(reference, remaining, tally)
            found = measure(
                nets,
                rounds=self.rounds,
                warmup=self.warmup,
                generator=self.generator,
                clock=self.clock,
                progress=tally.a_round_of(len(nets)),
                seen=of_chunk.append,
            )
            speed = timings[reference].median_ms / found[reference].median_ms if timings else 1.0
            rounds = rounds.joined(of_chunk.pop(), speed=speed)
            for net in found.keys() - timings.keys():
                samples = tuple(speed * sample for sample in found[net].samples_ms)
                timings[net] = replace(found[net], samples_ms=samples)
        return timings, rounds

    def build(self, net: Timed) -> tuple[Net, int]:
        """A net as a callable and how many parameters were loaded for it, none if it was kept. Raises `CannotBuild`."""
        if net in self.built:
            return self.built[net], 0
        module = build_skeleton(net) if isinstance(net, Skeleton) else fresh_model(net)
        parameters = sum(parameter.numel() for parameter in module.parameters())
        built = self._built(net, module)
        if len(self.built) < CHUNK_NETS and self.kept_parameters + parameters <= CHUNK_PARAMETERS:
            self.built[net] = built
            self.kept_parameters += parameters
        return built, parameters

    def _built(self, net: Timed, module: nn.Module) -> Net:
        shape = (self.batch_size, *net.input_shape)
        try:
            return self.runtime.build(module, shape)
        except (OSError, MemoryError, torch.OutOfMemoryError):  # not the net's fault
            raise
        except Exception as error:  # of any runtime, also a user's
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            reason = " ".join(f"{kind}{error}".split())[:300]
            raise CannotBuild(
                f"{self.runtime.name} {self.runtime.version} cannot run {_described(net)}, input {shape} ({reason})"
            ) from error

    def _build_chunk(self, reference: Timed, remaining: list[Timed], tally: _Tally) -> dict[Timed, Net]:
        """Build the reference and as many nets as fit, taken from the end of `remaining`."""
        nets: dict[Timed, Net] = {}
        loaded = 0
        while remaining and len(nets) < CHUNK_NETS and loaded < CHUNK_PARAMETERS:
            for net in dict.fromkeys((reference, remaining.pop())):
                if net not in nets:
                    nets[net], parameters = self.build(net)
                    loaded += parameters
            tally.add(1)
        return nets


def _described(net: Timed) -> str:
    """A net in words: its blocks with width and map, or a whole net."""
    if isinstance(net, Architecture):
        return f"the whole net {net.digest}"
    stages = [
        f"{', '.join(dict.fromkeys(block.type for block in stage.blocks)) or 'no block'} at {stage.width_channels}"
        f" channels and {height}x{width} px"
        for stage, (height, width) in zip(net.stages, net.grids, strict=True)
    ]
    return f"a small net of {' and '.join(stages)}"


class _Tally:
    """How much of all work is done; the net that links the chunks comes once more with each, and may exceed it."""

    def __init__(self, progress: Progress | None, *, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def add(self, done: int) -> None:
        self.done = min(self.total, self.done + done)
        if self.progress is not None:
            self.progress(self.done, self.total)

    def a_round_of(self, nets: int) -> Progress:
        """The progress of a measurement, called once a round, in which so many nets were visited."""
        return lambda done, rounds: self.add(nets)
