"""Activations by name."""

from __future__ import annotations

from typing import Literal

from torch import nn
from typing_extensions import assert_never

Activation = Literal["gelu", "relu"]


def activation_module(name: Activation) -> nn.Module:
    """The activation of this name; GELU is the exact one (erf)."""
    match name:
        case "gelu":
            return nn.GELU()
        case "relu":
            return nn.ReLU()
        case _:
            assert_never(name)
