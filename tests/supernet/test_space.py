"""Search spaces: what is legal, what is refused with which words, and what a random architecture covers."""

from __future__ import annotations

import copy
import itertools
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from supernet.architecture import Architecture
from supernet.block_types import MB3D, MB4D, Identity, SeparableConv
from supernet.candidate import Candidate
from supernet.schema import UserError, parse
from supernet.space import SearchSpace, SpaceShape, check_width

PLAIN: dict[str, Any] = {
    "in_channels": 3,
    "resolution_px": [32, 48],
    "num_classes": 10,
    "stages": [
        {"depth": 2, "width_channels": {"smallest": 16, "largest": 48}, "candidates": ["mb4d", "identity"]},
        {"depth": 3, "width_channels": {"smallest": 32, "largest": 64}, "candidates": ["mb4d", "mb3d", "identity"]},
    ],
}
SPACE = parse(SearchSpace, PLAIN, source="the tests")


def changed(place: tuple[str | int, ...], value: object) -> dict[str, Any]:
    """The plain space with another value at this place."""
    data: Any = copy.deepcopy(PLAIN)
    spot = data
    for key in place[:-1]:
        spot = spot[key]
    spot[place[-1]] = value
    return data  # type: ignore[no-any-return]


def refusal(data: object) -> str:
    """The line with which the data are refused as a space."""
    with pytest.raises(UserError) as refused:
        parse(SearchSpace, data, source="space.yaml")
    line = str(refused.value)
    assert line.startswith("space.yaml: ")
    assert "\n" not in line
    return line


def drawn(space: SearchSpace, count: int = 200, *, seed: int = 0) -> list[Architecture]:
    generator = torch.Generator().manual_seed(seed)
    return [space.random(generator) for _ in range(count)]


def names(space: SearchSpace, architecture: Architecture) -> list[list[str]]:
    return [[candidate.name for candidate in chosen] for chosen in space.choices(architecture)]


def test_a_stage_of_token_blocks_alone_must_not_stand_before_one_of_maps() -> None:
    def space(*candidates: list[str]) -> SearchSpace:
        stages = [
            {"depth": 1, "width_channels": {"smallest": 16, "largest": 16}, "candidates": chosen}
            for chosen in candidates
        ]
        data = {"in_channels": 3, "resolution_px": [16, 16], "num_classes": 5, "stages": stages}
        return parse(SearchSpace, data, source="space.yaml")

    with pytest.raises(UserError, match="stage 1: has token blocks alone, but stage 2 has blocks on maps"):
        space(["mb3d", "identity"], ["mb4d", "mb3d"])
    assert space(["mb4d"], ["mb3d"], ["mb3d", "identity"]).largest.depth == 3


def test_a_space_without_a_candidate_has_all_its_other_architectures_and_no_more() -> None:
    smaller = SPACE.without([(2, "mb4d"), (1, "mb3d")])  # the second is none of stage 1
    assert [[c.name for c in stage.candidates] for stage in smaller.stages] == [
        ["mb4d", "identity"],
        ["mb3d", "identity"],
    ]
    assert smaller.digest != SPACE.digest
    for architecture in drawn(smaller, 50):
        SPACE.check(architecture)
        assert "mb4d" not in names(smaller, architecture)[1]
    assert SPACE.without([]) == SPACE


def test_a_space_without_what_it_needs_is_refused() -> None:
    with pytest.raises(UserError, match="candidates need at least one block besides identity"):
        SPACE.without([(1, "mb4d")])
    stages = [*PLAIN["stages"][1:], PLAIN["stages"][1]]
    with pytest.raises(UserError, match="stage 1: has token blocks alone"):
        parse(SearchSpace, PLAIN | {"stages": stages}, source="the tests").without([(1, "mb4d")])


