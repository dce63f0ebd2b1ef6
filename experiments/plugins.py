"""A user's own Python files, which register blocks and runtimes."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path

from supernet.schema import UserError

_IMPORTED: set[str] = set()


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
        try:
            spec.loader.exec_module(module)
        except Exception as error:  # whatever a user's code raises, told by its own file and line
            del sys.modules[path.stem]
            reason = " ".join(str(error).split())
            raise UserError(f"--plugin {path}, line {_line(error, path)}: {type(error).__name__}: {reason}") from error
        _IMPORTED.add(path.stem)


def _line(error: Exception, path: Path) -> int:
    """The line of this file where an error came up."""
    if isinstance(error, SyntaxError) and error.lineno is not None:
        return error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    return next((frame.lineno or 1 for frame in reversed(frames) if Path(frame.filename) == path), 1)
