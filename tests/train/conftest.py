"""Small real data and small nets for the training tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

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
def image_folder(tmp_path: Path) -> Path:
    """An image folder of two classes, 10 training and 4 test images each, noise around a brightness, 20x16 px."""
    root = tmp_path / "images"
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 10), ("val", 4)):
        for label, name in enumerate(("cat", "dog")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = torch.randint(60 + 80 * label, 120 + 80 * label, (16, 20, 3), generator=generator)
                Image.fromarray(pixels.to(torch.uint8).numpy()).save(folder / f"{number:02}.png")
    return root
