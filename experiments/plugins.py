"""A user's own Python files, which register blocks and runtimes."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path

from supernet.schema import UserError


def import_plugins(paths: Iterable[Path]) -> None:
    """Execute these files as modules of their own names. Raises `UserError` for one that is not there."""
    for path in paths:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None or not path.is_file():
            raise UserError(f"--plugin {path}: no such Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
