"""Slimming over the whole frontier: every legal action is scored, and the least accuracy drop per gain is taken."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from search.actions import ChangeCandidate, DropFirst3D, NarrowStage, SkipPath, apply
from search.efficiency import MobileEfficiency
from search.frontier import legal_actions, slim_frontier
from search.slimming import BudgetUnreachable
from search.trajectory import Step, Trajectory
from supernet.architecture import Architecture
from supernet.candidate import Candidate
from supernet.schema import UserError, parse
from supernet.space import SearchSpace

GAINS = [None, MobileEfficiency()]
by_every_gain = pytest.mark.parametrize("efficiency", GAINS, ids=["ms", "mes"])


@pytest.fixture
def space(space: SearchSpace) -> SearchSpace:
    """The space of conftest.py, whose last stage can hold convolutions and a second kind of token block too."""
    data = space.model_dump(mode="json")
    data["stages"][2]["candidates"].insert(1, {"type": "conv", "mlp_ratio": 1})
    data["stages"][2]["candidates"].append(
        {"type": "mb3d", "name": "thin", "heads": 1, "key_channels": 4, "value_channels": 4}
    )
    return parse(SearchSpace, data, source="the tests")


class PricedTable:
    """The sum of conftest.py, but a convolution costs 0.1 ms less than other blocks, and one head 0.05 ms less."""

    def __init__(self, table: Any) -> None:
        self.table = table

    def latency_ms(self, architecture: Architecture) -> float:
        saved = {"conv": 0.1, "mb3d": 0.05}
        cheap = sum(
            saved.get(block.type, 0.0)
            for stage in architecture.stages
            for block in stage.blocks
            if getattr(block, "heads", 1) == 1
        )
        return round(float(self.table.latency_ms(architecture)) - cheap, 6)

    def fastest(self, space: SearchSpace) -> Architecture:
        return space.smallest


@pytest.fixture
def table(table: Any) -> Any:
    return PricedTable(table)


def random_score(seed: int) -> Any:
    """An accuracy without any sense, but the same for the same architecture."""

    def score(architecture: Architecture) -> float:
        generator = torch.Generator().manual_seed(int(architecture.digest, 16) % 2**31 + seed)
        return 100 * float(torch.rand((), generator=generator))

    return score


def single_steps(space: SearchSpace, architecture: Architecture) -> Iterator[Architecture]:
    """Every architecture one step smaller, found by trying all choices: a stage's width, or a position's candidate."""
    widths, choices = tuple(stage.width_channels for stage in architecture.stages), space.choices(architecture)
    for index, width in enumerate(widths):
        legal = space.widths(index + 1)
        if width > legal[0]:
            smaller = legal[legal.index(width) - 1]
            yield space.architecture((*widths[:index], smaller, *widths[index + 1 :]), choices)
    for stage, block in space.positions:
        here = choices[stage - 1][block - 1]
        for other in space.candidates(stage):
            first_map = next(c for c in space.candidates(stage) if c.layout == "map" and not c.is_identity)
            if here.is_identity or other == here or not (other.is_identity or _steps_to(here, other, first_map)):
                continue
            rows = [list(row) for row in choices]
            rows[stage - 1][block - 1] = other
            try:
                yield space.architecture(widths, tuple(map(tuple, rows)))
            except UserError:  # a map block after a token block: it was not the first of them
                continue


def _steps_to(here: Candidate, other: Candidate, first_map: Candidate) -> bool:
    return other.layout == here.layout or (here.layout == "tokens" and other == first_map)


def slimmed(
    space: SearchSpace, table: Any, score: Any, budget_ms: float, efficiency: MobileEfficiency | None = None
) -> Trajectory:
    return slim_frontier(space, table=table, score=score, budget_ms=budget_ms, efficiency=efficiency)


@by_every_gain
@pytest.mark.parametrize("seed", range(3))
def test_every_step_takes_the_least_drop_per_gain_of_all_legal_actions(
    space: SearchSpace, table: Any, seed: int, efficiency: MobileEfficiency | None
) -> None:
    score = random_score(seed)
    trajectory = slimmed(space, table, score, table.latency_ms(space.smallest) + 0.3, efficiency)

    def gain(before: Step, after: Architecture) -> float:
        after_ms = table.latency_ms(after)
        if efficiency is None:
            return float(before.latency_ms - after_ms)
        of_before = efficiency.of(before.architecture, latency_ms=before.latency_ms)
        return efficiency.of(after, latency_ms=after_ms) - of_before

    for before, step in zip(trajectory.steps, trajectory.steps[1:], strict=False):
        faster = [net for net in single_steps(space, before.architecture) if table.latency_ms(net) < before.latency_ms]
        ratios = {
            net.digest: (before.accuracy_percent - score(net)) / gain(before, net)
            for net in faster
            if gain(before, net) > 0
        }
        offered = {
            apply(one.action, before.architecture, space=space).digest: one.drop_per_gain for one in step.alternatives
        }
        assert offered == pytest.approx(ratios)
        assert len(offered) == len(step.alternatives)
        assert ratios[step.digest] == pytest.approx(min(ratios.values()))
        (taken,) = [one for one in step.alternatives if one.chosen]
        assert (taken.action, taken.reason) == (step.action, None)
        assert all(one.reason is not None for one in step.alternatives if not one.chosen)
        assert step.accuracy_percent == score(step.architecture)
    assert len(trajectory.steps) > 5


@by_every_gain
def test_a_trajectory_is_its_own_replay_and_the_same_again_for_the_same_scorer(
    space: SearchSpace, table: Any, efficiency: MobileEfficiency | None
) -> None:
    first, again = (
        slimmed(space, table, random_score(4), table.latency_ms(space.smallest), efficiency) for _ in range(2)
    )
    assert first == again
    assert first.replay(space) == first.steps[-1].architecture == space.smallest
    kinds = {step.action.kind for step in first.steps[1:] if step.action}
    offered = {one.action.kind for step in first.steps for one in step.alternatives}
    assert kinds <= offered == {"skip_path", "drop_first_3d", "narrow_stage", "change_candidate"}


@by_every_gain
def test_latency_falls_with_every_step_and_no_step_leaves_the_space(
    space: SearchSpace, table: Any, efficiency: MobileEfficiency | None
) -> None:
    budget_ms = 2.8
    steps = slimmed(space, table, random_score(5), budget_ms, efficiency).steps
    for before, step in itertools.pairwise(steps):
        space.check(step.architecture)
        assert step.latency_ms == table.latency_ms(step.architecture) < before.latency_ms
    assert steps[-1].latency_ms <= budget_ms < steps[-2].latency_ms


def test_the_first_steps_actions_are_those_of_the_whole_frontier(space: SearchSpace) -> None:
    skips = [(1, 1), (1, 2), (3, 1), (3, 2)]  # stage 2 has no identity
    narrower = [(1, 32), (2, 48), (3, 80)]
    assert legal_actions(space, space.largest) == [
        *(SkipPath(stage=stage, block=block) for stage, block in skips),
        DropFirst3D(),
        *(NarrowStage(stage=stage, width_channels=width) for stage, width in narrower),
        ChangeCandidate(stage=3, block=1, candidate="thin"),
        ChangeCandidate(stage=3, block=2, candidate="thin"),
    ]
    assert all(isinstance(action, ChangeCandidate) for action in legal_actions(space, space.smallest))


def test_a_change_to_a_dearer_block_is_not_offered(space: SearchSpace, table: Any) -> None:
    def better_without_tokens(architecture: Architecture) -> float:
        return 50.0 - sum(block.layout == "tokens" for stage in architecture.stages for block in stage.blocks)

    trajectory = slimmed(space, table, better_without_tokens, table.latency_ms(space.smallest))
    assert [step.action for step in trajectory.steps[1:4]] == [DropFirst3D()] * 3  # to mb4d each time
    offered = [one.action for step in trajectory.steps for one in step.alternatives]
    assert {action.candidate for action in offered if isinstance(action, ChangeCandidate)} == {"conv", "thin"}


def test_size_counts_for_the_efficiency_score_and_not_for_milliseconds(space: SearchSpace, table: Any) -> None:
    def flat(architecture: Architecture) -> float:
        """Every action loses ten points per ms."""
        return float(10 * table.latency_ms(architecture))

    budget_ms = table.latency_ms(space.largest) - 0.01
    _, by_ms = slimmed(space, table, flat, budget_ms).steps
    assert [one.drop_per_ms for one in by_ms.alternatives] == pytest.approx([10.0] * len(by_ms.alternatives))
    assert {one.mes_gain for one in by_ms.alternatives} == {None}
    _, by_mes = slimmed(space, table, flat, budget_ms, MobileEfficiency()).steps
    assert by_mes.action == NarrowStage(stage=3, width_channels=80)  # where the parameters are
    _, by_latency = slimmed(space, table, flat, budget_ms, MobileEfficiency(size_exponent=0.0)).steps
    assert by_latency.action == SkipPath(stage=3, block=1)  # which saves most milliseconds


def test_a_budget_below_the_smallest_architecture_is_refused_before_any_scoring(space: SearchSpace, table: Any) -> None:
    smallest_ms = table.latency_ms(space.smallest)
    with pytest.raises(BudgetUnreachable) as refused:
        slimmed(space, table, lambda _: pytest.fail("scored"), 0.9 * smallest_ms)
    assert (refused.value.budget_ms, refused.value.smallest_ms) == (0.9 * smallest_ms, smallest_ms)


def test_a_rise_of_the_table_does_not_stop_the_way_down(space: SearchSpace, table: Any) -> None:
    class Rising:
        """Every step towards the smallest costs more, and the smallest itself costs little."""

        def latency_ms(self, architecture: Architecture) -> float:
            return 1.0 if architecture == space.smallest else 10.0 - float(table.latency_ms(architecture))

    for efficiency in (None, MobileEfficiency()):
        trajectory = slimmed(space, Rising(), random_score(7), 2.0, efficiency=efficiency)
        assert trajectory.at(2.0) == trajectory.steps[-1]
        assert trajectory.replay(space) == space.smallest


def test_several_budgets_lie_on_one_trajectory(space: SearchSpace, table: Any) -> None:
    score, budgets = random_score(8), (4.0, 3.4, 2.6)
    longest = slimmed(space, table, score, budgets[-1])
    for budget_ms in budgets:
        alone = slimmed(space, table, score, budget_ms)
        assert alone.steps == longest.steps[: len(alone.steps)]
        assert longest.at(budget_ms) == alone.steps[-1]


def test_every_step_is_reported_as_it_is_taken(space: SearchSpace, table: Any) -> None:
    seen: list[Step] = []
    trajectory = slim_frontier(
        space, table=table, score=random_score(9), budget_ms=3.0, efficiency=None, progress=seen.append
    )
    assert tuple(seen) == trajectory.steps
