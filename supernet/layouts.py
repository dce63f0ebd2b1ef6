"""The names and shapes that other projects give to the tensors of these models.

A layout is a table from our names to theirs, derived from the model, so that loading and writing back cannot disagree.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

from supernet.block_types import (
    MB3D,
    MB4D,
    AttentionFFN,
    Block,
    MetaFormerBlock,
    NoMixing,
    Pooling,
    RandomMixing,
    SelfAttention,
    UnifiedFFN,
)
from supernet.metaformer import MetaFormer
from supernet.schema import UserError

ExportLayout = Literal["slimformer", "timm", "snap", "sail"]
Rules = list[tuple[str, str]]


def is_baseline(model: MetaFormer) -> bool:
    """Whether the model is of the MetaFormer baselines' kind."""
    return any(isinstance(block, MetaFormerBlock) for stage in model.architecture.stages for block in stage.blocks)


def is_v2(model: MetaFormer) -> bool:
    """Whether the model is of EfficientFormerV2's kind."""
    local = (UnifiedFFN, AttentionFFN)
    return any(isinstance(block, local) for stage in model.architecture.stages for block in stage.blocks)


def _flattened(model: MetaFormer, stage: int, block: int) -> int:
    """EfficientFormer's own block number: the step to tokens counts as a block."""
    return block + (model.architecture.stages[stage].blocks[block].layout == "tokens")


def _ours(model: MetaFormer) -> dict[str, str]:
    return {name: name for name in model.state_dict()}


def _timm(model: MetaFormer) -> dict[str, str]:
    names = {}
    for ours in model.state_dict():
        theirs = ours.replace(".downsampling.", ".downsample.")
        if is_baseline(model):
            theirs = re.sub(r"\.rs(\d)\.gamma$", r".res_scale\1.scale", theirs)
            theirs = re.sub(r"\.ls(\d)\.gamma$", r".layer_scale\1.scale", theirs)
        else:
            theirs = _numbered(model, theirs, "stages.{stage}.blocks.{block}.")
            if is_v2(model):
                theirs = _timm_v2(theirs)
            theirs = re.sub(r"^head\.norm\.", "norm.", theirs)
            theirs = re.sub(r"^head\.fc\.", "head.", theirs)
            theirs = re.sub(r"^head\.fc_distillation\.", "head_dist.", theirs)
        names[ours] = theirs
    return names


def _timm_v2(name: str) -> str:
    """A convolution and its batch norm are `conv` and `bn` of one module, in the stem and downsampling too."""
    name = re.sub(r"^stem\.conv(\d)\.", r"stem.conv\1.conv.", name)
    name = re.sub(r"^stem\.norm(\d)\.", r"stem.conv\1.bn.", name)
    name = re.sub(r"\.downsample\.(conv|norm)\.", r".downsample.conv.\1.", name)
    name = name.replace(".downsample.local.", ".downsample.conv.").replace(
        ".downsample.attention.", ".downsample.attn."
    )
    return re.sub(r"^(stages\..*)\.norm\.", r"\1.bn.", name)


def _numbered(model: MetaFormer, ours: str, form: str) -> str:
    """The name with the stage and EfficientFormer's block number in this form."""
    found = re.match(r"stages\.(\d+)\.blocks\.(\d+)\.", ours)
    if found is None:
        return ours
    stage, block = int(found[1]), int(found[2])
    prefix = form.format(stage=stage, block=_flattened(model, stage, block), even=2 * stage)
    return prefix + ours[found.end() :]


def _by_network(model: MetaFormer, surround: Rules, inner: Rules, blocks: str) -> dict[str, str]:
    """A layout that numbers stages and downsamplings in one list: stage S is 2S, its downsampling 2S - 1."""
    names = {}
    for ours in model.state_dict():
        theirs = _numbered(model, ours, blocks)
        if theirs != ours:
            head, tail = re.match(r"((?:\D+)?\d+\.\d+\.)(.*)", theirs).groups()  # type: ignore[union-attr]
            for pattern, replacement in inner:
                tail = re.sub(pattern, replacement, tail)
            theirs = head + tail
        else:
            theirs = re.sub(r"^stages\.(\d+)\.downsampling\.", lambda m: f"downsampling.{2 * int(m[1]) - 1}.", theirs)
            for pattern, replacement in surround:
                theirs = re.sub(pattern, replacement, theirs)
        names[ours] = theirs
    return names


