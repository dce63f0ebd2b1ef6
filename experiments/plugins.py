"""A user's own Python files, which register blocks, runtimes and search methods."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path

from search.methods import method_names
from search.runtimes import runtime_names
from supernet.block_types import block_type_names
from supernet.schema import UserError

_IMPORTED: set[str] = set()
_METHODS_ALONE: set[str] = set()


def import_plugins(paths: Iterable[Path]) -> None:
    """Execute these files as modules of their own names.

    Raises `UserError` for one that is missing or fails, or whose name is that of a module in use.
    """
    for path in paths:
        if path.stem in sys.modules and path.stem not in _IMPORTED:
            raise UserError(f"--plugin {path}: there is a module {path.stem!r} already; give the file another name")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None or not path.is_file():
            raise UserError(f"--plugin {path}: no such Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        methods, others = len(method_names()), _blocks_and_runtimes()
        try:
            spec.loader.exec_module(module)
        except Exception as error:  # whatever a user's code raises, told by its own file and line
            del sys.modules[path.stem]
            reason = " ".join(str(error).split())
            raise UserError(f"--plugin {path}, line {_line(error, path)}: {type(error).__name__}: {reason}") from error
        _IMPORTED.add(path.stem)
        if len(method_names()) > methods and _blocks_and_runtimes() == others:
            _METHODS_ALONE.add(path.stem)


def without_methods(paths: Iterable[Path]) -> tuple[Path, ...]:
    """Those of the imported files that can change a model or its latency: not those with search methods alone."""
    return tuple(path for path in paths if path.stem not in _METHODS_ALONE)


def _blocks_and_runtimes() -> tuple[list[str], list[str]]:
    return block_type_names(), runtime_names()


def _line(error: Exception, path: Path) -> int:
    """The line of this file where an error came up."""
    if isinstance(error, SyntaxError) and error.lineno is not None:
        return error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    return next((frame.lineno or 1 for frame in reversed(frames) if Path(frame.filename) == path), 1)
