"""Muon: momentum whose matrices are orthogonalized, and AdamW for everything that is no matrix.

Jordan et al., 2024 (kellerjordan.github.io/posts/muon); the step's size is that of Liu et al., 2025 (arXiv 2502.16982),
so that learning rates and weight decay are those of AdamW. The libraries orthogonalize in bf16, which a processor
without bf16 emulates; this is fp32, and its iteration works on the small Gram matrix alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic that drives singular values towards 1
_STEPS = 5


def is_matrix(parameter: nn.Parameter) -> bool:
    """Whether a parameter is the weight of a linear map between several channels, and no depthwise kernel."""
    return parameter.ndim >= 2 and min(parameter.shape[:2]) > 1


class Muon(torch.optim.AdamW):
    """Muon for the groups with `matrices: True`, AdamW for the others. A kernel O,I,kh,kw is the matrix O,(kh kw I).

    `momentum` is that of the matrices, `betas` are AdamW's.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], *, lr: float, momentum: float = 0.9) -> None:
        super().__init__(groups, lr=lr, weight_decay=0.0, fused=True)
        self.momentum = momentum

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of every parameter that has a gradient."""
        every = self.param_groups
        self.param_groups = [group for group in every if not group["matrices"]]
        try:
            loss: float | None = super().step(closure)
        finally:
            self.param_groups = every
        for group in every:
            if group["matrices"]:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._step_matrix(parameter, parameter.grad, group["lr"], group["weight_decay"])
        return loss

    def _step_matrix(self, parameter: nn.Parameter, gradient: Tensor, lr: float, weight_decay: float) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)  # AdamW looks for it in whatever it loads
            state["momentum"] = torch.zeros_like(parameter)
        average: Tensor = state["momentum"]
        average.lerp_(gradient, 1 - self.momentum)
        ahead = gradient.lerp(average, self.momentum).movedim(1, -1)  # Nesterov's; a view of channels_last memory
        update = orthogonalized(ahead.reshape(len(ahead), -1))
        scale = 0.2 * max(update.shape) ** 0.5  # the root mean square of AdamW's steps
        parameter.mul_(1 - lr * weight_decay)
        parameter.add_(update.reshape(ahead.shape).movedim(-1, 1), alpha=-lr * scale)


def orthogonalized(matrix_MN: Tensor) -> Tensor:
    """The matrix with singular values near 1 (0.7 to 1.2), fp32, by Newton and Schulz's iteration.

    Each step is a polynomial of the Gram matrix times the matrix, and polynomials of one matrix commute: so the product
    of the polynomials is formed first, and the matrix, often far wider than high, is multiplied once.
    """
    wide: Tensor = matrix_MN.float() if matrix_MN.shape[0] <= matrix_MN.shape[1] else matrix_MN.float().mT
    wide = wide / wide.norm().clamp_min(1e-7)
    gram = wide @ wide.mT
    identity = torch.eye(len(gram), device=gram.device)
    a, b, c = _COEFFICIENTS
    product = identity
    for step in range(_STEPS):
        factor = torch.addmm(gram, gram, gram, beta=b, alpha=c).add_(identity, alpha=a)
        product = factor @ product
        if step + 1 < _STEPS:
            gram = factor @ gram @ factor
    wide = product @ wide
    return wide if matrix_MN.shape[0] <= matrix_MN.shape[1] else wide.mT