def test_a_candidate_written_as_a_word_has_the_published_options() -> None:
    mb4d, mb3d, identity = SPACE.candidates(2)
    assert mb4d.block(32) == MB4D(mlp_channels=128, pool_kernel=3, layer_scale=1e-5)
    assert mb3d.block(32) == MB3D(mlp_channels=128, heads=8, key_channels=32, value_channels=128)
    assert identity.block(32) == Identity()
    assert [identity.is_identity, mb4d.is_identity] == [True, False]
    assert [mb4d.layout, mb3d.layout] == ["map", "tokens"]


def test_a_candidates_options_stand_beside_its_type_and_its_channels_follow_the_width() -> None:
    data = changed(
        ("stages", 0, "candidates"), [{"type": "separable_conv", "name": "wide", "mlp_ratio": 3, "kernel": 5}]
    )
    (candidate,) = parse(SearchSpace, data, source="x").candidates(1)
    assert candidate.name == "wide"
    for width in (16, 48):
        assert candidate.block(width) == SeparableConv(mixer_channels=2 * width, mlp_channels=3 * width, kernel=5)


def test_positions_count_stages_and_blocks_from_one_in_the_order_of_the_net() -> None:
    assert SPACE.positions == ((1, 1), (1, 2), (2, 1), (2, 2), (2, 3))
    assert SPACE.widths(1) == (16, 32, 48)
    assert SPACE.widths(2) == (32, 48, 64)


def test_the_largest_architecture_has_the_largest_widths_every_position_and_all_possible_token_blocks() -> None:
    assert [stage.width_channels for stage in SPACE.largest.stages] == [48, 64]
    assert names(SPACE, SPACE.largest) == [["mb4d", "mb4d"], ["mb3d", "mb3d", "mb3d"]]
    assert SPACE.token_suffix == 3


def test_the_smallest_architecture_skips_whatever_can_be_skipped() -> None:
    assert [stage.width_channels for stage in SPACE.smallest.stages] == [16, 32]
    assert SPACE.smallest.depth == 0
    stay = parse(SearchSpace, changed(("stages", 1, "candidates"), ["mb3d", "mb4d"]), source="x")
    assert names(stay, stay.smallest)[1] == ["mb4d"] * 3  # a map block where one must stay


