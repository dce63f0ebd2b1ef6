"""Parts: what adds up over them is what a whole net has."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from search.parts import keys, macs_of, parameters_of, peak_activations_of_part
from supernet import SearchSpace, cost
from supernet.activation_memory import peak_activations

ATTENTION = {"type": "mb3d", "heads": 2, "key_channels": 4, "value_channels": 8}
MIXER = {"type": "metaformer", "mixer": {"type": "attention", "head_channels": 8}, "mlp_ratio": 2}
KINDS: dict[str, list[Any]] = {
    "pooling": ["mb4d", "identity"],
    "attention last": ["mb4d", ATTENTION, "identity"],
    "convolutions": [{"type": "conv", "mlp_ratio": 1}, {"type": "separable_conv", "mixer_ratio": 2}, "identity"],
    "the second version": ["unified_ffn", {"type": "attention_ffn", "heads": 2, "key_channels": 4}, "identity"],
    "general": [MIXER, "identity"],
}


@pytest.mark.parametrize("name", KINDS)
def test_parameters_macs_and_activations_of_parts_are_those_of_whole_nets(name: str) -> None:
    stages = [
        {"depth": 2, "width_channels": {"smallest": 16, "largest": 16 * (1 + number)}, "candidates": kinds}
        for number, kinds in enumerate((KINDS[name][:1], KINDS[name]), start=1)
    ]
    shape = {"in_channels": 3, "resolution_px": (32, 32), "num_classes": 5, "stages": stages}
    space = SearchSpace.model_validate(shape, strict=False)
    generator = torch.Generator().manual_seed(0)
    for architecture in [space.largest, space.smallest, *(space.random(generator) for _ in range(6))]:
        size, parts = cost(architecture), keys(architecture)
        assert sum(map(parameters_of, parts)) == size.parameters
        assert sum(map(macs_of, parts)) == size.macs
        assert max(map(peak_activations_of_part, parts)) == peak_activations(architecture)
