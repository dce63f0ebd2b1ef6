"""MetaPath: a position of the supernet where one of several candidates is chosen, and its alphas."""

# B batch, C channels, H W pixels, K candidates

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from supernet.blocks import build_block
from supernet.candidate import Candidate
from supernet.elastic import Elastic
from supernet.metaformer import to_map, to_tokens

Noise = Literal["none", "uniform", "gumbel"]


class MetaPath(nn.Module):
    """The candidates of one position, with one alpha each, at the largest width of their stage.

    The soft mixture is the paper's: X' = sum_k p_k B_k(X) with p = softmax((alpha + noise) / temperature)
    (facts: EfficientFormer section 4.2). In hard mode one candidate is computed, forward and backward, and the
    gradient reaches the alphas through its probability alone (straight-through).
    """

    def __init__(self, candidates: tuple[Candidate, ...], *, width_channels: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.names = tuple(candidate.name for candidate in candidates)
        self.layouts = tuple(candidate.layout for candidate in candidates)
        self.identities = tuple(candidate.is_identity for candidate in candidates)
        self.alpha = nn.Parameter(torch.zeros(len(candidates)))
        self.candidates = nn.ModuleDict()
        for candidate in candidates:

            def build(width: int, candidate: Candidate = candidate) -> nn.Module:
                return build_block(candidate.block(width), width_channels=width, grid=grid)

            self.candidates[candidate.name] = Elastic(build, width_channels)

    def probabilities(self, *, noise: Noise, temperature: float, generator: torch.Generator | None) -> Tensor:
        """softmax((alpha + noise) / temperature), shape K.

        Noise is none, the paper's U(0,1), or Gumbel(0,1); drawn on the generator's device.
        """
        if noise == "none":
            return (self.alpha / temperature).softmax(dim=0)
        assert generator is not None
        drawn = torch.rand(self.alpha.shape, generator=generator, device=generator.device)
        if noise == "gumbel":
            tiny = torch.finfo(drawn.dtype).tiny
            drawn = -(-drawn.clamp(min=tiny).log()).clamp(min=tiny).log()
        return ((self.alpha + drawn.to(self.alpha.device)) / temperature).softmax(dim=0)

    def soft(self, x_BCHW: Tensor, probabilities_K: Tensor, *, width: int) -> Tensor:
        """The mixture of all candidates, weighted by their probabilities."""
        outputs = (self.candidate(index, x_BCHW, width=width) for index in range(len(self.names)))
        return torch.stack([p * y for p, y in zip(probabilities_K.unbind(), outputs, strict=True)]).sum(dim=0)

    def hard(self, x_BCHW: Tensor, probabilities_K: Tensor, *, chosen: int, width: int) -> Tensor:
        """One candidate, computed alone; its value is exact, its probability carries the alphas' gradient.

        The gradient for the alphas is that of p_k (B_k(X) - X): taking X off changes no sum over candidates, and
        leaves out what every candidate has in common.
        """
        y_BCHW = self.candidate(chosen, x_BCHW, width=width)
        if not probabilities_K.requires_grad:
            return y_BCHW
        probability = probabilities_K[chosen]
        return y_BCHW + (probability - probability.detach()) * (y_BCHW - x_BCHW)

    def candidate(self, index: int, x_BCHW: Tensor, *, width: int) -> Tensor:
        """One candidate on a map; token blocks get tokens, and their output is folded back."""
        if self.identities[index]:
            return x_BCHW
        if self.layouts[index] == "map":
            return self.run(index, x_BCHW, width=width)
        height, width_px = x_BCHW.shape[2:]
        return to_map(self.run(index, to_tokens(x_BCHW), width=width), height, width_px)

    def run(self, index: int, x: Tensor, *, width: int) -> Tensor:
        """One candidate's module in its own layout."""
        return self.candidates[self.names[index]](x, width)  # type: ignore[no-any-return]