_STEM_BY_NUMBER: Rules = [
    (r"^stem\.conv1\.", "patch_embed.0."),
    (r"^stem\.norm1\.", "patch_embed.1."),
    (r"^stem\.conv2\.", "patch_embed.3."),
    (r"^stem\.norm2\.", "patch_embed.4."),
]
_SNAP_HEAD: Rules = [
    (r"^head\.norm\.", "norm."),
    (r"^head\.fc\.", "head."),
    (r"^head\.fc_distillation\.", "dist_head."),
]
# EfficientFormerV2's convolutions with their norms are numbered; the projection has its activation first.
_SNAP_MLP: Rules = [
    (r"^mlp\.fc(\d)\.conv\.", r"mlp.fc\1."),
    (r"^mlp\.fc(\d)\.norm\.", r"mlp.norm\1."),
    (r"^mlp\.mid\.conv\.", "mlp.mid."),
    (r"^mlp\.mid\.norm\.", "mlp.mid_norm."),
]
_SNAP_ATTENTION: Rules = [
    (r"(attn|token_mixer)\.proj\.conv\.", r"\1.proj.1."),
    (r"(attn|token_mixer)\.proj\.norm\.", r"\1.proj.2."),
    (r"(attn|token_mixer)\.((?:q\.)?\w+)\.conv\.", r"\1.\2.0."),
    (r"(attn|token_mixer)\.((?:q\.)?\w+)\.norm\.", r"\1.\2.1."),
]


def _snap(model: MetaFormer) -> dict[str, str]:
    surround = [
        *_STEM_BY_NUMBER,
        (r"^stem\.conv\.", "patch_embed.proj."),
        (r"^downsampling\.(\d+)\.local\.conv\.", r"network.\1.conv."),
        (r"^downsampling\.(\d+)\.local\.norm\.", r"network.\1.bn."),
        (r"^downsampling\.(\d+)\.attention\.q\.local\.", r"network.\1.attn.q.local.0."),
        (r"^downsampling\.(\d+)\.attention\.q\.proj\.", r"network.\1.attn.q.proj."),
        (r"^downsampling\.(\d+)\.attention\.", r"network.\1.attn."),
        (r"^downsampling\.(\d+)\.conv\.", r"network.\1.proj."),
        (r"^downsampling\.(\d+)\.norm\.", r"network.\1.norm."),
        *_SNAP_HEAD,
        *_SNAP_ATTENTION,
    ]
    inner: Rules = [(r"^ls(\d)\.gamma$", r"layer_scale_\1"), *_SNAP_MLP, *_SNAP_ATTENTION]
    return _by_network(model, surround, inner, "network.{even}.{block}.")


def _sail(model: MetaFormer) -> dict[str, str]:
    names = {}
    for ours in model.state_dict():
        theirs = re.sub(r"^stages\.(\d+)\.blocks\.", r"stages.\1.", ours)
        theirs = re.sub(r"\.rs(\d)\.gamma$", r".res_scale\1.scale", theirs)
        theirs = re.sub(r"\.ls(\d)\.gamma$", r".layer_scale\1.scale", theirs)
        theirs = re.sub(r"^stages\.(\d+)\.downsampling\.norm\.", r"downsample_layers.\1.pre_norm.", theirs)
        theirs = re.sub(r"^stages\.(\d+)\.downsampling\.conv\.", r"downsample_layers.\1.conv.", theirs)
        theirs = re.sub(r"^stem\.norm\.", "downsample_layers.0.post_norm.", theirs)
        theirs = re.sub(r"^stem\.conv\.", "downsample_layers.0.conv.", theirs)
        theirs = re.sub(r"^head\.norm\.", "norm.", theirs)
        names[ours] = re.sub(r"^head\.fc\.", "head.", theirs)
    return names


