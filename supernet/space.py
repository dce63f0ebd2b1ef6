"""SearchSpace: which architectures are legal; the largest, the smallest, a uniformly scaled and a random one.

A space has one `StageSpace` per stage: a number of positions (depth), a range of widths in steps of the space's
granularity, and the candidates of every position. The choices of EfficientFormer's search are its default:
{MB4D, Identity} in stages 1-2, {MB4D, MB3D, Identity} in stages 3-4, token blocks only as the last blocks of the net
(facts: EfficientFormer section 4.2).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, field_validator, model_validator

from supernet.architecture import Architecture, Downsampling, Head, PoolingName, Stage, Stem
from supernet.block_types import Block, Positive
from supernet.candidate import Candidate
from supernet.schema import Record, UserError, digest, load, nearest, parse, plain, save


class WidthRange(Record):
    """The widths of a stage, both ends included, in steps of the space's granularity."""

    smallest: Positive
    largest: Positive


class StageSpace(Record):
    """The choices of one stage."""

    depth: Positive
    width_channels: WidthRange
    candidates: Annotated[tuple[Candidate, ...], Field(min_length=1)]

    @field_validator("candidates")
    @classmethod
    def _distinct(cls, candidates: tuple[Candidate, ...]) -> tuple[Candidate, ...]:
        names = [candidate.name for candidate in candidates]
        if len(set(names)) < len(names):
            raise ValueError(f"candidates need distinct names (got {', '.join(names)}); give one a `name`")
        if all(candidate.is_identity for candidate in candidates):
            raise ValueError("candidates need at least one block besides identity")
        return candidates


class StemSpace(Record):
    """What is fixed about the stem; its width is the first stage's, its first convolution has half of that.

    `pooling` is `Stem`'s.
    """

    added_later: ClassVar[frozenset[str]] = frozenset({"pooling"})

    strides: tuple[Positive, Positive] = (2, 2)
    activation: Literal["relu", "gelu"] = "relu"
    pooling: PoolingName = "none"


class SpaceShape(Record):
    """A search space without what the data decide (input channels, resolution, classes).

    `downsampling_pooling` is `Downsampling`'s, `head_norm` and `head_pooling` are `Head`'s.
    """

    added_later: ClassVar[frozenset[str]] = frozenset({"head_norm", "head_pooling", "downsampling_pooling"})

    granularity: Positive = 16
    stem: StemSpace = StemSpace()
    downsampling_stride: Positive = 2
    downsampling_pooling: PoolingName = "none"
    stages: Annotated[tuple[StageSpace, ...], Field(min_length=1)]
    distillation_head: bool = False
    head_norm: Literal["layer_norm", "identity"] = "layer_norm"
    head_pooling: Literal["mean", "max"] = "mean"

    @model_validator(mode="after")
    def _on_the_grid(self) -> SpaceShape:
        for number, stage in enumerate(self.stages, start=1):
            for width in (stage.width_channels.smallest, stage.width_channels.largest):
                check_width(width, granularity=self.granularity, stage=number)
            if stage.width_channels.smallest > stage.width_channels.largest:
                raise ValueError(
                    f"stage {number}: smallest width {stage.width_channels.smallest} is above the largest,"
                    f" {stage.width_channels.largest}"
                )
            bounds = stage.width_channels
            for width in range(bounds.smallest, bounds.largest + 1, self.granularity):
                check_distinct(stage.candidates, width_channels=width, stage=number)
        layouts = [{c.layout for c in stage.candidates if not c.is_identity} for stage in self.stages]
        for number, (here, after) in enumerate(itertools.pairwise(layouts), start=1):
            if here == {"tokens"} and "map" in after:
                raise ValueError(
                    f"stage {number}: has token blocks alone, but stage {number + 1} has blocks on maps; token blocks"
                    f" come last, so give stage {number} a block on maps too"
                )
        return self


