"""The rooms and their arrows: who may import whom, and that no file in them can execute what it reads.

Imports are read with `ast`, so that an arrow inside a function or under TYPE_CHECKING counts as one too.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("supernet", "search", "train", "experiments", "analysis")

# What of the project a room may import besides itself; a package stands for everything in it.
ARROWS: dict[str, tuple[str, ...]] = {
    "supernet": (),
    "search": ("supernet",),
    "train": ("supernet",),
    "experiments": ("supernet", "search", "train", "analysis"),
    "analysis": ("supernet.architecture", "supernet.schema"),
}
TORCH_FREE = ("supernet/architecture.py", "supernet/block_types.py", "supernet/schema.py", "analysis/")
TIMM_IN_SUPERNET = "supernet/timm_models.py"

UNSAFE_MODULES = ("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal")
UNSAFE_NAMES = {
    "eval": "reads code",
    "exec": "reads code",
    "builtins.eval": "reads code",
    "builtins.exec": "reads code",
    "yaml.load": "use yaml.safe_load",
    "yaml.load_all": "use yaml.safe_load_all",
    "yaml.full_load": "use yaml.safe_load",
    "yaml.full_load_all": "use yaml.safe_load_all",
    "yaml.unsafe_load": "use yaml.safe_load",
    "yaml.unsafe_load_all": "use yaml.safe_load_all",
}
TORCH_LOADERS = ("torch.load", "torch.serialization.load")
NUMPY_LOADERS = ("numpy.load",)


def room_files() -> list[Path]:
    """Every Python file of the five rooms, relative to the checkout."""
    return sorted(path.relative_to(ROOT) for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def imports(path: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of everything a file imports: `from a import b` is `a.b`."""
    package = Path(path).parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent = package[: len(package) - node.level + 1] if node.level else ()
            origin = [*parent, *([node.module] if node.module else [])]
            yield from ((node.lineno, ".".join([*origin, alias.name])) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            constants = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
            yield from ((node.lineno, name) for name in constants if isinstance(name, str))


def within(name: str, packages: tuple[str, ...]) -> bool:
    """Whether a dotted name is one of the packages or lies inside one."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def forbidden_arrows(path: str, source: str) -> list[str]:
    """One line for every import in a room's file that the rooms do not allow."""
    room = Path(path).parts[0]
    found = []
    for line, name in imports(path, ast.parse(source)):
        outer = name.split(".")[0]
        if outer == "tests":
            found.append(f"{path}:{line}: imports {name}: nobody imports tests")
        elif outer in ROOMS and outer != room and not within(name, ARROWS[room]):
            allowed = ", ".join(ARROWS[room]) or "no other room"
            found.append(f"{path}:{line}: imports {name}: {room} may import {allowed}")
        elif outer == "timm" and room == "supernet" and path != TIMM_IN_SUPERNET:
            found.append(f"{path}:{line}: imports {name}: in supernet only timm_models.py may import timm")
        elif outer in ("torch", "torchvision", "timm") and path.startswith(TORCH_FREE):
            found.append(f"{path}:{line}: imports {name}: this file is free of torch")
    return found


def unsafe_reads(path: str, source: str) -> list[str]:
    """One line for every way in which a file could execute what it reads."""
    tree = ast.parse(source)
    found = [
        f"{path}:{line}: imports {name}: no pickles"
        for line, name in imports(path, tree)
        if within(name, UNSAFE_MODULES)
    ]
    names = _bound_names(path, tree)
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Name | ast.Attribute) or (name := _dotted(node, names)) is None:
            continue
        keywords = {keyword.arg: keyword.value for keyword in calls[id(node)].keywords} if id(node) in calls else {}
        if name in UNSAFE_NAMES:
            found.append(f"{path}:{node.lineno}: {name}: {UNSAFE_NAMES[name]}")
        elif name in TORCH_LOADERS and not _is_true(keywords.get("weights_only")):
            found.append(f"{path}:{node.lineno}: {name}: say weights_only=True")
        elif name in NUMPY_LOADERS and "allow_pickle" in keywords:
            found.append(f"{path}:{node.lineno}: {name}: no pickles")
    return found


