"""Contributions: what every single choice of a space adds to an architecture's score, so that scores can be summed.

The score of an architecture is modelled as that of the largest one plus a contribution for each stage's width and for
each position's candidate. That is wrong in detail and right in the large, as a latency table is: so, as with a table,
whole architectures that were scored correct it (`Contributions.corrected`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np

from search.slimming import Score
from supernet import Architecture, SearchSpace
from supernet.candidate import Candidate
from supernet.schema import Record

Choices = tuple[tuple[Candidate, ...], ...]


class Contributions(Record):
    """Points added to `largest_percent`, the largest architecture's score, by every choice.

    `widths[s][i]` is that of the i-th width (ascending) of stage s, `blocks[s][b][k]` that of the k-th candidate at
    position b of stage s, all counted from 0. What the largest architecture has contributes 0.
    """

    schema_version: Literal[1] = 1
    space_digest: str
    largest_percent: float
    widths: tuple[tuple[float, ...], ...]
    blocks: tuple[tuple[tuple[float, ...], ...], ...]

    def percent(self, space: SearchSpace, architecture: Architecture) -> float:
        """The modelled score of an architecture of the space."""
        return self.largest_percent + float(_chosen(space, architecture) @ self._vector())

    def corrected(
        self, space: SearchSpace, scored: Mapping[Architecture, float], *, strength: float = 1.0
    ) -> Contributions:
        """The contributions nearest to these that agree better with scored architectures (ridge regression).

        `strength` is what a point of change in one contribution counts against a point of error in one score.
        """
        if not scored:
            return self
        features = np.stack([_chosen(space, architecture) for architecture in scored])
        errors = np.array([percent - self.percent(space, net) for net, percent in scored.items()])
        # the least ||features @ change - errors||^2 + strength ||change||^2, solved in the small space of the scores
        kernel = features @ features.T + strength * np.eye(len(errors))
        return self._from(self._vector() + features.T @ np.linalg.solve(kernel, errors))

    def _vector(self) -> np.ndarray:
        widths = [value for stage in self.widths for value in stage]
        return np.array(widths + [value for stage in self.blocks for position in stage for value in position])

    def _from(self, vector: np.ndarray) -> Contributions:
        values = iter(vector.tolist())
        return self.model_copy(
            update={
                "widths": tuple(tuple(next(values) for _ in stage) for stage in self.widths),
                "blocks": tuple(
                    tuple(tuple(next(values) for _ in position) for position in stage) for stage in self.blocks
                ),
            }
        )


def _chosen(space: SearchSpace, architecture: Architecture) -> np.ndarray:
    """One where the architecture makes a choice, in the order of `Contributions._vector`."""
    chosen: list[float] = []
    for number, stage in enumerate(architecture.stages, start=1):
        chosen += [float(width == stage.width_channels) for width in space.widths(number)]
    for number, candidates in enumerate(space.choices(architecture), start=1):
        for here in candidates:
            chosen += [float(candidate == here) for candidate in space.candidates(number)]
    return np.array(chosen)


def removal_contributions(
    space: SearchSpace, score: Score, *, progress: Callable[[int, int], None] = lambda done, total: None
) -> Contributions:
    """Contributions measured one choice at a time: the score of the largest architecture with it, minus without.

    A map block in the place of a token block is legal only where no token block comes before it: it adds what the
    score changes by when the last of the token blocks up to there becomes a map block. A token block where the largest
    architecture has none counts as the block in its place.
    """
    largest = space.largest
    widths = tuple(stage.width_channels for stage in largest.stages)
    choices = space.choices(largest)
    best = score(largest)

    def of_width(number: int, width: int) -> float:
        if width == widths[number - 1]:
            return 0.0
        return score(space.architecture((*widths[: number - 1], width, *widths[number:]), choices)) - best

    def of_candidate(stage: int, block: int, candidate: Candidate) -> float:
        here = choices[stage - 1][block - 1]
        if candidate == here:
            return 0.0
        if candidate.is_identity or candidate.layout == here.layout:
            return score(space.architecture(widths, _replaced(choices, stage, block, candidate))) - best
        if here.layout == "map":
            return 0.0
        before = _mapped(space, choices, up_to=(stage, block))
        after = _replaced(before, stage, block, candidate)
        return score(space.architecture(widths, after)) - score(space.architecture(widths, before))

    return Contributions(
        space_digest=space.digest,
        largest_percent=best,
        widths=tuple(
            tuple(of_width(number, width) for width in space.widths(number))
            for number in range(1, len(space.stages) + 1)
        ),
        blocks=tuple(
            tuple(
                tuple(of_candidate(number, block, candidate) for candidate in space.candidates(number))
                for block in range(1, stage.depth + 1)
            )
            for number, stage in enumerate(space.stages, start=1)
        ),
    )


def _replaced(choices: Choices, stage: int, block: int, candidate: Candidate) -> Choices:
    rows = [list(row) for row in choices]
    rows[stage - 1][block - 1] = candidate
    return tuple(tuple(row) for row in rows)


def _mapped(space: SearchSpace, choices: Choices, *, up_to: tuple[int, int]) -> Choices:
    """The choices with a map block in the place of every token block before a position, or identity without one."""
    for stage, block in space.positions:
        if (stage, block) >= up_to:
            break
        if choices[stage - 1][block - 1].layout == "tokens":
            others = [candidate for candidate in space.candidates(stage) if candidate.layout == "map"]
            kept = [candidate for candidate in others if not candidate.is_identity] or others
            choices = _replaced(choices, stage, block, kept[0])
    return choices
