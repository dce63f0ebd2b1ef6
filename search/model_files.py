"""The files that runtimes run: ONNX, ExecuTorch's .pte, Core ML's .mlpackage (a folder); and how one is made.

Delivered models that OpenVINO is to run are ONNX, which it reads; in a bundle they have its own format.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from search.runtimes import onnx_in
from supernet.onnx_export import open_session
from supernet.schema import UserError, write_atomically

ModelFile = bytes | Mapping[str, bytes]  # a file, or a folder: its files by their paths in it
_OWN_SUFFIX = {"executorch": ".pte", "coreml": ".mlpackage"}
SUFFIXES = (".onnx", *_OWN_SUFFIX.values())
IR_SUFFIX = ".openvino"  # a folder with model.xml and model.bin, in bundles


def file_suffix(runtime: str) -> str:
    """How the names of a runtime's files end; all that have no format of their own run ONNX."""
    return _OWN_SUFFIX.get(runtime, ".onnx")


def bundled_suffix(runtime: str) -> str:
    """The same in a bundle, where OpenVINO's files are in its own format."""
    return IR_SUFFIX if runtime == "openvino" else file_suffix(runtime)


def bundled(runtime: str, content: ModelFile, input_shape: tuple[int, ...]) -> ModelFile:
    """A runtime's model as a bundle holds it. Raises `UserError` if it cannot be read, or without the package."""
    if runtime != "openvino" or not isinstance(content, bytes):  # else ONNX
        return content
    from search.runtimes.openvino_cpu import ir_files

    return ir_files(content, input_shape)


def input_shape(path: Path) -> tuple[int | str | None, ...]:
    """The shape of the images that an ONNX file or a `.pte` file takes; an open side is no number.

    Raises `UserError` if the file cannot be read, or the package that reads it is not installed.
    """
    if path.suffix == ".pte":
        from search.runtimes.executorch import pte_input_shape

        return pte_input_shape(path)
    return tuple(open_session(path, threads=1).get_inputs()[0].shape)


def model_file(runtime: str, module: nn.Module, input_shape: tuple[int, ...], *, precision: str) -> ModelFile:
    """A module in eval mode as a file that a runtime runs on images B,C,H,W, in int8 calibrated on noise.

    Raises `UserError` if the package that makes such files is not installed.
    """
    if runtime == "executorch":
        from search.runtimes.executorch import pte_bytes

        return pte_bytes(module, input_shape=input_shape)
    if runtime == "coreml":
        from search.runtimes.coreml import mlpackage

        return mlpackage(module, input_shape=input_shape, precision=precision)
    return onnx_in(precision, module, input_shape)


def write_model(path: Path, content: ModelFile) -> None:
    """Write a model, whole or not at all. Raises `UserError` where the machine does not let it."""
    if isinstance(content, bytes):
        write_atomically(path, content)
        return
    part = path.with_name(f".{path.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        for name, data in content.items():
            write_atomically(part / name, data)
        remove_model(path)
        part.rename(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error


def remove_model(path: Path) -> None:
    """Remove a model's file or folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def files_of(path: Path) -> list[Path]:
    """The files of a model: itself, or all in its folder, sorted by their paths."""
    if not path.is_dir():
        return [path]
    inside = (file for file in path.rglob("*") if file.is_file())
    return sorted(inside, key=lambda file: file.relative_to(path).as_posix())


def content_of(path: Path) -> ModelFile:
    """What `write_model` wrote."""
    if not path.is_dir():
        return path.read_bytes()
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in files_of(path)}


def size_bytes(content: ModelFile) -> int:
    """The size of a model, of all its files."""
    return len(content) if isinstance(content, bytes) else sum(map(len, content.values()))


def sha256_of(content: ModelFile) -> str:
    """The sha256 of a file; of a folder that of the lines "SHA256 PATH" of its files, sorted by path."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    lines = (f"{hashlib.sha256(content[name]).hexdigest()} {name}\n" for name in sorted(content))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
