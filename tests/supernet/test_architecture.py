"""Architectures: one file is the whole model, its digest its identity, and illegal ones cannot be born."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import ValidationError

from supernet.architecture import Architecture, Downsampling, Head, Stage, Stem, strided
from supernet.block_types import MB3D, MB4D, Block, Identity, SeparableConv, block_type, register_block_type
from supernet.schema import UserError, parse

SUFFIXES = ("yaml", "json")


class RolledBlock(Block):
    """A user's own block, as the README tells how to write one."""

    type: Literal["test_rolled"] = "test_rolled"
    shift_px: int = 1
    mlp_channels: int


register_block_type(RolledBlock)

ARCHITECTURE = Architecture(
    in_channels=3,
    resolution_px=(32, 48),
    stem=Stem(width_channels=16, hidden_channels=8, strides=(1, 2)),
    stages=(
        Stage(
            width_channels=16,
            downsampling=None,
            blocks=(MB4D(mlp_channels=64), Identity(), SeparableConv(mixer_channels=32, mlp_channels=48)),
        ),
        Stage(
            width_channels=32,
            downsampling=Downsampling(stride=2),
            blocks=(RolledBlock(mlp_channels=7), MB3D(mlp_channels=128, heads=4)),
        ),
    ),
    head=Head(num_classes=10),
)


