"""The integer program against all architectures of small spaces."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from search import exact
from search.contributions import Contributions
from search.exact import Optimum, least, solve
from search.limits import AnyLimit, Beyond, Limit, LimitsUnreachable, PartLimit
from search.parts import LatencyKey, keys
from supernet import Architecture, SearchSpace, UserError

TOKENS = {"type": "mb3d", "heads": 2, "key_channels": 4, "value_channels": 8}
Shape = list[tuple[int, int, list[Any]]]  # depth, widths and candidates of each stage
SHAPES: dict[str, Shape] = {
    "maps": [(2, 2, ["mb4d", "identity"]), (2, 3, ["mb4d", "identity"])],
    "tokens last": [(1, 2, ["mb4d", "identity"]), (3, 2, ["mb4d", TOKENS, "identity"])],
    "tokens in two stages": [(2, 2, ["mb4d", TOKENS, "identity"]), (2, 2, ["mb4d", TOKENS])],
    "tokens before maps": [(2, 1, ["mb4d", TOKENS, "identity"]), (2, 2, ["mb4d", "identity"])],
    "tokens alone": [(1, 2, ["mb4d", "identity"]), (2, 2, [TOKENS])],
    "one width": [(3, 1, ["mb4d", {"type": "mb4d", "name": "thin", "mlp_ratio": 1}])],
}


def space(name: str) -> SearchSpace:
    return shaped(SHAPES[name])


def shaped(shape: Shape) -> SearchSpace:
    stages = [
        {"depth": depth, "width_channels": {"smallest": 16, "largest": 16 * widths}, "candidates": candidates}
        for depth, widths, candidates in shape
    ]
    return SearchSpace.model_validate(
        {"in_channels": 3, "resolution_px": (16, 16), "num_classes": 5, "stages": stages}, strict=False
    )


def every_architecture(found: SearchSpace) -> Iterator[Architecture]:
    numbers = range(1, len(found.stages) + 1)
    rows = [itertools.product(found.candidates(n), repeat=found.stages[n - 1].depth) for n in numbers]
    for choices in itertools.product(*map(list, rows)):
        for widths in itertools.product(*(found.widths(n) for n in numbers)):
            with contextlib.suppress(UserError):  # a map block after a token block
                yield found.architecture(widths, choices)


def priced(found: SearchSpace, seed: int, *, least: float = 0.0) -> Callable[[LatencyKey], float]:
    """A price for each part that an architecture of the space can have, and for no other, as in a latency table."""
    parts = {key for net in every_architecture(found) for key in keys(net)}
    prices = {key: least + random.Random(f"{seed} {key}").random() for key in parts}
    return prices.__getitem__


def drawn(found: SearchSpace, seed: int) -> Contributions:
    draw = random.Random(seed)
    return Contributions(
        space_digest=found.digest,
        largest_percent=90.0,
        widths=tuple(tuple(draw.uniform(-5, 1) for _ in found.widths(n + 1)) for n in range(len(found.stages))),
        blocks=tuple(
            tuple(tuple(draw.uniform(-5, 1) for _ in stage.candidates) for _ in range(stage.depth))
            for stage in found.stages
        ),
    )


def solved_as_by_hand(
    searched: SearchSpace, contributions: Contributions, limits: list[AnyLimit], nets: list[Architecture]
) -> Optimum | None:
    """What the program finds, and that no net within the limits is better; None, and a refusal, where there is none."""
    within = [net for net in nets if all(limit.allows(limit.used(net)) for limit in limits)]
    if not within:
        with pytest.raises(LimitsUnreachable, match="at once"):
            solve(searched, contributions, limits)
        return None
    found = solve(searched, contributions, limits)
    best = max(contributions.percent(searched, net) for net in within)
    assert found.percent == pytest.approx(best, abs=1e-6)
    assert found.bound_percent == pytest.approx(best, abs=1e-5)
    return found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", SHAPES)
def test_the_optimum_is_that_of_all_architectures(name: str, seed: int) -> None:
    searched = space(name)
    contributions = drawn(searched, seed)
    prices = [priced(searched, seed), priced(searched, seed + 100, least=-0.2)]
    nets = list(every_architecture(searched))
    assert len({net.digest for net in nets}) == len(nets)
    for share in (0.3, 0.6, 1.0):
        limits: list[AnyLimit] = []
        for number, of in enumerate(prices):
            costs = sorted(Limit("", of, 0.0).used(net) for net in nets)
            limits.append(Limit(f"price {number}", of, costs[int(share * (len(costs) - 1))]))
        found = solved_as_by_hand(searched, contributions, limits, nets)
        if found is not None:
            used = {limit.name: limit.used(found.architecture) for limit in limits}
            assert found.used == pytest.approx(used)
            assert all(limit.allows(used[limit.name]) for limit in limits)


def random_space(seed: int, *, most_nets: int = 600) -> tuple[SearchSpace, list[Architecture]]:
    """A space of one to three stages with random depths, widths and candidates, and all of its architectures."""
    draw = random.Random(f"space {seed}")
    kinds = ["mb4d", {"type": "mb4d", "name": "thin", "mlp_ratio": 1}, TOKENS, "identity"]
    while True:
        shape = [
            (draw.randint(1, 3), draw.randint(1, 3), draw.sample(kinds, draw.randint(1, 4)))
            for _ in range(draw.randint(1, 3))
        ]
        if math.prod(widths * len(candidates) ** depth for depth, widths, candidates in shape) > most_nets:
            continue
        with contextlib.suppress(
            UserError, ValidationError
        ):  # of identity alone, or with maps after nothing but tokens
            searched = shaped(shape)
            return searched, list(every_architecture(searched))


@pytest.mark.parametrize("seed", range(12))
def test_the_optimum_of_a_random_space_is_that_of_all_architectures(seed: int) -> None:
    searched, nets = random_space(seed)
    contributions = drawn(searched, seed)

    def of(key: LatencyKey) -> float:  # of parts too that no architecture has
        return random.Random(f"{seed} {key}").random()

    costs = sorted(Limit("ms", of, 0.0).used(net) for net in nets)
    for share in (0.0, 0.2, 0.5, 0.9):
        limit = Limit("ms", of, costs[int(share * (len(costs) - 1))])
        found = solved_as_by_hand(searched, contributions, [limit], nets)
        assert found is not None
        assert limit.allows(found.used["ms"])


@pytest.mark.parametrize("name", SHAPES)
def test_what_grows_beyond_a_threshold_counts_from_there(name: str) -> None:
    searched = space(name)
    contributions, nets = drawn(searched, 7), list(every_architecture(searched))
    of, weights = priced(searched, 7), priced(searched, 8)
    middle = sorted(sum(map(weights, keys(net))) for net in nets)[len(nets) // 3]
    for share in (0.2, 0.5, 0.8):
        limit = Limit("ms", of, 0.0, constant=0.5, beyond=Beyond(weights, above=middle, each=1.7))
        costs = sorted(map(limit.used, nets))
        limit = dataclasses.replace(limit, at_most=costs[int(share * (len(costs) - 1))])
        found = solve(searched, contributions, [limit])
        best = max(contributions.percent(searched, net) for net in nets if limit.allows(limit.used(net)))
        assert found.percent == pytest.approx(best, abs=1e-6)
        assert limit.allows(limit.used(found.architecture))
    out_of_reach = dataclasses.replace(limit, at_most=0.0)
    with pytest.raises(LimitsUnreachable) as caught:
        solve(searched, contributions, [out_of_reach])
    assert caught.value.smallest["ms"] == pytest.approx(costs[0])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", SHAPES)
def test_what_the_largest_part_decides_is_limited_too(name: str, seed: int) -> None:
    searched = space(name)
    contributions, nets = drawn(searched, seed), list(every_architecture(searched))
    of, ms = priced(searched, seed + 200), priced(searched, seed)
    peaks = sorted({PartLimit("", of, 0.0).used(net) for net in nets})
    costs = sorted(Limit("", ms, 0.0).used(net) for net in nets)
    for peak in (peaks[0], peaks[len(peaks) // 2], peaks[-1]):
        limits: list[AnyLimit] = [PartLimit("MB", of, peak), Limit("ms", ms, costs[len(costs) // 2])]
        found = solved_as_by_hand(searched, contributions, limits, nets)
        assert found is None or found.used["MB"] == limits[0].used(found.architecture) <= peak
    with pytest.raises(LimitsUnreachable, match="MB at most 0 ") as caught:
        solve(searched, contributions, [PartLimit("MB", of, 0.0), Limit("ms", ms, costs[-1])])
    assert caught.value.smallest == {"MB": pytest.approx(peaks[0]), "ms": pytest.approx(costs[0])}


def test_without_limits_it_takes_the_best_of_every_choice() -> None:
    searched = space("maps")
    contributions = drawn(searched, 0)
    found = solve(searched, contributions, [])
    assert found.percent == pytest.approx(max(contributions.percent(searched, n) for n in every_architecture(searched)))
    assert found.used == {}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", SHAPES)
def test_the_least_of_a_limit_is_that_of_all_architectures(name: str, seed: int) -> None:
    searched = space(name)
    nets = list(every_architecture(searched))
    for beyond in (None, Beyond(priced(searched, seed + 1), above=1.5, each=1.7)):
        limit = Limit("ms", priced(searched, seed), 0.0, constant=0.5, beyond=beyond)
        assert limit.used(least(searched, limit)) == pytest.approx(min(map(limit.used, nets)), rel=1e-5)


def test_a_constant_counts() -> None:
    searched, of = space("maps"), priced(space("maps"), 0)
    contributions = drawn(searched, 0)
    costs = sorted(Limit("", of, 0.0).used(net) for net in every_architecture(searched))
    free = solve(searched, contributions, [Limit("ms", of, costs[50])])
    dearer = solve(searched, contributions, [Limit("ms", of, costs[50] + 2.0, constant=2.0)])
    assert dearer.architecture == free.architecture
    assert dearer.used["ms"] == pytest.approx(free.used["ms"] + 2.0)


def test_a_limit_out_of_reach_is_refused_with_the_smallest_value() -> None:
    searched, of = space("tokens last"), priced(space("tokens last"), 0)
    fastest = min(Limit("", of, 0.0).used(net) for net in every_architecture(searched))
    with pytest.raises(LimitsUnreachable, match=r"ms at most 0\.01 \(smallest: ") as caught:
        solve(searched, drawn(searched, 0), [Limit("ms", of, 0.01), Limit("parameters", lambda key: 1.0, 1e9)])
    assert caught.value.smallest["ms"] == pytest.approx(fastest)
    said = float(str(caught.value).split("smallest: ")[1].rstrip(")"))
    assert fastest <= said <= 1.001 * fastest
    found = solve(searched, drawn(searched, 0), [Limit("ms", of, said)])  # what is said can be reached
    assert found.used["ms"] <= said
    with pytest.raises(LimitsUnreachable, match=r"parameters at most 1 \(smallest: 3703701\)"):
        solve(searched, drawn(searched, 0), [Limit("parameters", lambda key: 1234567.0, 1.0)])


def test_the_same_question_has_the_same_answer() -> None:
    searched, contributions = space("tokens in two stages"), drawn(space("tokens in two stages"), 1)
    limits = [Limit("ms", priced(searched, 1), 4.0)]
    assert solve(searched, contributions, limits) == solve(searched, contributions, limits)


def test_contributions_of_another_space_are_refused() -> None:
    with pytest.raises(ValueError, match="another space"):
        solve(space("maps"), drawn(space("one width"), 0), [])


def test_nets_that_miss_a_limit_by_less_than_the_solver_sees_cost_none_that_keep_it() -> None:
    searched = space("one width")
    nets, prices = list(every_architecture(searched)), dict[LatencyKey, float]()
    for candidate, ms in zip(searched.candidates(1), (1.0, 1.0 + 1e-8), strict=True):  # the better one is a hair dearer
        alone = searched.architecture((16,), ((candidate,) * 3,))
        prices |= {key: ms for key in keys(alone) if key.part == "block"}
    contributions = Contributions(
        space_digest=searched.digest,
        largest_percent=90.0,
        widths=((0.0,),),
        blocks=(((0.0, 1.0), (0.0, 2.0), (0.0, 3.0)),),
    )
    limit = Limit("ms", lambda key: prices.get(key, 0.0), 0.0)
    one_thin = sorted({limit.used(net) for net in nets})[1]
    found = solved_as_by_hand(searched, contributions, [dataclasses.replace(limit, at_most=one_thin)], nets)
    assert found is not None
    assert found.percent == 93.0
    assert found.used["ms"] == one_thin


def test_as_many_nets_as_miss_a_limit_by_less_than_the_solver_sees_cannot_keep_it_busy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All orders of the same eleven blocks take the same: a hair too much."""
    stage = {"depth": 11, "width_channels": {"smallest": 32, "largest": 32}, "candidates": ["mb4d", "identity"]}
    searched = SearchSpace.model_validate(
        {"in_channels": 3, "resolution_px": (32, 32), "num_classes": 5, "stages": [stage]}, strict=False
    )
    lost = random.Random(0)
    contributions = Contributions(
        space_digest=searched.digest,
        largest_percent=80.0,
        widths=((0.0,),),
        blocks=(tuple((0.0, lost.choice((-0.4, -0.5, -0.6))) for _ in range(11)),),
    )
    left_out: list[Architecture] = []
    exclude = exact._Program.exclude

    def counted(program: Any, architecture: Architecture) -> None:
        left_out.append(architecture)
        exclude(program, architecture)

    monkeypatch.setattr(exact._Program, "exclude", counted)
    limit = Limit("ms", lambda key: 0.1 if key.part == "block" else 0.0, 0.5 * (1 - 1e-9))
    found = solve(searched, contributions, [limit])
    assert found.used["ms"] == pytest.approx(0.4)
    assert found.percent == pytest.approx(found.bound_percent)
    kept = sorted((-row[1] for row in contributions.blocks[0]), reverse=True)[:4]  # the four that cost most to drop
    assert found.percent == pytest.approx(80.0 - sum(-row[1] for row in contributions.blocks[0]) + sum(kept))
    assert len(left_out) <= exact.TRIES
    assert all(limit.used(net) > limit.at_most for net in left_out)
