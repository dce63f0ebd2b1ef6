"""Core ML, what iPhones and Macs run: nets are converted here, on any machine, and measured on a Mac, from a bundle.

coremltools converts on Linux and macOS from torch.export's graph; only macOS can run what it writes.
"""

from __future__ import annotations

import json
import tempfile
import uuid
from pathlib import Path

import numpy as np
import torch
from torch import nn

from search.runtimes import Runtime, needs_extra, register_runtime
from search.runtimes.quiet import quiet
from supernet.fused import fused
from supernet.onnx_export import INPUT_NAME, OUTPUT_NAME
from supernet.schema import UserError

UNKNOWN = [torch.ops.aten.addcmul]  # to coremltools; taken apart before it sees them
_DATE = "com.github.apple.coremltools.conversion_date"


def mlpackage(module: nn.Module, *, input_shape: tuple[int, ...], precision: str) -> dict[str, bytes]:
    """A module in eval mode as an ML program for images of this shape B,C,H,W: the files of an `.mlpackage` folder.

    fp16 is of the inside; images and logits are float32. What is converted is the deploy form (`supernet.fused`), for
    iOS 16, macOS 13 and later. The same module gives the same bytes. Raises `UserError` without coremltools.
    """
    try:
        with quiet():
            import coremltools
    except ImportError as error:
        raise needs_extra("coreml", error) from None
    kinds = {"fp32": coremltools.precision.FLOAT32, "fp16": coremltools.precision.FLOAT16}
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder, quiet():
        graph = torch.export.export(fused(module), (torch.zeros(input_shape),)).run_decompositions(
            torch._decomp.get_decompositions(UNKNOWN)
        )
        model = coremltools.convert(
            graph,
            inputs=[coremltools.TensorType(name=INPUT_NAME, shape=input_shape, dtype=np.float32)],
            outputs=[coremltools.TensorType(name=OUTPUT_NAME, dtype=np.float32)],
            convert_to="mlprogram",
            compute_precision=kinds[precision],
            minimum_deployment_target=coremltools.target.iOS16,
            skip_model_load=True,
        )
        model.user_defined_metadata.pop(_DATE, None)
        model.save(str(Path(folder) / "model.mlpackage"))
        root = Path(folder) / "model.mlpackage"
        files = {file.relative_to(root).as_posix(): file.read_bytes() for file in root.rglob("*") if file.is_file()}
    files["Manifest.json"] = _renamed(files["Manifest.json"])
    return files


def _renamed(manifest: bytes) -> bytes:
    """The package's list of its files, whose random identifiers are replaced by ones made of their paths."""
    text = manifest.decode()
    for identifier, item in json.loads(text)["itemInfoEntries"].items():
        text = text.replace(identifier, str(uuid.uuid5(uuid.NAMESPACE_URL, item["path"])).upper())
    return json.dumps(json.loads(text), indent=4, sort_keys=True).encode()


@register_runtime("coreml")
def core_ml(*, threads: int) -> Runtime:
    """The name alone: what Core ML takes is measured from a bundle."""
    raise UserError(
        "runtime coreml: is measured on a Mac, from a bundle: slimformer table EXPERIMENT.yaml --bundle DIR"
    )
