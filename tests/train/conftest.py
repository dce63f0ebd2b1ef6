"""Small real data and small nets for the training tests."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from supernet.schema import parse
from supernet.space import SearchSpace
from train.data import DataConfig, ImageData, open_data


@pytest.fixture(scope="session")
def digits() -> ImageData:
    """All digits at 8 px, one channel."""
    return open_data(DataConfig(path="digits", resolution_px=(8, 8), channels=1, held_out_fraction=0.25), seed=0)


@pytest.fixture(scope="session")
def few_digits(digits: ImageData) -> ImageData:
    """96 training digits, 40 for the alphas: three training batches of 32, two alpha batches of 20."""
    return replace(
        digits,
        train=digits.train.subset(torch.arange(96)),
        all_training=digits.all_training.subset(torch.arange(128)),
        alpha=digits.alpha.subset(torch.arange(40)),
        held_out=digits.held_out.subset(torch.arange(64)),
        score=digits.score.subset(torch.arange(32)),
    )


@pytest.fixture(scope="session")
def space() -> SearchSpace:
    """Two stages, three positions, all kinds of candidates."""
    return parse(
        SearchSpace,
        {
            "in_channels": 1,
            "resolution_px": [8, 8],
            "num_classes": 10,
            "granularity": 8,
            "stem": {"strides": [1, 1]},
            "stages": [
                {
                    "depth": 1,
                    "width_channels": {"smallest": 8, "largest": 16},
                    "candidates": [{"type": "mb4d", "mlp_ratio": 2}, "identity"],
                },
                {
                    "depth": 2,
                    "width_channels": {"smallest": 8, "largest": 24},
                    "candidates": [
                        {"type": "mb4d", "mlp_ratio": 2, "layer_scale": 0.1},
                        {"type": "mb3d", "mlp_ratio": 2, "heads": 2, "key_channels": 4, "value_channels": 4},
                        "identity",
                    ],
                },
            ],
        },
        source="the tests",
    )


@pytest.fixture
def image_size_px() -> tuple[int, int]:
    """Not square, and not the resolution of any test."""
    return 16, 20
