"""Small layers that many blocks share."""

# B batch, C channels, H W pixels, N tokens

from __future__ import annotations

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """Drops a residual branch for whole images with this probability while training, and rescales the rest."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """Any shape with the batch first."""
        if not self.training or self.probability == 0.0:
            return x
        # dropping whole channels of a batch of one whose channels are the images
        return torch.feature_dropout(x[None], self.probability, True)[0]


class LayerScale(nn.Module):
    """A learnable factor per channel."""

    def __init__(self, width_channels: int, initial: float, *, channels_first: bool) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width_channels,), initial))
        self.channels_first = channels_first

    def forward(self, x: Tensor) -> Tensor:
        """B,C,H,W with `channels_first`, else B,N,C."""
        return x * self.factor()

    def plus(self, x: Tensor, branch: Tensor) -> Tensor:
        """gamma * x + branch, in one pass."""
        return torch.addcmul(branch, x, self.factor())

    def factor(self) -> Tensor:
        """The factors in a shape that broadcasts: C,1,1 with `channels_first`, else C."""
        return self.gamma.view(-1, 1, 1) if self.channels_first else self.gamma


class NoScale(nn.Identity):
    """The place of a `LayerScale` where there is none."""

    def plus(self, x: Tensor, branch: Tensor) -> Tensor:
        """x + branch."""
        return x + branch