def _bound_names(path: str, tree: ast.Module) -> dict[str, str]:
    """What each imported name of a file stands for: `import numpy as np` gives {"np": "numpy"}."""
    bound = {"eval": "eval", "exec": "exec"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                bound[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            bound |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return bound


def _dotted(node: ast.expr, names: dict[str, str]) -> str | None:
    if isinstance(node, ast.Name):
        return names.get(node.id) if isinstance(node.ctx, ast.Load) else None
    if isinstance(node, ast.Attribute):
        owner = _dotted(node.value, names)
        return owner and f"{owner}.{node.attr}"
    return None


def _is_true(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


@pytest.mark.parametrize("room", ROOMS)
def test_an_imported_room_is_the_one_in_this_checkout(room: str) -> None:
    origin = importlib.import_module(room).__file__
    assert origin is not None
    assert Path(origin).resolve() == ROOT / room / "__init__.py"


def test_an_installed_room_is_the_one_in_this_checkout_from_any_folder(tmp_path: Path) -> None:
    try:
        metadata.distribution("slimformer")
    except metadata.PackageNotFoundError:
        pytest.skip("slimformer is not installed here; `make test` installs it")
    command = f"import importlib.util as u\nfor room in {ROOMS}: print(u.find_spec(room).origin)"
    origins = subprocess.run(
        [sys.executable, "-I", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    assert origins[:-1] == [str(ROOT / room / "__init__.py") for room in ROOMS]


def test_no_file_imports_against_the_arrows() -> None:
    found = [line for path in room_files() for line in forbidden_arrows(path.as_posix(), (ROOT / path).read_text())]
    assert not found, "\n".join(found)


def test_no_file_executes_what_it_reads() -> None:
    found = [line for path in room_files() for line in unsafe_reads(path.as_posix(), (ROOT / path).read_text())]
    assert not found, "\n".join(found)


def test_every_room_has_files_to_check() -> None:
    assert {path.parts[0] for path in room_files()} == set(ROOMS)


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("supernet/space.py", "import search"),
        ("supernet/space.py", "from train.loop import fit"),
        ("supernet/blocks.py", "import timm.layers"),
        ("supernet/blocks.py", "from timm import layers"),
        ("search/slimming.py", "from train import evaluation"),
        ("search/slimming.py", "def late():\n    import experiments.pipeline"),
        ("search/runtimes/eager.py", "from ...train import loop"),
        ("train/loop.py", "from search.slimming import slim"),
        ("train/loop.py", "if TYPE_CHECKING:\n    from analysis import report"),
        ("analysis/report.py", "import supernet"),
        ("analysis/report.py", "from supernet import Architecture"),
        ("analysis/report.py", "from supernet import metaformer"),
        ("analysis/report.py", "import supernet.architecture_of_something_else"),
        ("analysis/report.py", 'importlib.import_module("search.trajectory")'),
        ("analysis/report.py", "import torch"),
        ("supernet/schema.py", "from torch import nn"),
        ("supernet/architecture.py", "import torchvision.ops"),
        ("experiments/cli.py", "from tests.test_rooms import ROOMS"),
    ],
)
def test_the_checker_finds_a_forbidden_arrow(path: str, line: str) -> None:
    assert len(forbidden_arrows(path, line)) == 1


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("supernet/space.py", "import torch, einops\nfrom supernet.schema import Record\nfrom . import blocks"),
        ("supernet/timm_models.py", "import timm"),
        ("search/runtimes/eager.py", "from search.measure import clock\nimport supernet\nfrom .. import measure"),
        ("train/loop.py", "import timm\nimport torchvision\nfrom supernet import MetaFormer"),
        ("experiments/cli.py", "import analysis.report, search, train, supernet"),
        ("analysis/report.py", "from supernet.architecture import Architecture\nfrom supernet import schema"),
        ("analysis/report.py", "import trainer, searching, timmy, torchless"),
    ],
)
def test_the_checker_lets_an_allowed_arrow_pass(path: str, line: str) -> None:
    assert forbidden_arrows(path, line) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from cloudpickle import loads",
        "eval(text)",
        "run = exec",
        "import builtins\nbuiltins.eval(text)",
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=False)",
        "import torch\ntorch.load(path, weights_only=trusted)",
        "import torch as t\nread = t.load",
        "from torch import load\nload(path)",
        "from torch import load as read\nread(path)",
        "import yaml\nyaml.load(text, Loader=yaml.SafeLoader)",
        "from yaml import unsafe_load\nunsafe_load(text)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
    ],
)
def test_the_checker_finds_an_unsafe_read(source: str) -> None:
    assert unsafe_reads("supernet/bad.py", source)


def test_the_checker_lets_a_safe_read_pass() -> None:
    source = """
import json, torch, yaml
import numpy as np
model.eval()
torch.load(path, weights_only=True, map_location="cpu")
yaml.safe_load(text)
json.load(file)
np.load(path)
self.load(path)
"""
    assert unsafe_reads("supernet/good.py", source) == []
