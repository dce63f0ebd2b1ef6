"""Checkpoints of other projects, both ways (`supernet.layouts` holds their names).

Which layout a file has is not guessed from a key or two: it is the one whose names the file has most of.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save as to_bytes
from torch import Tensor

from supernet.architecture import Architecture
from supernet.layouts import HEADS, LAYOUTS, ExportLayout, exported_as, exported_shapes, is_v2
from supernet.metaformer import MetaFormer
from supernet.mixers import OffsetAttention
from supernet.model_zoo import list_models, published_architecture
from supernet.schema import UserError, write_atomically
from supernet.untrusted import read_tensors, without_prefix

DROPPED = re.compile(r".*attention_bias_idxs$|.*num_batches_tracked$")  # derived, or not needed
CLASSIFIERS = re.compile(r"head\.(fc|fc_distillation)\.(fc2\.)?(weight|bias)")


def load_weights(
    model: MetaFormer,
    source: Path | str | Mapping[str, Tensor],
    *,
    ema: bool = False,
    new_classifier: bool = False,
    trained_px: tuple[int, int] | None = None,
    resize: bool = True,
) -> str:
    """Load a file or a state dict in any known layout into the model, and return the layout's name.

    `ema` takes the averaged weights of a training checkpoint that has both; `new_classifier` leaves the model's last
    linear maps alone, whatever the file has for them. Attention bias tables of another resolution are carried over by
    offset (`resized_table`), unless `resize` forbids it: from images of `trained_px` (height, width), or from square
    ones; tables of the right length are taken as they are. A second, distilling classifier is averaged into the first
    where the model has only one.

    Raises `UserError` for a file that cannot be read without executing code, and, naming the tensors, for missing,
    unexpected or misshapen ones. The model is then as it was.
    """
    where = str(source) if isinstance(source, Path | str) else "the state dict"
    tensors = read_tensors(Path(source), ema=ema) if isinstance(source, Path | str) else dict(source)
    tensors = _cleaned(tensors)
    layout = _layout_of(tensors, model)
    names = LAYOUTS[layout](model)
    if layout.startswith("netspresso"):
        tensors = _joined_qkv(tensors, model, names)
    expected = {ours: tensor for ours, tensor in model.state_dict().items() if not DROPPED.match(ours)}
    if new_classifier:
        tensors = {name: tensor for name, tensor in tensors.items() if name not in _classifiers(names, layout)}
        expected = {ours: tensor for ours, tensor in expected.items() if not CLASSIFIERS.fullmatch(ours)}
    tensors = _averaged_heads(tensors, model, layout)
    _check(tensors, {names[ours]: tensor for ours, tensor in expected.items()}, where=where, layout=layout)
    grids = {} if trained_px is None else _bias_grids(_at_resolution(model.architecture, trained_px))
    loaded = {}
    for ours, target in expected.items():
        found = tensors[names[ours]]
        if ours.endswith("attention_biases"):
            wanted = _grid_of(model, ours)
            if found.numel() != target.numel() or grids.get(ours, wanted) != wanted:
                if not resize:
                    raise UserError(
                        f"{where}: was trained at another resolution than {model.architecture.resolution_px}"
                    )
                found = resized_table(found, wanted, grid=grids.get(ours))
        loaded[ours] = found.reshape(target.shape)
    with torch.no_grad():
        for ours, target in expected.items():
            target.copy_(loaded[ours])
    return layout


def export_weights(model: MetaFormer, layout: ExportLayout) -> dict[str, Tensor]:
    """The model's tensors under the names and in the shapes of another project.

    Raises `UserError` for a layout in which this kind of model was never published.
    """
    names = LAYOUTS[exported_as(model, layout)](model)
    shapes = exported_shapes(model, layout)
    exported = {
        names[ours]: tensor.detach().reshape(shapes.get(ours, tensor.shape)).clone().contiguous()
        for ours, tensor in model.state_dict().items()
    }
    if layout == "snap" or (layout == "timm" and not is_v2(model)):  # files that keep the index of every bias table
        for ours in [name for name in names if name.endswith("attention_biases")]:
            index = model.get_submodule(ours.rpartition(".")[0]).bias_index
            exported[names[ours].replace("attention_biases", "attention_bias_idxs")] = index.clone()  # type: ignore[operator]
    return exported


def convert_file(
    source: Path,
    out: Path,
    *,
    to: ExportLayout,
    model: str | Architecture | None = None,
    ema: bool = False,
    resolution_px: int | None = None,
) -> Architecture:
    """Write a checkpoint in another layout, `.safetensors` or `.pth` by the suffix of `out`; return its architecture.

    `model` is the name of a published one, or an architecture; None recognises a published one by its tensors. Of a
    published model the classes, classifiers and input channels are the file's, and the resolution is `resolution_px`
    if it is not the published one. Raises `UserError` for a file that cannot be read or is of no such model, a layout
    that this kind of model never had, and an unknown suffix.
    """
    if out.suffix not in (".safetensors", ".pth"):
        raise UserError(f"{out}: name it .safetensors or .pth")
    tensors = read_tensors(source, ema=ema)
    if not isinstance(model, Architecture):
        model = sized_as(recognized(tensors, source=str(source)) if model is None else model, tensors)
    if resolution_px is not None:
        model = _at_resolution(model, (resolution_px, resolution_px))
    built = MetaFormer(model)
    try:
        load_weights(built, tensors, resize=False)
    except UserError as reason:
        hint = "; say which with --resolution" if "resolution" in str(reason) else ""
        raise UserError(f"{str(reason).replace('the state dict', str(source))}{hint}") from None
    exported = export_weights(built, to)
    if out.suffix == ".safetensors":
        content = to_bytes(exported, metadata={"format": "pt"})
    else:
        buffer = io.BytesIO()
        torch.save({"model": exported}, buffer)
        content = buffer.getvalue()
    write_atomically(out, content)
    return model


def recognized(tensors: Mapping[str, Tensor], *, source: str = "the state dict") -> str:
    """The published model whose tensors these are; the first of those that have the same ones.

    Raises `UserError` if there is none.
    """
    sizes = {name: tensor.numel() for name, tensor in _cleaned(tensors).items()}
    count = len({re.sub(r"\.(query|key|value)\.", ".qkv.", name) for name in sizes})
    for name in list_models():
        for theirs, body in _bodies(name):
            if count <= theirs and all(sizes.get(tensor) == size for tensor, size in body.items()):
                return name
    raise UserError(f"{source}: no published model has these tensors; say --model NAME, or --model ARCHITECTURE.yaml")


@cache
def _bodies(name: str) -> tuple[tuple[int, dict[str, int]], ...]:
    """Of a published model in every layout: how many tensors it has, and the sizes of those in its body."""
    with torch.device("meta"):
        model = MetaFormer(published_architecture(name))
    sizes = {ours: tensor.numel() for ours, tensor in model.state_dict().items() if _is_body(ours)}
    tables = [table(model) for table in LAYOUTS.values()]
    return tuple((len(names), {names[ours]: size for ours, size in sizes.items()}) for names in tables)


def sized_as(name: str, tensors: Mapping[str, Tensor]) -> Architecture:
    """A published architecture with the input channels, classes and number of classifiers of its tensors.

    Between NetsPresso's two classifier layers ReLU is assumed: the file does not say which activation it was.
    """
    architecture = published_architecture(name)
    with torch.device("meta"):
        model = MetaFormer(architecture)
    tensors = _cleaned(tensors)
    layout = _layout_of(tensors, model)
    names = LAYOUTS[layout](model)
    stem = next(tensors.get(names[ours]) for ours in names if re.match(r"stem\.conv1?\.weight", ours))
    classifier = next(tensors.get(names[ours]) for ours in names if re.match(r"head\.fc\.(fc2\.)?weight", ours))
    head = architecture.head
    if classifier is not None and classifier.ndim == 2:
        head = head.model_copy(update={"num_classes": classifier.shape[0]})
    hidden, last = (tensors.get(f"head.classifier.{number}.weight") for number in (0, 3))
    if layout.startswith("netspresso") and hidden is not None and last is not None:
        two = {"num_classes": last.shape[0], "hidden_channels": hidden.shape[0]}
        head = head.model_copy(update=two | {"hidden_activation": "relu", "hidden_norm": False})
    if head.distillation and f"{HEADS.get(layout, ('', ''))[1]}.weight" not in tensors:
        head = head.model_copy(update={"distillation": False})
    channels = architecture.in_channels if stem is None or stem.ndim != 4 else stem.shape[1]
    return architecture.model_copy(update={"in_channels": channels, "head": head})


def resized_table(table_GN: Tensor, wanted: tuple[int, int], *, grid: tuple[int, int] | None = None) -> Tensor:
    """A bias table (heads, H*W) of one grid, a square one if none is given, at another grid, by offset.

    An offset |dy|, |dx| that both have keeps its bias where the grid shrinks; where it grows, the plane of offsets is
    stretched (bicubic) from the old largest offset to the new one. The same grid changes nothing.
    """
    height, width = grid or (math.isqrt(table_GN.shape[1]),) * 2
    if height * width != table_GN.shape[1]:
        raise UserError(
            f"a bias table of {table_GN.shape[1]} offsets is not one of {height}x{width}: say at which resolution the"
            " weights were trained (trained_px)"
        )
    plane = table_GN.reshape(1, -1, height, width)[:, :, : wanted[0], : wanted[1]]
    if plane.shape[2:] != wanted:
        plane = F.interpolate(plane.float(), size=wanted, mode="bicubic", align_corners=True).to(table_GN.dtype)
    return plane.reshape(table_GN.shape[0], -1)


def _at_resolution(architecture: Architecture, resolution_px: tuple[int, int]) -> Architecture:
    return architecture.model_copy(update={"resolution_px": resolution_px})


def _bias_grids(architecture: Architecture) -> dict[str, tuple[int, int]]:
    """The grid of every bias table of an architecture, by our names."""
    with torch.device("meta"):
        model = MetaFormer(architecture)
    return {ours: _grid_of(model, ours) for ours in model.state_dict() if ours.endswith("attention_biases")}


def _grid_of(model: MetaFormer, ours: str) -> tuple[int, int]:
    attention = model.get_submodule(ours.removesuffix(".attention_biases"))
    return attention.grid  # type: ignore[return-value]


def _is_body(ours: str) -> bool:
    """Whether a tensor's size does not depend on classes, input channels or resolution, and every layout joins it."""
    free = r"stem\.conv1?\.weight|head\.fc.*|.*attention_biases|.*random_matrix|.*\.qkv\.(weight|bias)"
    return not re.fullmatch(free, ours) and not DROPPED.match(ours)


