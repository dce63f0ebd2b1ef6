"""Solve, score, correct, solve again: the exact search on a model of the score that learns from what it proposes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping, Sequence

from search.contributions import Contributions
from search.exact import Optimum, solve
from search.limits import AnyLimit
from search.slimming import Score, scores_of
from supernet import Architecture, SearchSpace, UserError

ROUNDS = 8  # of solving, scoring and correcting
NEIGHBOURS = 4  # of an optimum that are scored with it


def refined(
    space: SearchSpace,
    contributions: Contributions,
    *,
    score: Score,
    limits: Sequence[AnyLimit],
    scored: MutableMapping[Architecture, float],
    proven: Callable[[Optimum], None] = lambda optimum: None,
    rounds: int = ROUNDS,
    neighbours: int = NEIGHBOURS,
) -> Architecture:
    """The best-scored architecture within the limits that the integer program led to.

    Each round solves the program, scores its optimum and the `neighbours` of it (one choice changed, within the
    limits) that the model likes best, and corrects the contributions by all that was scored. It ends when an optimum
    comes back that was scored already, or after `rounds`. `scored` takes what was scored, and what it holds before
    counts from the first round on; `proven` is told every optimum with its bound. Raises `LimitsUnreachable`.
    """
    for _ in range(rounds):
        model = contributions.corrected(space, scored)
        optimum = solve(space, model, limits)
        proven(optimum)
        best = optimum.architecture
        if best in scored:
            break
        near = sorted(
            (net for net in neighbours_of(space, best) if all(limit.allows(limit.used(net)) for limit in limits)),
            key=lambda net: (-model.percent(space, net), net.digest),
        )
        unknown = [net for net in (best, *near[:neighbours]) if net not in scored]
        scored.update(zip(unknown, scores_of(score, unknown), strict=True))
    within = [net for net in scored if all(limit.allows(limit.used(net)) for limit in limits)]
    return max(within, key=lambda net: (scored[net], -sum(limit.used(net) for limit in limits[:1]), net.digest))


def neighbours_of(space: SearchSpace, architecture: Architecture) -> Iterator[Architecture]:
    """The legal architectures that differ in one choice: a stage one step wider or narrower, or another candidate."""
    widths = tuple(stage.width_channels for stage in architecture.stages)
    choices = space.choices(architecture)
    for number in range(1, len(space.stages) + 1):
        legal = space.widths(number)
        at = legal.index(widths[number - 1])
        for other in legal[max(0, at - 1) : at] + legal[at + 1 : at + 2]:
            yield space.architecture((*widths[: number - 1], other, *widths[number:]), choices)
    for stage, block in space.positions:
        for candidate in space.candidates(stage):
            if candidate != choices[stage - 1][block - 1]:
                rows = [list(row) for row in choices]
                rows[stage - 1][block - 1] = candidate
                try:
                    yield space.architecture(widths, tuple(map(tuple, rows)))
                except UserError:  # token blocks come last
                    continue
