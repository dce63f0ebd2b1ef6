"""Slimming: the least accuracy lost per millisecond, recorded with what was rejected, down to every budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch

from search.actions import ChangeCandidate, DropFirst3D, NarrowStage, SkipPath, SlimmingAction, apply
from search.baselines import random_architecture
from search.frontier import legal_actions
from search.importance import Importance
from search.slimming import BudgetUnreachable, WalkEnded, check_reachable, rounded_up, scores_of, slim
from search.trajectory import Step, Trajectory
from supernet.architecture import Architecture
from supernet.block_types import Identity
from supernet.space import SearchSpace
from tests.search.test_exact import space as small_space
from tests.search.test_latency_table import table_of_space

MakeImportance = Callable[..., Importance]


def pieces(architecture: Architecture) -> Iterator[str]:
    """What an architecture can lose: a word for every filled position, token block and step of width."""
    for number, stage in enumerate(architecture.stages, start=1):
        for position, block in enumerate(stage.blocks, start=1):
            if not isinstance(block, Identity):
                yield f"block {number}.{position}"
            if block.layout == "tokens":
                yield f"tokens {number}.{position}"
        for width in range(16, stage.width_channels + 1, 16):
            yield f"width {number}.{width}"


def score_of(points: dict[str, float], *, other: float = 1.0) -> Callable[[Architecture], float]:
    """An accuracy that is the sum of what the pieces are worth."""
    return lambda architecture: sum(points.get(piece, other) for piece in pieces(architecture))


def random_score(seed: int) -> Callable[[Architecture], float]:
    """An accuracy without any sense, but the same for the same architecture."""

    def score(architecture: Architecture) -> float:
        generator = torch.Generator().manual_seed(int(architecture.digest, 16) % 2**31 + seed)
        return 100 * float(torch.rand((), generator=generator))

    return score


def slimmed(space: SearchSpace, importance: Importance, table: Any, score: Any, budget_ms: float) -> Trajectory:
    return slim(space, importance=importance, table=table, score=score, budget_ms=budget_ms)


FIRST_ACTIONS: dict[str, SlimmingAction] = {
    "block 1.2": SkipPath(stage=1, block=2),  # saves 0.25 ms
    "tokens 2.1": DropFirst3D(),  # saves 0.5 ms
    "width 2.64": NarrowStage(stage=2, width_channels=48),  # saves 0.16 ms
}


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ({}, "tokens 2.1"),  # a point each: 4, 2 and 6.25 points a ms
        ({"block 1.2": 0.4}, "block 1.2"),  # 1.6, 2 and 6.25
        ({"width 2.64": 0.3}, "width 2.64"),  # 4, 2 and 1.9
        ({"tokens 2.1": 5.0}, "block 1.2"),  # 4, 10 and 6.25
        ({"tokens 2.1": -0.1, "block 1.2": 0.0}, "tokens 2.1"),  # less is more: it gains accuracy
    ],
)
def test_the_action_that_loses_least_per_millisecond_is_taken(
    space: SearchSpace, importance: Importance, table: Any, points: dict[str, float], expected: str
) -> None:
    budget_ms = table.latency_ms(space.largest) - 0.1
    trajectory = slimmed(space, importance, table, score_of(points), budget_ms)
    _, step = trajectory.steps
    assert step.action == FIRST_ACTIONS[expected]
    assert step.architecture == apply(FIRST_ACTIONS[expected], space.largest, space=space)


def test_the_alternatives_of_a_step_are_recorded_with_their_figures_and_why_they_were_rejected(
    space: SearchSpace, importance: Importance, table: Any
) -> None:
    largest_ms, score = table.latency_ms(space.largest), score_of({"block 1.2": 3.0})
    largest_percent = score(space.largest)
    _, step = slimmed(space, importance, table, score, largest_ms - 0.1).steps
    assert [alternative.action for alternative in step.alternatives] == list(FIRST_ACTIONS.values())
    skip, drop, narrow = step.alternatives
    assert [skip.saved_ms, drop.saved_ms, narrow.saved_ms] == pytest.approx([0.25, 0.5, 0.16])
    assert [a.accuracy_drop_points for a in step.alternatives] == pytest.approx([3.0, 1.0, 1.0])
    assert [a.drop_per_ms for a in step.alternatives] == pytest.approx([12.0, 2.0, 6.25])
    assert [a.latency_ms for a in step.alternatives] == pytest.approx([largest_ms - s for s in (0.25, 0.5, 0.16)])
    assert [a.accuracy_percent for a in step.alternatives] == pytest.approx([largest_percent - d for d in (3, 1, 1)])
    assert [a.chosen for a in step.alternatives] == [False, True, False]
    assert [a.reason for a in step.alternatives] == [
        "loses +12 points per ms, not +2",
        None,
        "loses +6.25 points per ms, not +2",
    ]


def test_the_first_step_is_the_largest_architecture(space: SearchSpace, importance: Importance, table: Any) -> None:
    first = slimmed(space, importance, table, score_of({}), 3.0).steps[0]
    assert (first.step, first.action, first.alternatives) == (0, None, ())
    assert first.architecture == space.largest
    assert first.latency_ms == table.latency_ms(space.largest)


@pytest.mark.parametrize("seed", range(6))
def test_no_action_ever_raises_predicted_latency_and_the_cheapest_is_always_taken(
    space: SearchSpace, importance: Importance, table: Any, seed: int
) -> None:
    score = random_score(seed)
    trajectory = slimmed(space, importance, table, score, table.latency_ms(space.smallest))
    for before, step in zip(trajectory.steps, trajectory.steps[1:], strict=False):
        assert step.latency_ms < before.latency_ms
        assert all(alternative.latency_ms < before.latency_ms for alternative in step.alternatives)
        assert all(alternative.saved_ms > 0 for alternative in step.alternatives)
        (taken,) = [alternative for alternative in step.alternatives if alternative.chosen]
        assert taken.drop_per_ms == min(alternative.drop_per_ms for alternative in step.alternatives)
        assert taken.action == step.action
        assert step.latency_ms == table.latency_ms(step.architecture)
        assert step.accuracy_percent == score(step.architecture)
        assert step.saved_ms == pytest.approx(before.latency_ms - step.latency_ms)
        assert step.accuracy_drop_points == pytest.approx(before.accuracy_percent - step.accuracy_percent)
        kinds = [alternative.action.kind for alternative in step.alternatives]
        assert len(set(kinds)) == len(kinds)
    assert trajectory.steps[-1].architecture == space.smallest


def test_each_kind_offers_its_least_important_victim(
    space: SearchSpace, make_importance: MakeImportance, table: Any
) -> None:
    scores = {(1, 1): 1.0, (1, 2): 2.0, (2, 1): 9.0, (3, 1): 0.5, (3, 2): 1.5}
    importance = make_importance(space, scores)
    trajectory = slimmed(space, importance, table, random_score(0), table.latency_ms(space.smallest))
    for before, step in zip(trajectory.steps, trajectory.steps[1:], strict=False):
        choices = space.choices(before.architecture)
        filled = {p for p in space.positions if not choices[p[0] - 1][p[1] - 1].is_identity}
        importances = {s: sum(scores[p] for p in filled if p[0] == s) for s in (1, 2, 3)}
        for alternative in step.alternatives:
            match alternative.action:
                case SkipPath(stage=stage, block=block):
                    assert scores[stage, block] == min(scores[p] for p in filled if p[0] != 2)
                case NarrowStage(stage=stage):
                    could = [
                        s for s in (1, 2, 3) if before.architecture.stages[s - 1].width_channels > space.widths(s)[0]
                    ]
                    assert importances[stage] == min(importances[s] for s in could)


def test_a_stages_importance_shrinks_with_the_blocks_it_loses(
    space: SearchSpace, make_importance: MakeImportance, table: Any
) -> None:
    # stage 1 begins as the most important one, and is the least important after it has lost both blocks
    importance = make_importance(space, {(1, 1): 10.0, (1, 2): 10.0, (2, 1): 15.0, (3, 1): 11.0, (3, 2): 11.0})
    free = {"block 1.1": 0.0, "block 1.2": 0.0}
    trajectory = slimmed(space, importance, table, score_of(free), 2.9)
    actions = [step.action for step in trajectory.steps]
    assert actions[1:3] == [SkipPath(stage=1, block=1), SkipPath(stage=1, block=2)]
    offered = [alternative.action for step in trajectory.steps[1:4] for alternative in step.alternatives]
    narrowings = [action.stage for action in offered if isinstance(action, NarrowStage)]
    assert narrowings == [2, 1, 1]


def test_a_position_that_has_no_score_is_the_last_to_be_offered(
    space: SearchSpace, make_importance: MakeImportance, table: Any
) -> None:
    importance = make_importance(space, {(1, 1): None, (1, 2): 8.0, (2, 1): None, (3, 1): 9.0, (3, 2): 7.0})
    trajectory = slimmed(space, importance, table, random_score(0), table.latency_ms(space.smallest))
    skips = [
        (a.action.stage, a.action.block)
        for s in trajectory.steps
        for a in s.alternatives
        if a.action.kind == "skip_path"
    ]
    assert skips[-1] == (1, 1)
    assert (2, 1) not in skips


def test_an_action_that_saves_nothing_gives_way_to_the_next_of_its_kind(
    space: SearchSpace, importance: Importance, table: Any
) -> None:
    class Odd:
        """Stage 2 costs more when it is narrow, as it can on real hardware, and block 2 of stage 1 costs nothing."""

        def latency_ms(self, architecture: Architecture) -> float:
            odd_ms = 0.02 * (64 - architecture.stages[1].width_channels)
            free_ms = 0.25 * (not isinstance(architecture.stages[0].blocks[1], Identity))
            return table.latency_ms(architecture) + odd_ms - free_ms  # type: ignore[no-any-return]

    _, step = slimmed(space, importance, Odd(), score_of({}), Odd().latency_ms(space.largest) - 0.1).steps
    assert [alternative.action for alternative in step.alternatives] == [
        SkipPath(stage=1, block=1),
        DropFirst3D(),
        NarrowStage(stage=1, width_channels=32),
    ]


def test_a_kind_that_saves_nothing_at_all_is_not_offered(
    space: SearchSpace, importance: Importance, size_table: Any
) -> None:
    table = size_table(channel_ms=0.0)
    trajectory = slimmed(space, importance, table, random_score(1), table.latency_ms(space.smallest))
    assert {a.action.kind for s in trajectory.steps for a in s.alternatives} == {"skip_path", "drop_first_3d"}


def test_several_budgets_lie_on_one_trajectory(space: SearchSpace, importance: Importance, table: Any) -> None:
    score = random_score(2)
    budgets = (4.2, 3.6, 3.0, 2.4)
    longest = slimmed(space, importance, table, score, budgets[-1])
    for budget_ms in budgets:
        alone = slimmed(space, importance, table, score, budget_ms)
        assert alone.steps == longest.steps[: len(alone.steps)]
        reached = longest.at(budget_ms)
        assert reached == alone.steps[-1]
        assert reached is not None
        assert reached.latency_ms <= budget_ms < longest.steps[reached.step - 1].latency_ms
    assert len({step.digest for step in map(longest.at, budgets) if step}) == len(budgets)


def test_a_budget_that_the_largest_architecture_meets_takes_no_step(
    space: SearchSpace, importance: Importance, table: Any
) -> None:
    assert len(slimmed(space, importance, table, score_of({}), table.latency_ms(space.largest)).steps) == 1


def test_a_budget_below_the_smallest_architecture_is_refused_before_any_scoring(
    space: SearchSpace, importance: Importance, table: Any
) -> None:
    def never(architecture: Architecture) -> float:
        raise AssertionError("scored")

    smallest_ms = table.latency_ms(space.smallest)
    with pytest.raises(
        BudgetUnreachable, match=rf"budget 1\.5 ms is out of reach: .* takes {smallest_ms:.4g} ms"
    ) as refused:
        slimmed(space, importance, table, never, 1.5)
    assert (refused.value.budget_ms, refused.value.smallest_ms) == (1.5, smallest_ms)
    check_reachable(space, table=table, budget_ms=smallest_ms)


def shrinking(space: SearchSpace, architecture: Architecture) -> list[SlimmingAction]:
    return [action for action in legal_actions(space, architecture) if not isinstance(action, ChangeCandidate)]


def test_a_rise_of_the_table_does_not_stop_the_way_down(space: SearchSpace, importance: Importance, table: Any) -> None:
    class Rising:
        """Every step towards the smallest costs more, and the smallest itself costs little."""

        def latency_ms(self, architecture: Architecture) -> float:
            return 1.0 if architecture == space.smallest else 10.0 - float(table.latency_ms(architecture))

    trajectory = slimmed(space, importance, Rising(), score_of({}), 2.0)
    assert trajectory.steps[-1].architecture == space.smallest == trajectory.replay(space)
    for before, step in zip(trajectory.steps[:-1], trajectory.steps[1:-1], strict=False):
        (taken,) = step.alternatives
        assert (taken.chosen, taken.drop_per_ms) == (True, None)
        assert step.saved_ms < 0 < step.accuracy_drop_points
        possible = [apply(action, before.architecture, space=space) for action in shrinking(space, before.architecture)]
        assert step.latency_ms == min(map(Rising().latency_ms, possible)) > before.latency_ms


def test_every_step_is_reported_as_it_is_taken(space: SearchSpace, importance: Importance, table: Any) -> None:
    seen: list[Step] = []
    trajectory = slim(
        space, importance=importance, table=table, score=random_score(3), budget_ms=2.5, progress=seen.append
    )
    assert tuple(seen) == trajectory.steps


def test_a_score_that_can_take_several_at_once_is_told_of_the_next_ones(space: SearchSpace) -> None:
    told: list[int] = []

    class Batched:
        def ahead(self, architectures: Sequence[Architecture]) -> None:
            told.append(len(architectures))

        def __call__(self, architecture: Architecture) -> float:
            return random_score(3)(architecture)

    generator = torch.Generator().manual_seed(0)
    nets = [space.random(generator) for _ in range(19)]
    assert (
        list(scores_of(Batched(), nets)) == list(scores_of(random_score(3), nets)) == list(map(random_score(3), nets))
    )
    assert told == [8, 8, 3]


def test_a_budget_that_only_another_candidate_keeps_is_in_reach_and_the_walk_says_where_it_ends(
    make_importance: MakeImportance,
) -> None:
    """In a space whose first candidate is the slow one, the smallest net is not the fastest."""
    searched = small_space("one width")
    table = table_of_space(searched, lambda key: 0.1 if '"mlp_channels":16' in key.spec.replace(" ", "") else 1.0)
    smallest_ms, fastest_ms = table.latency_ms(searched.smallest), table.latency_ms(table.fastest(searched))
    assert fastest_ms < smallest_ms
    budget_ms = (smallest_ms + fastest_ms) / 2
    assert table.latency_ms(check_reachable(searched, table=table, budget_ms=budget_ms)) <= budget_ms
    drawn = random_architecture(
        searched, table=table, budget_ms=fastest_ms, generator=torch.Generator().manual_seed(0), tries=1
    )
    assert table.latency_ms(drawn) <= fastest_ms
    importance = make_importance(searched, dict.fromkeys(searched.positions, 1.0))
    with pytest.raises(WalkEnded, match=rf"its way ends at {smallest_ms:.4g} ms .* faster architectures"):
        slimmed(searched, importance, table, score_of({}), budget_ms)
    with pytest.raises(BudgetUnreachable, match=rf"fastest architecture of the space takes {fastest_ms:.4g} ms") as no:
        slimmed(searched, importance, table, score_of({}), 0.9 * fastest_ms)
    assert not isinstance(no.value, WalkEnded)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.0, "0"),
        (7.0, "7"),
        (1234567, "1234567"),
        (1.23401, "1.235"),
        (1.234, "1.234"),
        (0.0456789, "0.04568"),
        (123456.7, "1.235e+05"),
        (-1.2349, "-1.234"),
    ],
)
def test_what_is_said_to_be_in_reach_is_whole_or_rounded_up(value: float, said: str) -> None:
    assert rounded_up(value) == said
