"""Supernet: shared weights for every architecture of a space. A choice is an argument, never a mode."""

# B batch, C channels, H W pixels, K candidates

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from supernet.architecture import AnyDownsampling, Architecture
from supernet.elastic import Elastic
from supernet.metaformer import to_map, to_tokens
from supernet.metapath import MetaPath, Noise
from supernet.space import SearchSpace
from supernet.stem import HeadModule, build_downsampling, build_stem

Mixing = Literal["soft", "hard"]


@dataclass(frozen=True)
class Sample:
    """Stage widths and, per MetaPath, the candidates' probabilities; in hard mode also the one chosen.

    `probabilities` hold one tensor of shape K a MetaPath; `chosen` is None for the soft mixture.
    """

    widths: tuple[int, ...]
    probabilities: tuple[Tensor, ...]
    chosen: tuple[int, ...] | None


class Supernet(nn.Module):
    """All weights of a search space: one MetaPath a position, every part elastic in its stage's width.

    `supernet(images, architecture)` runs one architecture and equals its `MetaFormer` with inherited weights;
    `supernet(images, sample)` runs a soft or a hard sample of the MetaPaths.
    """

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        self.space = space
        self.largest_widths = tuple(space.widths(stage)[-1] for stage in range(1, len(space.stages) + 1))
        self.smallest_widths = tuple(space.widths(stage)[0] for stage in range(1, len(space.stages) + 1))
        largest = space.largest

        def stem_at(width: int) -> nn.Module:
            return build_stem(space.stem_at(width), in_channels=space.in_channels)

        self.stem = Elastic(stem_at, self.largest_widths[0])
        self.downsamplings = nn.ModuleList()
        for index, stage in enumerate(largest.stages[1:], start=1):
            assert stage.downsampling is not None

            def downsampling_at(
                widths: tuple[int, ...],
                downsampling: AnyDownsampling = stage.downsampling,
                grid: tuple[int, int] = largest.grids[index - 1],
            ) -> nn.Module:
                return build_downsampling(downsampling, in_channels=widths[0], out_channels=widths[1], grid=grid)

            self.downsamplings.append(Elastic(downsampling_at, self.largest_widths[index - 1 : index + 1]))
        self.metapaths = nn.ModuleList(
            MetaPath(
                space.candidates(stage),
                width_channels=self.largest_widths[stage - 1],
                grid=largest.grids[stage - 1],
            )
            for stage, _ in space.positions
        )
        self.head = Elastic(lambda width: HeadModule(space.head, width_channels=width), self.largest_widths[-1])

    def forward(self, images_BCHW: Tensor, choice: Architecture | Sample) -> Tensor | tuple[Tensor, Tensor]:
        """Images B,C,H,W to logits, by one architecture of the space or by a sample."""
        if isinstance(choice, Architecture):
            return self._run_architecture(images_BCHW, choice)
        x = self.stem(images_BCHW, choice.widths[0])
        for index, (stage, block) in enumerate(self.space.positions):
            width = choice.widths[stage - 1]
            if block == 1 and stage > 1:
                x = self.downsamplings[stage - 2](x, choice.widths[stage - 2 : stage])
            metapath = self._metapath(index)
            probabilities = choice.probabilities[index]
            if choice.chosen is None:
                x = metapath.soft(x, probabilities, width=width)
            else:
                x = metapath.hard(x, probabilities, chosen=choice.chosen[index], width=width)
        return self.head(to_tokens(x), choice.widths[-1])  # type: ignore[no-any-return]

    def _run_architecture(self, images_BCHW: Tensor, architecture: Architecture) -> Tensor | tuple[Tensor, Tensor]:
        choices = [candidate for chosen in self.space.choices(architecture) for candidate in chosen]
        widths = tuple(stage.width_channels for stage in architecture.stages)
        x = self.stem(images_BCHW, widths[0])
        layout, grid = "map", x.shape[2:]
        for index, ((stage, block), candidate) in enumerate(zip(self.space.positions, choices, strict=True)):
            if block == 1 and stage > 1:
                x = to_map(x, grid[0], grid[1]) if layout == "tokens" else x
                x = self.downsamplings[stage - 2](x, widths[stage - 2 : stage])
                layout, grid = "map", x.shape[2:]
            if candidate.is_identity:
                continue
            if candidate.layout != layout:
                x = to_tokens(x) if candidate.layout == "tokens" else to_map(x, grid[0], grid[1])
                layout = candidate.layout
            metapath = self._metapath(index)
            x = metapath.run(metapath.names.index(candidate.name), x, width=widths[stage - 1])
        return self.head(x if layout == "tokens" else to_tokens(x), widths[-1])  # type: ignore[no-any-return]

    def _metapath(self, index: int) -> MetaPath:
        metapath = self.metapaths[index]
        assert isinstance(metapath, MetaPath)
        return metapath

    def alpha_parameters(self) -> Iterator[nn.Parameter]:
        """One parameter of shape K a MetaPath, in the order of the net."""
        return (self._metapath(index).alpha for index in range(len(self.metapaths)))

    def weight_parameters(self) -> Iterator[nn.Parameter]:
        """Every parameter that is not an alpha."""
        alphas = {id(alpha) for alpha in self.alpha_parameters()}
        return (parameter for parameter in self.parameters() if id(parameter) not in alphas)

    def random_widths(self, generator: torch.Generator) -> tuple[int, ...]:
        """A uniformly drawn legal width for every stage."""
        widths = []
        for stage in range(1, len(self.space.stages) + 1):
            legal = self.space.widths(stage)
            widths.append(legal[int(torch.randint(len(legal), (), generator=generator))])
        return tuple(widths)

    def sample(
        self,
        widths: tuple[int, ...],
        *,
        mixing: Mixing,
        noise: Noise,
        temperature: float,
        generator: torch.Generator,
    ) -> Sample:
        """Draw the MetaPaths' probabilities from their alphas, and in hard mode the most probable candidate.

        Under `torch.no_grad()` the sample carries no gradient to the alphas, and a hard one costs its path alone.
        """
        probabilities = tuple(
            self._metapath(index).probabilities(noise=noise, temperature=temperature, generator=generator)
            for index in range(len(self.metapaths))
        )
        if mixing == "soft":
            return Sample(widths, probabilities, chosen=None)
        return Sample(widths, probabilities, chosen=tuple(int(p.argmax()) for p in probabilities))

    def uniform_sample(self, widths: tuple[int, ...], generator: torch.Generator) -> Sample:
        """Every MetaPath draws one candidate uniformly; no gradient reaches the alphas (for warming up the weights)."""
        sizes = [len(self._metapath(index).names) for index in range(len(self.metapaths))]
        chosen = tuple(int(torch.randint(size, (), generator=generator)) for size in sizes)
        return Sample(widths, tuple(torch.full((size,), 1 / size) for size in sizes), chosen=chosen)
