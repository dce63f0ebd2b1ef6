"""What is installed: setup.py lists exactly the packages, data files and dependencies that the rooms have and need."""

from __future__ import annotations

import ast
import os
import re
import sys
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("supernet", "search", "train", "experiments", "analysis")
# What lies in a room, but is not installed: notes, and the records of past runs.
NOT_INSTALLED = ("*.md", "experiments/records/*")


def setup_arguments() -> dict[str, Any]:
    """The keyword arguments of setup() in setup.py, which are literals, so nothing is run."""
    tree = ast.parse((ROOT / "setup.py").read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "setup"]
    assert len(calls) == 1
    return {keyword.arg or "**": ast.literal_eval(keyword.value) for keyword in calls[0].keywords}


def package_data() -> dict[str, list[str]]:
    """The patterns of package_data by folder: supernet.zoo is the folder supernet/zoo."""
    return {package.replace(".", "/"): names for package, names in setup_arguments()["package_data"].items()}


def canonical(requirement: str) -> str:
    """The normalized distribution name of a requirement."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^A-Za-z0-9_.-]", requirement, maxsplit=1)[0]).lower()


def test_setup_lists_exactly_the_packages_on_disk() -> None:
    top = [path for path in ROOT.iterdir() if path.is_dir() and (path / "__init__.py").exists()]
    on_disk = {file.parent.relative_to(ROOT) for room in top for file in room.rglob("__init__.py")}
    assert sorted(setup_arguments()["packages"]) == sorted(".".join(path.parts) for path in on_disk)


def test_setup_never_installs_the_tests() -> None:
    assert not [package for package in setup_arguments()["packages"] if package.split(".")[0] not in ROOMS]
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_every_data_file_of_a_room_is_installed() -> None:
    patterns = [f"{folder}/{name}" for folder, names in package_data().items() for name in names]
    files = [
        path.relative_to(ROOT).as_posix()
        for room in ROOMS
        for path in (ROOT / room).rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc") and not path.name.startswith(".")
    ]
    missed = [
        file
        for file in files
        if not any(fnmatch(file, pattern) and file.count("/") == pattern.count("/") for pattern in patterns)
        and not any(fnmatch(file, pattern) for pattern in NOT_INSTALLED)
    ]
    assert not missed, f"no pattern of package_data in setup.py matches {', '.join(missed)}"


def test_every_pattern_of_package_data_matches_a_file() -> None:
    for folder, patterns in package_data().items():
        for pattern in patterns:
            assert list((ROOT / folder).glob(pattern)), f"{folder}/{pattern} matches nothing"


def test_every_library_the_rooms_import_is_declared() -> None:
    arguments = setup_arguments()
    optional = [needs for extra, needs in arguments["extras_require"].items() if extra != "test"]
    declared = {canonical(need) for needs in (arguments["install_requires"], *optional) for need in needs}
    distributions = metadata.packages_distributions()
    undeclared = set()
    for path in (path for room in ROOMS for path in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            for module in {name.split(".")[0] for name in names} - sys.stdlib_module_names - set(ROOMS):
                providers = {canonical(name) for name in distributions.get(module, [module])}
                if not providers & declared:
                    undeclared.add(f"{module} ({path.relative_to(ROOT)})")
    assert not undeclared, f"neither in install_requires nor in an extra: {', '.join(sorted(undeclared))}"


def test_the_declared_python_is_the_one_the_tools_check() -> None:
    assert setup_arguments()["python_requires"] == ">=3.10"
    settings = (ROOT / "pyproject.toml").read_text()
    assert 'target-version = "py310"' in settings
    assert 'python_version = "3.10"' in settings


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX")
def test_the_gate_is_executable() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