def _cleaned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that count."""
    return {name: tensor for name, tensor in without_prefix(dict(tensors)).items() if not DROPPED.match(name)}


def _layout_of(tensors: Mapping[str, Tensor], model: MetaFormer) -> str:
    """The layout of which these tensors have most names."""
    found = {re.sub(r"token_mixer\.query\.", "token_mixer.qkv.", name) for name in tensors} | tensors.keys()
    return max(LAYOUTS, key=lambda layout: len(set(LAYOUTS[layout](model).values()) & found))


def _classifiers(names: Mapping[str, str], layout: str) -> set[str]:
    """The file's names of the last linear maps, those included that the model does not have."""
    first = {theirs for ours, theirs in names.items() if CLASSIFIERS.fullmatch(ours)}
    heads = {f"{head}.{part}" for head in HEADS.get(layout, ()) for part in ("weight", "bias")}
    return first | heads | {f"head.fc.fc2.{part}" for part in ("weight", "bias")}


def _squeezed(tensor: Tensor) -> tuple[int, ...]:
    return tuple(size for size in tensor.shape if size != 1)


def _check(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, where: str, layout: str) -> None:
    """Raise `UserError` that names what is missing, unexpected or misshapen."""
    misshapen = [
        f"{name} {tuple(tensors[name].shape)} for {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in tensors and not _fits(name, tensors[name], tensor)
    ]
    problems = {
        "missing": sorted(expected.keys() - tensors.keys()),
        "unexpected": sorted(tensors.keys() - expected.keys()),
        "misshapen": misshapen,
    }
    told = [f"{kind}: {_some(names)}" for kind, names in problems.items() if names]
    if told:
        raise UserError(f"{where}: not this model's weights (layout: {layout}); {'; '.join(told)}")


