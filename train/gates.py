"""Gradients in gates: what every image's loss says about having more or less of a block's branch.

# B images of a batch, C channels, H W pixels, K classes, N images in all, G gates
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.evaluation import device_of
from train.recipe import Precision, autocast
from train.splits import Batch


def gate_gradients(
    model: nn.Module,
    blocks: Sequence[nn.Module],
    batches: Iterable[Batch],
    *,
    precision: Precision,
    batch_size: int,
) -> Tensor:
    """The gradient of every image's cross-entropy in a gate on each block's branch, where all gates are 1: N, G.

    A block computes x + f(x), with its gate x + g f(x). Images have gates of their own, so that one backward pass of a
    batch gives the gradients of each alone; at most `batch_size` images go at once, which changes none of them. The
    model runs as in evaluation, and its modes, gradients and hooks are afterwards what they were.
    """
    device = device_of(model)
    modes = {module: module.training for module in model.modules()}
    gates: dict[int, Tensor] = {}
    hooks = [block.register_forward_hook(_gated(gates, number)) for number, block in enumerate(blocks)]
    model.eval()
    found: list[Tensor] = []
    try:
        for images, labels in batches:
            for begin in range(0, len(labels), batch_size):
                images_BCHW, labels_B = images[begin : begin + batch_size], labels[begin : begin + batch_size]
                with torch.enable_grad(), autocast(precision, device):
                    logits_BK = model(images_BCHW.to(device))
                    loss = F.cross_entropy(logits_BK.float(), labels_B.to(device), reduction="sum")
                    gates_B = [gates[number] for number in range(len(blocks))]
                found.append(torch.stack(torch.autograd.grad(loss, gates_B), dim=1).cpu())
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
    return torch.cat(found)


def _gated(gates: dict[int, Tensor], number: int) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    """A forward hook that puts a gate of 1 on a block's branch, one an image, and leaves it in `gates`."""

    def hook(block: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        (x,) = inputs
        gate_B = torch.ones(len(x), device=x.device, requires_grad=True)
        gates[number] = gate_B
        wide = output.float()  # the branch is a small difference, which bf16 would round
        closed = gate_B.view(-1, *[1] * (x.ndim - 1)) - 1  # 0: the output is what it was, to the last bit
        return (wide + closed * (wide - x.float())).to(output.dtype)

    return hook
