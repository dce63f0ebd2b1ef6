"""Norms of the MetaFormer baselines."""

# B batch, C channels, H W pixels

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.jit import is_scripting, is_tracing  # type: ignore[attr-defined]

from supernet.block_types import Norm


class NormModule(nn.Module):
    """Layer norm of a map: of the channels of every pixel, or of the whole map; factors (and biases) a channel.

    Over channels it leaves a channels_last map, whatever it is given, and copies nothing where it is given one.
    """

    def __init__(self, norm: Norm, *, width_channels: int) -> None:
        super().__init__()
        self.over, self.eps = norm.over, norm.eps
        self.weight: nn.Parameter | None = nn.Parameter(torch.ones(width_channels))
        self.bias = nn.Parameter(torch.zeros(width_channels)) if norm.bias else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """B,C,H,W to B,C,H,W."""
        if self.over == "map":
            return self.of_map(x_BCHW)
        return self.of_pixels(x_BCHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def of_map(self, x_BCHW: Tensor) -> Tensor:
        """The norm over the whole map, exported as a layer norm: a group norm becomes one of reshaped maps."""
        if not is_scripting():  # noqa: SIM102  # TorchScript compiles all of a condition
            if torch.onnx.is_in_onnx_export() and not is_tracing():  # type: ignore[no-untyped-call]
                return self._as_layer_norm(x_BCHW)
        return torch.group_norm(x_BCHW, 1, self.weight, self.bias, self.eps)

    def _as_layer_norm(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = F.layer_norm(x_BCHW, x_BCHW.shape[1:], eps=self.eps)
        if self.weight is not None:
            x_BCHW = x_BCHW * self.weight[:, None, None]
        return x_BCHW if self.bias is None else x_BCHW + self.bias[:, None, None]

    def of_pixels(self, x_BHWC: Tensor) -> Tensor:
        """The norm over channels, with the channels last."""
        assert self.weight is not None  # only over maps do deploy forms have the factors elsewhere
        return F.layer_norm(x_BHWC, self.weight.shape, self.weight, self.bias, self.eps)
