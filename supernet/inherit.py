"""Weights of a subnet, cut out of a supernet."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from supernet.architecture import Architecture
from supernet.elastic import Elastic, leading, named_tensors
from supernet.metaformer import MetaFormer, MetaFormerStage
from supernet.supernet import Supernet


def inherit(supernet: Supernet, architecture: Architecture, *, drop_path_rate: float = 0.0) -> MetaFormer:
    """A standalone model with copies of the supernet's leading channels, in evaluation mode on its device.

    Raises `UserError` if the architecture is not of the supernet's space. Its batch-norm statistics are those that
    the supernet accumulated over all of its samples: re-fit them before use.
    """
    model = MetaFormer(architecture, drop_path_rate=drop_path_rate)
    model.to(next(supernet.parameters()).device)
    with torch.no_grad():
        for elastic, part in _pairs(supernet, model, architecture):
            full = named_tensors(elastic.full)
            for name, target in named_tensors(part).items():
                target.copy_(leading(full[name], target.shape))
    return model.eval()


def _pairs(
    supernet: Supernet, model: MetaFormer, architecture: Architecture
) -> Iterator[tuple[Elastic[object], nn.Module]]:
    """Every part of the supernet that the architecture uses, beside the standalone model's own."""
    yield supernet.stem, model.stem  # type: ignore[misc]
    choices = supernet.space.choices(architecture)
    positions = iter(supernet.metapaths)
    for index, (stage, chosen) in enumerate(zip(model.stages, choices, strict=True)):
        assert isinstance(stage, MetaFormerStage)
        if stage.downsampling is not None:
            yield supernet.downsamplings[index - 1], stage.downsampling  # type: ignore[misc]
        for block, candidate in zip(stage.blocks, chosen, strict=True):
            metapath = next(positions)
            if not candidate.is_identity:
                yield metapath.candidates[candidate.name], block  # type: ignore[misc,index]
    yield supernet.head, model.head  # type: ignore[misc]
