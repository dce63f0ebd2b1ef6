"""Parts as differences: what every part of a space takes, out of the timings of the small nets that hold it.

A part is one net minus another minus parts that are known before it (`search.skeletons`), so errors add up as those of
independent measurements do. Where a transition between two stages has many pairs of widths, a grid of them is measured
and the rest lies on the bilinear surface through it, marked as interpolated.
"""

from __future__ import annotations

import itertools
import json
import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from scipy.interpolate import RegularGridInterpolator

from search.latency_table import Entry
from search.measure import Timing
from search.parts import LatencyKey, keys
from search.skeletons import Recipe, Skeleton, recipes
from supernet.space import SearchSpace

SMALLEST_MS = 1e-6  # what a part counts as that cannot be told from nothing


class Recipes(NamedTuple):
    """All parts of a space: those that are measured, and those between them."""

    todo: list[Recipe]
    measured: list[Recipe]
    between: list[Recipe]

    @classmethod
    def of(cls, space: SearchSpace, *, copies: int, pairs: int) -> Recipes:
        todo = _distinct(recipes(space, copies=copies))
        return cls(todo, *_split_pairs(todo, most=pairs))

    @property
    def skeletons(self) -> list[Skeleton]:
        return skeletons_of(self.measured)


@dataclass(frozen=True)
class Value:
    """A difference of timings, in ms: of their medians, how far its 10th and 90th percentile are from it, its error."""

    median_ms: float
    below_ms: float
    above_ms: float
    error_ms: float
    runs: int
    settled: bool = True
    interpolated: bool = False

    def entry(self, key: LatencyKey) -> Entry:
        return Entry(
            part=key.part,
            spec=json.loads(key.spec),
            layout=key.layout,
            in_channels=key.in_channels,
            out_channels=key.out_channels,
            grid=key.grid,
            median_ms=max(SMALLEST_MS, round(self.median_ms, 7)),
            p10_ms=round(self.median_ms - self.below_ms, 7),
            p90_ms=round(self.median_ms + self.above_ms, 7),
            standard_error_ms=round(self.error_ms, 7) if math.isfinite(self.error_ms) else None,
            runs=self.runs,
            settled=self.settled,
            interpolated=self.interpolated,
        )


def solve(found: Iterable[Recipe], timings: Mapping[Any, Timing]) -> dict[LatencyKey, Value]:
    """The parts, in the order of the recipes: each needs only parts before it."""
    values: dict[LatencyKey, Value] = {}
    for recipe in found:
        values[recipe.key] = difference(recipe, timings, values)
    return values


def difference(recipe: Recipe, timings: Mapping[Any, Timing], values: dict[LatencyKey, Value]) -> Value:
    """A recipe's value: the difference of the medians; spreads add up as those of independent measurements do."""
    plus = timings[recipe.plus]
    median_ms, below_ms, above_ms = plus.median_ms, plus.median_ms - plus.p10_ms, plus.p90_ms - plus.median_ms
    error_ms = plus.standard_error_ms
    if recipe.minus is not None:
        minus = timings[recipe.minus]
        median_ms -= minus.median_ms
        below_ms = math.hypot(below_ms, minus.p90_ms - minus.median_ms)
        above_ms = math.hypot(above_ms, minus.median_ms - minus.p10_ms)
        error_ms = math.hypot(error_ms, minus.standard_error_ms)
    for key in recipe.minus_keys:
        median_ms -= values[key].median_ms
        error_ms = math.hypot(error_ms, values[key].error_ms)
    copies = recipe.copies
    return Value(median_ms / copies, below_ms / copies, above_ms / copies, error_ms / copies, plus.runs)


def loose_recipes(
    measured: list[Recipe], values: dict[LatencyKey, Value], goal: float, space: SearchSpace
) -> list[Recipe]:
    """The recipes whose value is not known to the goal, nor to a tenth of the goal of the largest net."""
    largest_ms = sum(values[key].median_ms for key in keys(space.largest) if key in values)
    return [
        recipe
        for recipe in measured
        if values[recipe.key].error_ms > goal * max(values[recipe.key].median_ms, 0.1 * largest_ms)
    ]