class SearchSpace(SpaceShape):
    """A complete search space: every legal `Architecture` follows from it."""

    schema_version: Literal[1] = 1
    in_channels: Positive
    resolution_px: tuple[Positive, Positive]
    num_classes: Positive

    @classmethod
    def of(
        cls, shape: SpaceShape, *, in_channels: int, resolution_px: tuple[int, int], num_classes: int
    ) -> SearchSpace:
        """The space of this shape for images of this size and these classes."""
        fields = {name: getattr(shape, name) for name in SpaceShape.model_fields}
        return cls(**fields, in_channels=in_channels, resolution_px=resolution_px, num_classes=num_classes)

    @classmethod
    def load(cls, path: Path | str) -> SearchSpace:
        """Read a space from YAML or JSON. Raises `UserError` for anything wrong with the file."""
        return load(cls, path)

    def save(self, path: Path | str) -> None:
        """Write the space as YAML or JSON, by suffix."""
        save(self, path)

    @property
    def digest(self) -> str:
        """The identity of this space."""
        return digest(self)

    @property
    def positions(self) -> tuple[tuple[int, int], ...]:
        """Stage and block number (both from 1) of every MetaPath, in the order of the net."""
        return tuple(
            (number, block) for number, stage in enumerate(self.stages, start=1) for block in range(1, stage.depth + 1)
        )

    def stem_at(self, width_channels: int) -> Stem:
        """The stem of a first stage of this width."""
        return Stem(
            width_channels=width_channels,
            hidden_channels=width_channels // 2,
            strides=self.stem.strides,
            activation=self.stem.activation,
            pooling=self.stem.pooling,
        )

    @property
    def downsampling(self) -> Downsampling:
        """What opens every stage but the first."""
        return Downsampling(stride=self.downsampling_stride, pooling=self.downsampling_pooling)

    @property
    def head(self) -> Head:
        """The head, which is the same for every architecture of the space."""
        return Head(
            num_classes=self.num_classes,
            distillation=self.distillation_head,
            norm=self.head_norm,
            pooling=self.head_pooling,
        )

    def widths(self, stage: int) -> tuple[int, ...]:
        """The legal widths of a stage (numbered from 1), ascending."""
        bounds = self.stages[stage - 1].width_channels
        return tuple(range(bounds.smallest, bounds.largest + 1, self.granularity))

    def candidates(self, stage: int) -> tuple[Candidate, ...]:
        """The candidates of every position of a stage (numbered from 1)."""
        return self.stages[stage - 1].candidates

    def without(self, left_out: Iterable[tuple[int, str]]) -> SearchSpace:
        """The space without these candidates, each named by its stage (from 1) and its name.

        Raises `UserError` where what is left is no space: a stage needs a block, and a map block before others' maps.
        """
        gone = set(left_out)
        data = plain(self)
        for number, stage in enumerate(data["stages"], start=1):
            stage["candidates"] = [one for one in stage["candidates"] if (number, one["name"]) not in gone]
        return parse(SearchSpace, data, source="the space without them") if gone else self

    def architecture(self, widths: tuple[int, ...], choices: tuple[tuple[Candidate, ...], ...]) -> Architecture:
        """The architecture with these stage widths and, per stage, these candidates."""
        stages = tuple(
            Stage(
                width_channels=width,
                downsampling=self.downsampling if number else None,
                blocks=tuple(candidate.block(width) for candidate in chosen),
            )
            for number, (width, chosen) in enumerate(zip(widths, choices, strict=True))
        )
        architecture = Architecture(
            in_channels=self.in_channels,
            resolution_px=self.resolution_px,
            stem=self.stem_at(widths[0]),
            stages=stages,
            head=self.head,
        )
        self.check(architecture)
        return architecture

    def choices(self, architecture: Architecture) -> tuple[tuple[Candidate, ...], ...]:
        """Per stage the candidate at every position. Raises `UserError` for a block that is no candidate."""
        return tuple(
            tuple(
                self._candidate_of(block, stage=number, width=stage.width_channels, position=position)
                for position, block in enumerate(stage.blocks, start=1)
            )
            for number, stage in enumerate(architecture.stages, start=1)
        )

    def _candidate_of(self, block: Block, *, stage: int, width: int, position: int) -> Candidate:
        for candidate in self.candidates(stage):
            if candidate.block(width) == block:
                return candidate
        names = [candidate.name for candidate in self.candidates(stage)]
        raise UserError(
            f"stage {stage}, block {position}: {block.type} with these sizes is no candidate of the space"
            + nearest(block.type, names)
        )

    def check(self, architecture: Architecture) -> None:
        """Raise `UserError`, naming the culprit and the rule, if the architecture is not of this space."""
        if len(architecture.stages) != len(self.stages):
            raise UserError(f"{len(architecture.stages)} stages, but the space has {len(self.stages)}")
        for number, (stage, legal) in enumerate(zip(architecture.stages, self.stages, strict=True), start=1):
            check_width(stage.width_channels, granularity=self.granularity, stage=number)
            if stage.width_channels not in self.widths(number):
                bounds = legal.width_channels
                raise UserError(
                    f"stage {number}: width {stage.width_channels} is outside of {bounds.smallest} to {bounds.largest}"
                )
            if len(stage.blocks) != legal.depth:
                raise UserError(f"stage {number}: {len(stage.blocks)} blocks, but the space has {legal.depth}")
        self._check_suffix(self.choices(architecture))

    def _check_suffix(self, choices: tuple[tuple[Candidate, ...], ...]) -> None:
        tokens_seen = False
        for (stage, block), candidate in zip(self.positions, (c for chosen in choices for c in chosen), strict=True):
            if tokens_seen and not candidate.is_identity and candidate.layout == "map":
                raise UserError(
                    f"stage {stage}, block {block}: {candidate.name} after a token block; token blocks come last"
                )
            tokens_seen |= candidate.layout == "tokens"

    @property
    def largest(self) -> Architecture:
        """Largest widths, every position filled, and as many token blocks at the end as the candidates allow."""
        return self.scaled(1.0)

    @property
    def smallest(self) -> Architecture:
        """Smallest widths, every position skipped that can be, map blocks where one must stay."""
        widths = tuple(self.widths(number)[0] for number in range(1, len(self.stages) + 1))
        choices = tuple(
            (_first(stage.candidates, identity=True) or _filled(stage.candidates),) * stage.depth
            for stage in self.stages
        )
        return self.architecture(widths, choices)

    @property
    def token_suffix(self) -> int:
        """How many of the last positions can hold a token block."""
        count = 0
        for stage, _ in reversed(self.positions):
            if not any(candidate.layout == "tokens" for candidate in self.candidates(stage)):
                break
            count += 1
        return count

    def scaled(self, depth: float, width: float | None = None) -> Architecture:
        """Depths, widths and the number of token blocks scaled uniformly; 1.0 is the largest architecture.

        Depths and widths are rounded to the nearest legal value; a stage keeps at least one block, its first ones.
        """
        width = depth if width is None else width
        widths = []
        filled: list[bool] = []
        for number, stage in enumerate(self.stages, start=1):
            legal = self.widths(number)
            _, nearest_width = min((abs(value - width * legal[-1]), value) for value in legal)
            widths.append(nearest_width)
            keep = max(1, round(depth * stage.depth))
            skippable = any(candidate.is_identity for candidate in stage.candidates)
            filled += [position < keep or not skippable for position in range(stage.depth)]
        return self._with_tokens(tuple(widths), filled, tokens=round(depth * self.token_suffix))

    @cached_property
    def uniformly_scaled(self) -> tuple[Architecture, ...]:
        """The distinct architectures that `scaled` gives for 401 factors from 0 to 1, from the smallest on."""
        every = (self.scaled(step / 400) for step in range(401))
        return tuple({architecture.digest: architecture for architecture in every}.values())

    def _with_tokens(self, widths: tuple[int, ...], filled: list[bool], *, tokens: int) -> Architecture:
        """Fill positions with map blocks, the last `tokens` of the net with token blocks."""
        first_token = len(self.positions) - tokens
        choices: list[list[Candidate]] = [[] for _ in self.stages]
        for index, (stage, _) in enumerate(self.positions):
            candidates = self.candidates(stage)
            layout: Literal["map", "tokens"] = "tokens" if index >= first_token else "map"
            chosen = _filled(candidates, layout) if filled[index] else _first(candidates, identity=True)
            assert chosen is not None
            choices[stage - 1].append(chosen)
        return self.architecture(tuple(widths), tuple(tuple(chosen) for chosen in choices))

    def random(self, generator: torch.Generator) -> Architecture:
        """A random legal architecture, spread over the range of latencies rather than uniform over the space.

        The probability of keeping a block is drawn once an architecture, so that shallow nets occur as often as deep
        ones; then every width and every candidate is drawn uniformly.
        """

        def draw(options: int) -> int:
            return int(torch.randint(options, (), generator=generator))

        keep = 0.25 + 0.75 * float(torch.rand((), generator=generator))
        widths = []
        for number in range(1, len(self.stages) + 1):
            legal = self.widths(number)
            widths.append(legal[draw(len(legal))])
        first_token = len(self.positions) - draw(self.token_suffix + 1)
        choices: list[list[Candidate]] = [[] for _ in self.stages]
        for index, (stage, _) in enumerate(self.positions):
            candidates = self.candidates(stage)
            layout = "tokens" if index >= first_token else "map"
            blocks = [c for c in candidates if not c.is_identity and c.layout == layout]
            blocks = blocks or [c for c in candidates if not c.is_identity]
            identity = _first(candidates, identity=True)
            kept = float(torch.rand((), generator=generator)) < keep
            block = blocks[draw(len(blocks))]
            choices[stage - 1].append(block if kept or identity is None else identity)
        return self.architecture(tuple(widths), tuple(tuple(chosen) for chosen in choices))


