"""A user's own Python files, which register blocks, runtimes and search methods."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path

from search.methods import method_names
from search.runtimes import runtime_names
from supernet.block_types import block_type_names
from supernet.schema import UserError

_IMPORTED: set[str] = set()
_METHODS_ALONE: set[str] = set()
_FILES_OF_METHODS: dict[str, Path] = {}


def import_plugins(paths: Sequence[Path]) -> None:
    """Execute these files as modules of their own names.

    Raises `UserError` for one that is missing or fails, or whose name is that of another or of a module in use.
    """
    for path in paths:
        if [other.stem for other in paths].count(path.stem) > 1:
            raise UserError(f"--plugin {path}: another is called {path.stem!r} too; give the file another name")
        if path.stem in sys.modules and path.stem not in _IMPORTED:
            raise UserError(f"--plugin {path}: there is a module {path.stem!r} already; give the file another name")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None or not path.is_file():
            raise UserError(f"--plugin {path}: no such Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        methods, others = set(method_names()), _blocks_and_runtimes()
        _METHODS_ALONE.discard(path.stem)
        try:
            spec.loader.exec_module(module)
        except Exception as error:  # whatever a user's code raises, told by its own file and line
            del sys.modules[path.stem]
            raise UserError(f"--plugin {told(error, path)}") from error
        _IMPORTED.add(path.stem)
        added = set(method_names()) - methods
        _FILES_OF_METHODS.update(dict.fromkeys(added, path))
        if added and _blocks_and_runtimes() == others:
            _METHODS_ALONE.add(path.stem)


def without_methods(paths: Iterable[Path]) -> tuple[Path, ...]:
    """Those of the imported files that can change a model or its latency: not those with search methods alone."""
    return tuple(path for path in paths if path.stem not in _METHODS_ALONE)


def file_of_method(name: str) -> Path | None:
    """The imported file that registered a search method; None for the project's own."""
    return _FILES_OF_METHODS.get(name)


def told(error: Exception, path: Path) -> str:
    """What a user's code raised in one line, with the line of its file where that came up."""
    return f"{path}, line {_line(error, path)}: {type(error).__name__}: {' '.join(str(error).split())}"


def _line(error: Exception, path: Path) -> int:
    if isinstance(error, SyntaxError) and error.lineno is not None:
        return error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    here = path.resolve()
    return next((frame.lineno or 1 for frame in reversed(frames) if Path(frame.filename).resolve() == here), 1)


def _blocks_and_runtimes() -> tuple[list[str], list[str]]:
    return block_type_names(), runtime_names()
