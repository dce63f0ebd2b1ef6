"""ExecuTorch on the CPU, with XNNPACK's kernels: what a phone or a board runs, from a `.pte` file.

A program is lowered for one input shape, batch included. What XNNPACK does not take (a layer norm, the last mean) is
left to ExecuTorch's own kernels. fp32 alone: lowered in fp16, efficientformer_l1 computes other logits, with ExecuTorch
1.5.1 on an AVX2 core by 12 times the largest.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import torch
from torch import nn

from search.runtimes import needs_extra, noise, register_runtime
from search.runtimes.quiet import quiet
from supernet.fused import fused
from supernet.schema import UserError

try:
    with quiet():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Program
    from executorch.runtime import Runtime as Executor
except ImportError as error:
    raise needs_extra("executorch", error) from None

METHOD = "forward"
_pool: list[int] = []  # the threads of this process's pool, once a program was loaded


def pte_bytes(module: nn.Module, *, input_shape: tuple[int, ...]) -> bytes:
    """A module as an ExecuTorch program for images of this shape B,C,H,W, fp32: the content of a `.pte` file.

    What is lowered is the deploy form (`supernet.fused`).
    """
    with torch.no_grad(), quiet():
        graph = torch.export.export(fused(module), (torch.zeros(input_shape),))
        content: bytes = to_edge_transform_and_lower(graph, partitioner=[XnnpackPartitioner()]).to_executorch().buffer
    return content


def pte_input_shape(path: Path) -> tuple[int, ...]:
    """The shape B,C,H,W of the images that a `.pte` file was lowered for. Raises `UserError` if it cannot be read."""
    try:
        content = path.read_bytes()
        with quiet():
            return _lowered_for(Executor.get().load_program(content))
    except (RuntimeError, ValueError, IndexError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not a program that ExecuTorch can read ({reason})") from None


def _lowered_for(program: Program) -> tuple[int, ...]:
    return tuple(program.metadata(METHOD).input_tensor_meta(0).sizes())


@register_runtime("executorch")
class ExecuTorchRuntime:
    """Lowers a module and runs the program; a process has one pool of threads, made for the first program."""

    name = "executorch"
    version: str = metadata.version("executorch")
    precision = "fp32"

    def __init__(self, *, threads: int) -> None:
        self.threads = threads

    def build(self, module: nn.Module, input_shape: tuple[int, ...]) -> Callable[[], object]:
        """A callable that runs one inference on fixed normal noise of shape B,C,H,W."""
        return self.load(self.export(module, input_shape), input_shape)

    def export(self, module: nn.Module, input_shape: tuple[int, ...]) -> bytes:
        """The module as a program, lowered for this shape."""
        return pte_bytes(module, input_shape=input_shape)

    def load(self, model: bytes | Path | str, input_shape: tuple[int, ...]) -> Callable[[], object]:
        """The same for a program, a `.pte` file or its bytes.

        Raises `UserError` if it cannot be read or is for another shape, and for a second number of threads.
        """
        where = "the model" if isinstance(model, bytes) else str(model)
        images = torch.from_numpy(noise(input_shape))
        self._start_threads()
        try:
            content = model if isinstance(model, bytes) else Path(model).read_bytes()
            with quiet():
                program = Executor.get().load_program(content)
                if _lowered_for(program) != input_shape:
                    raise ValueError(f"it was lowered for {_lowered_for(program)}")
                method = program.load_method(METHOD)
                method.execute([images])
        except (RuntimeError, ValueError, IndexError, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{where}: not a program that ExecuTorch can run on {input_shape} ({reason})") from None

        def run() -> object:
            assert program is not None  # whose memory the method uses
            return method.execute([images])

        return run

    def _start_threads(self) -> None:
        """Loaded programs keep pointers into the pool, so it cannot be made anew once there is one."""
        if not _pool:
            with quiet():
                portable_lib._unsafe_reset_threadpool(self.threads)
            _pool.append(self.threads)
        if _pool != [self.threads]:
            raise UserError(
                f"executorch: this process has run programs with threads={_pool[0]}, and has one pool of threads;"
                f" threads={self.threads} needs a process of its own"
            )
