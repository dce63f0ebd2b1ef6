"""torch.compile on the CPU: what a model takes in a Python program that compiles it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable

import torch
from torch import nn

from search.runtimes import register_runtime
from search.runtimes.eager import TYPES, channels_last_noise, with_threads
from supernet.schema import UserError

COMPILER = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")  # torch.compile's, unless CXX names another


@register_runtime("compile")
class CompiledRuntime:
    """Compiles the graph that torch.export takes of a module; inference mode, channels_last, fp32 or bf16.

    Raises `UserError` where there is no C++ compiler.

    Each graph has code of its own. Modules compiled as they are share the code of their class, and torch silently runs
    them uncompiled from the ninth on.
    """

    name = "compile"
    version: str = torch.__version__
    precisions = tuple(TYPES)

    def __init__(self, *, threads: int, precision: str = "fp32") -> None:
        if not shutil.which(compiler := os.environ.get("CXX", COMPILER)):
            raise UserError(
                f"runtime compile: needs a C++ compiler, and there is no {compiler} here; install it (on Debian: apt"
                " install g++), or name another in CXX"
            )
        self.threads, self.precision = threads, precision

    def build(self, module: nn.Module, input_shape: tuple[int, ...]) -> Callable[[], object]:
        """A callable that runs one inference on fixed normal noise of shape B,C,H,W; compiled on return."""
        kind, layout = TYPES[self.precision], torch.channels_last
        images = channels_last_noise(input_shape).to(kind)
        graph = torch.export.export(module.to(kind).to(memory_format=layout), (images,)).module()
        compiled = torch.compile(graph, dynamic=False, fullgraph=True)
        run = with_threads(lambda: compiled(images), self.threads)
        run()
        return run
