"""Every published model, and any architecture file, under timm's model contract.

`import supernet.timm_models` registers `slim_NAME` for every name of `list_models()`, and `slim_metaformer`, which
takes `architecture=` (an `Architecture` or the path of its file). Weights of timm's models of the same name load with
`supernet.convert.load_weights`.
"""

# B batch, C channels, H W pixels
# Annotations are not postponed here: torch.fx writes them into the code that it makes.

import copy
import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.jit import is_scripting  # type: ignore[attr-defined]
from torch.utils.checkpoint import checkpoint

from supernet.architecture import Architecture, DualDownsampling, PatchStem
from supernet.block_types import MB3D, AttentionFFN, MetaFormerBlock, RandomMixing
from supernet.metaformer import MetaFormer, MetaFormerStage, to_tokens
from supernet.model_zoo import list_models, published, published_architecture
from supernet.stem import HeadModule

PREFIX = "slim_"
POOLING = {"mean": "avg", "max": "max"}  # ours and timm's names
__all__ = ["SlimMetaFormer", "slim_metaformer"]


class SlimMetaFormer(MetaFormer):
    """`MetaFormer` with the attributes and methods that timm's scripts use.

    Its features are maps B,C,H,W, also after 3D blocks. With a distillation head it returns the average of both
    logits while training too, until `set_distilled_training(True)`. Tracing, scripting, torch.fx, torch.export and
    torch.compile work.
    """

    def __init__(
        self,
        architecture: Architecture | Path | str,
        *,
        in_chans: int | None = None,
        num_classes: int | None = None,
        global_pool: str | None = None,
        img_size: int | tuple[int, int] | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not isinstance(architecture, Architecture):
            architecture = Architecture.load(architecture)
        size = (img_size, img_size) if isinstance(img_size, int) else img_size or architecture.resolution_px
        in_chans = architecture.in_channels if in_chans is None else in_chans
        num_classes = architecture.head.num_classes if num_classes is None else num_classes
        global_pool = POOLING[architecture.head.pooling] if global_pool is None else global_pool
        architecture = architecture.model_copy(update={"in_channels": in_chans, "resolution_px": tuple(size)})
        with nullcontext() if device is None else torch.device(device):
            super().__init__(architecture, drop_path_rate=drop_path_rate)
        self.to(dtype=dtype)
        last = self.stages[-1]
        assert isinstance(last, MetaFormerStage)
        last.to_head = False
        self.in_chans, self.drop_rate = in_chans, drop_rate
        self.num_features = self.head_hidden_size = architecture.stages[-1].width_channels
        self.feature_info = _feature_info(self.architecture)
        self.grad_checkpointing = self.distilled_training = False
        self.num_classes, self.global_pool = num_classes, global_pool
        self.reset_classifier(num_classes, global_pool)

    def get_classifier(self) -> nn.Module | tuple[nn.Module, nn.Module]:
        """The classifier, or both."""
        head = self.head
        return head.fc if head.fc_distillation is None else (head.fc, head.fc_distillation)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None, reset_other: bool = False) -> None:
        """New classifiers; none with 0 classes. `global_pool` is "avg", "max" or "" for maps that are not pooled.

        `reset_other` takes the head's norm away too.
        """
        self.num_classes = num_classes
        if global_pool is not None:
            if global_pool not in ("", *POOLING.values()):
                raise ValueError(f"global_pool: must be 'avg', 'max' or '' (got {global_pool!r})")
            self.global_pool = global_pool
        wanted = self.architecture.head
        if self.global_pool:
            pooling = next(ours for ours, theirs in POOLING.items() if theirs == self.global_pool)
            wanted = wanted.model_copy(update={"pooling": pooling})
        if num_classes > 0:
            wanted = wanted.model_copy(update={"num_classes": num_classes})
        self.architecture = self.architecture.model_copy(update={"head": wanted})
        fresh = HeadModule(wanted, width_channels=self.num_features, dropout=self.drop_rate)
        example = next(self.stem.parameters())
        fresh.to(device=example.device, dtype=example.dtype).train(self.training)
        self.head.dropout, self.head.pooling = fresh.dropout, fresh.pooling
        self.head.fc, self.head.fc_distillation = fresh.fc, fresh.fc_distillation
        if num_classes == 0:
            self.head.fc, self.head.fc_distillation = nn.Identity(), None
        if reset_other:
            self.head.norm = nn.Identity()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute the stages again in the backward pass, which saves memory."""
        self.grad_checkpointing = enable

    def set_distilled_training(self, enable: bool = True) -> None:
        """Return both logits while training."""
        self.distilled_training = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Regular expressions that group parameters by depth, for layer-wise learning rates."""
        blocks = [(r"^stages\.(\d+)", None)]
        fine = [(r"^stages\.(\d+)\.downsampling", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None)]
        return {"stem": r"^stem", "blocks": blocks if coarse else [*fine, (r"^head\.norm", (99999,))]}

    def no_weight_decay(self) -> set[str]:
        """Parameters with more than one dimension that are not the weights of a linear map."""
        return {name for name, _ in self.named_parameters() if name.endswith("attention_biases")}

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The maps behind the stages of these indices (the last n with an int, all with None), and the last map."""
        if output_fmt != "NCHW" or norm:
            raise ValueError(f"only maps without a norm: output_fmt='NCHW', norm=False (got '{output_fmt}', {norm})")
        taken, last = feature_take_indices(len(self.stages), indices)
        x = self.stem(x)
        found: list[Tensor] = []
        for number, stage in enumerate(self.stages):
            if number <= last or not stop_early:
                x = stage(x) if is_scripting() else self._through(stage, x)
            if number in taken:
                found.append(x)
        if intermediates_only:
            return found
        return x, found

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages behind the last of these indices, and the head with its norm; return the indices from 0."""
        taken, last = feature_take_indices(len(self.stages), indices)
        cut = last < len(self.stages) - 1
        self.stages = self.stages[: last + 1]
        if cut:
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        if prune_head or cut:
            self.reset_classifier(0, "", reset_other=True)
        elif prune_norm:
            self.head.norm = nn.Identity()
        return list(taken)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images to the last stage's map B,C,H,W."""
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x) if is_scripting() else self._through(stage, x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """The last map to logits, or to what the classifiers see."""
        if not self.global_pool:
            return x
        x_BC = self.head.pooled(to_tokens(x))
        if pre_logits:
            return x_BC
        logits = self.head.classified(x_BC)
        if isinstance(logits, tuple):
            if self.distilled_training:
                return logits
            return (logits[0] + logits[1]) / 2
        return logits

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Images B,C,H,W to logits B,classes."""
        return self.forward_head(self.forward_features(x))

    def _through(self, stage: nn.Module, x: Tensor) -> Tensor:
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(stage, x, use_reentrant=False)  # type: ignore[no-any-return]
        return stage(x)  # type: ignore[no-any-return]


def _feature_info(architecture: Architecture) -> list[dict[str, Any]]:
    stem = architecture.stem
    reduction = stem.stride if isinstance(stem, PatchStem) else math.prod(stem.strides)
    found = []
    for number, stage in enumerate(architecture.stages):
        reduction *= 1 if stage.downsampling is None else stage.downsampling.stride
        found.append({"num_chs": stage.width_channels, "reduction": reduction, "module": f"stages.{number}"})
    return found


def _is_sized(architecture: Architecture) -> bool:
    """Whether a part of the model is made for one grid: a table of biases or a random matrix."""
    return any(isinstance(stage.downsampling, DualDownsampling) for stage in architecture.stages) or any(
        isinstance(block, MB3D | AttentionFFN)
        or (isinstance(block, MetaFormerBlock) and isinstance(block.mixer, RandomMixing))
        for stage in architecture.stages
        for block in stage.blocks
    )


def _default_cfg(architecture: Architecture, *, crop_fraction: float) -> dict[str, Any]:
    patch = isinstance(architecture.stem, PatchStem)
    hidden = architecture.head.hidden_channels is not None
    classifier: str | tuple[str, str] = "head.fc.fc2" if hidden else "head.fc"
    if architecture.head.distillation:
        classifier = ("head.fc", "head.fc_distillation")
    return {
        "url": "",
        "num_classes": architecture.head.num_classes,
        "input_size": (architecture.in_channels, *architecture.resolution_px),
        "fixed_input_size": _is_sized(architecture),
        "pool_size": architecture.grids[-1],
        "crop_pct": crop_fraction,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.conv" if patch else "stem.conv1",
        "classifier": classifier,
        "license": "apache-2.0",
    }


def _built(name: str, pretrained: bool, *, architecture: Architecture, **kwargs: Any) -> nn.Module:
    if pretrained and not (kwargs.get("pretrained_cfg") or kwargs.get("pretrained_cfg_overlay")):
        raise RuntimeError(f"{name}: no weights are shipped; load a checkpoint with supernet.convert.load_weights")
    built: nn.Module = build_model_with_cfg(
        SlimMetaFormer,
        name,
        pretrained,
        feature_cfg={"out_indices": tuple(range(len(architecture.stages))), "feature_cls": "getter"},
        architecture=architecture,
        **kwargs,
    )
    return built


def _entrypoint(published_name: str) -> Callable[..., nn.Module]:
    def build(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        architecture = published_architecture(published_name)
        return _built(PREFIX + published_name, pretrained, architecture=architecture, **kwargs)

    build.__name__ = build.__qualname__ = PREFIX + published_name
    build.__doc__ = f"{published_name} as published."
    return build


def slim_metaformer(pretrained: bool = False, *, architecture: Architecture | Path | str, **kwargs: Any) -> nn.Module:
    """The model of any architecture."""
    if not isinstance(architecture, Architecture):
        architecture = Architecture.load(architecture)
    own = _default_cfg(architecture, crop_fraction=0.875)
    kwargs["pretrained_cfg_overlay"] = own | (kwargs.get("pretrained_cfg_overlay") or {})
    return _built("slim_metaformer", pretrained, architecture=architecture, **kwargs)


default_cfgs = {
    PREFIX + name: _default_cfg(published_architecture(name), crop_fraction=published(name).crop_fraction)
    for name in list_models()
}
default_cfgs["slim_metaformer"] = copy.deepcopy(default_cfgs[PREFIX + "efficientformer_l1"])
for _name in list_models():
    globals()[PREFIX + _name] = register_model(_entrypoint(_name))
register_model(slim_metaformer)