def _netspresso(model: MetaFormer, *, prefix: str = "") -> dict[str, str]:
    surround: Rules = [
        (r"^stem\.(conv|norm)1\.", r"patch_embed.stem.0.block.\1."),
        (r"^stem\.(conv|norm)2\.", r"patch_embed.stem.1.block.\1."),
        (r"^downsampling\.(\d+)\.(conv|norm)\.", r"encoder.blocks.\1.proj.block.\2."),
        (r"^head\.norm\.", "norm."),
    ]
    inner: Rules = [
        (r"^ls(\d)\.gamma$", r"layer_scale_\1"),
        (r"^norm1\.", "layernorm_before."),
        (r"^norm2\.", "layernorm_after."),
        (r"^token_mixer\.proj\.", "token_mixer.linear."),
        (r"^mlp\.norm(\d)\.", r"channel_mlp.ffn.conv_1x1_\1.block.norm."),
    ]
    names = _by_network(model, surround, inner, "encoder.blocks.{even}.{block}.")
    for ours, theirs in names.items():
        linear = re.search(r"\.mlp\.fc(\d)\.", ours)
        if linear is not None:
            stage, block = (int(number) for number in re.match(r"stages\.(\d+)\.blocks\.(\d+)", ours).groups())  # type: ignore[union-attr]
            tokens = model.architecture.stages[stage].blocks[block].layout == "tokens"
            inside = f"dense{linear[1]}" if tokens else f"conv_1x1_{linear[1]}.block.conv"
            theirs = theirs.replace(f"mlp.fc{linear[1]}.", f"channel_mlp.ffn.{inside}.")
        if ours.startswith("head.fc"):
            # places in a Sequential: dropout, linear; or linear, activation, dropout, linear
            theirs = re.sub(r"^head\.fc\.fc1\.", "head.classifier.0.", theirs)
            theirs = re.sub(r"^head\.fc\.fc2\.", "head.classifier.3.", theirs)
            names[ours] = re.sub(r"^head\.fc\.", "head.classifier.1.", theirs)
        else:
            names[ours] = prefix + theirs
    return names


HEADS = {  # the classifier and the distilling one
    "slimformer": ("head.fc", "head.fc_distillation"),
    "timm": ("head", "head_dist"),
    "snap": ("head", "dist_head"),
}

LAYOUTS: dict[str, Callable[[MetaFormer], dict[str, str]]] = {
    "slimformer": _ours,
    "timm": _timm,
    "snap": _snap,  # and PoolFormer's own, which has the same form
    "sail": _sail,
    "netspresso": _netspresso,
    "netspresso_backbone": lambda model: _netspresso(model, prefix="backbone."),
}


def exported_as(model: MetaFormer, layout: ExportLayout) -> str:
    """The layout's table for this kind of model."""
    baseline = is_baseline(model)
    original = baseline and all(
        isinstance(block, MetaFormerBlock) and isinstance(block.mixer, Pooling) and block.norm.bias
        for stage in model.architecture.stages
        for block in stage.blocks
    )
    known: tuple[type[Block], ...] = (MB4D, MB3D, UnifiedFFN, AttentionFFN, MetaFormerBlock)
    blocks = [block for stage in model.architecture.stages for block in stage.blocks]
    mixers = {type(block.mixer) for block in blocks if isinstance(block, MetaFormerBlock)}
    if layout != "slimformer" and not all(isinstance(block, known) for block in blocks):
        raise UserError(f"layout {layout}: this model has blocks that the project does not have")
    if layout == "timm" and mixers & {NoMixing, RandomMixing}:
        raise UserError("layout timm: timm has neither IdentityFormer nor RandFormer")
    if layout == "sail" and original:
        return "snap"
    if (layout == "snap" and baseline) or (layout == "sail" and not baseline):
        raise UserError(
            f"layout {layout}: not of this kind of model (snap: EfficientFormer; sail: MetaFormer baselines)"
        )
    return layout


def exported_shapes(model: MetaFormer, layout: ExportLayout) -> dict[str, tuple[int, ...]]:
    """The shapes of our tensors that the layout keeps otherwise: as 1x1 convolutions, or factors of maps."""
    tensors = model.state_dict()
    shapes: dict[str, tuple[int, ...]] = {}
    if layout == "snap" and is_v2(model):
        return {name: (*tensor.shape, 1, 1) for name, tensor in tensors.items() if name.endswith(".gamma")}
    if layout == "slimformer" or not is_baseline(model) or (layout == "sail" and exported_as(model, layout) == "sail"):
        return {}
    for number, stage in enumerate(model.architecture.stages):
        for index, block in enumerate(stage.blocks):
            if isinstance(block, MetaFormerBlock) and not isinstance(block.mixer, SelfAttention):
                linear = re.compile(rf"stages\.{number}\.blocks\.{index}\.(mlp\.fc|token_mixer\.pwconv)\d\.weight")
                shapes |= {name: (*tensor.shape, 1, 1) for name, tensor in tensors.items() if linear.fullmatch(name)}
    return shapes
