"""Exact search: of all architectures within some limits the one with the largest sum of contributions.

The integer program is a knapsack of multiple choice (scipy's milp, HiGHS): a stage takes one of its widths and a
position one of its candidates; a downsampling costs by the pair of widths around it; token blocks are the last blocks
of the net, and the way to them costs once a stage. There may be any number of limits (`search.limits`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, OptimizeResult, milp
from scipy.sparse import coo_array

from search.contributions import Contributions
from search.limits import SLACK, AnyLimit, Beyond, Limit, LimitsUnreachable, PartLimit
from search.parts import LatencyKey, key_of, reshape_key
from supernet import Architecture, SearchSpace

# HiGHS lets a constraint be missed by 1e-6 or so. Nets that do are left out one by one; there may be many, the same
# blocks in another order, so that after some tries the limits are lowered by more than that.
TRIES, LOWERED = 20, 4e-6
INFEASIBLE, OPTIMAL = 2, 0  # milp's status


@dataclass(frozen=True)
class Optimum:
    """The best architecture, its modelled score in percent, the program's upper bound on any, and the limits' use."""

    architecture: Architecture
    percent: float
    bound_percent: float
    used: dict[str, float]


def solve(space: SearchSpace, contributions: Contributions, limits: Sequence[AnyLimit]) -> Optimum:
    """The architecture of the largest modelled score within all limits, proven: the gap to the bound is zero.

    Where 20 nets miss a limit by less than the solver sees, the proof is of limits that are lower by 4e-6 of them.

    Raises `LimitsUnreachable`, and `UnmeasuredBlock` for a limit by a table that lacks a part of the space.
    """
    sums = [limit for limit in limits if isinstance(limit, Limit)]
    of_parts = [limit for limit in limits if isinstance(limit, PartLimit)]
    program = _Program(space, contributions, sums, of_parts)
    for tried in range(2 * TRIES):
        found = program.best(lowered=LOWERED if tried >= TRIES else 0.0)
        if found is None:
            unlimited = _Program(space, contributions, sums, [])
            smallest = {limit.name: limit.used(unlimited.least(n)) for n, limit in enumerate(sums)}
            raise LimitsUnreachable(limits, smallest | {limit.name: unlimited.least_peak(limit) for limit in of_parts})
        architecture, bound_percent = found
        used = {limit.name: limit.used(architecture) for limit in limits}
        if all(limit.allows(used[limit.name]) for limit in sums):
            percent = contributions.percent(space, architecture)
            return Optimum(architecture, percent, max(percent, bound_percent), used)
        program.exclude(architecture)
    raise RuntimeError(f"the integer program missed a limit {2 * TRIES} times")


def least(space: SearchSpace, limit: Limit) -> Architecture:
    """The architecture that takes least of a limit, to a millionth of the dearest part. Raises as `solve` does."""
    widths = tuple(tuple(0.0 for _ in space.widths(number)) for number in range(1, len(space.stages) + 1))
    blocks = tuple(tuple(tuple(0.0 for _ in stage.candidates) for _ in range(stage.depth)) for stage in space.stages)
    nothing = Contributions(space_digest=space.digest, largest_percent=0.0, widths=widths, blocks=blocks)
    return _Program(space, nothing, [limit], []).least(0)


@dataclass
class _Rows:
    """Linear constraints lower <= sum of coefficient * variable <= upper, collected one by one."""

    rows: list[int] = field(default_factory=list)
    columns: list[int] = field(default_factory=list)
    coefficients: list[float] = field(default_factory=list)
    lower: list[float] = field(default_factory=list)
    upper: list[float] = field(default_factory=list)

    def add(self, terms: dict[int, float], lower: float, upper: float) -> None:
        for column, coefficient in terms.items():
            self.rows.append(len(self.lower))
            self.columns.append(column)
            self.coefficients.append(coefficient)
        self.lower.append(lower)
        self.upper.append(upper)

    def constraint(self, variables: int) -> LinearConstraint:
        shape = (len(self.lower), variables)
        matrix = coo_array((self.coefficients, (self.rows, self.columns)), shape=shape).tocsr()
        return LinearConstraint(matrix, self.lower, self.upper)


class _Program:
    """The integer program of a space.

    Variables, all between 0 and 1: a width of a stage (integer), a candidate at a position of a stage of a width
    (integer), a pair of widths around a downsampling, the way to tokens in a stage of a width, and whether token blocks
    have begun at a position. What a limit's sum exceeds its threshold by is a variable without an upper bound. A choice
    that brings a part above one of `of_parts` is fixed at 0.
    """

    def __init__(
        self,
        space: SearchSpace,
        contributions: Contributions,
        limits: Sequence[Limit],
        of_parts: Sequence[PartLimit],
    ) -> None:
        if contributions.space_digest != space.digest:
            raise ValueError("the contributions are of another space")
        self.space, self.contributions, self.limits = space, contributions, limits
        self.gains: list[float] = []
        beyond = [(number, limit.beyond) for number, limit in enumerate(limits) if limit.beyond is not None]
        self.sums = [limit.of for limit in limits] + [found.of for _, found in beyond]
        self.costs: list[list[float]] = [[] for _ in self.sums]
        self.of_parts = of_parts
        self.keys: list[tuple[LatencyKey, ...]] = []
        self.integer: list[int] = []
        self.rows = _Rows()
        self.grids = space.largest.grids
        self.widths = [self._widths(number) for number in range(1, len(space.stages) + 1)]
        self.blocks = [self._blocks(number) for number in range(1, len(space.stages) + 1)]
        self._downsamplings()
        self._tokens()
        self.unbounded = [
            self._beyond(number, found, row) for row, (number, found) in enumerate(beyond, start=len(limits))
        ]

    def _variable(self, gain: float = 0.0, keys_: Sequence[LatencyKey] = (), *, integer: bool = False) -> int:
        self.gains.append(gain)
        self.integer.append(int(integer))
        self.keys.append(tuple(keys_))
        for costs, of in zip(self.costs, self.sums, strict=True):
            costs.append(sum(of(key) for key in keys_))
        return len(self.gains) - 1

    def _beyond(self, limit: int, beyond: Beyond, row: int) -> int:
        """The variable of what a sum exceeds its threshold by, at least: a limit pays for it."""
        terms = {variable: cost for variable, cost in enumerate(self.costs[row]) if cost}
        over = self._variable()
        self.costs[limit][over] = beyond.each
        self.rows.add(terms | {over: -1.0}, -np.inf, beyond.above)
        return over

    def _widths(self, number: int) -> dict[int, int]:
        """The variables of a stage's widths; the first stage's pays for the stem, the last one's for the head."""
        space, found = self.space, {}
        for width, gain in zip(space.widths(number), self.contributions.widths[number - 1], strict=True):
            ends = []
            if number == 1:
                ends.append(
                    key_of(
                        "stem",
                        space.stem_at(width),
                        in_channels=space.in_channels,
                        out_channels=width,
                        grid=space.resolution_px,
                    )
                )
            if number == len(space.stages) and self._ends_in is not None:
                ends.append(self._head(width, self._ends_in))
            found[width] = self._variable(gain, ends, integer=True)
        self.rows.add(dict.fromkeys(found.values(), 1.0), 1, 1)
        return found

    @property
    def _ends_in(self) -> Literal["map", "tokens"] | None:
        """What every architecture leaves to the head; None where some leave a map and some tokens."""
        layouts = {candidate.layout for candidate in self.space.candidates(len(self.space.stages))}
        return layouts.pop() if len(layouts) == 1 else None

    def _head(self, width: int, layout: Literal["map", "tokens"]) -> LatencyKey:
        return key_of(
            "head",
            self.space.head,
            in_channels=width,
            out_channels=self.space.num_classes,
            grid=self.grids[-1],
            layout=layout,
        )

    def _blocks(self, number: int) -> list[dict[tuple[int, int], int]]:
        """For every position of a stage the variables by (width, candidate's index): one at the stage's width."""
        found = []
        for gains in self.contributions.blocks[number - 1]:
            here: dict[tuple[int, int], int] = {}
            for width, chosen in self.widths[number - 1].items():
                for index, candidate in enumerate(self.space.candidates(number)):
                    block = candidate.block(width)
                    sizes = {"in_channels": width, "out_channels": width, "grid": self.grids[number - 1]}
                    cost = [] if candidate.is_identity else [key_of("block", block, layout=block.layout, **sizes)]
                    here[width, index] = self._variable(gains[index], cost, integer=True)
                of_width = {variable: 1.0 for (at, _), variable in here.items() if at == width}
                self.rows.add(of_width | {chosen: -1.0}, 0, 0)
            found.append(here)
        return found

    def _downsamplings(self) -> None:
        """A share for every pair of widths, whose sums over one side are the other side's widths."""
        for number in range(2, len(self.space.stages) + 1):
            before, after = self.widths[number - 2], self.widths[number - 1]
            pairs = {
                (narrow, wide): self._variable(
                    0.0,
                    [
                        key_of(
                            "downsampling",
                            self.space.downsampling,
                            in_channels=narrow,
                            out_channels=wide,
                            grid=self.grids[number - 2],
                        )
                    ],
                )
                for narrow in before
                for wide in after
            }
            for narrow, chosen in before.items():
                self.rows.add({pairs[narrow, wide]: 1.0 for wide in after} | {chosen: -1.0}, 0, 0)
            for wide, chosen in after.items():
                self.rows.add({pairs[narrow, wide]: 1.0 for narrow in before} | {chosen: -1.0}, 0, 0)

    def _tokens(self) -> None:
        """Token blocks last, a reshape before the first one of a stage, and a head that takes what the net leaves."""
        begun: int | None = None
        for number, stage in enumerate(self.space.stages, start=1):
            candidates = self.space.candidates(number)
            tokens = {index for index, candidate in enumerate(candidates) if candidate.layout == "tokens"}
            maps = {
                index for index, candidate in enumerate(candidates) if index not in tokens and not candidate.is_identity
            }
            for position in range(stage.depth):
                variables = self.blocks[number - 1][position]
                if tokens:
                    now = self._variable()
                    chosen = {variable: -1.0 for (_, index), variable in variables.items() if index in tokens}
                    self.rows.add(chosen | {now: 1.0}, 0, 1)
                    if begun is not None:
                        self.rows.add({now: 1.0, begun: -1.0}, 0, 1)
                    begun = now
                if begun is not None:
                    chosen = {variable: 1.0 for (_, index), variable in variables.items() if index in maps}
                    self.rows.add(chosen | {begun: 1.0}, 0, 1)
            if tokens:
                self._ways(number, tokens)

    def _ways(self, number: int, tokens: set[int]) -> None:
        """Per width of a stage one where it has token blocks: it pays for the reshape, and for the head after them.

        Where the last stage can do without them, another pays for the head of a map.
        """
        open_end = number == len(self.space.stages) and self._ends_in is None
        for width, chosen_width in self.widths[number - 1].items():
            reshape = reshape_key(width, self.grids[number - 1])
            way = self._variable(0.0, [reshape, self._head(width, "tokens")] if open_end else [reshape])
            if open_end:
                map_end = self._variable(0.0, [self._head(width, "map")])
                self.rows.add({map_end: 1.0, way: 1.0, chosen_width: -1.0}, 0, 0)
            of_width = [[row[width, index] for index in tokens] for row in self.blocks[number - 1]]
            for variables in of_width:  # of one position, of which at most one is chosen
                self.rows.add(dict.fromkeys(variables, -1.0) | {way: 1.0}, 0, 1)
            anywhere = {variable: 1.0 for variables in of_width for variable in variables}
            self.rows.add(anywhere | {way: -1.0}, 0, np.inf)

    def best(self, *, lowered: float = 0.0) -> tuple[Architecture, float] | None:
        """The architecture of the largest score within the limits, as HiGHS sees them, and the bound; None without.

        `lowered` is the share by which every limit is lowered.
        """
        limited = _Rows(*(list(column) for column in vars(self.rows).values()))
        of_limits = self.costs[: len(self.limits)]  # then come those of `beyond`
        for costs, limit in zip(of_limits, self.limits, strict=True):
            left = limit.at_most + (SLACK - lowered) * abs(limit.at_most) - limit.constant
            size = max(abs(left), 1e-12)  # in shares of the limit, because solvers miss by absolute amounts
            limited.add({i: cost / size for i, cost in enumerate(costs) if cost}, -np.inf, left / size)
        result = self._milp(-np.array(self.gains), limited)
        if result.status == INFEASIBLE:
            return None
        bound = result.mip_dual_bound if result.mip_dual_bound is not None else result.fun
        return self._architecture(result.x), self.contributions.largest_percent - float(bound)

    def exclude(self, architecture: Architecture) -> None:
        """Leave out one architecture: not all of its choices at once."""
        chosen = []
        rows = zip(architecture.stages, self.space.choices(architecture), strict=True)
        for number, (stage, row) in enumerate(rows, start=1):
            width, candidates = stage.width_channels, self.space.candidates(number)
            chosen.append(self.widths[number - 1][width])
            for positions, candidate in zip(self.blocks[number - 1], row, strict=True):
                chosen.append(positions[width, candidates.index(candidate)])
        self.rows.add(dict.fromkeys(chosen, 1.0), -np.inf, len(chosen) - 1)

    def least(self, limit: int) -> Architecture:
        """The architecture whose sum of one limit is smallest."""
        costs = np.array(self.costs[limit])
        size = float(np.abs(costs).max()) or 1.0
        result = self._milp(costs / size, self.rows)
        return self._architecture(result.x)

    def least_peak(self, limit: PartLimit) -> float:
        """The smallest value that a net's largest part can have."""
        values = sorted({limit.of(key) for keys_ in self.keys for key in keys_})
        nothing = np.zeros(len(self.gains))

        def reached(value: float) -> bool:
            upper = self._upper([replace(limit, at_most=value)])
            return bool(self._milp(nothing, self.rows, upper=upper).status == OPTIMAL)

        return values[bisect_left(values, True, key=reached)]

    def _upper(self, of_parts: Sequence[PartLimit]) -> np.ndarray:
        """The upper bounds of the variables."""
        upper = np.ones(len(self.gains))
        upper[self.unbounded] = np.inf
        for limit in of_parts:
            for variable, keys_ in enumerate(self.keys):
                if any(not limit.allows(limit.of(key)) for key in keys_):
                    upper[variable] = 0.0
        return upper

    def _milp(self, objective: np.ndarray, rows: _Rows, *, upper: np.ndarray | None = None) -> OptimizeResult:
        result = milp(
            objective,
            integrality=self.integer,
            bounds=Bounds(0, self._upper(self.of_parts) if upper is None else upper),
            constraints=rows.constraint(len(self.gains)),
            options={"mip_rel_gap": 0.0},
        )
        if result.status not in (OPTIMAL, INFEASIBLE):
            raise RuntimeError(f"the integer program was not solved: {result.message}")
        return result

    def _architecture(self, values: np.ndarray) -> Architecture:
        widths, choices = [], []
        for number, variables in enumerate(self.widths, start=1):
            width = max(variables, key=lambda width: values[variables[width]])
            candidates = self.space.candidates(number)
            row = [
                candidates[max(range(len(candidates)), key=lambda index: values[positions[width, index]])]
                for positions in self.blocks[number - 1]
            ]
            widths.append(width)
            choices.append(tuple(row))
        return self.space.architecture(tuple(widths), tuple(choices))
