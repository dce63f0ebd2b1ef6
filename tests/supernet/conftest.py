"""A space with every kind of candidate, a user's own among them, and weights that could show a difference."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from supernet.block_types import Block
from supernet.blocks import register_block
from supernet.schema import parse
from supernet.space import SearchSpace
from supernet.supernet import Supernet


class Shift(Block):
    """A user's own block: the map rolled sideways, through a bottleneck."""

    type: Literal["test_shift"] = "test_shift"
    hidden_channels: int
    shift_px: int = 1


@register_block(Shift)
class ShiftModule(nn.Module):
    def __init__(self, block: Shift, *, width_channels: int, grid: tuple[int, int], drop_path: float) -> None:
        super().__init__()
        self.shift_px = block.shift_px
        self.fc1 = nn.Conv2d(width_channels, block.hidden_channels, 1)
        self.norm = nn.BatchNorm2d(block.hidden_channels)
        self.fc2 = nn.Conv2d(block.hidden_channels, width_channels, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW + self.fc2(self.norm(self.fc1(x_BCHW.roll(self.shift_px, dims=3))))  # type: ignore[no-any-return]


def plain_space() -> dict[str, Any]:
    """Three stages on grids that are not square; token blocks in the last two."""
    attention = {"type": "mb3d", "heads": 2, "key_channels": 4, "value_channels": 6, "mlp_ratio": 2, "layer_scale": 0.7}
    pooling = {"type": "mb4d", "mlp_ratio": 2, "layer_scale": 0.6}
    return {
        "in_channels": 2,
        "resolution_px": [12, 20],
        "num_classes": 5,
        "granularity": 8,
        "stem": {"strides": [1, 2]},
        "stages": [
            {
                "depth": 2,
                "width_channels": {"smallest": 8, "largest": 24},
                "candidates": [pooling, {"type": "test_shift", "hidden_ratio": 0.5}, "identity"],
            },
            {
                "depth": 2,
                "width_channels": {"smallest": 8, "largest": 32},
                "candidates": [
                    {"type": "separable_conv", "mixer_ratio": 2, "mlp_ratio": 2, "layer_scale": 0.5},
                    attention,
                    "identity",
                ],
            },
            {
                "depth": 2,
                "width_channels": {"smallest": 16, "largest": 40},
                "candidates": [{**pooling, "pool_kernel": 5}, {**attention, "mlp_ratio": 3}, "identity"],
            },
        ],
    }


@pytest.fixture(scope="session")
def space() -> SearchSpace:
    return parse(SearchSpace, plain_space(), source="the tests")


def randomized(module: nn.Module, *, seed: int = 0) -> nn.Module:
    """Draw every weight, bias, norm and statistic anew: fresh ones (0 and 1) would not show a mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if not name.endswith("alpha"):
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        for part in module.modules():
            if isinstance(part, _BatchNorm) and part.running_mean is not None and part.running_var is not None:
                part.running_mean.copy_(torch.randn(part.num_features, generator=generator))
                part.running_var.copy_(0.5 + torch.rand(part.num_features, generator=generator))
    return module


def drawn(module: nn.Module, *, seed: int = 0) -> nn.Module:
    """Norms, biases, scales, bias tables and statistics drawn anew, in evaluation mode; linear maps stay as they are.

    For nets that are too deep for `randomized`: their activations stay in range.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point() or (tensor.ndim > 1 and "attention_biases" not in name):
            continue
        factor = name.endswith(("running_var", "gamma", "scale")) or (tensor.ndim == 1 and name.endswith("weight"))
        if factor:
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
        else:
            tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator))
    return module.eval()


@pytest.fixture
def supernet(space: SearchSpace) -> Supernet:
    """A supernet with random weights, norms and statistics, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Supernet(space)
    randomized(net)
    return net.eval()


@pytest.fixture(scope="session")
def images(space: SearchSpace) -> Tensor:
    shape = (3, space.in_channels, *space.resolution_px)
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


@pytest.fixture(name="drawn", scope="session")
def _drawn() -> Any:
    """The function that draws all but the linear maps of a deep net anew."""
    return drawn


@pytest.fixture(name="randomized", scope="session")
def _randomized() -> Any:
    """The function that draws every weight, bias, norm and statistic of a module anew."""
    return randomized
