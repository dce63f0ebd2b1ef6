"""A tiny experiment on real digits, finished once, on a device whose time is arithmetic.

The virtual runtime counts parameters instead of computing, on a clock of its own. So a whole run takes seconds, its
latencies are exact, and two runs with one seed must give the same bytes.
"""

from __future__ import annotations

import copy
import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from experiments import cli
from search.measure import Timing, measure
from search.runtimes import register_runtime

POOLING = {"type": "mb4d", "mlp_ratio": 2, "layer_scale": 1.0}
ATTENTION = {
    "type": "mb3d",
    "heads": 2,
    "key_channels": 4,
    "value_channels": 4,
    "mlp_ratio": 2,
    "layer_scale": 1.0,
}
TINY: dict[str, Any] = {
    "schema_version": 1,
    "name": "tiny",
    "device": "cpu",
    "threads": 1,
    "data": {"path": "digits", "resolution_px": 8, "channels": 1, "held_out_fraction": 0.25},
    "space": {
        "granularity": 8,
        "stem": {"strides": [1, 1]},
        "stages": [
            {
                "depth": 1,
                "width_channels": {"smallest": 8, "largest": 16},
                "candidates": [POOLING, "identity"],
            },
            {
                "depth": 2,
                "width_channels": {"smallest": 8, "largest": 24},
                "candidates": [POOLING, ATTENTION, "identity"],
            },
        ],
    },
    "supernet": {
        "epochs": 2,
        "batch_size": 128,
        "learning_rate": 1.0e-2,
        "precision": "fp32",
        "alpha": {"learning_rate": 0.1, "warmup_fraction": 0.5},
        "widths": {"random": 1, "warmup_fraction": 0.25},
    },
    "table": {"runtime": "virtual", "rounds": 2, "copies": 1, "audit_nets": 4, "most_minutes": 0.0},
    "search": {
        "budgets_of_largest": [0.71, 0.47],
        "score_images": 64,
        "refit_images": 128,
        "evolution": {"trials": 12, "population": 6},
    },
    "train": {"epochs": 2, "batch_size": 128, "learning_rate": 2.0e-2, "precision": "fp32"},
    "evaluate": {"batch_size": 64, "parity_images": 2, "latency_rounds": 2},
}

MEASURING = (
    "search.bench",
    "search.isolated",
    "experiments.run",
    "experiments.measuring",
)

# What is not the same twice: times, commands and dates.
TIMED = ("manifest.json", "config.json", ".lock", "report.html")


@dataclass
class VirtualDevice:
    """Where virtual nets run: `slowdown` multiplies every duration, a call takes `overhead_ns` more; `calls` counts."""

    now_ns: int = 0
    slowdown: float = 1.0
    overhead_ns: int = 0
    calls: int = 0

    def clock(self) -> int:
        return self.now_ns


DEVICE = VirtualDevice()


@dataclass(frozen=True)
class VirtualNet:
    """A net that takes 10 µs, and 20 ns more for every parameter and image."""

    duration_ns: int

    def __call__(self) -> None:
        DEVICE.calls += 1
        DEVICE.now_ns += round(DEVICE.slowdown * self.duration_ns) + DEVICE.overhead_ns


