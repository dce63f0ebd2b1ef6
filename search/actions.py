"""Slimming actions: values that make a smaller architecture.

Three are those of EfficientFormer's search; the change of a candidate is what a space of more blocks needs beside them.
Stages and blocks are numbered from 1.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from typing_extensions import assert_never

from supernet import Architecture, Candidate, SearchSpace, UserError
from supernet.schema import Record

Choices = tuple[tuple[Candidate, ...], ...]


class SkipPath(Record):
    """Choose identity at one MetaPath (depth reduction)."""

    kind: Literal["skip_path"] = "skip_path"
    stage: int
    block: int


class DropFirst3D(Record):
    """Turn the net's first token block into a map block, or identity where the position has no map block.

    The published description says "remove the first MB3D": their number shrinks by one, the depth stays.
    """

    kind: Literal["drop_first_3d"] = "drop_first_3d"


class NarrowStage(Record):
    """Give one stage a smaller width (width reduction)."""

    kind: Literal["narrow_stage"] = "narrow_stage"
    stage: int
    width_channels: int


class ChangeCandidate(Record):
    """Choose another block at one position, named by its candidate, that works on the same layout."""

    kind: Literal["change_candidate"] = "change_candidate"
    stage: int
    block: int
    candidate: str


SlimmingAction = Annotated[SkipPath | DropFirst3D | NarrowStage | ChangeCandidate, Field(discriminator="kind")]


def apply(action: SlimmingAction, architecture: Architecture, *, space: SearchSpace) -> Architecture:
    """The architecture after the action. Raises `UserError` where the action is not possible."""
    widths = tuple(stage.width_channels for stage in architecture.stages)
    choices = space.choices(architecture)
    match action:
        case SkipPath():
            identity = _identity(space, action.stage)
            if identity is None or choices[action.stage - 1][action.block - 1].is_identity:
                raise UserError(f"stage {action.stage}, block {action.block}: cannot be skipped")
            choices = _replaced(choices, action.stage, action.block, identity)
        case DropFirst3D():
            first = first_token_block(space, architecture)
            if first is None:
                raise UserError("no token block is left to drop")
            stage, block = first
            maps = [c for c in space.candidates(stage) if c.layout == "map" and not c.is_identity]
            replacement = maps[0] if maps else _identity(space, stage)
            if replacement is None:
                raise UserError(f"stage {stage}, block {block}: has no candidate but token blocks")
            choices = _replaced(choices, stage, block, replacement)
        case NarrowStage():
            if action.width_channels >= widths[action.stage - 1]:
                raise UserError(
                    f"stage {action.stage}: width {action.width_channels} is not below {widths[action.stage - 1]}"
                )
            widths = tuple(
                action.width_channels if number == action.stage else width for number, width in enumerate(widths, 1)
            )
        case ChangeCandidate():
            possible = other_candidates(space, architecture, action.stage, action.block)
            if action.candidate not in possible:
                raise UserError(
                    f"stage {action.stage}, block {action.block}: cannot become {action.candidate}"
                    f" (possible: {', '.join(possible) or 'none'})"
                )
            other = next(c for c in space.candidates(action.stage) if c.name == action.candidate)
            choices = _replaced(choices, action.stage, action.block, other)
        case _:
            assert_never(action)
    return space.architecture(widths, choices)


def first_token_block(space: SearchSpace, architecture: Architecture) -> tuple[int, int] | None:
    """Stage and block number of the first token block, or None."""
    flat = [candidate for chosen in space.choices(architecture) for candidate in chosen]
    return next(
        (position for position, c in zip(space.positions, flat, strict=True) if c.layout == "tokens"),
        None,
    )


def can_drop_token_block(space: SearchSpace, architecture: Architecture) -> bool:
    """Whether there is a token block, and something to put in the place of the first."""
    first = first_token_block(space, architecture)
    return first is not None and any(c.is_identity or c.layout == "map" for c in space.candidates(first[0]))


def skippable(space: SearchSpace, architecture: Architecture) -> list[tuple[int, int]]:
    """Stage and block numbers of the positions that are filled and may be identity."""
    flat = [candidate for chosen in space.choices(architecture) for candidate in chosen]
    return [
        position
        for position, candidate in zip(space.positions, flat, strict=True)
        if not candidate.is_identity and _identity(space, position[0]) is not None
    ]


def other_candidates(space: SearchSpace, architecture: Architecture, stage: int, block: int) -> list[str]:
    """The names of what else a filled position could hold on the same layout; none for a skipped one."""
    here = space.choices(architecture)[stage - 1][block - 1]
    if here.is_identity:
        return []
    blocks = [candidate for candidate in space.candidates(stage) if not candidate.is_identity]
    return [candidate.name for candidate in blocks if candidate.layout == here.layout and candidate != here]


def narrower_width(space: SearchSpace, architecture: Architecture, stage: int) -> int | None:
    """The next smaller legal width of a stage, or None."""
    current = architecture.stages[stage - 1].width_channels
    return max((width for width in space.widths(stage) if width < current), default=None)


def _identity(space: SearchSpace, stage: int) -> Candidate | None:
    return next((candidate for candidate in space.candidates(stage) if candidate.is_identity), None)


def _replaced(choices: Choices, stage: int, block: int, candidate: Candidate) -> Choices:
    return tuple(
        tuple(
            candidate if (number, position) == (stage, block) else old for position, old in enumerate(chosen, start=1)
        )
        for number, chosen in enumerate(choices, start=1)
    )
