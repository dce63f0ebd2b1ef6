"""Slimming actions: each makes one architecture smaller in one way, and refuses where it cannot."""

from __future__ import annotations

import pytest
import torch

from search.actions import (
    ChangeCandidate,
    DropFirst3D,
    NarrowStage,
    SkipPath,
    SlimmingAction,
    apply,
    can_drop_token_block,
    first_token_block,
    narrower_width,
    other_candidates,
    skippable,
)
from supernet.architecture import Architecture
from supernet.cost import cost
from supernet.schema import UserError, parse
from supernet.space import SearchSpace


def names(space: SearchSpace, architecture: Architecture) -> list[list[str]]:
    return [[candidate.name for candidate in chosen] for chosen in space.choices(architecture)]


def widths(architecture: Architecture) -> list[int]:
    return [stage.width_channels for stage in architecture.stages]


def without_map_blocks(space: SearchSpace) -> SearchSpace:
    """The space whose last stage has nothing but token blocks and identity."""
    data = space.model_dump(mode="json")
    data["stages"][2]["candidates"] = data["stages"][2]["candidates"][1:]
    return parse(SearchSpace, data, source="x")


def test_skipping_a_path_leaves_everything_else_as_it_was(space: SearchSpace) -> None:
    smaller = apply(SkipPath(stage=1, block=2), space.largest, space=space)
    assert names(space, space.largest) == [["mb4d", "mb4d"], ["mb3d"], ["mb3d", "mb3d"]]
    assert names(space, smaller) == [["mb4d", "identity"], ["mb3d"], ["mb3d", "mb3d"]]
    assert widths(smaller) == widths(space.largest)


def test_dropping_the_first_3d_block_makes_it_a_map_block_and_keeps_the_depth(space: SearchSpace) -> None:
    architecture, seen = space.largest, []
    for _ in range(3):
        architecture = apply(DropFirst3D(), architecture, space=space)
        seen.append([name for chosen in names(space, architecture) for name in chosen][2:])
        assert architecture.depth == space.largest.depth
    assert seen == [["mb4d", "mb3d", "mb3d"], ["mb4d", "mb4d", "mb3d"], ["mb4d", "mb4d", "mb4d"]]
    with pytest.raises(UserError, match="no token block is left to drop"):
        apply(DropFirst3D(), architecture, space=space)


def test_the_first_3d_block_becomes_identity_where_the_position_has_no_map_block(space: SearchSpace) -> None:
    bare = without_map_blocks(space)
    once = apply(DropFirst3D(), bare.largest, space=bare)
    assert names(bare, once) == [["mb4d", "mb4d"], ["mb4d"], ["mb3d", "mb3d"]]
    assert names(bare, apply(DropFirst3D(), once, space=bare))[2] == ["identity", "mb3d"]


def test_a_3d_block_that_nothing_can_replace_is_not_dropped(space: SearchSpace) -> None:
    data = space.model_dump(mode="json")
    for stage in data["stages"][1:]:
        stage["candidates"] = [candidate for candidate in stage["candidates"] if candidate["type"] == "mb3d"]
    stuck = parse(SearchSpace, data, source="x")
    assert can_drop_token_block(space, space.largest)
    assert not can_drop_token_block(stuck, stuck.largest)
    with pytest.raises(UserError, match="stage 2, block 1: has no candidate but token blocks"):
        apply(DropFirst3D(), stuck.largest, space=stuck)


def test_narrowing_a_stage_scales_its_blocks_and_leaves_the_other_stages(space: SearchSpace) -> None:
    smaller = apply(NarrowStage(stage=3, width_channels=80), space.largest, space=space)
    assert widths(smaller) == [48, 64, 80]
    assert names(space, smaller) == names(space, space.largest)
    assert smaller.stages[:2] == space.largest.stages[:2]
    assert all(block.mlp_channels == 320 for block in smaller.stages[2].blocks)  # type: ignore[attr-defined]


def test_narrowing_the_first_stage_narrows_the_stem(space: SearchSpace) -> None:
    smaller = apply(NarrowStage(stage=1, width_channels=16), space.largest, space=space)
    assert (smaller.stem.width_channels, smaller.stem.hidden_channels) == (16, 8)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (SkipPath(stage=2, block=1), "stage 2, block 1: cannot be skipped"),
        (NarrowStage(stage=1, width_channels=48), "stage 1: width 48 is not below 48"),
        (NarrowStage(stage=1, width_channels=64), "stage 1: width 64 is not below 48"),
        (NarrowStage(stage=1, width_channels=20), r"stage 1: width 20 is not a multiple of 16 \(nearest: 16, 32\)"),
        (NarrowStage(stage=2, width_channels=16), "stage 2: width 16 is outside of 32 to 64"),
    ],
)
def test_an_action_that_is_not_possible_is_refused(space: SearchSpace, action: SlimmingAction, message: str) -> None:
    with pytest.raises(UserError, match=message):
        apply(action, space.largest, space=space)