def test_the_stem_has_the_first_stages_width_and_half_of_it_before() -> None:
    for architecture in drawn(SPACE, 20):
        width = architecture.stages[0].width_channels
        assert (architecture.stem.width_channels, architecture.stem.hidden_channels) == (width, width // 2)


def test_choices_of_an_architecture_are_the_candidates_it_was_made_of() -> None:
    for architecture in drawn(SPACE):
        widths = tuple(stage.width_channels for stage in architecture.stages)
        assert SPACE.architecture(widths, SPACE.choices(architecture)) == architecture


def test_a_random_architecture_is_legal_and_a_function_of_the_generator() -> None:
    for architecture in drawn(SPACE):
        SPACE.check(architecture)
    assert drawn(SPACE, 20) == drawn(SPACE, 20)
    assert drawn(SPACE, 20) != drawn(SPACE, 20, seed=1)


def test_random_architectures_cover_every_width_candidate_and_number_of_token_blocks() -> None:
    architectures = drawn(SPACE, 300)
    for index in range(2):
        assert {a.stages[index].width_channels for a in architectures} == set(SPACE.widths(index + 1))
    flat = [[name for chosen in names(SPACE, a) for name in chosen] for a in architectures]
    for position, (stage, _) in enumerate(SPACE.positions):
        assert {chosen[position] for chosen in flat} == {candidate.name for candidate in SPACE.candidates(stage)}
    assert {chosen.count("mb3d") for chosen in flat} == {0, 1, 2, 3}


def test_shallow_and_deep_random_architectures_are_both_common() -> None:
    depths = Counter(architecture.depth for architecture in drawn(SPACE, 400))
    # 22 % and 4 % are expected; with one probability for all architectures (0.6) they would be 8 % and 1 %
    assert depths[5] > 60
    assert depths[0] > 8


def test_uniform_scaling_ends_at_the_largest_and_keeps_a_block_a_stage() -> None:
    assert SPACE.scaled(1.0) == SPACE.largest
    least = SPACE.scaled(0.0)
    assert [sum(not isinstance(block, Identity) for block in stage.blocks) for stage in least.stages] == [1, 1]
    assert [stage.width_channels for stage in least.stages] == [16, 32]


def test_uniform_scaling_never_grows_when_the_factor_shrinks() -> None:
    sizes = []
    for percent in range(0, 101, 2):
        scaled = SPACE.scaled(percent / 100)
        SPACE.check(scaled)
        tokens = sum(isinstance(block, MB3D) for stage in scaled.stages for block in stage.blocks)
        sizes.append((scaled.depth, *(stage.width_channels for stage in scaled.stages), tokens))
    for smaller, larger in itertools.pairwise(sizes):
        assert all(a <= b for a, b in zip(smaller, larger, strict=True))
    assert len(set(sizes)) > 5


def test_depth_and_width_scale_apart_where_both_are_given() -> None:
    assert [stage.width_channels for stage in SPACE.scaled(0.5, 1.0).stages] == [48, 64]
    assert SPACE.scaled(1.0, 0.0).depth == SPACE.largest.depth


def test_a_map_block_after_a_token_block_is_refused() -> None:
    mb4d, mb3d, identity = SPACE.candidates(2)
    legal = SPACE.architecture((16, 32), ((mb4d, identity), (mb3d, identity, mb3d)))
    assert names(SPACE, legal)[1] == ["mb3d", "identity", "mb3d"]
    with pytest.raises(UserError, match="stage 2, block 2: mb4d after a token block; token blocks come last"):
        SPACE.architecture((16, 32), ((mb4d, identity), (mb3d, mb4d, mb3d)))


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ((16, 40), r"stage 2: width 40 is not a multiple of 16 \(nearest: 32, 48\)"),
        ((64, 32), "stage 1: width 64 is outside of 16 to 48"),
        ((16, 16), "stage 2: width 16 is outside of 32 to 64"),
    ],
)
def test_a_width_off_the_grid_or_the_range_is_refused_with_what_is_legal(widths: tuple[int, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SPACE.architecture(widths, SPACE.choices(SPACE.largest))


def test_an_architecture_of_another_space_is_refused_with_the_difference() -> None:
    deeper = parse(SearchSpace, changed(("stages", 0, "depth"), 3), source="x").largest
    with pytest.raises(UserError, match="stage 1: 3 blocks, but the space has 2"):
        SPACE.check(deeper)
    with pytest.raises(UserError, match="1 stages, but the space has 2"):
        SPACE.check(SPACE.largest.model_copy(update={"stages": SPACE.largest.stages[:1]}))
    other = parse(SearchSpace, changed(("stages", 0, "candidates"), [{"type": "mb4d", "mlp_ratio": 3}]), source="x")
    with pytest.raises(UserError, match="stage 1, block 1: mb4d with these sizes is no candidate of the space"):
        SPACE.check(other.largest)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("stages", 1, "width_channels", "largest"), 60, r"stage 2: width 60 is not a multiple of 16 .*48, 64"),
        (("stages", 0, "width_channels", "smallest"), 64, "stage 1: smallest width 64 is above the largest, 48"),
        (("stages", 0, "candidates"), ["identity"], "at least one block besides identity"),
        (("stages", 0, "candidates"), [], "at least 1 item"),
        (("stages", 0, "candidates"), ["mb4d", "mb4d"], "distinct names .got mb4d, mb4d.; give one a `name`"),
        (("stages", 0, "candidates"), ["mb4"], r"unknown block type 'mb4' \(did you mean mb4d\?\)"),
        (
            ("stages", 0, "candidates"),
            [{"type": "mb4d", "mlp_raito": 2}],
            r"mlp_raito: unknown option \(did you mean mlp_ratio\?\)",
        ),
        (("stages", 0, "candidates"), [{"type": "mb4d", "pool_kernel": 4}], "must be odd"),
        (("stages", 0, "candidates"), [{"type": "mb4d", "name": "a.b"}], "must not be empty or contain a dot"),
        (("stages", 0, "candidates"), [{"name": "a"}], "type"),
        (("stages",), [], "at least 1 item"),
        (("granularity",), 0, "granularity: .*greater than 0"),
        (("stages", 0, "dept"), 1, r"unknown key \(did you mean depth\?\)"),
    ],
)
def test_a_space_that_cannot_be_is_refused(place: tuple[str | int, ...], value: object, message: str) -> None:
    line = refusal(changed(place, value))
    assert re.search(message, line), line


