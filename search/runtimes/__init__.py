"""Runtimes: what executes a net on a device. One file a runtime; this one holds the protocol and the registration.

Your own runtime is ten lines, in any file that is imported before the experiment starts:

    from search.runtimes import register_runtime

    @register_runtime("half")
    class HalfRuntime:
        name, precision, version = "half", "bf16", torch.__version__

        def __init__(self, *, threads: int) -> None:
            self.threads = threads

        def build(self, module, input_shape):
            module, images = module.bfloat16(), torch.randn(input_shape).bfloat16()
            return lambda: module(images)

While nets are measured, torch is in inference mode and on `threads` threads; a runtime that computes otherwise sees to
its threads itself. A net that fails in `build`, or when it runs first, is left out with its reason.

A runtime on an accelerator must wait for the device inside the callable: the clock stops when it returns. One that
computes in several number formats lists them as the class attribute `precisions` and is constructed with `precision=`
too.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
from torch import nn

from supernet.onnx_export import onnx_bytes
from supernet.quantize import quantized_onnx
from supernet.schema import UserError, nearest


class Runtime(Protocol):
    """What executes nets; `name`, `version`, `precision` and `threads` are part of every table's condition."""

    @property
    def name(self) -> str:
        """The name it is registered under."""
        ...

    @property
    def version(self) -> str:
        """The version of the library that executes."""
        ...

    @property
    def precision(self) -> str:
        """The number format of weights and activations, such as fp32."""
        ...

    @property
    def threads(self) -> int:
        """How many threads one inference uses."""
        ...

    def build(self, module: nn.Module, input_shape: tuple[int, ...]) -> Callable[[], object]:
        """A callable that runs one inference on fixed input of this shape B,C,H,W and waits for its end.

        The module is in eval mode and may be changed or kept.
        """
        ...


@runtime_checkable
class FileRuntime(Runtime, Protocol):
    """A runtime that also runs models from files, ONNX or its own (`search.model_files`), and so the delivered ones."""

    def load(self, model: bytes | Path | str, input_shape: tuple[int, ...]) -> Callable[[], object]:
        """As `build`, for an exported model. Raises `UserError` if the file cannot be read."""
        ...


@runtime_checkable
class ExportingRuntime(FileRuntime, Protocol):
    """A runtime whose `build` is `load` of what `export` makes, so that another process may do the first half."""

    def export(self, module: nn.Module, input_shape: tuple[int, ...]) -> bytes:
        """A module in eval mode as the file that `load` reads; nothing of this process but torch may be needed."""
        ...


RuntimeFactory = Callable[..., Runtime]  # called with threads=, and with precision= if it has `precisions`
FactoryT = TypeVar("FactoryT", bound=RuntimeFactory)

_FACTORIES: dict[str, RuntimeFactory] = {}
_BUILT_IN = {
    "onnxruntime": "search.runtimes.onnx_runtime",
    "eager": "search.runtimes.eager",
    "compile": "search.runtimes.compiled",
    "openvino": "search.runtimes.openvino_cpu",
    "executorch": "search.runtimes.executorch",
    "mnn": "search.runtimes.mnn",
    "cuda": "search.runtimes.cuda",
    "coreml": "search.runtimes.coreml",
}


def register_runtime(name: str) -> Callable[[FactoryT], FactoryT]:
    """Decorator that makes a runtime known by its name; it is constructed as `factory(threads=...)`.

    Raises `ValueError` if the name is taken, or cannot be a part of a file's name.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise ValueError(f"runtime {name!r}: name it with letters, digits, _, . and -")
    if name in _FACTORIES or (name in _BUILT_IN and _BUILT_IN[name] not in sys.modules):
        raise ValueError(f"runtime {name!r} is registered already")

    def register(factory: FactoryT) -> FactoryT:
        _FACTORIES[name] = factory
        return factory

    return register


def noise(input_shape: tuple[int, ...]) -> np.ndarray:
    """What the project's runtimes measure on: normal noise of shape B,C,H,W, float32, always the same."""
    return np.random.default_rng(0).standard_normal(input_shape, dtype=np.float32)


def onnx_in(precision: str, module: nn.Module, input_shape: tuple[int, ...]) -> bytes:
    """A module as ONNX, in int8 calibrated on the noise: what it computes is then of no use, but what it takes is."""
    model = onnx_bytes(module, input_shape=input_shape)
    return quantized_onnx(model, [noise(input_shape)]) if precision == "int8" else model


class NotInstalled(UserError):
    """The package of a runtime is not here, or cannot be loaded."""


def needs_extra(name: str, error: ImportError) -> NotInstalled:
    """What a runtime's file raises if the package that it needs is not installed, or cannot be loaded."""
    missing = isinstance(error, ModuleNotFoundError)
    reason = "not installed" if missing else f"cannot be loaded ({' '.join(str(error).split())[:200]})"
    return NotInstalled(f"runtime {name}: {reason}; in a checkout of slimformer: pip install '.[{name}]'")


def runtime(name: str, *, threads: int, precision: str | None = None) -> Runtime:
    """The runtime of this name with this many threads, in this number format or in its own first choice.

    Raises `UserError`: for an unknown name, with the nearest known one; for a package that is not installed, with how
    to install it; for a precision that it does not have, with those that it has.
    """
    if threads < 1:
        raise UserError(f"threads: must be 1 or more (got {threads})")
    if name not in _FACTORIES and name in _BUILT_IN:
        import_module(_BUILT_IN[name])
    if name not in _FACTORIES:
        raise UserError(
            f"unknown runtime {name!r}{nearest(name, runtime_names())}; a runtime of your own needs --plugin FILE"
        )
    factory = _FACTORIES[name]
    known: tuple[str, ...] = getattr(factory, "precisions", ())
    if known and precision is not None and precision not in known:
        raise UserError(f"runtime {name}: computes in {', '.join(known)}, not in {precision}")
    made = factory(threads=threads, precision=precision) if known and precision else factory(threads=threads)
    lacking = [field for field in ("name", "version", "precision", "threads", "build") if not hasattr(made, field)]
    if lacking:
        raise UserError(
            f"runtime {name}: has no {' and no '.join(lacking)} (search.runtimes.Runtime says what it needs)"
        )
    if made.name != name:
        raise UserError(f"runtime {name}: calls itself {made.name!r}; its name must be that it is registered under")
    if precision not in (None, made.precision):
        raise UserError(f"runtime {name}: computes in {made.precision}, not in {precision}")
    return made


def runtime_names() -> list[str]:
    """The names of all known runtimes, sorted."""
    return sorted({*_FACTORIES, *_BUILT_IN})
