"""CUDA: what a model takes on an NVIDIA GPU where nothing waits for Python, as one recorded graph of kernels.

The graph is recorded once and replayed, so the time is the GPU's, and not that of launching hundreds of kernels from
Python. fp32 is fp32: TensorFloat-32, which torch lets convolutions use, is off while the graph is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from search.runtimes import noise, register_runtime
from supernet.fused import fused
from supernet.schema import UserError

WARM_UP_CALLS = 3  # in which cuDNN and cuBLAS choose their kernels and allocate, which cannot be recorded
_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def why_no_gpu() -> str | None:
    """Why nothing can run on a GPU here, or None if it can."""
    if not torch.backends.cuda.is_built():  # type: ignore[no-untyped-call]
        return f"torch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return "torch finds no NVIDIA GPU, or no driver for it"
    return None


@register_runtime("cuda")
class CudaRuntime:
    """Replays a CUDA graph of a module's deploy form, channels_last, on the current device; `version` names the GPU."""

    name = "cuda"
    precisions = tuple(_TYPES)

    def __init__(self, *, threads: int, precision: str = "fp32") -> None:
        if (reason := why_no_gpu()) is not None:
            raise UserError(f"runtime cuda: {reason}")
        if threads != 1:
            raise UserError(f"runtime cuda: one thread starts the graph; threads must be 1 (got {threads})")
        self.threads, self.precision = threads, precision
        self.version = f"{torch.__version__} ({torch.cuda.get_device_name()})"

    def build(self, module: nn.Module, input_shape: tuple[int, ...]) -> Callable[[], Tensor]:
        """A callable that runs one inference on fixed normal noise of shape B,C,H,W; the result lies on the GPU.

        It returns when the GPU is done.
        """
        device, kind = torch.device("cuda", torch.cuda.current_device()), _TYPES[self.precision]
        images = torch.from_numpy(noise(input_shape)).to(device, kind, memory_format=torch.channels_last)
        net = fused(module).to(device, kind).to(memory_format=torch.channels_last)
        graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), _full_precision():
            aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(WARM_UP_CALLS):
                    net(images)
            torch.cuda.current_stream().wait_stream(aside)
            with torch.cuda.graph(graph):
                output: Tensor = net(images)
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]

        def run() -> Tensor:
            assert net is not None  # whose weights the graph reads, as it reads the images
            assert images is not None
            graph.replay()
            done.record()
            done.synchronize()
            return output

        return run


@contextmanager
def _full_precision() -> Iterator[None]:
    """Products of fp32 are fp32, and cuDNN tries its kernels for the fastest; the caller's settings are restored."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