def test_a_path_is_skipped_once(space: SearchSpace) -> None:
    once = apply(SkipPath(stage=1, block=1), space.largest, space=space)
    with pytest.raises(UserError, match="stage 1, block 1: cannot be skipped"):
        apply(SkipPath(stage=1, block=1), once, space=space)


def with_convolutions(space: SearchSpace) -> SearchSpace:
    """The space with a convolution as a further map block in its last stage, between the two that are there."""
    data = space.model_dump(mode="json")
    data["stages"][2]["candidates"].insert(1, {"type": "conv"})
    return parse(SearchSpace, data, source="x")


def test_changing_a_block_takes_another_of_its_layout_and_leaves_everything_else(space: SearchSpace) -> None:
    wide = with_convolutions(space)
    maps = apply(DropFirst3D(), apply(DropFirst3D(), wide.largest, space=wide), space=wide)
    assert names(wide, maps)[2] == ["mb4d", "mb3d"]
    assert [other_candidates(wide, maps, stage, block) for stage, block in wide.positions] == [[], [], [], ["conv"], []]
    changed = apply(ChangeCandidate(stage=3, block=1, candidate="conv"), maps, space=wide)
    assert names(wide, changed) == [["mb4d", "mb4d"], ["mb4d"], ["conv", "mb3d"]]
    assert widths(changed) == widths(maps)
    assert other_candidates(wide, changed, 3, 1) == ["mb4d"]
    assert other_candidates(wide, apply(SkipPath(stage=3, block=1), changed, space=wide), 3, 1) == []


@pytest.mark.parametrize("candidate", ["mb4d", "mb3d", "identity", "unheard_of"])
def test_a_block_cannot_be_changed_to_itself_to_another_layout_or_to_nothing(
    space: SearchSpace, candidate: str
) -> None:
    wide = with_convolutions(space)
    maps = apply(DropFirst3D(), apply(DropFirst3D(), wide.largest, space=wide), space=wide)
    with pytest.raises(UserError, match=rf"stage 3, block 1: cannot become {candidate} \(possible: conv\)"):
        apply(ChangeCandidate(stage=3, block=1, candidate=candidate), maps, space=wide)


def test_what_can_be_done_is_said_of_any_architecture_and_never_refused(space: SearchSpace) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        architecture = space.random(generator)
        for stage, block in skippable(space, architecture):
            assert apply(SkipPath(stage=stage, block=block), architecture, space=space).depth == architecture.depth - 1
        assert (first_token_block(space, architecture) is None) == ("mb3d" not in str(names(space, architecture)))
        if first_token_block(space, architecture):
            apply(DropFirst3D(), architecture, space=space)
        for stage in (1, 2, 3):
            width = narrower_width(space, architecture, stage)
            if width is None:
                assert widths(architecture)[stage - 1] == space.widths(stage)[0]
            else:
                assert widths(architecture)[stage - 1] - width == 16
                apply(NarrowStage(stage=stage, width_channels=width), architecture, space=space)


def test_the_first_token_block_is_the_one_nearest_to_the_input(space: SearchSpace) -> None:
    assert first_token_block(space, space.largest) == (2, 1)
    once = apply(DropFirst3D(), space.largest, space=space)
    assert first_token_block(space, once) == (3, 1)
    assert first_token_block(space, apply(SkipPath(stage=3, block=1), once, space=space)) == (3, 2)
    assert first_token_block(space, space.smallest) is None


def test_every_action_makes_a_model_of_fewer_multiplications(space: SearchSpace) -> None:
    whole = cost(space.largest).macs
    for action in (SkipPath(stage=1, block=1), DropFirst3D(), NarrowStage(stage=3, width_channels=80)):
        assert cost(apply(action, space.largest, space=space)).macs < whole


def test_actions_of_any_order_end_in_the_smallest_architecture(space: SearchSpace) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        architecture = space.largest
        while True:
            actions: list[SlimmingAction] = [SkipPath(stage=s, block=b) for s, b in skippable(space, architecture)]
            actions += [DropFirst3D()] if first_token_block(space, architecture) else []
            for stage in (1, 2, 3):
                if (width := narrower_width(space, architecture, stage)) is not None:
                    actions.append(NarrowStage(stage=stage, width_channels=width))
            if not actions:
                break
            chosen = int(torch.randint(len(actions), (), generator=generator))
            architecture = apply(actions[chosen], architecture, space=space)
        assert architecture == space.smallest