def with_parts_before(loose: list[Recipe], measured: list[Recipe]) -> list[Recipe]:
    """These recipes and those of the parts that they subtract, whose errors are in theirs."""
    by_key = {recipe.key: recipe for recipe in measured}
    found: dict[LatencyKey, Recipe] = {}
    todo = list(loose)
    while todo:
        recipe = todo.pop()
        found[recipe.key] = recipe
        todo += [by_key[key] for key in recipe.minus_keys if key not in found]
    return list(found.values())


def with_unsettled(
    found: Recipes, values: dict[LatencyKey, Value], goal: float, space: SearchSpace
) -> dict[LatencyKey, Value]:
    """The same values, with those marked whose standard error is above the goal, or that are at or below zero."""
    unsettled = {recipe.key for recipe in loose_recipes(found.measured, values, goal, space)}
    unsettled |= {key for key, value in values.items() if value.median_ms <= SMALLEST_MS}
    return values | {key: replace(values[key], settled=False) for key in unsettled}


def _split_pairs(found: list[Recipe], *, most: int) -> tuple[list[Recipe], list[Recipe]]:
    """The recipes to measure, and the downsamplings to interpolate where a transition has more pairs than `most`."""
    transitions: dict[tuple[str, tuple[int, int]], list[Recipe]] = {}
    for recipe in found:
        if recipe.key.part == "downsampling":
            transitions.setdefault((recipe.key.spec, recipe.key.grid), []).append(recipe)
    between: set[LatencyKey] = set()
    for pairs in transitions.values():
        if len(pairs) > most:
            in_widths = _spread({recipe.key.in_channels for recipe in pairs}, int(most**0.5))
            out_widths = _spread({recipe.key.out_channels for recipe in pairs}, int(most**0.5))
            between |= {
                recipe.key
                for recipe in pairs
                if recipe.key.in_channels not in in_widths or recipe.key.out_channels not in out_widths
            }
    return [r for r in found if r.key not in between], [r for r in found if r.key in between]


def _spread(widths: set[int], count: int) -> set[int]:
    """At most `count` of the widths, evenly spread, both ends among them."""
    ascending = sorted(widths)
    chosen = np.linspace(0, len(ascending) - 1, min(max(2, count), len(ascending))).round().astype(int)
    return {ascending[index] for index in chosen}


def interpolate(
    between: list[Recipe], measured: list[Recipe], values: dict[LatencyKey, Value]
) -> dict[LatencyKey, Value]:
    """Downsamplings between measured pairs of widths, each on the bilinear surface through its four neighbours.

    One is settled where all that it lies between are.
    """
    found: dict[LatencyKey, Value] = {}
    for transition in dict.fromkeys((recipe.key.spec, recipe.key.grid) for recipe in between):
        known = [r.key for r in measured if r.key.part == "downsampling" and (r.key.spec, r.key.grid) == transition]
        axes = sorted({key.in_channels for key in known}), sorted({key.out_channels for key in known})
        by_widths = {(key.in_channels, key.out_channels): values[key] for key in known}
        surfaces = [
            RegularGridInterpolator(axes, [[getattr(by_widths[a, b], field) for b in axes[1]] for a in axes[0]])
            for field in ("median_ms", "below_ms", "above_ms", "error_ms")
        ]
        for key in (r.key for r in between if (r.key.spec, r.key.grid) == transition):
            median, below, above, error = (float(surface((key.in_channels, key.out_channels))) for surface in surfaces)
            around = itertools.product(_around(axes[0], key.in_channels), _around(axes[1], key.out_channels))
            settled = all(by_widths[widths].settled for widths in around)
            found[key] = Value(median, below, above, error, runs=0, settled=settled, interpolated=True)
    return found


def _around(ascending: list[int], width: int) -> list[int]:
    """The width itself, if it is one of these, or the two that it lies between."""
    index = bisect_left(ascending, width)
    return [width] if ascending[index] == width else ascending[index - 1 : index + 1]


def _distinct(found: Iterable[Recipe]) -> list[Recipe]:
    """One recipe a key: two stages of equal width and grid share their parts."""
    return list({recipe.key: recipe for recipe in found}.values())


def skeletons_of(found: Iterable[Recipe]) -> list[Skeleton]:
    return list(dict.fromkeys(net for recipe in found for net in (recipe.plus, recipe.minus) if net is not None))
