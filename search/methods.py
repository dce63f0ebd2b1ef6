"""Search methods behind one call, those of the project and a user's own.

A method is asked for architectures of a space within a latency, and answers with a `Trajectory` or a `Front`: whatever
says which architecture is its own `at` a budget. A run asks a user's own method through this call. Of the project's it
asks what lies below them, with the settings of its experiment, because it keeps what one budget's search has scored for
the next; here they are for who searches from Python.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch

from search.baselines import random_architecture, uniform_scaling
from search.efficiency import MobileEfficiency
from search.front import Front, Scored
from search.frontier import slim_frontier
from search.importance import Importance
from search.latency_table import LatencyTable
from search.random_search import random_search
from search.slimming import Score, Unreachable, check_reachable, slim
from search.trajectory import Trajectory
from supernet import Architecture, SearchSpace, UserError
from supernet.schema import nearest

if TYPE_CHECKING:
    from search.evolution import SamplerName  # which loads Optuna: half a second that other methods do not need

TRIALS = 200  # what evolution and random search score where nothing else is said


class Answered(Protocol):
    """One architecture of an answer: a `Step` of a trajectory, or what a `Front` has `Scored`."""

    @property
    def architecture(self) -> Architecture:
        """The architecture."""


class Answer(Protocol):
    """What a method found; `search.trajectory.Trajectory` and `search.front.Front` are such."""

    def at(self, budget_ms: float) -> Answered | None:
        """The method's architecture within a latency, None where it has none."""


class SearchMethod(Protocol):
    """A search for architectures predicted within `budget_ms` by the table, best by `score`, in percent.

    `importance` is that of every MetaPath. All that is drawn comes from the `generator`, so that the same seed finds
    the same. What a method has no use for it takes as `**_`. Raises `search.slimming.BudgetUnreachable` where the
    space has no such architecture.
    """

    def __call__(
        self,
        space: SearchSpace,
        *,
        table: LatencyTable,
        budget_ms: float,
        score: Score,
        importance: Importance,
        generator: torch.Generator,
    ) -> Answer:
        """Search."""


def published_slimming(
    space: SearchSpace, *, table: LatencyTable, budget_ms: float, score: Score, importance: Importance, **_: object
) -> Trajectory:
    """Greedy slimming over three actions a step (`search.slimming.slim`)."""
    return slim(space, importance=importance, table=table, score=score, budget_ms=budget_ms)


def slimming_over_the_frontier(
    space: SearchSpace,
    *,
    table: LatencyTable,
    budget_ms: float,
    score: Score,
    efficiency: MobileEfficiency | None = None,
    **_: object,
) -> Trajectory:
    """Greedy slimming over every legal action (`search.frontier`), by milliseconds or by an `efficiency`."""
    return slim_frontier(space, table=table, score=score, budget_ms=budget_ms, efficiency=efficiency)


def exact(space: SearchSpace, *, table: LatencyTable, budget_ms: float, score: Score, **_: object) -> Front:
    """The integer program over scores of single choices, solved, scored and corrected (`search.refining`)."""
    from search.contributions import removal_contributions  # these load scipy's solver
    from search.limits import latency_limit
    from search.refining import refined

    check_reachable(space, table=table, budget_ms=budget_ms)
    scored: dict[Architecture, float] = {}
    contributions = removal_contributions(space, score)
    refined(space, contributions, score=score, limits=[latency_limit(table, budget_ms)], scored=scored)
    return Front(tuple(Scored(net, percent, table.latency_ms(net)) for net, percent in scored.items()))


def evolution(
    space: SearchSpace,
    *,
    table: LatencyTable,
    budget_ms: float,
    score: Score,
    generator: torch.Generator,
    trials: int = TRIALS,
    population: int = 20,
    sampler: SamplerName = "nsga2",
    **_: object,
) -> Front:
    """Evolution over score and latency through Optuna (`search.evolution`)."""
    from search.evolution import evolve

    seed = int(torch.randint(2**31 - 1, (), generator=generator))
    return evolve(
        space,
        table=table,
        score=score,
        most_ms=budget_ms,
        trials=trials,
        seed=seed,
        population=population,
        sampler=sampler,
    )


