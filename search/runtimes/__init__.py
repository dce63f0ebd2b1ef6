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

A runtime on an accelerator must wait for the device inside the callable: the clock stops when it returns.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Protocol, TypeVar

from torch import nn

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


RuntimeFactory = Callable[..., Runtime]  # called with threads=
FactoryT = TypeVar("FactoryT", bound=RuntimeFactory)

_FACTORIES: dict[str, RuntimeFactory] = {}
_BUILT_IN = {"onnxruntime": "search.runtimes.onnx_runtime", "eager": "search.runtimes.eager"}


def register_runtime(name: str) -> Callable[[FactoryT], FactoryT]:
    """Decorator that makes a runtime known by its name; it is constructed as `factory(threads=...)`.

    Raises `ValueError` if the name is taken.
    """
    if name in _FACTORIES or (name in _BUILT_IN and _BUILT_IN[name] not in sys.modules):
        raise ValueError(f"runtime {name!r} is registered already")

    def register(factory: FactoryT) -> FactoryT:
        _FACTORIES[name] = factory
        return factory

    return register


def runtime(name: str, *, threads: int) -> Runtime:
    """The runtime of this name with this many threads. Raises `UserError` that names the nearest known one."""
    if threads < 1:
        raise UserError(f"threads: must be 1 or more (got {threads})")
    if name not in _FACTORIES and name in _BUILT_IN:
        import_module(_BUILT_IN[name])
    if name not in _FACTORIES:
        raise UserError(
            f"unknown runtime {name!r}{nearest(name, runtime_names())}; a runtime of your own needs --plugin FILE"
        )
    return _FACTORIES[name](threads=threads)


def runtime_names() -> list[str]:
    """The names of all known runtimes, sorted."""
    return sorted({*_FACTORIES, *_BUILT_IN})
