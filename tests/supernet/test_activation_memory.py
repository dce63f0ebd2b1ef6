"""Peak activation memory, counted against the same by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from supernet.activation_memory import peak_activations, peak_activations_of
from supernet.block_types import MB4D, Conv
from supernet.blocks import build_block
from supernet.space import SearchSpace

MAP = 8 * 4 * 4


def peak(module: nn.Module) -> int:
    with torch.device("meta"):
        return peak_activations_of(module.to("meta"), torch.empty(1, 8, 4, 4))


def test_an_operation_holds_its_input_and_its_output() -> None:
    assert peak(nn.Conv2d(8, 24, 1)) == MAP + 3 * MAP


def test_a_chain_is_as_large_as_its_largest_operation() -> None:
    chain = nn.Sequential(nn.Conv2d(8, 24, 1), nn.Conv2d(24, 16, 1), nn.Conv2d(16, 8, 1))
    assert peak(chain) == (3 + 2) * MAP


def test_an_operation_on_single_elements_overwrites_what_nothing_reads_any_more() -> None:
    assert peak(nn.Sequential(nn.Conv2d(8, 24, 1), nn.ReLU(), nn.GELU())) == (1 + 3) * MAP
    assert peak(nn.ReLU()) == MAP


def test_a_residual_is_alive_beside_its_branch() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.narrow = nn.Conv2d(8, 24, 1), nn.Conv2d(24, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.narrow(self.wide(x))

    assert peak(Residual()) == (1 + 3 + 1) * MAP


def test_views_are_no_copies_and_parameters_do_not_count() -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1, 16, 1))

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(2).transpose(1, 2).view(1, 16, 2, 4).mean(dim=1)

    assert peak(Views()) == MAP + 8


def test_blocks_count_as_they_are_deployed() -> None:
    # in the MLP the block's input, the hidden map and the output of its second convolution
    block = build_block(MB4D(mlp_channels=32), width_channels=8, grid=(4, 4))
    assert peak(block) == (1 + 4 + 1) * MAP
    assert peak(build_block(Conv(mlp_channels=8), width_channels=8, grid=(4, 4))) == 3 * MAP


def test_more_channels_take_more_and_the_input_is_a_lower_bound(space: SearchSpace) -> None:
    small, large = peak_activations(space.smallest), peak_activations(space.largest)
    height, width = space.resolution_px
    assert space.in_channels * height * width < small < large