def _fits(name: str, found: Tensor, wanted: Tensor) -> bool:
    """Whether the shapes agree, up to sides of 1, and of a bias table the heads."""
    if name.endswith("attention_biases"):
        return found.ndim == 2 and found.shape[0] == wanted.shape[0]
    return _squeezed(found) == _squeezed(wanted)


def _some(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _averaged_heads(tensors: dict[str, Tensor], model: MetaFormer, layout: str) -> dict[str, Tensor]:
    """Both classifiers of the file as one, exact for the averaged logits, if the model has only one."""
    first, second = HEADS.get(layout, ("", ""))
    parts = [(f"{first}.{part}", f"{second}.{part}") for part in ("weight", "bias")]
    if model.architecture.head.distillation or not all(name in tensors for pair in parts for name in pair):
        return tensors
    if any(tensors[one].shape != tensors[other].shape for one, other in parts):
        return tensors  # said by the check of names and shapes
    merged = {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{second}.")}
    return merged | {one: (tensors[one] + tensors[other]) / 2 for one, other in parts}


def _joined_qkv(tensors: dict[str, Tensor], model: MetaFormer, names: Mapping[str, str]) -> dict[str, Tensor]:
    """The separate query, key and value maps as one, its rows interleaved by head as ours are."""
    modules = dict(model.named_modules())
    joined = dict(tensors)
    for ours, theirs in names.items():
        found = re.match(r"(.*token_mixer)\.qkv\.(weight|bias)$", ours)
        attention = modules[found[1]] if found is not None else None
        parts = [theirs.replace(".qkv.", f".{part}.") for part in ("query", "key", "value")]
        if not isinstance(attention, OffsetAttention) or not all(part in joined for part in parts):
            continue
        if all(joined[part].shape[0] % attention.heads == 0 for part in parts):
            split = [joined.pop(part).unflatten(0, (attention.heads, -1)) for part in parts]  # type: ignore[no-untyped-call]
            joined[theirs] = torch.cat(split, dim=1).flatten(0, 1)
    return joined
