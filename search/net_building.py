"""Nets on a runtime, to be timed: built here, or from files that other processes make ahead.

Most of what a net takes to build is Python's work on its file (with ONNX Runtime 0.22 of 0.25 s a net of the table of
imagenet_l1.yaml), so it is shared among the cores. Nothing may be measured meanwhile.
"""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from search.measure import Net, machine, torch_threads
from search.runtimes import ExportingRuntime, NotInstalled, Runtime
from search.skeletons import Skeleton, build_skeleton
from search.timed_weights import timed_weights
from supernet.architecture import Architecture
from supernet.metaformer import MetaFormer
from supernet.schema import UserError

FEWEST_NETS = 8  # with fewer, further processes are not worth their start
MOST_PROCESSES = 4  # each holds a net and its file


class Buildable(Hashable, Protocol):
    """A whole net that is none of the project's own, to be timed like one; equal ones are the same net."""

    @property
    def digest(self) -> str:
        """What tells it from others."""

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """C, H, W of an image."""

    def build(self) -> nn.Module:
        """The net."""


NetT = TypeVar("NetT", bound="Skeleton | Architecture | Buildable")


class CannotBuild(UserError):
    """A runtime refuses a net; `reason` names it, its shape, and the runtime with its words, in one line."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}; take other candidates, or another runtime")
        self.reason = reason


class Built(NamedTuple):
    """A net that can be timed, and the size of its weights or its file."""

    net: Net
    size_bytes: int


def module_of(net: Skeleton | Architecture | Buildable) -> nn.Module:
    """A net to be timed, in eval mode, with weights that are the same at every call."""
    if isinstance(net, Skeleton):
        return build_skeleton(net)
    with timed_weights():
        return (MetaFormer(net) if isinstance(net, Architecture) else net.build()).eval()


def build_models(nets: Iterable[NetT], runtime: Runtime, *, batch_size: int, processes: int = 1) -> dict[NetT, Net]:
    """Nets on a runtime, to be timed; the same net is built once. Raises `CannotBuild`."""
    distinct = list(dict.fromkeys(nets))
    made = building(distinct, runtime, batch_size=batch_size, processes=processes)
    return {net: make().net for net, make in zip(distinct, made, strict=True)}


def building(
    nets: Sequence[Skeleton | Architecture | Buildable], runtime: Runtime, *, batch_size: int, processes: int = 1
) -> Generator[Callable[[], Built], None, None]:
    """For each net, in this order, a callable that makes it ready on the runtime, or raises `CannotBuild`.

    So many processes make files ahead, where the runtime runs files and the system can fork; they are gone when the
    iterator is exhausted or closed.
    """
    processes = min(processes, MOST_PROCESSES, machine().cores)
    can_fork = "fork" in multiprocessing.get_all_start_methods()
    if processes > 1 and can_fork and len(nets) >= FEWEST_NETS and isinstance(runtime, ExportingRuntime):
        yield from _from_files(nets, runtime, batch_size, processes)
    else:
        yield from (partial(_build, net, runtime, batch_size) for net in nets)


def _build(net: Skeleton | Architecture | Buildable, runtime: Runtime, batch_size: int) -> Built:
    module = module_of(net)
    size_bytes = sum(parameter.nbytes for parameter in module.parameters())
    shape = (batch_size, *net.input_shape)
    return Built(runnable(described(net), runtime, shape, partial(runtime.build, module, shape)), size_bytes)


def _from_files(
    nets: Sequence[Skeleton | Architecture | Buildable], runtime: ExportingRuntime, batch_size: int, processes: int
) -> Generator[Callable[[], Built], None, None]:
    loader = DataLoader(
        _Files(nets, runtime, batch_size),
        batch_size=None,
        num_workers=processes,
        multiprocessing_context="fork",  # so that a user's blocks and runtimes are known there
        generator=torch.Generator(),  # not torch's own, which would move on
    )
    with warnings.catch_warnings():  # from Python 3.12 on; the processes use one thread and leave by os._exit
        warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork.*", category=DeprecationWarning)
        files = iter(loader)
    for net in nets:
        yield partial(_load, net, _next(files), runtime, (batch_size, *net.input_shape))


class _Refusal(NamedTuple):
    """Why a file could not be made."""

    reason: str


def _next(files: Iterator[bytes | _Refusal]) -> bytes | _Refusal:
    """The next file. Raises `UserError` where the process that should have made it was ended."""
    try:
        return next(files)
    except RuntimeError as error:
        if not any(words in str(error) for words in ("exited unexpectedly", "killed by signal")):
            raise
        raise UserError(
            "a process that builds nets was ended: is there memory enough? With threads=1 one process builds them all"
        ) from None


class _Files(Dataset["bytes | _Refusal"]):
    """The files of nets; an error is an answer, because not every exception comes through to another process."""

    def __init__(
        self, nets: Sequence[Skeleton | Architecture | Buildable], runtime: ExportingRuntime, batch_size: int
    ) -> None:
        self.nets, self.runtime, self.batch_size = nets, runtime, batch_size

    def __len__(self) -> int:
        return len(self.nets)

    def __getitem__(self, index: int) -> bytes | _Refusal:
        net = self.nets[index]
        shape = (self.batch_size, *net.input_shape)
        module = module_of(net)
        try:
            return answered(described(net), named(self.runtime), shape, partial(self.runtime.export, module, shape))
        except CannotBuild as error:
            return _Refusal(error.reason)


def _load(
    net: Skeleton | Architecture | Buildable,
    made: bytes | _Refusal,
    runtime: ExportingRuntime,
    shape: tuple[int, ...],
) -> Built:
    if isinstance(made, _Refusal):
        raise CannotBuild(made.reason)
    return Built(runnable(described(net), runtime, shape, partial(runtime.load, made, shape)), len(made))


def runnable(what: str, runtime: Runtime, shape: tuple[int, ...], build: Callable[[], Net]) -> Net:
    """A net that was built and has run once, as it will be timed: some runtimes refuse, or compile, no sooner.

    Raises as `answered` does.
    """

    def built() -> Net:
        net = build()
        with torch.inference_mode(), torch_threads(runtime.threads):
            net()
        return net

    return answered(what, named(runtime), shape, built)


ResultT = TypeVar("ResultT")


def answered(what: str, who: str, shape: tuple[int, ...], work: Callable[[], ResultT]) -> ResultT:
    """What a runtime answers, whose name and version are `who`. Raises `CannotBuild` with its words if it refuses."""
    try:
        return work()
    except (OSError, MemoryError, torch.OutOfMemoryError, NotInstalled):  # not the net's fault
        raise
    except Exception as error:  # of any runtime, also a user's
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        reason = " ".join(f"{kind}{error}".split())[:300]
        raise CannotBuild(f"{who} cannot run {what}, input {shape} ({reason})") from error


def named(runtime: Runtime) -> str:
    """A runtime's name and version."""
    return f"{runtime.name} {runtime.version}"


def described(net: Skeleton | Architecture | Buildable) -> str:
    """A net in words: its blocks with width and map, or a whole net."""
    if not isinstance(net, Skeleton):
        return f"the whole net {net.digest}"
    stages = [
        f"{', '.join(dict.fromkeys(block.type for block in stage.blocks)) or 'no block'} at {stage.width_channels}"
        f" channels and {height}x{width} px"
        for stage, (height, width) in zip(net.stages, net.grids, strict=True)
    ]
    return f"a small net of {' and '.join(stages)}"
