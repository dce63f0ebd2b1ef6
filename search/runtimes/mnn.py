"""MNN on the CPU, from the same ONNX graph that is delivered, which is converted when it is loaded.

MNN and not ncnn: ncnn's maps have no batch axis, and it converts with a package of its own. MNN's converter is called
below its Python tools, because those install a further package and report every conversion to a server.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from torch import nn

from search.runtimes import needs_extra, noise, onnx_in, register_runtime
from search.runtimes.quiet import quiet
from supernet.onnx_export import INPUT_NAME, OUTPUT_NAME, check_input, open_session
from supernet.schema import UserError

try:
    with quiet():
        import MNN

        convert = import_module("_tools").mnnconvert
except ImportError as error:
    raise needs_extra("mnn", error) from None


def mnn_bytes(model: bytes | Path | str, input_shape: tuple[int, ...]) -> bytes:
    """An ONNX file or its bytes, for images of this shape B,C,H,W, in MNN's format.

    Raises `UserError` if it cannot be read, is for other images, or cannot be converted.
    """
    where = "the model" if isinstance(model, bytes) else str(model)
    # MNN itself would crash on a file of something else.
    check_input(open_session(model, threads=1), input_shape, source=where)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "model.onnx", Path(folder) / "model.mnn"
        source.write_bytes(model if isinstance(model, bytes) else Path(model).read_bytes())
        with quiet():
            convert(["", "-f", "ONNX", "--modelFile", str(source), "--MNNModel", str(target), "--bizCode", ""])
        if not target.is_file():
            raise UserError(f"{where}: MNN cannot convert this model")
        return target.read_bytes()


@register_runtime("mnn")
class MnnRuntime:
    """Runs a converted model with `threads` threads, in fp32 where MNN would choose less on some processors."""

    name = "mnn"
    version: str = MNN.version()
    precision = "fp32"

    def __init__(self, *, threads: int) -> None:
        self.threads = threads

    def build(self, module: nn.Module, input_shape: tuple[int, ...]) -> Callable[[], object]:
        """A callable that runs one inference on fixed normal noise of shape B,C,H,W."""
        return self.load(self.export(module, input_shape), input_shape)

    def export(self, module: nn.Module, input_shape: tuple[int, ...]) -> bytes:
        """The module as ONNX."""
        return onnx_in(self.precision, module, input_shape)

    def load(self, model: bytes | Path | str, input_shape: tuple[int, ...]) -> Callable[[], object]:
        """The same for an exported model, an ONNX file or its bytes. Raises `UserError` as `mnn_bytes` does."""
        settings = {"backend": "CPU", "numThread": self.threads, "precision": "high"}
        with tempfile.TemporaryDirectory() as folder, quiet():
            path = Path(folder) / "model.mnn"
            path.write_bytes(mnn_bytes(model, input_shape))
            manager = MNN.nn.create_runtime_manager((settings,))
            net = MNN.nn.load_module_from_file(str(path), [INPUT_NAME], [OUTPUT_NAME], runtime_manager=manager)
            images = MNN.expr.const(noise(input_shape), list(input_shape), MNN.expr.NCHW, MNN.expr.float)
            net.forward(images).read()

        def run() -> object:
            assert manager is not None  # which the net computes with
            logits = net.forward(images)
            return logits.read().copy()  # what is read is memory of `logits`

        return run
