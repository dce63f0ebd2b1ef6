"""OpenVINO on the CPU, from the same ONNX graph that is delivered."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from search.runtimes import needs_extra, noise, onnx_in, register_runtime
from supernet.schema import UserError

try:
    import openvino
except ImportError as error:
    raise needs_extra("openvino", error) from None

IR_FILES = ("model.xml", "model.bin")  # OpenVINO's own format: the graph, and the weights
_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}  # int8 is in the graph; the hint is of the rest


def ir_files(model: bytes | Path | str, input_shape: Sequence[int]) -> dict[str, bytes]:
    """An exported model, an ONNX file or its bytes, in OpenVINO's own format for images of this shape B,C,H,W.

    Weights stay as they are. The same model gives the same bytes. Raises `UserError` if it cannot be read.
    """
    read = _read(openvino.Core(), model, input_shape)
    for number, operation in enumerate(read.get_ordered_ops()):
        operation.set_friendly_name(f"op{number}")  # some have names that count what this process has made before
    with tempfile.TemporaryDirectory() as folder:
        openvino.save_model(read, Path(folder) / IR_FILES[0], compress_to_fp16=False)
        return {name: (Path(folder) / name).read_bytes() for name in IR_FILES}


def _read(core: openvino.Core, model: bytes | Path | str, input_shape: Sequence[int]) -> Any:
    """A model, reshaped. Raises `UserError` if it cannot be read."""
    where = "the model" if isinstance(model, bytes) else str(model)
    try:
        read = core.read_model(io.BytesIO(model) if isinstance(model, bytes) else str(model))
        read.reshape(list(input_shape))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{where}: not an ONNX model that OpenVINO can read ({reason})") from None
    return read


@register_runtime("openvino")
class OpenVinoRuntime:
    """One stream of `threads` threads, tuned for latency; bf16, fp16 and int8 where the processor computes them."""

    name = "openvino"
    version: str = openvino.__version__.partition("-")[0]
    precisions = tuple(_HINTS)

    def __init__(self, *, threads: int, precision: str = "fp32") -> None:
        self.threads, self.precision = threads, precision
        self.core = openvino.Core()
        able = self.core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision.upper() not in able:
            raise UserError(f"openvino: this processor does not compute {precision} (it has {', '.join(able)})")

    def build(self, module: nn.Module, input_shape: tuple[int, ...]) -> Callable[[], object]:
        """A callable that runs one inference on fixed normal noise of shape B,C,H,W."""
        return self.load(self.export(module, input_shape), input_shape)

    def export(self, module: nn.Module, input_shape: tuple[int, ...]) -> bytes:
        """The module as ONNX."""
        return onnx_in(self.precision, module, input_shape)

    def load(self, model: bytes | Path | str, input_shape: tuple[int, ...]) -> Callable[[], object]:
        """The same for an exported model, an ONNX file or its bytes. Raises `UserError` if it cannot be read."""
        read = _read(self.core, model, input_shape)
        settings = {
            "INFERENCE_NUM_THREADS": self.threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": _HINTS[self.precision],
        }
        request = self.core.compile_model(read, "CPU", settings).create_infer_request()
        request.set_input_tensor(openvino.Tensor(noise(input_shape)))

        def run() -> object:
            request.infer()
            return request.get_output_tensor().data

        return run
