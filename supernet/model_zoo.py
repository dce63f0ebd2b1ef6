"""The published models by name: each is an Architecture file in `supernet/zoo/`."""

from __future__ import annotations

import fnmatch
from importlib.resources import files

from supernet.architecture import Architecture
from supernet.metaformer import MetaFormer
from supernet.schema import Record, UserError, nearest, parse, parse_yaml


def list_models(pattern: str = "*") -> list[str]:
    """The names of the published models that match a shell pattern, sorted."""
    names = (entry.name for entry in files("supernet.zoo").iterdir() if entry.name.endswith(".yaml"))
    return sorted(name for name in (name.removesuffix(".yaml") for name in names) if fnmatch.fnmatch(name, pattern))


def published_architecture(name: str) -> Architecture:
    """The architecture of a published model. Raises `UserError` for an unknown name."""
    if name not in list_models():
        raise UserError(f"unknown model {name!r}" + nearest(name, list_models()))
    text = files("supernet.zoo").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    return parse(Architecture, parse_yaml(text), source=f"supernet/zoo/{name}.yaml")


class Published(Record):
    """What the authors of a model published about it: ImageNet-1k top-1, and the centre crop that it was measured with.

    The shorter side is scaled (bicubic) to the model's resolution over `crop_fraction`.
    """

    top1_percent: float
    crop_fraction: float
    source: str


def published(name: str) -> Published:
    """What was published about a model. Raises `UserError` for an unknown name."""
    text = files("supernet").joinpath("published.yaml").read_text(encoding="utf-8")
    known = parse_yaml(text)
    if name not in known:
        raise UserError(f"unknown model {name!r}" + nearest(name, known))
    return parse(Published, known[name], source=f"supernet/published.yaml, {name}")


def create_model(
    name: str,
    *,
    in_channels: int = 3,
    num_classes: int | None = None,
    resolution_px: int | tuple[int, int] | None = None,
    drop_path_rate: float = 0.0,
) -> MetaFormer:
    """A published model with fresh weights, at any input size, number of input channels and classes.

    Raises `UserError` for an unknown name or an illegal size.
    """
    data = published_architecture(name).model_dump(mode="json")
    data["in_channels"] = in_channels
    if num_classes is not None:
        data["head"]["num_classes"] = num_classes
    if resolution_px is not None:
        data["resolution_px"] = resolution_px if isinstance(resolution_px, int) else list(resolution_px)
    return MetaFormer(parse(Architecture, data, source=name), drop_path_rate=drop_path_rate)
