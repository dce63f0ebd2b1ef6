"""Elastic width: one set of weights, run at any smaller width by the leading channels of every parameter.

A narrow call needs no elastic layers: a skeleton of the narrow module is built once on the meta device (it holds
shapes and no memory), and called with slices of the full module's parameters and buffers in its place. So any plain
module, a user's own block among them, is elastic, and a restricted supernet equals its subnet by construction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

WidthT = TypeVar("WidthT")


@dataclass(frozen=True)
class Skeleton:
    """A narrow module without memory, and the shapes of its parameters and buffers."""

    module: nn.Module
    shapes: dict[str, torch.Size]


class Elastic(nn.Module, Generic[WidthT]):
    """A module at its full width that also runs at smaller ones; `build(width)` makes the module of a width."""

    def __init__(self, build: Callable[[WidthT], nn.Module], full_width: WidthT) -> None:
        super().__init__()
        self.full = build(full_width)
        self.full_width = full_width
        self._build = build
        self._skeletons: dict[WidthT, Skeleton] = {}  # in a dict, so that torch does not register them

    def forward(self, x: Tensor, width: WidthT) -> Tensor:
        """Run at a width; the input has that width's channels."""
        if width == self.full_width:
            return self.full(x)  # type: ignore[no-any-return]
        module = self._skeleton(width).module
        if module.training != self.full.training:
            module.train(self.full.training)
        return functional_call(module, self.state_at(width), (x,))  # type: ignore[no-any-return]

    def state_at(self, width: WidthT) -> dict[str, Tensor]:
        """The parameters and buffers of the module at this width: leading slices, sharing memory with the full."""
        full = named_tensors(self.full)
        return {name: leading(full[name], shape) for name, shape in self._skeleton(width).shapes.items()}

    def _skeleton(self, width: WidthT) -> Skeleton:
        if width not in self._skeletons:
            with torch.device("meta"):
                module = self._build(width)
            shapes = {name: tensor.shape for name, tensor in named_tensors(module).items()}
            self._skeletons[width] = Skeleton(module, shapes)
        return self._skeletons[width]


def leading(tensor: Tensor, shape: torch.Size) -> Tensor:
    """The leading slice of this shape, a view. Raises `ValueError` if the shape does not fit."""
    if tensor.shape == shape:
        return tensor
    if tensor.ndim != len(shape) or any(s > t for s, t in zip(shape, tensor.shape, strict=True)):
        raise ValueError(f"no leading slice of shape {tuple(shape)} in a tensor of shape {tuple(tensor.shape)}")
    return tensor[tuple(slice(size) for size in shape)]


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a module, those that are not saved included."""
    return dict(module.named_parameters()) | dict(module.named_buffers())