@register_runtime("virtual")
class VirtualRuntime:
    name, version, precisions = "virtual", "1", ("fp32", "bf16")

    def __init__(self, *, threads: int, precision: str = "fp32") -> None:
        self.threads, self.precision = threads, precision

    def build(self, module: nn.Module, input_shape: tuple[int, ...]) -> VirtualNet:
        parameters = sum(parameter.numel() for parameter in module.parameters())
        return VirtualNet(10_000 + 20 * parameters * input_shape[0] // self.threads)


@register_runtime("virtual_too")
class OtherVirtualRuntime(VirtualRuntime):
    name = "virtual_too"


@register_runtime("virtual_picky")
class PickyVirtualRuntime(VirtualRuntime):
    """Cannot build whatever has this word in its module: attention."""

    name = "virtual_picky"
    refuses = "OffsetAttention"

    def build(self, module: nn.Module, input_shape: tuple[int, ...]) -> VirtualNet:
        if self.refuses in str(module):
            raise RuntimeError("no kernel for this")
        return super().build(module, input_shape)


@register_runtime("virtual_refusing")
class RefusingVirtualRuntime(PickyVirtualRuntime):
    """Cannot build whatever has this word in its module: attention of MetaFormer baselines."""

    name, refuses = "virtual_refusing", "Attention"


def _measured(nets: Mapping[Any, Callable[[], object]], **options: Any) -> dict[Any, Timing]:
    """`measure`, but virtual nets are timed by their own clock, and nothing interrupts them."""
    if not all(isinstance(net, VirtualNet) for net in nets.values()):
        return measure(nets, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("search.measure._interruptions", lambda: 0)
        patch.setattr("search.measure.gc.collect", lambda: 0)  # a quarter of a second in a process full of tests
        return measure(nets, **{**options, "clock": DEVICE.clock})


@pytest.fixture(scope="session", autouse=True)
def _virtual_time() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in MEASURING:
            patch.setattr(f"{module}.measure", _measured)
        patch.setattr("experiments.delivered_latency.FIRST_PAUSE_SECONDS", 0.0)
        yield


@pytest.fixture(autouse=True)
def _empty_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing a report takes two seconds: the finished run has it drawn, and tests/analysis draws every state of it."""
    monkeypatch.setattr("analysis.figure_style._drawn", lambda figure, *, salt: "<svg></svg>")


@pytest.fixture
def device() -> Iterator[VirtualDevice]:
    """The virtual device, as fast as ever, before any call."""
    DEVICE.slowdown, DEVICE.overhead_ns, DEVICE.calls = 1.0, 0, 0
    yield DEVICE
    DEVICE.slowdown, DEVICE.overhead_ns = 1.0, 0


@dataclass(frozen=True)
class Outcome:
    """What a command line answered; any exception but an exit would fail the test."""

    code: int
    out: str
    err: str

    @property
    def mistake(self) -> str:
        """The one line on standard error of a user's mistake."""
        assert self.code == 2, self.err
        assert self.err.startswith("slimformer: "), self.err
        assert self.err.endswith("\n")
        assert self.err.count("\n") == 1, self.err
        return self.err.removeprefix("slimformer: ").removesuffix("\n")

    @property
    def skipped(self) -> list[str]:
        """The stages that a run says were done before."""
        return [line.split(":")[0] for line in self.out.splitlines() if ": done before" in line]


def run_slimformer(*words: object) -> Outcome:
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["slimformer", *map(str, words)])
        try:
            cli.main()
            code: Any = 0
        except SystemExit as ended:
            code = ended.code
    return Outcome(0 if code is None else code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def slimformer() -> Callable[..., Outcome]:
    """Runs the command line in this process: `slimformer("run", path, "--until", "table")`."""
    return run_slimformer


def written(folder: Path, changes: Mapping[str, Any]) -> Path:
    """The tiny experiment as a YAML file, with other values under dotted names."""
    data: Any = copy.deepcopy(TINY)
    for name, value in changes.items():
        *sections, last = name.split(".")
        place = data
        for section in sections:
            place = place[section]
        place[last] = value
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., Path]:
    """Writes the tiny experiment: `tiny(**{"train.epochs": 1})` is the path of a YAML file."""
    return lambda **changes: written(tmp_path, changes)


@pytest.fixture(scope="session")
def _finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("finished")
    outcome = run_slimformer("run", written(folder, {}), "--out", folder / "tiny")
    assert outcome.code == 0, outcome.err
    return folder / "tiny"


@pytest.fixture
def finished(_finished: Path) -> Path:
    """A finished run of the tiny experiment, to read; `copied` is one to change."""
    return _finished


@pytest.fixture
def copied(_finished: Path, tmp_path: Path) -> Path:
    """A finished run of the tiny experiment in a folder of the test's own."""
    return Path(shutil.copytree(_finished, tmp_path / "tiny"))


def _contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[str, bytes]]:
    """All files of a folder with their bytes."""
    return _contents


@pytest.fixture
def repeatable() -> Callable[[Path], dict[str, bytes]]:
    """The files of a run that the same seeds must give again."""

    def of(folder: Path) -> dict[str, bytes]:
        kept = {name: data for name, data in _contents(folder).items() if name not in TIMED}
        kept = {name: data for name, data in kept.items() if "tensorboard" not in name}
        for name, data in kept.items():
            if name.startswith("latency-virtual"):
                kept[name] = json.dumps(json.loads(data) | {"date": ""}).encode()
        return kept

    return of