def leaves(data: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The place of every single value in nested dicts and lists."""
    if isinstance(data, dict | list):
        pairs = data.items() if isinstance(data, dict) else enumerate(data)
        for key, value in pairs:
            yield from leaves(value, (*place, key))
    else:
        yield place


def at(data: Any, place: tuple[str | int, ...]) -> Any:
    """The value at a place of nested dicts and lists."""
    for key in place:
        data = data[key]
    return data


def changed(place: tuple[str | int, ...], value: object) -> Any:
    """The plain data of ARCHITECTURE with another value at this place."""
    data = copy.deepcopy(ARCHITECTURE.model_dump(mode="json"))
    at(data, place[:-1])[place[-1]] = value
    return data


def another(place: tuple[str | int, ...]) -> Any:
    """Plain data, still legal, that differs from ARCHITECTURE at this place alone (or where the widths must agree)."""
    value = at(ARCHITECTURE.model_dump(mode="json"), place)
    match value:
        case bool():
            return changed(place, not value)
        case int():
            return changed(place, value + 2)
        case float():
            return changed(place, value * 2)
        case "relu":
            return changed(place, "gelu")
        case "gelu":
            return changed(place, "relu")
        case "none" | "mean":
            return changed(place, "max")
        case "layer_norm":
            return changed(place, "identity")
        case None:
            return changed(place, 16 if place[-1] == "hidden_channels" else {"stride": 1})
    raise AssertionError(f"no other value known for {place}: {value!r}")


PLAIN = ARCHITECTURE.model_dump(mode="json")
FIXED = ("schema_version", "type", "hidden_activation", "hidden_norm")  # the last two need a hidden layer
CHANGEABLE = [place for place in leaves(PLAIN) if place[-1] not in FIXED]


def refusal(data: object) -> str:
    """The line with which the data are refused as an architecture."""
    with pytest.raises(UserError) as refused:
        parse(Architecture, data, source="architecture.yaml")
    line = str(refused.value)
    assert line.startswith("architecture.yaml: ")
    assert "\n" not in line
    return line


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_architecture_comes_back_from_its_file_with_its_digest(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"architecture.{suffix}"
    ARCHITECTURE.save(path)
    back = Architecture.load(path)
    assert back == ARCHITECTURE
    assert back.digest == ARCHITECTURE.digest


def test_a_users_own_block_comes_back_from_a_file_as_that_block_with_its_fields(tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        ARCHITECTURE.save(tmp_path / f"architecture.{suffix}")
        block = Architecture.load(tmp_path / f"architecture.{suffix}").stages[1].blocks[0]
        assert block == RolledBlock(mlp_channels=7, shift_px=1)
        assert type(block) is RolledBlock


def test_every_default_is_written_out(tmp_path: Path) -> None:
    ARCHITECTURE.save(tmp_path / "architecture.yaml")
    text = (tmp_path / "architecture.yaml").read_text()
    for name in ("schema_version: 1", "pool_kernel: 3", "layer_scale: 1.0e-05", "key_channels: 32", "distillation"):
        assert name in text


@pytest.mark.parametrize("place", CHANGEABLE, ids=lambda place: ".".join(map(str, place)))
def test_the_digest_changes_with_every_field(place: tuple[str | int, ...]) -> None:
    data = another(place)
    if place == ("stem", "width_channels"):  # stage 1 has no downsampling, so it follows the stem
        data["stages"][0]["width_channels"] = data["stem"]["width_channels"]
    if place == ("stages", 0, "width_channels"):
        data["stages"][0]["downsampling"] = {"stride": 1}
        reference = changed(("stages", 0, "downsampling"), {"stride": 1})
        assert parse(Architecture, data, source="").digest != parse(Architecture, reference, source="").digest
    assert parse(Architecture, data, source="").digest != ARCHITECTURE.digest


def test_the_digest_changes_with_the_type_and_the_order_of_blocks() -> None:
    first, second = ARCHITECTURE.stages
    digests = {ARCHITECTURE.digest}
    for blocks in (first.blocks[::-1], first.blocks[:-1], (Identity(), *first.blocks[1:]), ()):
        stage = first.model_copy(update={"blocks": blocks})
        digests.add(ARCHITECTURE.model_copy(update={"stages": (stage, second)}).digest)
    assert len(digests) == 5


def test_the_digest_of_a_known_architecture_never_changes() -> None:
    # A change here would orphan every architecture, table and trajectory ever written.
    assert ARCHITECTURE.digest == "071b9868281aed3a"


def test_a_number_written_as_an_integer_has_the_digest_of_the_float() -> None:
    whole = parse(Architecture, changed(("stages", 0, "blocks", 2, "layer_scale"), 1), source="")
    assert whole.digest == ARCHITECTURE.digest


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_was_cut_short_anywhere_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"architecture.{suffix}"
    ARCHITECTURE.save(path)
    text = path.read_text().rstrip()
    line_ends = {position for position, character in enumerate(text) if character == "\n"}
    for end in sorted(line_ends | {position + 1 for position in line_ends} | set(range(0, len(text), 11))):
        path.write_text(text[:end])
        with pytest.raises(UserError, match=f"architecture.{suffix}"):
            Architecture.load(path)


def test_an_unknown_schema_version_is_refused() -> None:
    line = refusal(changed(("schema_version",), 2))
    assert "schema_version: " in line
    assert "got 2" in line


def test_a_file_without_schema_version_is_refused(tmp_path: Path) -> None:
    ARCHITECTURE.save(tmp_path / "architecture.yaml")
    text = (tmp_path / "architecture.yaml").read_text()
    (tmp_path / "architecture.yaml").write_text(text.replace("schema_version: 1\n", ""))
    with pytest.raises(UserError, match="schema_version"):
        Architecture.load(tmp_path / "architecture.yaml")


@pytest.mark.parametrize(
    ("place", "hint"),
    [
        (("resolution_pxs",), "did you mean resolution_px?"),
        (("stem", "width_chanels"), "did you mean width_channels?"),
        (("stages", 1, "dowsampling"), "did you mean downsampling?"),
        (("stages", 1, "downsampling", "strid"), "did you mean stride?"),
        (("head", "num_class"), "did you mean num_classes?"),
    ],
)
def test_a_misspelt_key_is_refused_with_the_nearest_name(place: tuple[str | int, ...], hint: str) -> None:
    line = refusal(changed(place, 1))
    assert "unknown key" in line
    assert hint in line


def test_a_misspelt_key_of_a_block_is_refused_with_the_nearest_name_of_that_block() -> None:
    assert "did you mean pool_kernel?" in refusal(changed(("stages", 0, "blocks", 0, "pool_kernal"), 3))
    assert "did you mean shift_px?" in refusal(changed(("stages", 1, "blocks", 0, "shift_pixels"), 3))


def test_a_refusal_counts_stages_and_blocks_from_one() -> None:
    line = refusal(changed(("stages", 1, "blocks", 0, "mlp_channels"), "many"))
    assert "stages.2.blocks.1.mlp_channels" in line


@pytest.mark.parametrize(
    ("place", "value", "parts"),
    [
        (("in_channels",), 0, ("in_channels: ", "greater than 0", "got 0")),
        (("in_channels",), "three", ("in_channels: ", "integer", "got 'three'")),
        (("in_channels",), True, ("in_channels: ", "integer", "got True")),
        (("stem", "activation"), "swish", ("stem.activation: ", "'relu' or 'gelu'", "got 'swish'")),
        (("stem", "strides"), [2], ("stem.strides", "missing")),
        (("head", "distillation"), "no", ("head.distillation: ", "boolean", "got 'no'")),
        (("stages",), [], ("stages: ", "at least 1")),
        (("stages", 0, "blocks", 0, "pool_kernel"), 4, ("pool_kernel: ", "must be odd", "got 4")),
        (("stages", 0, "blocks", 0, "mlp_channels"), 1.5, ("mlp_channels: ", "integer", "got 1.5")),
        (("stages", 0, "blocks", 0, "layer_scale"), -1.0, ("layer_scale: ", "greater than or equal to 0", "got -1.0")),
        (("stages", 0, "blocks", 0, "type"), "mb4", ("unknown block type 'mb4'", "did you mean mb4d?")),
        (("stages", 0, "blocks", 0), {"mlp_channels": 4}, ("a block needs a type",)),
        (("stages", 0, "blocks", 0), "mb4d", ("a block needs a type",)),
    ],
)
def test_a_wrong_value_is_refused_with_field_value_and_what_is_allowed(
    place: tuple[str | int, ...], value: object, parts: tuple[str, ...]
) -> None:
    line = refusal(changed(place, value))
    for part in parts:
        assert part in line


def test_a_change_of_width_without_downsampling_is_refused() -> None:
    assert "stage 1: width 24 differs from the stem's 16" in refusal(changed(("stages", 0, "width_channels"), 24))
    assert "stage 2: a change of width needs a downsampling" in refusal(changed(("stages", 1, "downsampling"), None))


def test_activation_and_norm_of_a_hidden_layer_are_part_of_the_identity() -> None:
    heads = (Head(num_classes=10, hidden_channels=8, **more) for more in ({}, {"hidden_norm": False}))  # type: ignore[arg-type]
    digests = {ARCHITECTURE.model_copy(update={"head": head}).digest for head in heads}
    relu = Head(num_classes=10, hidden_channels=8, hidden_activation="relu")
    assert len(digests | {ARCHITECTURE.model_copy(update={"head": relu}).digest}) == 3


def test_a_hidden_activation_without_a_hidden_layer_is_refused() -> None:
    for unused in ({"hidden_norm": False}, {"hidden_activation": "relu"}):
        assert "need hidden_channels" in refusal(changed(("head",), {"num_classes": 3} | unused))


def test_one_number_stands_for_a_square_resolution() -> None:
    assert parse(Architecture, changed(("resolution_px",), 64), source="").resolution_px == (64, 64)


@pytest.mark.parametrize("value", [0, -1, True, 2.5, "64", [64], [64, 64, 64], None])
def test_a_resolution_that_is_not_one_or_two_positive_integers_is_refused(value: object) -> None:
    assert "resolution_px" in refusal(changed(("resolution_px",), value))


def test_an_architecture_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        ARCHITECTURE.in_channels = 1


def test_the_grids_are_those_of_padded_3x3_convolutions() -> None:
    assert ARCHITECTURE.grids == ((16, 24), (8, 12))
    odd = parse(Architecture, changed(("resolution_px",), [33, 1]), source="")
    assert odd.grids == ((17, 1), (9, 1))
    assert [strided((size, size), 2)[0] for size in range(1, 6)] == [(size + 2 - 3) // 2 + 1 for size in range(1, 6)]


def test_the_depth_counts_the_blocks_that_compute() -> None:
    assert ARCHITECTURE.depth == 4


def test_a_block_at_a_width_has_its_channels_as_multiples_of_it() -> None:
    assert MB4D.at_width(48, mlp_ratio=4, pool_kernel=5) == MB4D(mlp_channels=192, pool_kernel=5)
    assert SeparableConv.at_width(10, mixer_ratio=1.3, mlp_ratio=0.001) == SeparableConv(
        mixer_channels=13, mlp_channels=1
    )
    assert MB3D.at_width(480, mlp_ratio=4) == MB3D(mlp_channels=1920, heads=8, key_channels=32, value_channels=128)
    assert RolledBlock.at_width(8, mlp_ratio=2, shift_px=3) == RolledBlock(mlp_channels=16, shift_px=3)
    assert Identity.at_width(48) == Identity()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mpl_ratio": 4}, "mpl_ratio: unknown option .did you mean mlp_ratio"),
        ({"type": "mb3d"}, "type: unknown option"),
        ({"mlp_ratio": 0}, "mlp_ratio: must be a number above 0"),
        ({"mlp_ratio": "4"}, "mlp_ratio: must be a number above 0 .got '4'"),
        ({"mlp_ratio": True}, "mlp_ratio: must be a number above 0"),
    ],
)
def test_a_wrong_option_of_a_block_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MB4D.at_width(48, **options)


def test_channels_given_both_as_a_number_and_as_a_ratio_are_refused() -> None:
    with pytest.raises(UserError, match="mlp"):
        MB4D.at_width(48, mlp_channels=7, mlp_ratio=4)


def test_a_block_type_cannot_be_registered_under_a_taken_or_an_empty_name() -> None:
    class Impostor(Block):
        type: Literal["mb4d"] = "mb4d"

    class Nameless(Block):
        pass

    with pytest.raises(ValueError, match="'mb4d' is registered already, by MB4D"):
        register_block_type(Impostor)
    with pytest.raises(ValueError, match="Nameless: needs"):
        register_block_type(Nameless)
    assert block_type("mb4d") is MB4D


def test_plain_data_of_an_architecture_hold_no_path_and_no_object() -> None:
    assert all(isinstance(at(PLAIN, place), int | float | str | None) for place in leaves(PLAIN))
