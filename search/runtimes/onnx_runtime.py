"""ONNX Runtime on the CPU: the default. Batch norm is folded and layouts are chosen by its graph optimizations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnxruntime
from torch import nn

from search.runtimes import noise, onnx_in, register_runtime
from supernet.onnx_export import check_input, open_session


@register_runtime("onnxruntime")
class OnnxRuntime:
    """Exports a module as delivered models are, and runs it with `threads` threads in fp32 or int8."""

    name = "onnxruntime"
    version: str = onnxruntime.__version__
    precisions = ("fp32", "int8")

    def __init__(self, *, threads: int, precision: str = "fp32") -> None:
        self.threads, self.precision = threads, precision

    def build(self, module: nn.Module, input_shape: tuple[int, ...]) -> Callable[[], object]:
        """A callable that runs one inference on fixed normal noise of shape B,C,H,W."""
        return self.load(self.export(module, input_shape), input_shape)

    def export(self, module: nn.Module, input_shape: tuple[int, ...]) -> bytes:
        """The module as ONNX."""
        return onnx_in(self.precision, module, input_shape)

    def load(self, model: bytes | Path | str, input_shape: tuple[int, ...]) -> Callable[[], object]:
        """The same for an exported model, a file or its bytes.

        Raises `UserError` if the file cannot be read or is for images of another shape.
        """
        session = open_session(model, threads=self.threads)
        check_input(session, input_shape, source="the model" if isinstance(model, bytes) else str(model))
        feed = {session.get_inputs()[0].name: noise(input_shape)}
        return lambda: session.run(None, feed)
