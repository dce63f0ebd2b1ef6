"""The standalone model: exact sizes of the published nets, timm's logits, any input size, and what training reaches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from supernet.architecture import Architecture, Downsampling, Head, Stage, Stem
from supernet.block_types import MB3D, MB4D, Identity, SeparableConv
from supernet.layers import DropPath
from supernet.metaformer import MetaFormer, to_map, to_tokens
from supernet.model_zoo import create_model, published_architecture
from supernet.schema import UserError
from supernet.space import SearchSpace
from supernet.stem import HeadModule

Randomized = Callable[..., nn.Module]

ATTENTION = MB3D(heads=2, key_channels=4, value_channels=6, mlp_channels=16, layer_scale=0.5)
NET = Architecture(
    in_channels=2,
    resolution_px=(12, 20),
    stem=Stem(width_channels=8, hidden_channels=4, strides=(1, 2)),
    stages=(
        Stage(
            width_channels=8,
            downsampling=None,
            blocks=(
                MB4D(mlp_channels=16, layer_scale=0.5),
                SeparableConv(mixer_channels=16, mlp_channels=16, layer_scale=0.5),
            ),
        ),
        Stage(width_channels=16, downsampling=Downsampling(), blocks=(MB4D(mlp_channels=16), ATTENTION, ATTENTION)),
        Stage(width_channels=24, downsampling=Downsampling(), blocks=(ATTENTION,)),
    ),
    head=Head(num_classes=5, distillation=True),
)


@pytest.fixture
def model(randomized: Randomized) -> MetaFormer:
    net = randomized(MetaFormer(NET))
    assert isinstance(net, MetaFormer)
    return net.eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 2, 12, 20, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "parameters", "entries", "token_blocks"),
    # facts: EfficientFormer section 1; the reference also saves one index a token block, which follows from the grid
    [
        ("efficientformer_l1", 12_289_928, 281, 1),
        ("efficientformer_l3", 31_406_000, 457, 4),
        ("efficientformer_l7", 82_229_328, 649, 8),
    ],
)
def test_a_published_model_has_the_published_number_of_parameters_and_tensors(
    name: str, parameters: int, entries: int, token_blocks: int
) -> None:
    with torch.device("meta"):
        net = create_model(name)
    assert sum(parameter.numel() for parameter in net.parameters()) == parameters
    assert len(net.state_dict()) == entries - token_blocks


def timm_name(name: str, architecture: Architecture) -> str:
    """Timm's name of one of our tensors; timm counts the flattening before the token blocks as a block."""
    name = name.replace("downsampling.", "downsample.").replace("head.norm.", "norm.")
    name = name.replace("head.fc_distillation.", "head_dist.").replace("head.fc.", "head.")
    parts = name.split(".")
    if parts[2:3] == ["blocks"] and architecture.stages[int(parts[1])].blocks[int(parts[3])].layout == "tokens":
        parts[3] = str(int(parts[3]) + 1)
    return ".".join(parts)