def check_width(width_channels: int, *, granularity: int, stage: int) -> None:
    """Raise `UserError` unless the width is a multiple of the granularity, naming the nearest ones that are."""
    if width_channels % granularity:
        below = width_channels // granularity * granularity
        close = ", ".join(str(width) for width in (below, below + granularity) if width)
        raise UserError(f"stage {stage}: width {width_channels} is not a multiple of {granularity} (nearest: {close})")


def check_distinct(candidates: tuple[Candidate, ...], *, width_channels: int, stage: int) -> None:
    """Raise `UserError` if two candidates are the same block at a width: no architecture could tell them apart."""
    for first, second in itertools.combinations(candidates, 2):
        if first.block(width_channels) == second.block(width_channels):
            raise UserError(
                f"stage {stage}: candidates {first.name} and {second.name} are the same block at width"
                f" {width_channels}; leave one out"
            )


def _first(candidates: tuple[Candidate, ...], *, identity: bool) -> Candidate | None:
    return next((candidate for candidate in candidates if candidate.is_identity == identity), None)


def _filled(candidates: tuple[Candidate, ...], layout: Literal["map", "tokens"] = "map") -> Candidate:
    """The first block of this layout, or the first block at all."""
    blocks = [candidate for candidate in candidates if not candidate.is_identity]
    return next((candidate for candidate in blocks if candidate.layout == layout), blocks[0])
