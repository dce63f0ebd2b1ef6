"""Skeletons: the small nets whose differences are the entries of a latency table.

A part is measured in context, where it runs as it does in a model: with neighbours that the runtime may fuse it with,
and with the layout they leave. So an entry is a `Recipe`: a skeleton with the part, minus the same without it
(facts: search section 2; measuring parts alone and summing them is ten times as wrong).
"""

# B batch, C channels, H W pixels

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from search.parts import LatencyKey, key_of, reshape_key
from search.timed_weights import timed_weights
from supernet.architecture import AnyStem, Head, Stage, stage_grids
from supernet.block_types import Block, Positive
from supernet.blocks import build_block
from supernet.candidate import Candidate
from supernet.metaformer import MetaFormerStage
from supernet.schema import Record
from supernet.space import SearchSpace
from supernet.stem import HeadModule, build_downsampling, build_stem

ENTRY_CHANNELS = 8  # what a skeleton without a stem is fed with: cheap, and it cancels in every difference


class Skeleton(Record):
    """A piece of a model as a net of its own: stem (or a 1x1 convolution to the first width), stages, head.

    `grid` is the size of its input. A skeleton is its own identity: equal ones are measured once.
    """

    in_channels: Positive
    grid: tuple[Positive, Positive]
    stem: AnyStem | None
    stages: tuple[Stage, ...]
    head: Head | None

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """C, H, W of the input."""
        return (self.in_channels, *self.grid)

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """Height and width of the feature map in every stage."""
        return stage_grids(self.grid if self.stem is None else self.stem.grid(self.grid), self.stages)


class SkeletonModule(nn.Module):
    """The net of a skeleton: a map B,C,H,W to a map, or to logits where it has a head."""

    def __init__(self, skeleton: Skeleton) -> None:
        super().__init__()
        first = skeleton.stages[0].width_channels
        self.entry: nn.Module = (
            nn.Conv2d(skeleton.in_channels, first, 1)
            if skeleton.stem is None
            else build_stem(skeleton.stem, in_channels=skeleton.in_channels)
        )
        self.stages = nn.ModuleList()
        width, before = first, skeleton.grid if skeleton.stem is None else skeleton.stem.grid(skeleton.grid)
        for stage, grid in zip(skeleton.stages, skeleton.grids, strict=True):
            blocks = [build_block(block, width_channels=stage.width_channels, grid=grid) for block in stage.blocks]
            downsampling = None
            if stage.downsampling is not None:
                downsampling = build_downsampling(
                    stage.downsampling, in_channels=width, out_channels=stage.width_channels, grid=before
                )
            layouts = [block.layout for block in stage.blocks]
            to_head = skeleton.head is not None and stage is skeleton.stages[-1]
            self.stages.append(MetaFormerStage(blocks, layouts, downsampling, to_head=to_head))
            width, before = stage.width_channels, grid
        self.head = None if skeleton.head is None else HeadModule(skeleton.head, width_channels=width)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """A map, or images where the skeleton has a stem."""
        x: Tensor = self.entry(x_BCHW)
        for stage in self.stages:
            x = stage(x)
        return x if self.head is None else self.head(x)


def build_skeleton(skeleton: Skeleton) -> nn.Module:
    """The skeleton's net in eval mode, with random weights that leave torch's own generator as it was."""
    with timed_weights():
        return SkeletonModule(skeleton).eval()


@dataclass(frozen=True)
class Recipe:
    """How a part follows from measurements: (plus - minus - parts measured before) / copies."""

    key: LatencyKey
    plus: Skeleton
    minus: Skeleton | None
    minus_keys: tuple[LatencyKey, ...] = ()
    copies: int = 1


def recipes(space: SearchSpace, *, copies: int) -> Iterator[Recipe]:
    """A recipe for every part that an architecture of this space can have, those that others need first.

    `copies` is how many more times a block is in the one skeleton than in the other: at most, because it is not more
    than the stage is deep. (Weights that stay in a cache in a net, and in a skeleton of many copies do not, would cost
    several times as much: experiments/LOG.md.)
    """
    context = _Context(space)
    numbers = range(1, len(space.stages) + 1)
    for number in numbers:
        for width in space.widths(number):
            yield from context.block_recipes(number, width, copies=copies)
    for width in space.widths(1):
        yield context.stem_recipe(width)
    for number in numbers[1:]:
        for in_width in space.widths(number - 1):
            for width in space.widths(number):
                yield context.downsampling_recipe(number, in_width, width)
    for width in space.widths(len(space.stages)):
        yield from context.head_recipes(width)


def lone_blocks(space: SearchSpace) -> Iterator[tuple[int, Candidate, Skeleton]]:
    """Every candidate but identity at every width of its stage, alone in a skeleton that `recipes` asks for too."""
    context = _Context(space)
    for number in range(1, len(space.stages) + 1):
        for candidate in space.candidates(number):
            if not candidate.is_identity:
                for width in space.widths(number):
                    yield number, candidate, context.skeleton(number, width, candidate.block(width))


