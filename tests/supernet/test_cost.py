"""Cost: parameters and multiply-accumulates, counted against the same by hand and against published figures."""

from __future__ import annotations

import pytest
import torch

from supernet.architecture import Architecture, Downsampling, Head, Stage, Stem
from supernet.block_types import MB3D, MB4D, Conv, Identity, SeparableConv
from supernet.cost import cost, cost_of_model
from supernet.metaformer import MetaFormer
from supernet.model_zoo import published_architecture
from supernet.space import SearchSpace


def net(*blocks: MB4D | MB3D | SeparableConv | Conv | Identity) -> Architecture:
    """A stem to 8 channels at 8x6, a downsampling to 16 channels at 4x3 with these blocks, 5 classes."""
    return Architecture(
        in_channels=3,
        resolution_px=(16, 12),
        stem=Stem(width_channels=8, hidden_channels=4, strides=(1, 2)),
        stages=(
            Stage(width_channels=8, downsampling=None, blocks=()),
            Stage(width_channels=16, downsampling=Downsampling(), blocks=blocks),
        ),
        head=Head(num_classes=5),
    )


BARE = cost(net())
TOKENS = MB3D(heads=2, key_channels=4, value_channels=6, mlp_channels=20)


def test_stem_downsampling_and_head_are_counted_exactly() -> None:
    macs = 16 * 12 * 4 * 3 * 9 + 8 * 6 * 8 * 4 * 9 + 4 * 3 * 16 * 8 * 9 + 16 * 5
    # weights and biases of the convolutions, two numbers a channel of every norm
    parameters = (4 * 27 + 4 + 8) + (8 * 36 + 8 + 16) + (16 * 72 + 16 + 32) + 32 + (16 * 5 + 5)
    assert (BARE.macs, BARE.parameters) == (macs, parameters)


@pytest.mark.parametrize(
    ("block", "macs", "parameters"),
    [
        (MB4D(mlp_channels=20), 12 * 2 * 16 * 20, 2 * 16 * 20 + 36 + 2 * 36 + 2 * 16),
        (
            SeparableConv(mixer_channels=24, mlp_channels=20, kernel=3),
            12 * (2 * 16 * 24 + 24 * 9 + 2 * 16 * 20),
            2 * 16 * 24 + 24 * 9 + 2 * (24 + 24 + 16) + 2 * 16 * 20 + 36 + 2 * 36 + 2 * 16,
        ),
        (
            Conv(mlp_channels=20, kernel=3),
            12 * (16 * 16 * 9 + 2 * 16 * 20),
            16 * 16 * 9 + 2 * 16 + 2 * 16 * 20 + 36 + 2 * 36 + 2 * 16,
        ),
        (
            MB3D(heads=2, key_channels=4, value_channels=6, mlp_channels=20),
            12 * 16 * 2 * 14 + 2 * 12 * 12 * (4 + 6) + 12 * 12 * 16 + 12 * 2 * 16 * 20,
            (16 * 28 + 28) + (12 * 16 + 16) + 2 * 12 + 2 * 16 * 20 + 36 + 4 * 16 + 2 * 16,
        ),
        (Identity(), 0, 0),
    ],
    ids=lambda value: value.type if hasattr(value, "type") else "",
)
def test_a_block_is_counted_exactly(
    block: MB4D | MB3D | SeparableConv | Conv | Identity, macs: int, parameters: int
) -> None:
    with_block = cost(net(block))
    assert with_block.macs - BARE.macs == macs
    assert with_block.parameters - BARE.parameters == parameters


@pytest.mark.parametrize(
    ("name", "gmacs"), [("efficientformer_l1", 1.3001), ("efficientformer_l3", 3.9258), ("efficientformer_l7", 10.1590)]
)
def test_published_models_cost_what_the_reference_counts(name: str, gmacs: float) -> None:
    # the reference's tool also counts norms and activations, which are 1 to 2 % (facts: EfficientFormer section 1)
    found = cost(published_architecture(name)).macs / 1e9
    assert 0.97 * gmacs < found <= gmacs


def test_the_cost_is_that_of_the_built_model(space: SearchSpace) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        architecture = space.random(generator)
        assert cost(architecture).parameters == sum(p.numel() for p in MetaFormer(architecture).parameters())


def test_the_smallest_architecture_costs_less_than_the_largest(space: SearchSpace) -> None:
    small, large = cost(space.smallest), cost(space.largest)
    assert 0 < small.parameters < large.parameters
    assert 0 < small.macs < large.macs


def test_equal_blocks_in_a_row_are_counted_as_often_as_they_are_there() -> None:
    small, large = MB4D(mlp_channels=8), MB4D(mlp_channels=20)
    architecture = net(small, small, large, large, large, Identity(), small, TOKENS, TOKENS)
    with torch.device("meta"):
        model = MetaFormer(architecture).eval()
        assert cost(architecture) == cost_of_model(model, torch.empty(1, *architecture.input_shape))
