"""Gradients in gates: against a finite difference, for every image by itself, and nothing about the model changed."""

# B images, G gates

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supernet.metaformer import MetaFormer
from supernet.space import SearchSpace
from train.data import ImageData
from train.gates import gate_gradients
from train.splits import Batch, evaluation_batches


@pytest.fixture(scope="module")
def net(space: SearchSpace) -> MetaFormer:
    """The largest architecture with random norms and biases, and branches that are not small."""
    torch.manual_seed(0)
    made = MetaFormer(space.largest)
    for tensor in (*made.parameters(), *made.buffers()):
        if tensor.is_floating_point() and tensor.ndim == 1:
            tensor.data = 0.5 + torch.rand(tensor.shape)
    return made.train()


@pytest.fixture(scope="module")
def blocks(net: MetaFormer) -> list[nn.Module]:
    """One block on maps, two on tokens."""
    return [block for stage in net.stages for block in stage.blocks]  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def batch(few_digits: ImageData) -> Batch:
    return next(evaluation_batches(few_digits.score, 12))


def losses_at(net: nn.Module, block: nn.Module, batch: Batch, *, gate: float) -> Tensor:
    """Every image's loss with x + g f(x) in the place of one block's x + f(x)."""
    hook = block.register_forward_hook(lambda _, inputs, output: inputs[0] + gate * (output - inputs[0]))
    with torch.no_grad():
        logits_BK = copy.deepcopy(net).eval()(batch[0])
    hook.remove()
    return F.cross_entropy(logits_BK, batch[1], reduction="none")


def test_a_gates_gradient_is_the_finite_difference_of_each_images_loss(
    net: MetaFormer, blocks: list[nn.Module], batch: Batch
) -> None:
    found_BG = gate_gradients(net, blocks, [batch], precision="fp32", batch_size=100)
    assert found_BG.shape == (12, 3)
    for number, block in enumerate(blocks):
        above_B, below_B = (losses_at(net, block, batch, gate=gate) for gate in (1.02, 0.98))
        assert torch.allclose(found_BG[:, number], (above_B - below_B) / 0.04, rtol=2e-2, atol=2e-4)
    assert (found_BG.abs().amax(dim=0) > 1e-3).all()


def test_the_images_that_go_together_change_nothing(net: MetaFormer, blocks: list[nn.Module], batch: Batch) -> None:
    together_BG = gate_gradients(net, blocks, [batch], precision="fp32", batch_size=12)
    halves = [(batch[0][:7], batch[1][:7]), (batch[0][7:], batch[1][7:])]
    assert torch.allclose(
        gate_gradients(net, blocks, halves, precision="fp32", batch_size=4), together_BG, rtol=1e-4, atol=1e-6
    )
    swapped_BG = gate_gradients(net, blocks[::-1], [batch], precision="fp32", batch_size=12)
    assert torch.allclose(swapped_BG.flip(1), together_BG, rtol=1e-4, atol=1e-6)


def test_in_bf16_the_gradients_are_about_the_same(net: MetaFormer, blocks: list[nn.Module], batch: Batch) -> None:
    exact_BG, rounded_BG = (
        gate_gradients(net, blocks, [batch], precision=precision, batch_size=12)  # type: ignore[arg-type]
        for precision in ("fp32", "bf16")
    )
    assert torch.allclose(rounded_BG, exact_BG, rtol=0.1, atol=0.05 * float(exact_BG.abs().max()))
    assert not torch.equal(rounded_BG, exact_BG)


def test_a_model_keeps_its_state_modes_gradients_and_hooks(
    net: MetaFormer, blocks: list[nn.Module], batch: Batch
) -> None:
    before = copy.deepcopy(net.state_dict())
    net.train()
    net.head.eval()
    modes = [module.training for module in net.modules()]
    with torch.no_grad():  # whatever the caller does
        gate_gradients(net, blocks, [batch], precision="fp32", batch_size=12)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert [module.training for module in net.modules()] == modes
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.parameters())
    assert not any(module._forward_hooks for module in net.modules())
