"""Elastic width: any plain module at a smaller width is the module of that width with the leading channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from supernet.block_types import MB3D, MB4D, Block, Conv, SeparableConv
from supernet.blocks import build_block
from supernet.elastic import Elastic, leading

Randomized = Callable[..., nn.Module]


def ratio_block(kind: type[Block]) -> Callable[[int], nn.Module]:
    options: dict[type[Block], dict[str, Any]] = {
        MB4D: {"mlp_ratio": 2, "layer_scale": 0.5},
        SeparableConv: {"mixer_ratio": 2, "mlp_ratio": 2, "layer_scale": 0.5},
        Conv: {"mlp_ratio": 2, "layer_scale": 0.5},
        MB3D: {"mlp_ratio": 2, "heads": 2, "key_channels": 4, "value_channels": 4, "layer_scale": 0.5},
    }

    def build(width: int) -> nn.Module:
        block = kind.at_width(width, **options[kind])
        return build_block(block, width_channels=width, grid=(3, 4))

    return build


def inputs(kind: type[Block], width: int) -> Tensor:
    generator = torch.Generator().manual_seed(width)
    shape = (4, 12, width) if kind is MB3D else (4, width, 3, 4)
    return torch.randn(shape, generator=generator)


@pytest.mark.parametrize("kind", [MB4D, MB3D, SeparableConv, Conv])
@pytest.mark.parametrize("training", [False, True])
def test_a_narrow_call_equals_the_narrow_module_with_the_leading_channels(
    kind: type[Block], training: bool, randomized: Randomized
) -> None:
    build = ratio_block(kind)
    elastic: Any = randomized(Elastic(build, 24)).train(training)
    full = {name: tensor.clone() for name, tensor in elastic.full.state_dict().items()}
    for width in (8, 16):
        narrow: Any = build(width)
        shapes = {name: tensor.shape for name, tensor in narrow.state_dict().items()}
        current = elastic.full.state_dict()
        narrow.load_state_dict({name: leading(current[name], shape) for name, shape in shapes.items()})
        x = inputs(kind, width)
        torch.testing.assert_close(elastic(x, width), narrow.train(training)(x), rtol=1e-4, atol=1e-5)
        for name, tensor in narrow.state_dict().items():  # running statistics moved alike, or not at all
            torch.testing.assert_close(leading(elastic.full.state_dict()[name], shapes[name]), tensor)
    if not training:
        assert all(torch.equal(tensor, full[name]) for name, tensor in elastic.full.state_dict().items())


def test_statistics_beyond_a_narrow_width_are_left_alone_by_its_training(randomized: Randomized) -> None:
    elastic: Any = randomized(Elastic(ratio_block(MB4D), 24)).train()
    before = elastic.full.mlp.norm2.running_mean.clone()
    elastic(inputs(MB4D, 8), 8)
    after = elastic.full.mlp.norm2.running_mean
    assert torch.equal(after[8:], before[8:])
    assert not torch.isclose(after[:8], before[:8]).any()


def test_the_gradient_of_a_narrow_call_stays_in_the_leading_channels(randomized: Randomized) -> None:
    elastic: Any = randomized(Elastic(ratio_block(MB4D), 24))
    elastic(inputs(MB4D, 8), 8).square().sum().backward()
    weight = elastic.full.mlp.fc1.weight.grad
    assert bool((weight[:16, :8] != 0).all())
    assert not bool(weight[16:].any())
    assert not bool(weight[:, 8:].any())


def test_the_state_at_a_width_shares_its_memory_with_the_full_module() -> None:
    elastic = Elastic(ratio_block(MB4D), 24)
    for name, tensor in elastic.state_at(8).items():
        full = dict(elastic.full.named_parameters()) | dict(elastic.full.named_buffers())
        assert tensor.untyped_storage().data_ptr() == full[name].untyped_storage().data_ptr()
    with torch.no_grad():
        elastic.state_at(8)["ls1.gamma"].fill_(7.0)
    assert elastic.full.get_parameter("ls1.gamma").tolist() == [7.0] * 8 + [0.5] * 16


def test_a_narrow_width_needs_no_memory_of_its_own() -> None:
    elastic = Elastic(ratio_block(MB4D), 24)
    elastic(inputs(MB4D, 8), 8)
    assert list(elastic.parameters()) == list(elastic.full.parameters())
    assert {name.split(".")[0] for name in elastic.state_dict()} == {"full"}
    used = {tensor.untyped_storage().data_ptr() for tensor in elastic.state_at(8).values()}
    assert used <= {tensor.untyped_storage().data_ptr() for tensor in elastic.full.state_dict().values()}


def test_the_narrow_module_is_built_once_a_width_and_holds_no_numbers() -> None:
    built: list[nn.Module] = []

    def build(width: int) -> nn.Module:
        built.append(ratio_block(MB4D)(width))
        return built[-1]

    elastic = Elastic(build, 24)
    for width in (8, 16, 8, 24, 16, 8):
        elastic(inputs(MB4D, width), width)
    assert len(built) == 3
    assert [{p.device.type for p in module.parameters()} for module in built] == [{"cpu"}, {"meta"}, {"meta"}]


def test_the_full_width_is_the_module_itself() -> None:
    elastic = Elastic(ratio_block(MB4D), 24).eval()
    x = inputs(MB4D, 24)
    assert torch.equal(elastic(x, 24), elastic.full(x))


def test_a_leading_slice_is_a_view_and_must_fit() -> None:
    tensor = torch.arange(12.0).reshape(3, 4)
    assert leading(tensor, torch.Size((2, 3))).tolist() == [[0, 1, 2], [4, 5, 6]]
    assert leading(tensor, torch.Size((3, 4))) is tensor
    for shape in ((4, 4), (3, 5), (3,), (1, 3, 4)):
        with pytest.raises(ValueError, match="no leading slice of shape"):
            leading(tensor, torch.Size(shape))


def test_a_width_of_several_numbers_is_elastic_too() -> None:
    elastic = Elastic(lambda widths: nn.Conv2d(*widths, 3, padding=1), (8, 12))
    x = torch.randn(1, 4, 5, 5)
    expected = nn.functional.conv2d(
        x, elastic.full.get_parameter("weight")[:6, :4], elastic.full.get_parameter("bias")[:6], padding=1
    )
    torch.testing.assert_close(elastic(x, (4, 6)), expected)