class _Context:
    """Builds recipes; the reference block of a stage stands for whatever neighbours a part will have."""

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self.example = space.smallest
        self.grids = self.example.grids

    def reference(self, number: int, width: int, layout: Literal["map", "tokens"]) -> Block | None:
        """The first candidate of this layout in a stage, Identity aside."""
        found = [c for c in self.space.candidates(number) if not c.is_identity and c.layout == layout]
        return found[0].block(width) if found else None

    def skeleton(
        self, number: int, width: int, *blocks: Block | None, after: tuple[Stage, ...] = (), head: Head | None = None
    ) -> Skeleton:
        """A skeleton that begins with blocks in a stage of this width; None leaves a block out."""
        stage = Stage(width_channels=width, downsampling=None, blocks=tuple(b for b in blocks if b is not None))
        return Skeleton(
            in_channels=ENTRY_CHANNELS, grid=self.grids[number - 1], stem=None, stages=(stage, *after), head=head
        )

    def block_key(self, number: int, width: int, block: Block) -> LatencyKey:
        """The key of a block in this stage."""
        grid = self.grids[number - 1]
        return key_of("block", block, in_channels=width, out_channels=width, grid=grid, layout=block.layout)

    def block_recipes(self, number: int, width: int, *, copies: int) -> Iterator[Recipe]:
        """Every candidate of a stage at one width, then the way to tokens and back where a candidate needs it."""
        copies = min(copies, self.space.stages[number - 1].depth)
        for candidate in self.space.candidates(number):
            if candidate.is_identity:
                continue
            block = candidate.block(width)
            yield Recipe(
                self.block_key(number, width, block),
                plus=self.skeleton(number, width, *(block,) * (1 + copies)),
                minus=self.skeleton(number, width, block),
                copies=copies,
            )
        if self.reference(number, width, "tokens") is not None:
            yield self.reshape_recipe(number, width)

    def reshape_recipe(self, number: int, width: int) -> Recipe:
        """The way to tokens and back, once around a token block.

        On a CPU it is often not settled: it costs some microseconds, and the only token block of a small net is
        quicker by more than that than a further one, because its weights still fit into the cache. (Measured and not
        better: map and token blocks in turn against the same blocks sorted, which is ten times too much.)
        """
        tokens, block = self.reference(number, width, "tokens"), self.reference(number, width, "map")
        assert tokens is not None, "only stages with token blocks have a reshape"
        return Recipe(
            reshape_key(width, self.grids[number - 1]),
            plus=self.skeleton(number, width, block, tokens),
            minus=self.skeleton(number, width, block),
            minus_keys=(self.block_key(number, width, tokens),),
        )

    def neighbour(self, number: int, width: int) -> tuple[Block, tuple[LatencyKey, ...]]:
        """The block that stands beside a part under measurement, and the keys of what it costs."""
        map_block = self.reference(number, width, "map")
        if map_block is not None:
            return map_block, (self.block_key(number, width, map_block),)
        block = self.reference(number, width, "tokens")
        assert block is not None, "a stage has at least one block besides identity"
        return block, (reshape_key(width, self.grids[number - 1]), self.block_key(number, width, block))

    def stem_recipe(self, width: int) -> Recipe:
        """The stem, which carries what any inference costs at all."""
        widths = (width, *(stage.width_channels for stage in self.example.stages[1:]))
        stem = self.space.architecture(widths, self.space.choices(self.example)).stem
        channels, size = self.space.in_channels, self.space.resolution_px
        block, block_keys = self.neighbour(1, width)
        stage = Stage(width_channels=width, downsampling=None, blocks=(block,))
        return Recipe(
            key_of("stem", stem, in_channels=channels, out_channels=width, grid=size),
            plus=Skeleton(in_channels=channels, grid=size, stem=stem, stages=(stage,), head=None),
            minus=None,
            minus_keys=block_keys,
        )

    def downsampling_recipe(self, number: int, in_width: int, width: int) -> Recipe:
        """The downsampling that opens a stage, between a block of the stage before and one of its own."""
        downsampling = self.example.stages[number - 1].downsampling
        assert downsampling is not None, "every stage of a space but the first is opened by a downsampling"
        before, _ = self.neighbour(number - 1, in_width)
        after, after_keys = self.neighbour(number, width)
        stage = Stage(width_channels=width, downsampling=downsampling, blocks=(after,))
        return Recipe(
            key_of("downsampling", downsampling, in_channels=in_width, out_channels=width, grid=self.grids[number - 2]),
            plus=self.skeleton(number - 1, in_width, before, after=(stage,)),
            minus=self.skeleton(number - 1, in_width, before),
            minus_keys=after_keys,
        )

    def head_key(self, width: int, layout: Literal["map", "tokens"]) -> LatencyKey:
        """The head's key after a block of this layout."""
        head = self.example.head
        return key_of(
            "head", head, in_channels=width, out_channels=head.num_classes, grid=self.grids[-1], layout=layout
        )

    def head_recipes(self, width: int) -> Iterator[Recipe]:
        """The head after a map block and, where the last stage can end in one, after a token block."""
        number, head = len(self.space.stages), self.example.head
        map_block = self.reference(number, width, "map")
        yield Recipe(
            self.head_key(width, "map"),
            plus=self.skeleton(number, width, map_block, head=head),
            minus=self.skeleton(number, width, map_block),
        )
        block = self.reference(number, width, "tokens")
        if block is not None:
            yield Recipe(
                self.head_key(width, "tokens"),
                plus=self.skeleton(number, width, map_block, block, head=head),
                minus=self.skeleton(number, width, map_block, block),
            )
