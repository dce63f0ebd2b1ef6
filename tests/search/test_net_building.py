"""Nets that are built ahead by other processes are those that are built here, in the same order."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from search.measure import machine
from search.net_building import CannotBuild, build_models, building
from search.runtimes import onnx_in
from search.skeletons import Skeleton
from supernet.architecture import Stage
from supernet.block_types import MB4D
from supernet.schema import UserError

pytestmark = pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods() or machine().cores < 2, reason="needs fork and two cores"
)


def small_net(width: int) -> Skeleton:
    stage = Stage(width_channels=width, downsampling=None, blocks=(MB4D(mlp_channels=2 * width),))
    return Skeleton(in_channels=8, grid=(4, 4), stem=None, stages=(stage,), head=None)


NETS = [small_net(width) for width in range(16, 16 + 8 * 12, 8)]


class Files:
    """A runtime that runs its files by showing them: ONNX, and the process that made it."""

    name, version, precision, threads = "files", "1", "fp32", 1

    def __init__(self, refused: int | None = None) -> None:
        self.refused = refused

    def export(self, module: nn.Module, input_shape: tuple[int, ...]) -> bytes:
        if next(module.parameters()).shape[0] == self.refused:
            raise RuntimeError("no kernel for\n  this operator")
        return f"{os.getpid()}:".encode() + onnx_in("fp32", module, input_shape)

    def load(self, model: bytes | Path | str, input_shape: tuple[int, ...]) -> Callable[[], object]:
        return lambda: model

    def build(self, module: nn.Module, input_shape: tuple[int, ...]) -> Callable[[], object]:
        return self.load(self.export(module, input_shape), input_shape)


def made(processes: int) -> list[tuple[int, bytes]]:
    """The process that made each file, and the file."""
    contents = [net() for net in build_models(NETS, Files(), batch_size=2, processes=processes).values()]
    parts = [content.partition(b":") for content in contents if isinstance(content, bytes)]
    return [(int(process), file) for process, _, file in parts]


def test_other_processes_make_the_same_files_in_the_same_order() -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    here, there = made(1), made(2)
    assert [file for _, file in here] == [file for _, file in there]
    assert {process for process, _ in here} == {os.getpid()}
    assert len({process for process, _ in there} - {os.getpid()}) == 2
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("nets", [NETS, NETS[:3]])
def test_no_process_is_left_when_the_rest_is_not_wanted(nets: list[Skeleton]) -> None:
    makers = building(nets, Files(), batch_size=1, processes=2)
    first = next(makers)().net()
    assert isinstance(first, bytes)
    makers.close()
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("processes", [1, 2])
def test_a_net_that_is_refused_does_not_stop_the_others(processes: int) -> None:
    reasons = {}
    runtime = Files(refused=24)
    makers = building(NETS, runtime, batch_size=2, processes=processes)
    for net, make in zip(NETS, makers, strict=True):
        try:
            make()
        except CannotBuild as error:
            reasons[net] = error.reason
    assert reasons == {
        NETS[
            1
        ]: "files 1 cannot run a small net of mb4d at 24 channels and 4x4 px, input (2, 8, 4, 4) (RuntimeError: no"
        " kernel for this operator)"
    }


def test_a_full_disk_in_another_process_is_not_the_nets_fault() -> None:
    class Full(Files):
        def export(self, module: nn.Module, input_shape: tuple[int, ...]) -> bytes:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        build_models(NETS, Full(), batch_size=1, processes=2)


def test_a_process_that_is_ended_is_a_line_for_the_user() -> None:
    class Ended(Files):
        def export(self, module: nn.Module, input_shape: tuple[int, ...]) -> bytes:
            os._exit(9)

    with pytest.raises(UserError, match="a process that builds nets was ended: is there memory enough"):
        build_models(NETS, Ended(), batch_size=1, processes=2)


def test_a_runtime_that_makes_no_files_builds_here() -> None:
    class Here:
        name, version, precision, threads = "here", "1", "fp32", 1

        def build(self, module: nn.Module, input_shape: tuple[int, ...]) -> Callable[[], object]:
            return os.getpid

    built = build_models(NETS, Here(), batch_size=1, processes=2)
    assert {net() for net in built.values()} == {os.getpid()}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda: torch.linalg.inv(torch.zeros(2, 2)), "_LinAlgError: "),
        (None, "TypeError: 'NoneType' object is not callable"),
    ],
)
def test_a_net_that_fails_when_it_runs_first_is_refused_like_one_that_cannot_be_built(
    answer: Callable[[], object], reason: str
) -> None:
    class Late(Files):
        def load(self, model: bytes | Path | str, input_shape: tuple[int, ...]) -> Callable[[], object]:
            return answer

    for processes in (1, 2):
        with pytest.raises(CannotBuild, match=reason) as refused:
            build_models(NETS, Late(), batch_size=1, processes=processes)
        assert str(refused.value).startswith("files 1 cannot run a small net of mb4d at 16 channels and 4x4 px")


def test_the_first_call_runs_on_the_runtimes_threads_as_the_timed_ones_do() -> None:
    seen: list[int] = []

    class OnThreads:
        name, version, precision, threads = "own", "1", "fp32", 3

        def build(self, module: nn.Module, input_shape: tuple[int, ...]) -> Callable[[], object]:
            return lambda: seen.append(torch.get_num_threads())

    before = torch.get_num_threads()
    build_models(NETS[:1], OnThreads(), batch_size=1)
    assert seen == [3]
    assert torch.get_num_threads() == before
