"""Parameters and multiply-accumulates of an Architecture, without allocating it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from supernet.architecture import Architecture
from supernet.metaformer import MetaFormer, MetaFormerStage


@dataclass(frozen=True)
class Cost:
    """`macs` counts convolutions, linear layers and matrix products for one image."""

    parameters: int
    macs: int


def cost(architecture: Architecture) -> Cost:
    """The exact cost of the standalone model, counted on the meta device."""
    with torch.device("meta"):
        model = MetaFormer(architecture).eval()
        parameters = sum(parameter.numel() for parameter in model.parameters())
        repeated = _leave_out_repetitions(model)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            seen = [_Seen(block, more, counter) for block, more in repeated]
            model(torch.empty(1, *architecture.input_shape))
    flops = counter.get_total_flops() + sum(block.more * block.flops for block in seen)
    return Cost(parameters=parameters, macs=flops // 2)


def cost_of_model(model: nn.Module, image_1CHW: Tensor) -> Cost:
    """The cost of any model in evaluation mode, counted while it sees one image on its own device."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image_1CHW)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Cost(parameters=parameters, macs=counter.get_total_flops() // 2)


def _leave_out_repetitions(model: MetaFormer) -> list[tuple[nn.Module, int]]:
    """Make nothing of every block that equals the one before it; the first of each such run, and how many more it has.

    A meta kernel takes up to a millisecond, and the 37 published models have 1,089 blocks in 171 such runs.
    """
    repeated: list[tuple[nn.Module, int]] = []
    for stage, module in zip(model.architecture.stages, model.stages, strict=True):
        assert isinstance(module, MetaFormerStage)
        first = 0
        for position, block in enumerate(stage.blocks):
            if position and block == stage.blocks[position - 1]:
                module.blocks[position] = nn.Identity()
                repeated[-1] = (repeated[-1][0], position - first)
            else:
                first = position
                repeated.append((module.blocks[position], 0))
    return repeated


class _Seen:
    """Counts what a block computes, of which there are `more` that compute the same."""

    def __init__(self, block: nn.Module, more: int, counter: FlopCounterMode) -> None:
        self.more, self.flops, self.counter = more, 0, counter
        block.register_forward_pre_hook(self._begin)
        block.register_forward_hook(self._end)

    def _begin(self, *_: object) -> None:
        self.flops = -self.counter.get_total_flops()

    def _end(self, *_: object) -> None:
        self.flops += self.counter.get_total_flops()
