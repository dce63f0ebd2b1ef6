"""Search methods behind one call: each answers within the budget, from the generator alone; a user's own as well."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from search.front import Front, Scored
from search.importance import Importance
from search.methods import (
    architecture_of,
    best_of_random,
    evolution,
    method_names,
    one_at_random,
    register_method,
    search_method,
    takes_importance,
)
from search.slimming import BudgetUnreachable, Unreachable
from search.trajectory import Trajectory
from supernet import Architecture, SearchSpace, UserError
from tests.search.test_agreement import table_of

FEWER_TRIALS: dict[str, dict[str, int]] = {"random_search": {"trials": 10}, "evolution": {"trials": 30}}
BUILT_IN = ["search", "frontier", "exact", "evolution", "random_search", "uniform", "random"]


def score(net: Architecture) -> float:
    return sum(0.1 * stage.width_channels + 4.0 * len(stage.blocks) for stage in net.stages)


def ask(name: str, space: SearchSpace, importance: Importance, budget_ms: float, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    table = table_of(space)
    return search_method(name)(
        space,
        table=table,
        budget_ms=budget_ms,
        score=score,
        importance=importance,
        generator=generator,
        **FEWER_TRIALS.get(name, {}),
    )


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The registry of a user's methods, for one test."""
    registry: dict[str, Any] = {}
    monkeypatch.setattr("search.methods._OWN", registry)
    return registry


def test_these_are_the_projects_methods() -> None:
    assert method_names() == BUILT_IN


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_method_answers_within_the_budget_and_the_same_for_the_same_seed(
    name: str, space: SearchSpace, importance: Importance
) -> None:
    table = table_of(space)
    budget_ms = (table.latency_ms(space.largest) + table.latency_ms(space.smallest)) / 2
    answer = ask(name, space, importance, budget_ms)
    assert isinstance(answer, Trajectory if name in ("search", "frontier") else Front)
    net = architecture_of(answer, name, space=space, table=table, budget_ms=budget_ms)
    assert table.latency_ms(net) <= budget_ms
    assert ask(name, space, importance, budget_ms) == answer


@pytest.mark.parametrize("method", [partial(evolution, trials=25), partial(best_of_random, trials=5), one_at_random])
def test_another_generator_draws_others(method: Any, space: SearchSpace) -> None:
    table = table_of(space)
    first, second = (
        method(
            space,
            table=table,
            budget_ms=table.latency_ms(space.largest),
            score=score,
            importance=None,
            generator=torch.Generator().manual_seed(seed),
        )
        for seed in (0, 1)
    )
    assert first != second


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_budget_out_of_reach_is_refused_by_every_method(
    name: str, space: SearchSpace, importance: Importance
) -> None:
    with pytest.raises(BudgetUnreachable):
        ask(name, space, importance, 0.5 * table_of(space).latency_ms(space.smallest))


def test_a_front_has_the_best_of_every_budget(space: SearchSpace) -> None:
    nets = [space.smallest, space.largest, space.uniformly_scaled[1]]
    front = Front(tuple(Scored(net, *values) for net, values in zip(nets, [(1, 1.0), (3, 3.0), (3, 2.0)], strict=True)))
    assert [front.at(ms) for ms in (0.5, 1.5, 2.5, 9.0)] == [None, front.scored[0], front.scored[2], front.scored[2]]
    with pytest.raises(BudgetUnreachable, match=r"budget 0.5 ms is out of reach: the fastest architecture that was"):
        front.within(0.5)


def test_a_registered_method_is_found_by_its_name(own: dict[str, Any]) -> None:
    method = register_method("nearest_first")(lambda space, **asked: Front(()))
    assert search_method("nearest_first") is method is own["nearest_first"]
    assert method_names() == [*BUILT_IN, "nearest_first"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("exact", r"search method 'exact' is registered already"),
        ("Mine", r"search method 'Mine': name it with small letters, digits and _"),
        ("../mine", r"search method '../mine': name it"),
    ],
)
def test_a_name_that_is_taken_or_cannot_be_a_folder_is_refused(own: dict[str, Any], name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        register_method(name)


def test_a_method_that_cannot_be_called_as_methods_are_is_refused_at_once(own: dict[str, Any]) -> None:
    with pytest.raises(
        ValueError, match=r"'mine': cannot be called as \(space, \*, table, budget_ms, .*\): got an unex"
    ):
        register_method("mine")(lambda space, *, table, budget_ms, score, generator: Front(()))  # type: ignore[arg-type,misc]
    assert not own


def test_a_method_is_asked_whether_it_goes_by_importance(own: dict[str, Any]) -> None:
    register_method("mine")(lambda space, *, importance, **_: Front(()))
    assert [name for name in method_names() if takes_importance(name)] == ["search", "mine"]


def test_an_unknown_method_is_told_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown search method 'exakt' \(did you mean exact\?\); a method of your"):
        search_method("exakt")


def test_an_answer_that_is_none_is_refused(space: SearchSpace) -> None:
    table, net = table_of(space), space.largest
    ms = table.latency_ms(net)

    class Anything:
        def at(self, budget_ms: float) -> Scored:
            return Scored(net, 0.0, 0.0)

    with pytest.raises(UserError, match=r"search method mine: asked for .* ms, it answers with an architecture of "):
        architecture_of(Anything(), "mine", space=space, table=table, budget_ms=0.9 * ms)
    with pytest.raises(Unreachable, match=r"search method mine: has nothing within .* ms, though the space has"):
        architecture_of(Front(()), "mine", space=space, table=table, budget_ms=ms)
    with pytest.raises(UserError, match="search method mine: answers with Architecture, not with a Trajectory or"):
        architecture_of(net, "mine", space=space, table=table, budget_ms=ms)  # type: ignore[arg-type]
    net = net.model_copy(update={"stages": net.stages[:-1]})
    with pytest.raises(
        UserError, match=r"search method mine: answers with an architecture that is not of the space \(2 s"
    ):
        architecture_of(Anything(), "mine", space=space, table=table, budget_ms=ms)
