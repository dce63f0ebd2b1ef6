"""ONNX export: one way from a module to a file, used alike for latency tables and for delivered models.

The batch axis is always dynamic, so a table's small nets and the delivered model are the same kind of graph.

Which exporter, measured (torch 2.15, ONNX Runtime 1.31, one AVX2 core): a one-block net takes torch.onnx's TorchScript
path 35 ms and its dynamo path 1.0 to 1.4 s, and a latency table needs hundreds of such nets; the exported models
run equally fast (1.25 and 1.22 ms) from opset 20 on, where GELU is one operator. So the TorchScript path is used as
long as torch carries it, and the dynamo path afterwards (torch warns that it will be removed).
"""

# B batch, C channels, H W pixels

from __future__ import annotations

import importlib.util
import io
import warnings
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as onnxruntime_errors
from torch import Tensor, nn

from supernet.fused import fused
from supernet.norms import NormModule
from supernet.schema import UserError, write_atomically
from supernet.threads import one_thread

OPSET = 20
INPUT_NAME, OUTPUT_NAME = "images", "logits"
Exporter = Literal["torchscript", "dynamo"]

_UNREADABLE = (
    onnxruntime_errors.InvalidProtobuf,
    onnxruntime_errors.InvalidArgument,
    onnxruntime_errors.InvalidGraph,
    onnxruntime_errors.Fail,
)


def default_exporter(model: nn.Module) -> Exporter:
    """The faster exporter that this torch still carries, or the newer one for norms over whole maps.

    The older one exports those as norms of reshaped maps, behind which no shape is known any more, and ONNX Runtime
    pools maps of unknown shape 25 times as slowly (poolformer_s12 on an AVX2 core: 25.5 against 1.1 ms).
    """
    if any(isinstance(module, NormModule) and module.over == "map" for module in model.modules()):
        return "dynamo"
    legacy = importlib.util.find_spec("torch.onnx._internal.torchscript_exporter")
    older = tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 9)
    return "torchscript" if legacy is not None or older else "dynamo"


def onnx_bytes(model: nn.Module, *, input_shape: tuple[int, ...], exporter: Exporter | None = None) -> bytes:
    """The module as a serialized ONNX model with one input "images" and one output "logits", both batch-dynamic.

    `input_shape` is B,C,H,W of the example that is traced; only C, H and W stay fixed. `exporter` None is
    `default_exporter(model)`. What is exported is the deploy form (`supernet.fused`); raises `ValueError` if the module
    is in training mode.
    """
    if model.training:
        raise ValueError("onnx export needs model.eval(): batch norm and drop path differ while training")
    parameter = next(model.parameters(), torch.empty(0))
    example = torch.zeros(input_shape, dtype=parameter.dtype, device=parameter.device)
    with torch.no_grad(), one_thread(), warnings.catch_warnings():
        # torch announces the TorchScript exporter's removal on every call; default_exporter is our answer to it.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        deployed = fused(model)
        if (exporter or default_exporter(model)) == "torchscript":
            return _torchscript(deployed, example)
        return _dynamo(deployed, example)


def _torchscript(model: nn.Module, example: Tensor) -> bytes:
    buffer = io.BytesIO()
    torch.onnx.export(
        model,
        (example,),
        buffer,  # type: ignore[arg-type]  # the TorchScript exporter writes into buffers too
        dynamo=False,
        opset_version=OPSET,
        input_names=[INPUT_NAME],
        output_names=[OUTPUT_NAME],
        dynamic_axes={INPUT_NAME: {0: "batch"}, OUTPUT_NAME: {0: "batch"}},
    )
    return buffer.getvalue()


def _dynamo(model: nn.Module, example: Tensor) -> bytes:
    if example.shape[0] == 1:  # torch.export takes a side of 1 for one that stays so
        example = example.expand(2, *example.shape[1:]).contiguous()
    program = torch.onnx.export(
        model,
        (example,),
        dynamo=True,
        verbose=False,
        opset_version=OPSET,
        input_names=[INPUT_NAME],
        output_names=[OUTPUT_NAME],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    assert program is not None
    content: bytes = program.model_proto.SerializeToString()
    return content


def export_onnx(model: nn.Module, path: Path | str, *, in_channels: int, resolution_px: tuple[int, int]) -> None:
    """Write the model as an ONNX file with a dynamic batch axis, whole or not at all, and check its structure.

    Input "images" B,C,H,W float32 of `resolution_px` (height, width), output "logits" B,classes. Raises `ValueError`
    if the model is in training mode.
    """
    content = onnx_bytes(model, input_shape=(1, in_channels, *resolution_px))
    onnx.checker.check_model(onnx.load_from_string(content))
    write_atomically(Path(path), content)


class OnnxModel(nn.Module):
    """An exported model as a module, on the CPU: images B,C,H,W to logits B,classes. Raises as `open_session` does."""

    def __init__(self, model: bytes | Path | str, *, threads: int) -> None:
        super().__init__()
        self.session = open_session(model, threads=threads)
        self.device = nn.Parameter(torch.empty(0), requires_grad=False)  # where its input belongs

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits."""
        (logits,) = self.session.run(None, {self.session.get_inputs()[0].name: images_BCHW.float().numpy()})
        return torch.from_numpy(logits)


class OnnxParity(NamedTuple):
    """How far an exported model is from its torch original: in logits, and relative to the largest logit."""

    max_abs_difference: float
    max_relative: float


def onnx_parity(model: nn.Module, path: Path | str, images_BCHW: Tensor) -> OnnxParity:
    """Run the same images through the model and through the ONNX file, and compare the logits.

    Raises `UserError` if the file is missing or is no ONNX model, `ValueError` if the model is in training mode.
    """
    if model.training:
        raise ValueError("onnx parity needs model.eval()")
    session = open_session(path, threads=1)
    with torch.no_grad():
        expected = model(images_BCHW).float().cpu().numpy()
    found = session.run(None, {session.get_inputs()[0].name: images_BCHW.float().cpu().numpy()})[0]
    difference = float(np.abs(expected - found).max())
    return OnnxParity(difference, difference / max(float(np.abs(expected).max()), 1e-12))


def check_input(session: onnxruntime.InferenceSession, input_shape: tuple[int, ...], *, source: str) -> None:
    """Raise `UserError` if a session's model takes no images of this shape B,C,H,W; an open side takes any."""
    sides = session.get_inputs()[0].shape
    known = [side if isinstance(side, int) else asked for side, asked in zip(sides, input_shape, strict=False)]
    if len(sides) != len(input_shape) or known != list(input_shape):
        raise UserError(f"{source}: its input is {sides}, not {list(input_shape)}")


def open_session(model: bytes | Path | str, *, threads: int) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session on the CPU: sequential, all graph optimizations, this many threads.

    Raises `UserError` if `model` is a path that is missing or that ONNX Runtime cannot read.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    if not isinstance(model, bytes):
        path = Path(model)
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        model, source = path.read_bytes(), str(path)
    else:
        source = "the model"
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except _UNREADABLE as error:
        raise UserError(f"{source}: not an ONNX model that ONNX Runtime can read ({error})") from None
