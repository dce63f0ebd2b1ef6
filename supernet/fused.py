"""The deploy form of a model: the same function, with everything folded that is constant at inference.

Batch norm goes into the convolution before it, layer scales into the last linear map of their branch, the factor of
StarReLU into the map after it, the norm before a mean and the second classifier into the first. Attention biases are
gathered once. Dropout and drop path are gone.
"""

# B batch, C channels, H W pixels, N tokens, G heads

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import singledispatch
from typing import TypeVar

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from supernet.activations import SquaredReLU, StarReLU
from supernet.blocks import (
    AttentionFFNModule,
    ConvMlp,
    LinearMlp,
    MapBlock,
    MB3DModule,
    MetaFormerBlockModule,
    UnifiedFFNModule,
)
from supernet.deploy import (
    BiasedAttention,
    GatheredDownsamplingAttention,
    GatheredTalkingAttention,
    PixelAttentionBlock,
    PixelMlp,
    PixelSeparableMixer,
    PooledResidual,
    Residual,
    ScaledResidual,
    ShiftedSquaredReLU,
    scale_outputs,
)
from supernet.efficientformer_v2 import ConvNorm, DownsamplingAttention, LocalGlobalQuery, TalkingAttention
from supernet.layers import DropPath, LayerScale
from supernet.mixers import (
    AttentionMixer,
    ConvMixer,
    OffsetAttention,
    PoolMixer,
    SeparableConvMixer,
    SeparableMixer,
)
from supernet.norms import NormModule
from supernet.packing import PackedLinear
from supernet.stem import DownsamplingModule, HeadModule, MlpClassifier, StemModule

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def fused(module: ModuleT) -> ModuleT:
    """A copy of the module in evaluation mode, folded; its logits differ by rounding alone.

    A user's own blocks compute as they did. The copy has no gradients, and is not meant to be trained or saved.
    """
    result = copy.deepcopy(module).eval().requires_grad_(False)
    return _folded_children_first(result)


def _folded_children_first(module: ModuleT) -> ModuleT:
    for name, child in module.named_children():
        setattr(module, name, _folded_children_first(child))
    known = next(kind for kind in type(module).__mro__ if kind in _folded.registry)
    if known is not object and type(module).forward is not getattr(known, "forward", None):
        return module  # a user's subclass that computes something else
    return _folded(module)  # type: ignore[return-value]


@singledispatch
def _folded(module: nn.Module) -> nn.Module:
    """The deploy form of a module whose parts are folded already."""
    return module


def _nothing(dropped: nn.Module) -> nn.Module:
    """What is left at inference of a module that drops something while training."""
    return nn.Identity()


_folded.register(DropPath, _nothing)
_folded.register(nn.Dropout, _nothing)


def _norms_into_convolutions(*pairs: tuple[str, str]) -> Callable[[nn.Module], nn.Module]:
    """What folds these batch norms of a module into the convolutions before them, by the names of both."""

    def fold(module: nn.Module) -> nn.Module:
        for conv, norm in pairs:
            setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm)))
            setattr(module, norm, nn.Identity())
        return module

    return fold


_folded.register(StemModule, _norms_into_convolutions(("conv1", "norm1"), ("conv2", "norm2")))
_folded.register(DownsamplingModule, _norms_into_convolutions(("conv", "norm")))
_folded.register(ConvMlp, _norms_into_convolutions(("fc1", "norm1"), ("fc2", "norm2")))
_folded.register(ConvMixer, _norms_into_convolutions(("conv", "norm")))
_folded.register(
    SeparableConvMixer,
    _norms_into_convolutions(("pwconv1", "norm1"), ("dwconv", "norm2"), ("pwconv2", "norm3")),
)


@_folded.register
def _(linear: nn.Linear) -> nn.Module:
    hooked = linear._forward_hooks or linear._forward_pre_hooks
    return linear if type(linear) is not nn.Linear or hooked else PackedLinear.of(linear)


@_folded.register
def _(layer: ConvNorm) -> nn.Module:
    return fuse_conv_bn_eval(layer.conv, layer.norm)


def _scaled(branch: nn.Module, last: nn.Module, scale: nn.Module) -> nn.Module:
    """The branch with its layer scale in its last linear map, or behind it where there is none."""
    if isinstance(scale, nn.Identity):
        return branch
    assert isinstance(scale, LayerScale)
    if isinstance(last, nn.Conv2d | nn.Linear):
        scale_outputs(last, scale.gamma)
        return branch
    return nn.Sequential(branch, scale)


@_folded.register
def _(block: MapBlock) -> nn.Module:
    mixer = block.token_mixer
    mlp = _scaled(block.mlp, block.mlp.fc2, block.ls2)
    if isinstance(mixer, PoolMixer):
        return nn.Sequential(PooledResidual(mixer.pool, block.ls1.gamma), Residual(mlp))
    return nn.Sequential(Residual(_scaled(mixer, _last(mixer), block.ls1)), Residual(mlp))


@_folded.register
def _(block: MB3DModule) -> nn.Module:
    mixer = nn.Sequential(block.norm1, _scaled(block.token_mixer, block.token_mixer.proj, block.ls1))
    return nn.Sequential(
        Residual(mixer), Residual(nn.Sequential(block.norm2, _scaled(block.mlp, block.mlp.fc2, block.ls2)))
    )


@_folded.register
def _(block: UnifiedFFNModule) -> nn.Module:
    return Residual(_scaled(block.mlp, block.mlp.fc2, block.ls2))


