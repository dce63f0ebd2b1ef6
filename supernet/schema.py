"""Records: the frozen, strictly validated values that every file of the project holds.

A record is read from YAML or JSON, never from a pickle, and refuses unknown keys, wrong types and unknown
schema versions with one line that names the field, the value and what is allowed.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import os
import re
import types
import typing
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError


class UserError(ValueError):
    """A mistake of the person at the keyboard: the command line prints its one line and exits with code 2."""


class Record(BaseModel):
    """A frozen pydantic model that refuses unknown keys and does not coerce types.

    `added_later` names fields that are younger than files of this record: at its default such a field is left out of
    the digest, so that what was written before it keeps its identity.
    """

    added_later: ClassVar[frozenset[str]] = frozenset()

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=(), allow_inf_nan=False)

    @classmethod
    def kind_of(cls, data: object) -> type[Record]:
        """The class that reads these data: this one, or for an open set of records the subclass they name."""
        return cls


RecordT = TypeVar("RecordT", bound=Record)


def parse(record: type[RecordT], data: object, *, source: str) -> RecordT:
    """Validate plain data (dicts, lists, numbers, strings) as a record.

    Raises `UserError` with one line per defect, each naming the field, the rule and the value; `source` begins it.
    """
    try:
        return record.model_validate_json(json.dumps(data))
    except ValidationError as error:
        defects = error.errors()
        places = {defect["loc"][:end] for defect in defects for end in range(len(defect["loc"]))}
        told = [d for d in defects if not (d["type"] == "too_short" and d["loc"] in places)]  # short by its bad items
        lines = [_line(record, data, defect) for defect in told]
        raise UserError(f"{source}: " + "; ".join(dict.fromkeys(lines))) from None
    except TypeError as error:  # YAML dates and the like, which JSON does not know
        raise UserError(f"{source}: {error}") from None


def read_data(path: Path) -> object:
    """The plain data in a YAML or JSON file. Raises `UserError` if it is missing or malformed."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    try:
        return parse_json(text) if path.suffix == ".json" else parse_yaml(text)
    except (ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not valid {'JSON' if path.suffix == '.json' else 'YAML'} ({reason})") from None


def parse_yaml(text: str) -> Any:
    """Plain data from YAML: 1e-3 is a number, and a key that occurs twice is an error (`yaml.YAMLError`)."""
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def parse_json(text: str) -> Any:
    """Plain data from JSON; a key that occurs twice is an error (`ValueError`)."""
    return json.loads(text, object_pairs_hook=_distinct)


class _Loader(yaml.SafeLoader):
    """YAML 1.1's safe loader with YAML 1.2's floats, and without its silence about repeated keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} occurs twice", node.start_mark)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """The writer that agrees with `_Loader` on what is a number, so that such a text is quoted."""


for _yaml in (_Loader, _Dumper):
    _yaml.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"the key {key!r} occurs twice")
    return dict(pairs)


def load(record: type[RecordT], path: Path | str) -> RecordT:
    """Read a record from a YAML or JSON file. Raises `UserError` for anything that is wrong with it."""
    path = Path(path)
    data = read_data(path)
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected a mapping of fields, found {type(data).__name__}")
    if "schema_version" in record.model_fields and "schema_version" not in data:
        raise UserError(f"{path}: schema_version: required, but missing")
    return parse(record, data, source=str(path))


def save(value: Record, path: Path | str) -> None:
    """Write a record as YAML or JSON (by suffix), whole or not at all."""
    path = Path(path)
    data = value.model_dump(mode="json")
    if path.suffix == ".json":
        text = json.dumps(data, indent=1, allow_nan=False) + "\n"
    else:
        text = yaml.dump(data, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=110)
    write_atomically(path, text.encode())


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a temporary name and move it into place, so that a reader never sees half of it.

    Raises `UserError` where the machine does not let it (disk full, no permission); what was there is kept.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UserError(f"{path}: cannot be written ({error.strerror}); what was there is kept") from error


def digest(value: Record) -> str:
    """The first 16 hex digits of the sha256 over the record's canonical JSON: its identity."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:16]


def canonical(value: Record) -> str:
    """JSON with sorted keys and no spaces, of `plain`."""
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"))


def plain(value: Record) -> dict[str, Any]:
    """A record as plain data, without later fields at their defaults (`Record.added_later`)."""
    data = value.model_dump(mode="json")
    _leave_out_later_defaults(value, data)
    return data


def _leave_out_later_defaults(value: object, data: Any) -> None:
    """Remove from a value's plain data, in place, the fields that `Record.added_later` means."""
    if isinstance(value, Record) and isinstance(data, dict):
        fields = type(value).model_fields
        for name in value.added_later & data.keys():
            if getattr(value, name) == fields[name].default:
                del data[name]
        for name in fields.keys() & data.keys():
            _leave_out_later_defaults(getattr(value, name), data[name])
    elif isinstance(value, tuple):
        for item, its in zip(value, data, strict=True):
            _leave_out_later_defaults(item, its)


def nearest(word: str, known: typing.Iterable[str]) -> str:
    """A hint ' (did you mean X?)' or, with nothing similar, ' (known: A, B, C)'."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" (did you mean {close[0]}?)" if close else f" (known: {', '.join(known)})"


def _line(record: type[Record], data: object, defect: Any) -> str:
    keys = _keys(data, defect["loc"], to_come=defect["type"] == "missing")
    location = [str(key + 1) if isinstance(key, int) else key for key in keys]  # people count from 1
    name = ".".join(location) or "the whole"
    value = defect["input"]
    if defect["type"] == "extra_forbidden":
        owner = _record_at(record, data, defect["loc"][:-1])
        return f"{name}: unknown key" + (nearest(location[-1], owner.model_fields) if owner else "")
    if defect["type"] == "missing":
        return f"{name}: required, but missing"
    message = defect["msg"].removeprefix("Value error, ")
    if defect["type"] == "value_error":
        return f"{name}: {message}" if location else message
    shown = repr(value)
    return f"{name}: {message[0].lower() + message[1:]} (got {shown if len(shown) <= 60 else shown[:57] + '...'})"


def _keys(data: Any, location: tuple[Any, ...], *, to_come: bool) -> list[Any]:
    """The parts of a validation error's location that are keys of the data, without names of a union's members.

    With `to_come` the last one names what the data lack.
    """
    keys = []
    for number, part in enumerate(location, start=1):
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            if not (to_come and number == len(location)):
                continue
        keys.append(part)
    return keys


def _record_at(record: type[Record], data: Any, location: tuple[Any, ...]) -> type[Record] | None:
    """The record class that a validation error's location leads to, as far as the data let it be followed."""
    current: type[Record] | None = record.kind_of(data)
    for part in location:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            continue  # a part that names a member of a union, not a key
        if current is not None and isinstance(part, str) and part in current.model_fields:
            current = _record_in(current.model_fields[part].annotation)
        if current is not None and isinstance(data, dict):
            current = current.kind_of(data)
    return current


def _record_in(annotation: Any) -> type[Record] | None:
    if isinstance(annotation, type) and issubclass(annotation, Record):
        return annotation
    if typing.get_origin(annotation) in (tuple, list, dict, typing.Union, types.UnionType, typing.Annotated):
        found = [_record_in(argument) for argument in typing.get_args(annotation)]
        return next((candidate for candidate in found if candidate), None)
    return None
