"""Activations by name."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import assert_never

from supernet.block_types import ActivationName


class SquaredReLU(nn.Module):
    """relu(x)^2."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return F.relu(x).square()


class StarReLU(nn.Module):
    """s * relu(x)^2 + b with one learnable s and b, 1 and 0 at first (facts: MetaFormer baselines section 1.2)."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return torch.addcmul(self.bias, self.scale, F.relu(x).square())

    def folded_into(self, linear: nn.Linear) -> tuple[Tensor, Tensor]:
        """Weight and bias with which the linear map behind it takes relu(x)^2 instead."""
        shift = linear.weight.sum(dim=1) * self.bias
        return linear.weight * self.scale, shift if linear.bias is None else linear.bias + shift


def activation_module(name: ActivationName) -> nn.Module:
    """The activation of this name; GELU is the exact one (erf)."""
    match name:
        case "gelu":
            return nn.GELU()
        case "relu":
            return nn.ReLU()
        case "star_relu":
            return StarReLU()
        case "squared_relu":
            return SquaredReLU()
        case _:
            assert_never(name)
