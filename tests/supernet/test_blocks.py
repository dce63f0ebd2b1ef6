"""Blocks, exactly: each against the same computed by hand, on grids that are not square."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supernet.block_types import MB3D, MB4D, Block, Conv, Identity, SeparableConv, register_block_type
from supernet.blocks import build_block
from supernet.candidate import Candidate
from supernet.layers import DropPath
from supernet.mixers import OffsetAttention, PoolMixer

Randomized = Callable[..., nn.Module]


def tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def normed(x_BCHW: Tensor, norm: nn.Module) -> Tensor:
    """Batch norm in evaluation mode, written out."""
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, var, weight, bias = (t[:, None, None] for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias))
    return (x_BCHW - mean) / (var + 1e-5).sqrt() * weight + bias


def pooled(x_BCHW: Tensor, kernel: int) -> Tensor:
    """The mean of the pixels of a window that lie inside the image, written out."""
    height, width = x_BCHW.shape[2:]
    reach = kernel // 2
    out = torch.empty_like(x_BCHW)
    for row in range(height):
        for column in range(width):
            window = x_BCHW[:, :, max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1]
            out[:, :, row, column] = window.mean(dim=(2, 3))
    return out


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_pooling_averages_over_what_is_inside_the_image_and_takes_off_its_input(kernel: int) -> None:
    x = tensor(2, 3, 4, 7)
    assert_close(PoolMixer(kernel)(x), pooled(x, kernel) - x)


def test_pooling_a_constant_map_gives_exactly_zero_up_to_the_border() -> None:
    assert not PoolMixer(3)(torch.full((1, 2, 5, 6), 3.0)).any()


def test_mb4d_is_its_formula(randomized: Randomized) -> None:
    block = MB4D(mlp_channels=12, pool_kernel=5, layer_scale=0.5)
    module: Any = randomized(build_block(block, width_channels=8, grid=(5, 6))).eval()
    x = tensor(2, 8, 5, 6)
    mixed = x + module.ls1.gamma[:, None, None] * (pooled(x, 5) - x)
    hidden = F.gelu(normed(F.conv2d(mixed, module.mlp.fc1.weight, module.mlp.fc1.bias), module.mlp.norm1))
    mlp = normed(F.conv2d(hidden, module.mlp.fc2.weight, module.mlp.fc2.bias), module.mlp.norm2)
    assert_close(module(x), mixed + module.ls2.gamma[:, None, None] * mlp)


def test_mb4d_has_no_norm_before_its_pooling() -> None:
    module = build_block(MB4D(mlp_channels=12), width_channels=8, grid=(4, 4))
    names = [name for name, part in module.named_modules() if isinstance(part, nn.BatchNorm2d | nn.LayerNorm)]
    assert names == ["mlp.norm1", "mlp.norm2"]


def test_separable_conv_is_its_formula(randomized: Randomized) -> None:
    block = SeparableConv(mixer_channels=10, mlp_channels=12, kernel=5, layer_scale=0.5)
    module: Any = randomized(build_block(block, width_channels=8, grid=(5, 6))).eval()
    mixer, x = module.token_mixer, tensor(2, 8, 5, 6)
    y = F.gelu(normed(F.conv2d(x, mixer.pwconv1.weight), mixer.norm1))
    y = normed(F.conv2d(y, mixer.dwconv.weight, padding=2, groups=10), mixer.norm2)
    y = normed(F.conv2d(y, mixer.pwconv2.weight), mixer.norm3)
    mixed = x + module.ls1.gamma[:, None, None] * y
    assert_close(module(x), mixed + module.ls2.gamma[:, None, None] * module.mlp(mixed))


@pytest.mark.parametrize(("activation", "function"), [("gelu", F.gelu), ("relu", F.relu)])
def test_conv_is_its_formula(
    activation: Literal["gelu", "relu"], function: Callable[[Tensor], Tensor], randomized: Randomized
) -> None:
    block = Conv(mlp_channels=12, kernel=5, activation=activation, layer_scale=0.5)
    module: Any = randomized(build_block(block, width_channels=8, grid=(5, 6))).eval()
    mixer, mlp, x = module.token_mixer, module.mlp, tensor(2, 8, 5, 6)
    mixed = x + module.ls1.gamma[:, None, None] * function(
        normed(F.conv2d(x, mixer.conv.weight, padding=2), mixer.norm)
    )
    hidden = function(normed(F.conv2d(mixed, mlp.fc1.weight, mlp.fc1.bias), mlp.norm1))
    out = normed(F.conv2d(hidden, mlp.fc2.weight, mlp.fc2.bias), mlp.norm2)
    assert_close(module(x), mixed + module.ls2.gamma[:, None, None] * out)


@pytest.mark.parametrize("grid", [(2, 5), (5, 2), (3, 3), (1, 4)])
def test_the_bias_of_two_tokens_is_at_dy_times_the_width_plus_dx(grid: tuple[int, int]) -> None:
    height, width = grid
    attention = OffsetAttention(8, heads=2, key_channels=4, value_channels=4, grid=grid)
    assert attention.attention_biases.shape == (2, height * width)
    for one in range(height * width):
        for other in range(height * width):
            dy, dx = abs(one // width - other // width), abs(one % width - other % width)
            assert int(attention.bias_index[one, other]) == dy * width + dx


def attended(attention: OffsetAttention, x_NC: Tensor, grid: tuple[int, int]) -> Tensor:
    """Attention of one image, written out token by token; the rows of qkv are interleaved per head."""
    k, v = attention.key_channels, attention.value_channels
    mixed = []
    for head in range(attention.heads):
        rows = slice(head * (2 * k + v), (head + 1) * (2 * k + v))
        qkv = F.linear(x_NC, attention.qkv.weight[rows], attention.qkv.bias[rows])
        query, key, value = qkv[:, :k], qkv[:, k : 2 * k], qkv[:, 2 * k :]
        assert value.shape[1] == v
        tokens = []
        for one in range(len(x_NC)):
            scores = []
            for other in range(len(x_NC)):
                dy = abs(one // grid[1] - other // grid[1])
                dx = abs(one % grid[1] - other % grid[1])
                bias = attention.attention_biases[head, dy * grid[1] + dx]
                scores.append((query[one] * key[other]).sum() / k**0.5 + bias)
            tokens.append(torch.stack(scores).softmax(dim=0) @ value)
        mixed.append(torch.stack(tokens))
    return attention.proj(torch.cat(mixed, dim=1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("grid", [(2, 4), (4, 2)])
def test_mb3d_is_its_formula(randomized: Randomized, grid: tuple[int, int]) -> None:
    block = MB3D(heads=2, key_channels=4, value_channels=6, mlp_channels=12, layer_scale=0.5)
    module: Any = randomized(build_block(block, width_channels=8, grid=grid)).eval()
    x_BNC = tensor(2, 8, 8)
    norms = [(norm.weight, norm.bias) for norm in (module.norm1, module.norm2)]
    normalized = F.layer_norm(x_BNC, (8,), *norms[0])
    mixed = x_BNC + module.ls1.gamma * torch.stack([attended(module.token_mixer, x, grid) for x in normalized])
    hidden = F.gelu(module.mlp.fc1(F.layer_norm(mixed, (8,), *norms[1])))
    assert_close(module(x_BNC), mixed + module.ls2.gamma * module.mlp.fc2(hidden))


def test_attention_sees_the_grid_and_not_only_the_order_of_tokens(randomized: Randomized) -> None:
    x_BNC, outputs = tensor(1, 8, 8), []
    for grid in ((2, 4), (4, 2)):
        attention = OffsetAttention(8, heads=2, key_channels=4, value_channels=4, grid=grid)
        outputs.append(randomized(attention, seed=3)(x_BNC))
    assert not torch.allclose(outputs[0], outputs[1], atol=1e-3)


@pytest.mark.parametrize("block", [MB4D(mlp_channels=8), MB3D(heads=1, mlp_channels=8)])
def test_the_layer_scales_of_published_blocks_begin_at_1e_5(block: Block) -> None:
    module: Any = build_block(block, width_channels=4, grid=(2, 2))
    for scale in (module.ls1, module.ls2):
        assert torch.equal(scale.gamma, torch.full((4,), 1e-5))


def test_a_skipped_position_gives_its_input_back() -> None:
    module = build_block(Identity(), width_channels=4, grid=(2, 2))
    x = tensor(1, 4, 2, 2)
    assert module(x) is x
    assert not list(module.parameters())


def test_drop_path_drops_whole_images_and_rescales_the_others() -> None:
    torch.manual_seed(0)
    module = DropPath(0.25).train()
    kept = module(torch.ones(4000, 2, 3, 3)).flatten(1)
    assert {round(float(value), 4) for value in kept.unique()} == {0.0, round(1 / 0.75, 4)}
    assert bool((kept == kept[:, :1]).all())
    assert 0.72 < float((kept[:, 0] > 0).float().mean()) < 0.78


def test_drop_path_does_nothing_in_evaluation_and_everything_in_training(randomized: Randomized) -> None:
    x_map, x_tokens = tensor(64, 8, 2, 2), tensor(64, 4, 8)
    for block, x in ((MB4D(mlp_channels=8, layer_scale=1.0), x_map), (MB3D(heads=1, mlp_channels=8), x_tokens)):
        module = randomized(build_block(block, width_channels=8, grid=(2, 2), drop_path=0.5))
        assert torch.equal(module.eval()(x), module(x))
        for part in module.modules():
            part.training = isinstance(part, DropPath)  # batch norm would differ too
        torch.manual_seed(0)
        unchanged = (module(x) == x).flatten(1).all(dim=1).float().mean()
        assert 0.1 < float(unchanged) < 0.45  # both branches dropped: a quarter


def test_a_users_own_block_is_built_with_its_fields_and_the_stages_width() -> None:
    block = Candidate.model_validate({"type": "test_shift", "hidden_ratio": 2, "shift_px": 3}).block(8)
    module: Any = build_block(block, width_channels=8, grid=(4, 4))
    assert module.fc1.weight.shape == (16, 8, 1, 1)
    assert module.shift_px == 3
    assert module(tensor(2, 8, 4, 4)).shape == (2, 8, 4, 4)


def test_a_block_type_without_a_module_is_refused_when_it_is_built() -> None:
    class Bare(Block):
        type: Literal["test_bare"] = "test_bare"

    register_block_type(Bare)
    with pytest.raises(ValueError, match="block type 'test_bare' has no module; decorate one with register_block"):
        build_block(Bare(), width_channels=4, grid=(2, 2))
