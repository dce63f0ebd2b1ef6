"""Every block of the family as a candidate, and its MLP's ratio as a choice: elastic, inherited, and equal alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from supernet.block_types import MetaFormerBlock, SeparableMixing
from supernet.candidate import Candidate
from supernet.inherit import inherit
from supernet.space import SearchSpace
from supernet.supernet import Supernet

MIXERS: dict[str, Any] = {
    "pooling": {"type": "pooling", "kernel": 5},
    "identity": "identity",
    "random": "random",
    "separable convolution": {"type": "separable_conv", "hidden_ratio": 1.5, "kernel": 3},
    "attention": {"type": "attention", "head_channels": 4},
}
HEADS = {"heads": 2, "key_channels": 4, "value_channels": 6}
BLOCKS: dict[str, dict[str, Any]] = {
    **{f"metaformer, {name}": {"type": "metaformer", "mixer": mixer} for name, mixer in MIXERS.items()},
    "attention with a bias table": {"type": "mb3d", **HEADS},
    "pooling, 4D": {"type": "mb4d"},
    "dense convolution": {"type": "conv"},
    "separable convolution, 4D": {"type": "separable_conv", "mixer_ratio": 2},
    "unified FFN": {"type": "unified_ffn"},
    "attention with a local path": {"type": "attention_ffn", **HEADS},
}


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_of_the_family_is_a_candidate_with_its_ratio_as_a_choice(name: str) -> None:
    block = BLOCKS[name]
    kinds = [block | {"mlp_ratio": 3}, block | {"mlp_ratio": 1, "name": "thin"}, "identity"]
    stage = {"depth": 2, "width_channels": {"smallest": 8, "largest": 24}}
    token_blocks_come_last = [stage | {"candidates": ["mb4d", "identity"]}, stage | {"candidates": kinds}]
    shape = {"in_channels": 3, "resolution_px": (16, 16), "num_classes": 4, "stages": token_blocks_come_last}
    space = SearchSpace.model_validate(shape | {"granularity": 8}, strict=False)
    torch.manual_seed(0)
    supernet = Supernet(space)
    images, generator = torch.randn(2, 3, 16, 16), torch.Generator().manual_seed(0)
    sample = supernet.uniform_sample(supernet.smallest_widths, generator)
    supernet(images, sample).sum().backward()
    for parameter in supernet.parameters():
        nn.init.normal_(parameter, std=0.2)
    supernet.eval()
    logits = []
    with torch.no_grad():
        for net in [space.largest, space.smallest, *(space.random(generator) for _ in range(8))]:
            alone = inherit(supernet, net)(images)
            torch.testing.assert_close(supernet(images, net), alone, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(inherit(supernet, net).fused()(images), alone, rtol=1e-3, atol=1e-3)
            logits.append(alone)
    assert not torch.allclose(logits[0], logits[1])


def test_a_separable_mixers_channels_follow_the_width() -> None:
    def hidden(mixer: Any, width_channels: int) -> int:
        block = Candidate.model_validate({"type": "metaformer", "mixer": mixer}, strict=False).block(width_channels)
        assert isinstance(block, MetaFormerBlock)
        assert isinstance(block.mixer, SeparableMixing)
        return block.mixer.hidden_channels

    assert hidden("separable_conv", 16) == 32
    assert [hidden({"type": "separable_conv", "hidden_ratio": 1.5}, width) for width in (8, 24)] == [12, 36]
    assert hidden({"type": "separable_conv", "hidden_channels": 20}, 24) == 20


@pytest.mark.parametrize(
    ("mixer", "words"),
    [
        ({"type": "separable_conv", "hidden_ratio": -1}, "mixer.hidden_ratio: must be a number above 0"),
        ({"type": "pooling", "kernel": 2}, "kernel"),
        ("pool", "mixer"),
        ({"type": "separable_conv", "hidden_ratio": 1, "hidden_channels": 8}, "hidden_ratio"),
    ],
)
def test_a_mixer_that_cannot_be_built_is_refused_by_name(mixer: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Candidate.model_validate({"type": "metaformer", "mixer": mixer}, strict=False)
