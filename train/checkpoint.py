"""Checkpoints: named tensors and one JSON object in a safetensors file, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from supernet.schema import UserError, write_atomically

SCHEMA_VERSION = 1


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write tensors and a JSON-able state; the same input gives the same bytes.

    The file carries a sha256 over both, so that `load_checkpoint` notices an edit.
    """
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = {"schema_version": SCHEMA_VERSION, "sha256": _sha256(stored, state), "state": state}
    # one key only: safetensors writes several in random order
    write_atomically(path, to_bytes(stored, metadata={"slimformer": json.dumps(content, sort_keys=True)}))


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_checkpoint` wrote: tensors on the CPU, and the state.

    Raises `UserError` for a missing, cut, edited or foreign file, and says how to redo it.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        content = json.loads(metadata["slimformer"])
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError):
        raise _spoilt(path, "cut short, or not a file of ours") from None
    if content.get("schema_version") != SCHEMA_VERSION:
        raise _spoilt(path, f"schema version {content.get('schema_version')!r}, expected {SCHEMA_VERSION}")
    state: dict[str, Any] = content["state"]
    if _sha256(tensors, state) != content["sha256"]:
        raise _spoilt(path, "edited or damaged: its contents do not match their sha256")
    return tensors, state


def module_tensors(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    """The parameters and buffers of a module, named `prefix.NAME`."""
    return {f"{prefix}.{name}": tensor for name, tensor in module.state_dict().items()}


def restore_module(module: nn.Module, tensors: Mapping[str, Tensor], prefix: str) -> None:
    """Copy tensors of this prefix into the module, in place and strictly: layout and device stay the module's."""
    module.load_state_dict(_of_prefix(tensors, prefix))


def optimizer_tensors(optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, Tensor]:
    """The per-parameter state of an optimizer, named `prefix.INDEX.NAME`."""
    state: dict[int, dict[str, Tensor]] = optimizer.state_dict()["state"]
    return {f"{prefix}.{index}.{name}": tensor for index, values in state.items() for name, tensor in values.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], prefix: str) -> None:
    """Put back what `optimizer_tensors` gave, each tensor in the memory layout of its parameter."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in _of_prefix(tensors, prefix).items():
        index_text, name = key.split(".", 1)
        parameter = parameters[int(index_text)]
        # fused AdamW walks the memory of parameter and state side by side
        like = torch.empty_like(parameter) if tensor.shape == parameter.shape else tensor.to(parameter.device)
        state.setdefault(int(index_text), {})[name] = like.detach().copy_(tensor)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a model's parameters and buffers, and nothing else."""
    save_checkpoint(path, model.state_dict(), {"kind": "weights"})


def load_weights(model: nn.Module, path: Path) -> None:
    """Read `save_weights`' file into a model, strictly. Raises `UserError` if they do not belong together."""
    tensors, _ = load_checkpoint(path)
    expected = model.state_dict()
    wrong = sorted(name for name in expected.keys() | tensors.keys() if _shape(expected, name) != _shape(tensors, name))
    if wrong:
        name = wrong[0]
        raise UserError(
            f"{path}: holds the weights of another model ({name}: {_shape(tensors, name) or 'missing'} in the file, "
            f"{_shape(expected, name) or 'absent'} in the model)"
        )
    model.load_state_dict(tensors)


def _shape(tensors: Mapping[str, Tensor], name: str) -> str:
    return str(list(tensors[name].shape)) if name in tensors else ""


def _of_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}."): t for name, t in tensors.items() if name.startswith(f"{prefix}.")}


def _sha256(tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> str:
    sha = hashlib.sha256(json.dumps(state, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        sha.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _spoilt(path: Path, reason: str) -> UserError:
    return UserError(f"{path}: {reason}. Delete it and run the same command again: its stage starts anew")
