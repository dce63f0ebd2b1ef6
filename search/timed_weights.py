"""Weights for nets that are only timed: a short random stream over and over, because drawing all of them takes long.

Measured: random numbers took two thirds of the construction of eight skeletons of `imagenet_l1.yaml` (up to 512 wide).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from supernet.threads import one_thread

STREAM = 1_000_003  # numbers, a prime: equal tensors begin at different places, so that no exporter merges them
STD = 0.02
_DRAWING = frozenset(
    {nn.init.kaiming_uniform_, nn.init.uniform_, nn.init.normal_, Tensor.uniform_, Tensor.normal_}
)  # what torch and the project's blocks begin with; other ways to draw stay as they are


@contextmanager
def timed_weights() -> Iterator[None]:
    """Modules made in here draw their weights from the stream, the same at every call; torch's generator rests.

    They are made on one thread.
    """
    with one_thread(), torch.random.fork_rng(devices=[]), _FromStream():
        torch.manual_seed(0)  # for whatever else draws
        yield


class _FromStream(TorchFunctionMode):
    """Answers calls that fill a tensor with random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.start = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """The tensor, filled with the next numbers of the stream."""
        kwargs = kwargs or {}
        if func not in _DRAWING:
            return func(*args, **kwargs)
        tensor: Tensor = args[0] if args else kwargs["tensor"]
        if not tensor.is_contiguous() or tensor.is_meta:
            return func(*args, **kwargs)
        flat, stream, done = tensor.detach().view(-1), _stream(), 0
        while done < len(flat):
            piece = stream[self.start : self.start + len(flat) - done]
            flat[done : done + len(piece)] = piece
            done += len(piece)
            self.start = (self.start + len(piece)) % STREAM
        return tensor


@cache
def _stream() -> Tensor:
    """Normal noise within two standard deviations."""
    noise = torch.empty(STREAM).normal_(0.0, STD, generator=torch.Generator().manual_seed(0))
    return noise.clamp_(-2 * STD, 2 * STD)