@pytest.mark.parametrize(
    "name",
    [
        "efficientformer_l1",
        pytest.param("efficientformer_l3", marks=pytest.mark.long),
        pytest.param("efficientformer_l7", marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize("training", [False, True])
def test_an_efficientformer_computes_timms_logits(name: str, training: bool, randomized: Randomized) -> None:
    # in double precision: rounding alone makes 2.5e-4 in the deepest with these norms
    reference = randomized(timm.create_model(name, pretrained=False), seed=5).train(training).double()
    tensors = reference.state_dict()
    net = create_model(name).train(training).double()
    used = {name: timm_name(name, net.architecture) for name in net.state_dict()}
    net.load_state_dict({name: tensors[theirs] for name, theirs in used.items()})
    assert {name.rsplit(".", 1)[1] for name in tensors.keys() - set(used.values())} == {"attention_bias_idxs"}
    images = torch.randn(2 if training else 1, 3, 224, 224, generator=torch.Generator().manual_seed(2)).double()
    with torch.no_grad():
        expected, found = reference(images), net(images)
    if training:  # ours are two classifiers' logits then, timm's their mean
        found = sum(found) / 2
    assert float(expected.std()) > 1e-3
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-4


@pytest.mark.parametrize(("resolution_px", "grid"), [(64, (2, 2)), ((40, 100), (2, 4)), ((33, 65), (2, 3))])
def test_a_published_model_takes_any_resolution_channels_and_classes(resolution_px: Any, grid: tuple[int, int]) -> None:
    net: Any = create_model("efficientformer_l1", in_channels=1, num_classes=7, resolution_px=resolution_px).eval()
    size = (resolution_px, resolution_px) if isinstance(resolution_px, int) else resolution_px
    with torch.no_grad():
        assert net(torch.zeros(2, 1, *size)).shape == (2, 7)
    assert net.stages[3].blocks[3].token_mixer.attention_biases.shape == (8, grid[0] * grid[1])


def test_gradients_reach_every_parameter(model: MetaFormer, images: Tensor) -> None:
    # in evaluation mode, because in training batch norm takes off every bias before it
    weights = torch.randn(3, 5, generator=torch.Generator().manual_seed(4))
    (model(images) * weights).sum().backward()
    missed = [name for name, p in model.named_parameters() if p.grad is None or not bool(p.grad.abs().max() > 1e-9)]
    assert missed == []


def test_a_distillation_head_gives_two_logits_in_training_and_their_average_otherwise(
    model: MetaFormer, images: Tensor
) -> None:
    x = model.stages[2](model.stages[1](model.stages[0](model.stem(images))))
    first, second = model.head.train()(x)
    assert not torch.allclose(first, second)
    torch.testing.assert_close(model.head.eval()(x), (first + second) / 2)
    assert isinstance(model.train()(images), tuple)


def test_a_head_without_a_norm_averages_and_classifies() -> None:
    head = HeadModule(Head(num_classes=5, norm="identity"), width_channels=24)
    assert [name for name, _ in head.named_parameters()] == ["fc.weight", "fc.bias"]
    x_BCHW = torch.randn(2, 24, 3, 5)
    torch.testing.assert_close(head(to_tokens(x_BCHW)), head.fc(x_BCHW.mean(dim=(2, 3))))


def test_a_head_of_maxima_classifies_every_channel_where_it_is_strongest(randomized: Randomized) -> None:
    head = randomized(HeadModule(Head(num_classes=5, pooling="max"), width_channels=24))
    x_BCHW = torch.randn(2, 24, 3, 5)
    normed = head.norm(to_tokens(x_BCHW))
    torch.testing.assert_close(head(to_tokens(x_BCHW)), head.fc(normed.max(dim=1).values))


def test_a_map_survives_the_way_to_tokens_and_back() -> None:
    x_BCHW = torch.randn(2, 3, 4, 5)
    assert torch.equal(to_map(to_tokens(x_BCHW), 4, 5), x_BCHW)
    assert torch.equal(to_tokens(x_BCHW)[:, 5 * 2 + 3], x_BCHW[:, :, 2, 3])  # row by row


def test_a_net_without_its_skipped_positions_computes_the_same(randomized: Randomized, images: Tensor) -> None:
    blocks = NET.stages[1].blocks
    padded = (Identity(), blocks[0], Identity(), blocks[1], Identity(), blocks[2], Identity())
    stages = (NET.stages[0], NET.stages[1].model_copy(update={"blocks": padded}), NET.stages[2])
    with_gaps: Any = randomized(MetaFormer(NET.model_copy(update={"stages": stages}))).eval()
    without: Any = MetaFormer(NET).eval()
    kept = {1: 0, 3: 1, 5: 2}
    tensors = {}
    for name, value in with_gaps.state_dict().items():
        parts = name.split(".")
        if parts[:3] == ["stages", "1", "blocks"]:
            parts[3] = str(kept[int(parts[3])])
        tensors[".".join(parts)] = value
    without.load_state_dict(tensors)
    assert torch.equal(with_gaps(images), without(images))


def test_a_stage_without_blocks_is_its_downsampling(images: Tensor) -> None:
    stages = (NET.stages[0], NET.stages[1].model_copy(update={"blocks": ()}), NET.stages[2])
    net = MetaFormer(NET.model_copy(update={"stages": stages})).eval()
    assert net.stages[1](net.stages[0](net.stem(images))).shape == (3, 16, 3, 5)


def test_drop_path_grows_linearly_over_the_blocks_that_compute() -> None:
    blocks = (Identity(), *NET.stages[1].blocks)
    stages = (NET.stages[0], NET.stages[1].model_copy(update={"blocks": blocks}), NET.stages[2])
    net = MetaFormer(NET.model_copy(update={"stages": stages}), drop_path_rate=0.5)
    rates = [part.probability for part in net.modules() if isinstance(part, DropPath)]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])


def test_every_random_architecture_builds_and_gives_logits(space: SearchSpace) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(15):
        architecture = space.random(generator)
        net = MetaFormer(architecture).eval()
        with torch.no_grad():
            assert net(torch.zeros(1, 2, 12, 20)).shape == (1, 5)


def test_the_published_architectures_are_those_of_the_paper() -> None:
    shapes = {
        "efficientformer_l1": ((3, 48), (2, 96), (6, 224), (4, 448)),
        "efficientformer_l3": ((4, 64), (4, 128), (12, 320), (6, 512)),
        "efficientformer_l7": ((6, 96), (6, 192), (18, 384), (8, 768)),
    }
    for (name, shape), token_blocks in zip(shapes.items(), (1, 4, 8), strict=True):
        architecture = published_architecture(name)
        assert tuple((len(stage.blocks), stage.width_channels) for stage in architecture.stages) == shape
        blocks = [block for stage in architecture.stages for block in stage.blocks]
        assert [block.layout for block in blocks].count("tokens") == token_blocks
        assert all(block.layout == "tokens" for block in blocks[-token_blocks:])
        assert architecture.resolution_px == (224, 224)


def test_a_saved_model_comes_back_with_its_logits(model: MetaFormer, images: Tensor, tmp_path: Path) -> None:
    model.eval().save_pretrained(tmp_path / "hub")
    assert sorted(path.name for path in (tmp_path / "hub").iterdir()) == ["config.json", "model.safetensors"]
    back = MetaFormer.from_pretrained(tmp_path / "hub")
    assert back.architecture == model.architecture
    assert torch.equal(back(images), model(images))


@pytest.mark.parametrize("spoil", ["model.safetensors", "config.json"])
def test_a_saved_model_that_was_cut_short_is_refused(model: MetaFormer, tmp_path: Path, spoil: str) -> None:
    model.save_pretrained(tmp_path)
    path = tmp_path / spoil
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=spoil):
        MetaFormer.from_pretrained(tmp_path)
