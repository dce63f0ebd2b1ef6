"""Tensors out of files of others: nothing in them is executed, and whatever is wrong with them is one line."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from supernet.schema import UserError

WRAPPERS = ("state_dict", "model", "model_state", "module")
AVERAGED = ("model_ema", "state_dict_ema")
PREFIXES = ("module.", "_orig_mod.")  # of a parallel and of a compiled model


def read_tensors(path: Path, *, ema: bool = False) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file, or of a pickled checkpoint read without executing anything in it.

    A training checkpoint may wrap them, and keep averaged ones beside them, which `ema` asks for. Raises `UserError`
    for a missing, damaged or foreign file, and for a pickle that holds more than tensors and settings.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        if ema:
            raise UserError(f"{path}: a safetensors file has one set of weights, no averaged ones beside them")
        try:
            return without_prefix(load_file(path))
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: not a safetensors file ({' '.join(str(error).split())[:200]})") from None
    return without_prefix(_unwrapped(_unpickled(path), path, ema=ema))


def without_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, without the prefix that a parallel or compiled model puts before their names."""
    for prefix in PREFIXES * 2:  # in either order
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _unpickled(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # an unpickler raises whatever the bytes of a foreign file make it do
        wanted = _wanted(path)
    if wanted:
        raise UserError(f"{path}: refused, because it would execute code on loading ({', '.join(wanted[:5])})")
    raise UserError(f"{path}: not a checkpoint of torch, or a damaged one")


def _wanted(path: Path) -> list[str]:
    """What a pickle asks for beyond tensors, numbers and settings."""
    try:
        found = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # as above
        return []
    return sorted(set(found) - {"argparse.Namespace"})


def _unwrapped(data: Any, path: Path, *, ema: bool) -> dict[str, Tensor]:
    if isinstance(data, dict):
        averaged = next((data[key] for key in AVERAGED if data.get(key) is not None), None)
        if ema and averaged is None:
            raise UserError(f"{path}: holds no averaged weights")
        if averaged is not None and (ema or not any(isinstance(data.get(key), dict) for key in WRAPPERS)):
            data = averaged
    for key in WRAPPERS:
        if isinstance(data, dict) and isinstance(data.get(key), dict):
            data = data[key]
    if (
        not isinstance(data, dict)
        or not data
        or not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in data.items())
    ):
        raise UserError(f"{path}: holds no state dict")
    return dict(data)
