"""Records: files both ways, refusals in one clear line, digests, and writes that are whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pytest
from pydantic import Field, ValidationError

from supernet.schema import Record, UserError, digest, load, nearest, parse, save, write_atomically


class Inner(Record):
    width_channels: Annotated[int, Field(gt=0)]
    activation: Literal["relu", "gelu"] = "relu"


class Outer(Record):
    schema_version: Literal[1] = 1
    name: str
    rate: float = 0.5
    flag: bool = False
    inner: Inner | None = None
    many: tuple[Inner, ...] = ()


OUTER = Outer(name="a", rate=1e-5, inner=Inner(width_channels=16), many=(Inner(width_channels=8, activation="gelu"),))
SUFFIXES = ("yaml", "json")


def refusal(data: object) -> str:
    """The line with which the data are refused as an Outer."""
    with pytest.raises(UserError) as refused:
        parse(Outer, data, source="run.yaml")
    line = str(refused.value)
    assert line.startswith("run.yaml: ")
    assert "\n" not in line
    return line


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_record_comes_back_from_its_file_as_it_was(tmp_path: Path, suffix: str) -> None:
    save(OUTER, tmp_path / f"record.{suffix}")
    assert load(Outer, tmp_path / f"record.{suffix}") == OUTER


@pytest.mark.parametrize("text", ["on", "no", "1e-3", "2026-11-21", "null", "ümläut × 1", "a: b", "'", ""])
def test_a_text_that_yaml_could_mistake_comes_back_as_it_was(tmp_path: Path, text: str) -> None:
    value = OUTER.model_copy(update={"name": text})
    save(value, tmp_path / "record.yaml")
    assert load(Outer, tmp_path / "record.yaml") == value


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        save(OUTER, tmp_path / f"a.{suffix}")
        save(load(Outer, tmp_path / f"a.{suffix}"), tmp_path / f"b.{suffix}")
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


def test_a_record_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        OUTER.name = "b"


@pytest.mark.parametrize(
    ("key", "hint"), [("nmae", "did you mean name?"), ("rat", "did you mean rate?"), ("zzz", "known: flag, inner")]
)
def test_a_misspelt_key_is_refused_with_the_nearest_name(key: str, hint: str) -> None:
    line = refusal({"name": "a", key: 1})
    assert f"{key}: unknown key" in line
    assert hint in line


def test_a_misspelt_key_deep_inside_is_refused_with_the_nearest_name_there() -> None:
    assert "did you mean width_channels?" in refusal({"name": "a", "inner": {"width_chanels": 16}})
    assert "did you mean activation?" in refusal({"name": "a", "many": [{"width_channels": 1, "activaton": "relu"}]})


@pytest.mark.parametrize(
    ("data", "field", "allowed", "got"),
    [
        ({"name": 3}, "name", "string", "3"),
        ({"name": "a", "rate": "fast"}, "rate", "number", "'fast'"),
        ({"name": "a", "rate": True}, "rate", "number", "True"),
        ({"name": "a", "flag": "False"}, "flag", "boolean", "'False'"),
        ({"name": "a", "flag": 0}, "flag", "boolean", "0"),
        ({"name": "a", "inner": {"width_channels": 16.5}}, "inner.width_channels", "integer", "16.5"),
        ({"name": "a", "inner": {"width_channels": 0}}, "inner.width_channels", "greater than 0", "0"),
        (
            {"name": "a", "inner": {"width_channels": 1, "activation": "swish"}},
            "inner.activation",
            "'relu' or 'gelu'",
            "'swish'",
        ),
    ],
)
def test_a_wrong_value_is_refused_with_field_value_and_what_is_allowed(
    data: object, field: str, allowed: str, got: str
) -> None:
    line = refusal(data)
    assert f"{field}: " in line
    assert allowed in line
    assert f"got {got}" in line


def test_a_missing_field_is_named() -> None:
    assert "name: required, but missing" in refusal({})
    assert "inner.width_channels: required, but missing" in refusal({"name": "a", "inner": {}})


def test_every_defect_is_named_at_once() -> None:
    line = refusal({"nmae": "a", "rate": "fast"})
    assert "nmae: unknown key" in line
    assert "name: required" in line
    assert "rate: " in line


def test_an_unknown_schema_version_is_refused() -> None:
    line = refusal({"schema_version": 2, "name": "a"})
    assert "schema_version: " in line
    assert "got 2" in line


def test_a_long_value_is_shortened_in_the_message() -> None:
    assert len(refusal({"name": "a", "rate": "x" * 10_000})) < 200


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_not_finite_is_refused(number: float) -> None:
    assert "rate: " in refusal({"name": "a", "rate": number})


def test_a_number_in_scientific_notation_is_a_number(tmp_path: Path) -> None:
    (tmp_path / "record.yaml").write_text("schema_version: 1\nname: a\nrate: 1e-3\n")
    assert load(Outer, tmp_path / "record.yaml").rate == 0.001


@pytest.mark.parametrize(
    ("name", "text"), [("twice.yaml", "name: a\nrate: 0.1\nrate: 0.2\n"), ("twice.json", '{"name": "a", "name": "b"}')]
)
def test_a_key_that_is_written_twice_is_refused(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match="twice"):
        load(Outer, tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("list.yaml", b"- 1\n- 2\n", "expected a mapping of fields, found list"),
        ("empty.yaml", b"", "expected a mapping"),
        ("empty.json", b"", "not valid JSON"),
        ("open.json", b'{"name": "a', "not valid JSON"),
        ("open.yaml", b"inner: {width_channels: 1", "not valid YAML"),
        ("tab.yaml", b"name:\n\t- a", "not valid YAML"),
        ("object.yaml", b"!!python/object/apply:os.getcwd []", "not valid YAML"),
        ("date.yaml", b"name: 2026-11-21\n", "date"),
        ("binary.yaml", b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_a_malformed_file_is_refused_by_name_in_one_line(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as refused:
        load(Outer, tmp_path / name)
    assert str(refused.value).startswith(str(tmp_path / name))
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        load(Outer, tmp_path / "none.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        load(Outer, tmp_path)


def test_the_digest_does_not_depend_on_the_order_or_the_format_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("schema_version: 1\nname: x\nrate: 0.25\n")
    (tmp_path / "b.json").write_text('{"rate": 0.25, "name": "x", "flag": false, "schema_version": 1}')
    assert digest(load(Outer, tmp_path / "a.yaml")) == digest(load(Outer, tmp_path / "b.json"))


def test_the_digest_of_a_known_record_never_changes() -> None:
    # sha256 of {"activation":"relu","width_channels":16}; a change here would orphan every file ever written.
    assert digest(Inner(width_channels=16)) == "a51caa48271345f9"


def test_nearest_suggests_a_similar_word_or_lists_the_known_ones() -> None:
    assert nearest("epochz", ["epochs", "seed"]) == " (did you mean epochs?)"
    assert nearest("qqq", ["seed", "epochs"]) == " (known: epochs, seed)"


def test_a_write_that_fails_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "record.json"
    save(OUTER, path)

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(UserError, match=f"{path}: cannot be written .No space left"):
        save(OUTER.model_copy(update={"name": "b"}), path)
    assert load(Outer, path) == OUTER
    assert list(tmp_path.iterdir()) == [path]  # half a file would take what room there is


def test_a_write_below_something_that_is_no_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UserError, match=r"record.json: cannot be written"):
        save(OUTER, tmp_path / "file" / "record.json")
    assert (tmp_path / "file").read_text() == "kept"


def test_a_write_makes_its_folder_and_leaves_nothing_else_behind(tmp_path: Path) -> None:
    write_atomically(tmp_path / "new" / "file.bin", b"\x00\x01")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file.bin"]
    assert (tmp_path / "new" / "file.bin").read_bytes() == b"\x00\x01"


class Older(Record):
    size: int = 1


class Younger(Older):
    added_later: ClassVar[frozenset[str]] = frozenset({"colour"})

    colour: str = "grey"


class Holder(Record):
    parts: tuple[Older, ...] = ()
    part: Older | None = None


class YoungerHolder(Record):
    parts: tuple[Younger, ...] = ()
    part: Younger | None = None


def test_a_field_that_was_added_later_leaves_digests_alone_at_its_default_and_changes_them_otherwise() -> None:
    assert digest(Younger()) == digest(Older())
    assert digest(Younger(colour="red")) != digest(Older())
    young = YoungerHolder(parts=(Younger(size=2), Younger()), part=Younger())
    assert digest(young) == digest(Holder(parts=(Older(size=2), Older()), part=Older()))
    assert digest(young) != digest(young.model_copy(update={"parts": (Younger(size=2), Younger(colour="red"))}))
    assert digest(YoungerHolder()) == digest(Holder())