@_folded.register
def _(block: AttentionFFNModule) -> nn.Module:
    mixer = _scaled(block.token_mixer, block.token_mixer.proj, block.ls1)
    return nn.Sequential(Residual(mixer), Residual(_scaled(block.mlp, block.mlp.fc2, block.ls2)))


def _last(mixer: nn.Module) -> nn.Module:
    """The linear map that a mixer ends with, or the mixer itself if it ends otherwise."""
    if isinstance(mixer, SeparableConvMixer | SeparableMixer):
        return mixer.pwconv2
    return mixer.proj if isinstance(mixer, AttentionMixer) else mixer


@_folded.register
def _(attention: OffsetAttention) -> nn.Module:
    return BiasedAttention(attention)


@_folded.register
def _(attention: TalkingAttention) -> nn.Module:
    return GatheredTalkingAttention(attention)


@_folded.register
def _(attention: DownsamplingAttention) -> nn.Module:
    return GatheredDownsamplingAttention(attention)


@_folded.register
def _(query: LocalGlobalQuery) -> nn.Module:
    query.local.weight[:, :, 1, 1] += 1.0  # every s-th pixel is what the kernel's centre sees
    return nn.Sequential(query.local, query.proj)


@_folded.register
def _(mlp: LinearMlp) -> nn.Module:
    if isinstance(mlp.act, StarReLU):
        weight, bias = mlp.act.folded_into(mlp.fc2)
        mlp.fc2.weight, mlp.fc2.bias = (nn.Parameter(tensor, requires_grad=False) for tensor in (weight, bias))
        mlp.act = SquaredReLU()
    return mlp


@_folded.register
def _(mixer: SeparableMixer) -> nn.Module:
    star = mixer.act1
    if isinstance(star, StarReLU) and star.scale.abs().item() > 1e-6:  # zero padding sees the shift, not the factor
        mixer.dwconv.weight.mul_(star.scale)
        mixer.act1 = ShiftedSquaredReLU(star.bias / star.scale)
    return mixer


@_folded.register
def _(block: MetaFormerBlockModule) -> nn.Module:
    mixing = _scaled(block.token_mixer, _last(block.token_mixer), block.ls1)
    channels = _scaled(block.mlp, block.mlp.fc2, block.ls2)
    plain = type(block.mlp) is LinearMlp
    if plain and type(block.norm2) is NormModule and block.norm2.over == "map":
        _affine_into(block.norm2, block.mlp.fc1)
    of_map = type(block.norm1) is NormModule and block.norm1.over == "map"
    if of_map and isinstance(block.token_mixer, PoolMixer) and isinstance(block.ls1, LayerScale):
        _affine_into_scale(block.norm1, block.ls1)
    if plain and type(mixing) is AttentionMixer and block.norm1.over == block.norm2.over == "channels":
        return PixelAttentionBlock(block, mixing, block.mlp)
    if type(mixing) is SeparableMixer:
        mixing = PixelSeparableMixer(mixing)
    if plain:
        channels = PixelMlp(block.mlp)
    mixer, mlp = nn.Sequential(block.norm1, mixing), nn.Sequential(block.norm2, channels)
    return nn.Sequential(
        *(
            ScaledResidual(branch, scale) if isinstance(scale, LayerScale) else Residual(branch)
            for branch, scale in ((mixer, block.rs1), (mlp, block.rs2))
        )
    )


def _affine_into(norm: NormModule, linear: nn.Linear) -> None:
    """The norm without its factors and biases, which go into the linear map behind it."""
    if norm.bias is not None:
        shift = linear.weight @ norm.bias
        linear.bias = nn.Parameter(shift if linear.bias is None else linear.bias + shift, requires_grad=False)
    assert norm.weight is not None
    linear.weight.mul_(norm.weight)
    norm.weight = norm.bias = None


def _affine_into_scale(norm: NormModule, scale: LayerScale) -> None:
    """The norm before a pooling minus its input without its factors, which go into the layer scale behind that.

    Its biases go nowhere: the average of what is inside the map is the same for a constant, so they cancel.
    """
    assert norm.weight is not None
    scale.gamma.mul_(norm.weight)
    norm.weight = norm.bias = None


@_folded.register
def _(head: HeadModule) -> nn.Module:
    if isinstance(head.fc, nn.Linear) and isinstance(head.fc_distillation, nn.Linear):
        for ours, second in ((head.fc.weight, head.fc_distillation.weight), (head.fc.bias, head.fc_distillation.bias)):
            ours.add_(second).div_(2)
        head.fc_distillation = None
    linear = head.fc.fc1 if isinstance(head.fc, MlpClassifier) else head.fc
    single = head.fc_distillation is None and isinstance(linear, nn.Linear)
    if single and (head.pooling == "mean" or head.norm_after_pooling):
        assert isinstance(linear, nn.Linear)
        _fold_affine(head, linear)
    return head


def _fold_affine(head: HeadModule, linear: nn.Linear) -> None:
    """The head's norm without its factors and biases, which go into the linear map behind the mean."""
    norm = head.norm
    if isinstance(norm, nn.BatchNorm2d):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        factor = norm.weight * (norm.running_var + norm.eps).rsqrt()
        shift = norm.bias - norm.running_mean * factor
        head.norm, head.norm_of_maps = nn.Identity(), False
    elif isinstance(norm, nn.LayerNorm):
        factor, shift = norm.weight, norm.bias
        head.norm = nn.LayerNorm(norm.normalized_shape, eps=norm.eps, elementwise_affine=False)
    else:
        return
    linear.bias.add_(linear.weight @ shift)
    linear.weight.mul_(factor)