@pytest.mark.parametrize("other", [{"mlp_ratio": 4}, {"mlp_ratio": 4.01}])
def test_two_candidates_that_are_the_same_block_at_some_width_are_refused(other: dict[str, Any]) -> None:
    twins = [{"type": "mb4d", "name": "one"}, {"type": "mb4d", "name": "two", **other}, "identity"]
    assert "stage 1: candidates one and two are the same block at width 16" in refusal(
        changed(("stages", 0, "candidates"), twins)
    )


def test_the_nearest_widths_never_include_zero() -> None:
    with pytest.raises(UserError, match=r"stage 3: width 7 is not a multiple of 16 \(nearest: 16\)"):
        check_width(7, granularity=16, stage=3)
    check_width(48, granularity=16, stage=1)


def test_a_space_comes_back_from_its_file_with_its_digest(tmp_path: Path) -> None:
    for suffix in ("yaml", "json"):
        SPACE.save(tmp_path / f"space.{suffix}")
        back = SearchSpace.load(tmp_path / f"space.{suffix}")
        assert back == SPACE
        assert back.digest == SPACE.digest


def test_a_shape_becomes_a_space_with_what_the_data_decide() -> None:
    shape = parse(SpaceShape, {"stages": PLAIN["stages"]}, source="x")
    assert SearchSpace.of(shape, in_channels=3, resolution_px=(32, 48), num_classes=10) == SPACE


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("in_channels",), 1),
        (("resolution_px",), [48, 32]),
        (("num_classes",), 11),
        (("granularity",), 8),
        (("stem",), {"strides": [1, 2]}),
        (("stem",), {"activation": "gelu"}),
        (("downsampling_stride",), 1),
        (("distillation_head",), True),
        (("head_norm",), "identity"),
        (("head_pooling",), "max"),
        (("downsampling_pooling",), "max"),
        (("stem",), {"pooling": "max"}),
        (("stages", 0, "depth"), 3),
        (("stages", 0, "width_channels", "largest"), 32),
        (("stages", 0, "width_channels", "smallest"), 32),
        (("stages", 0, "candidates"), [{"type": "mb4d", "mlp_ratio": 3}, "identity"]),
        (("stages", 0, "candidates"), [{"type": "mb4d", "name": "other"}, "identity"]),
        (("stages", 0, "candidates"), ["separable_conv", "identity"]),
    ],
)
def test_every_field_of_a_space_changes_its_digest_and_what_it_allows(place: tuple[str | int, ...], value: Any) -> None:
    other = parse(SearchSpace, changed(place, value), source="x")
    assert other.digest != SPACE.digest

    def allows(space: SearchSpace) -> object:
        widths = [space.widths(stage) for stage in range(1, len(space.stages) + 1)]
        candidates = [[candidate.name for candidate in stage.candidates] for stage in space.stages]
        return space.largest.digest, space.smallest.digest, widths, candidates

    assert allows(other) != allows(SPACE)


def test_a_candidate_is_written_out_with_all_its_options() -> None:
    assert Candidate.model_validate("mb3d").model_dump() == {
        "type": "mb3d",
        "name": "mb3d",
        "options": {"mlp_ratio": 4},
    }