def best_of_random(
    space: SearchSpace,
    *,
    table: LatencyTable,
    budget_ms: float,
    score: Score,
    generator: torch.Generator,
    trials: int = TRIALS,
    **_: object,
) -> Front:
    """Random search close below the budget (`search.random_search`)."""
    return random_search(space, table=table, score=score, budget_ms=budget_ms, trials=trials, generator=generator)


def uniform(space: SearchSpace, *, table: LatencyTable, budget_ms: float, score: Score, **_: object) -> Front:
    """Uniform scaling (`search.baselines`): one net, scored for the answer alone."""
    return _alone(uniform_scaling(space, table=table, budget_ms=budget_ms), table, score)


def one_at_random(
    space: SearchSpace, *, table: LatencyTable, budget_ms: float, score: Score, generator: torch.Generator, **_: object
) -> Front:
    """A random architecture close below the budget (`search.baselines`), scored for the answer alone."""
    net = random_architecture(space, table=table, budget_ms=budget_ms, generator=generator)
    return _alone(net, table, score)


def _alone(net: Architecture, table: LatencyTable, score: Score) -> Front:
    return Front((Scored(net, score(net), table.latency_ms(net)),))


BUILT_IN: dict[str, SearchMethod] = {
    "search": published_slimming,
    "frontier": slimming_over_the_frontier,
    "exact": exact,
    "evolution": evolution,
    "random_search": best_of_random,
    "uniform": uniform,
    "random": one_at_random,
}
ASKED = ("table", "budget_ms", "score", "importance", "generator")
_OWN: dict[str, SearchMethod] = {}
MethodT = TypeVar("MethodT", bound=SearchMethod)


def register_method(name: str) -> Callable[[MethodT], MethodT]:
    """Decorator that makes a search method known by its name, for `search.methods` and the methods of a study.

    Raises `ValueError` if the name is taken, or cannot be a folder's name, or the method cannot be called as a
    `SearchMethod` is.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(f"search method {name!r}: name it with small letters, digits and _")
    if name in method_names():
        raise ValueError(f"search method {name!r} is registered already")

    def register(method: MethodT) -> MethodT:
        try:
            inspect.signature(method).bind(None, **dict.fromkeys(ASKED))
        except TypeError as error:
            raise ValueError(
                f"search method {name!r}: cannot be called as (space, *, {', '.join(ASKED)}): {error}; what it has no"
                " use for it takes as **_"
            ) from None
        _OWN[name] = method
        return method

    return register


def search_method(name: str) -> SearchMethod:
    """The search method of this name. Raises `UserError` that names the nearest one."""
    found = BUILT_IN.get(name) or _OWN.get(name)
    if found is None:
        raise UserError(
            f"unknown search method {name!r}{nearest(name, method_names())}; a method of your own needs --plugin FILE"
        )
    return found


def takes_importance(name: str) -> bool:
    """Whether a method of this name asks for the importance of MetaPaths. Raises as `search_method`."""
    return "importance" in inspect.signature(search_method(name)).parameters


def method_names() -> list[str]:
    """The names of all known methods, the project's first."""
    return [*BUILT_IN, *_OWN]


def architecture_of(
    answer: Answer, name: str, *, space: SearchSpace, table: LatencyTable, budget_ms: float
) -> Architecture:
    """The architecture of a method's answer at a budget.

    Raises `Unreachable` where the answer has none, and `UserError` where that is not of the space or not within
    the budget, and where the answer is none.
    """
    if not hasattr(answer, "at"):
        kind = type(answer).__name__
        raise UserError(f"search method {name}: answers with {kind}, not with a Trajectory or a Front")
    found = answer.at(budget_ms)
    if found is None:
        raise Unreachable(f"search method {name}: has nothing within {budget_ms:g} ms, though the space has")
    net = found.architecture
    try:
        space.check(net)
    except UserError as error:
        raise UserError(
            f"search method {name}: answers with an architecture that is not of the space ({error})"
        ) from None
    if (latency_ms := table.latency_ms(net)) > budget_ms:
        raise UserError(
            f"search method {name}: asked for {budget_ms:g} ms, it answers with an architecture of {latency_ms:g} ms"
        )
    return net
