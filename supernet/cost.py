"""Parameters and multiply-accumulates of an Architecture, without allocating it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from supernet.architecture import Architecture
from supernet.metaformer import MetaFormer


@dataclass(frozen=True)
class Cost:
    """`macs` counts convolutions, linear layers and matrix products for one image."""

    parameters: int
    macs: int


def cost(architecture: Architecture) -> Cost:
    """The exact cost of the standalone model, counted on the meta device."""
    with torch.device("meta"):
        return cost_of_model(MetaFormer(architecture).eval(), torch.empty(1, *architecture.input_shape))


def cost_of_model(model: nn.Module, image_1CHW: Tensor) -> Cost:
    """The cost of any model in evaluation mode, counted while it sees one image on its own device."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image_1CHW)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Cost(parameters=parameters, macs=counter.get_total_flops() // 2)
