"""Scores of untrained nets: what can be said before any training, as a rank study's cheapest competitors."""

# N images, A activations, C channels, H W pixels

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from supernet import Architecture, MetaFormer
from supernet.activations import SquaredReLU, StarReLU
from train.randomness import derived_seed

ACTIVATIONS = (nn.ReLU, nn.GELU, SquaredReLU, StarReLU)
LOWEST = -1e9  # in the place of minus infinity, which a file cannot hold


def naswot(architecture: Architecture, images_NCHW: Tensor, *, seed: int) -> float:
    """NASWOT (Mellor et al. 2021): the log-determinant of how alike a fresh net's activations are on different images.

    Two images are as alike as the number of activations whose input has the same sign for both. Only modules that are
    activations count. Minus infinity, for a net whose images cannot be told apart, is given as -1e9.
    """
    net = _fresh(architecture, seed=seed)
    kernel_NN = torch.zeros(len(images_NCHW), len(images_NCHW), dtype=torch.float64)

    def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        on_NA = (inputs[0].flatten(1) > 0).float()
        kernel_NN.add_((on_NA @ on_NA.T + (1 - on_NA) @ (1 - on_NA).T).double())

    hooks = [module.register_forward_pre_hook(count) for module in net.modules() if isinstance(module, ACTIVATIONS)]
    with torch.no_grad():
        net.train()(images_NCHW)
    for hook in hooks:
        hook.remove()
    value = float(torch.linalg.slogdet(kernel_NN).logabsdet)
    return value if math.isfinite(value) else LOWEST


def synflow(architecture: Architecture, *, seed: int) -> float:
    """SynFlow (Tanaka et al. 2020): the log of the sum over weights of |w dR/dw|, without any image.

    R is the sum of a fresh net's outputs for an image of ones, with every weight replaced by its size; batch norms are
    as they begin, so they change nothing.
    """
    net = _fresh(architecture, seed=seed).double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.abs_()
    ones = torch.ones(1, architecture.in_channels, *architecture.resolution_px, dtype=torch.float64)
    outputs = net(ones)
    heads = outputs if isinstance(outputs, tuple) else (outputs,)
    torch.cat(heads).sum().backward()  # type: ignore[no-untyped-call]
    pairs = [(weight, weight.grad) for weight in net.parameters()]
    flow = sum(float((weight.detach() * grad).abs().sum()) for weight, grad in pairs if grad is not None)
    return math.log(flow) if flow > 0 else LOWEST


def _fresh(architecture: Architecture, *, seed: int) -> MetaFormer:
    """The net with the weights that a training from scratch with this seed begins with."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derived_seed(seed, "initial weights"))
        return MetaFormer(architecture)
