"""Checkpoints of other projects: every layout both ways, strictly, and nothing executed."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from supernet.convert import export_weights, load_weights, read_tensors, recognized, resized_table, sized_as
from supernet.metaformer import MetaFormer
from supernet.model_zoo import create_model
from supernet.schema import UserError

CLASSES = 7
PARTS = ("weight", "bias")


def drawn(module: Any, seed: int = 0) -> Any:
    """The module with every parameter and statistic drawn anew, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith("running_var"):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            elif tensor.is_floating_point():
                scale = 0.3 if tensor.ndim <= 1 else 0.05
                tensor.add_(scale * torch.randn(tensor.shape, generator=generator))
    return module.eval()


def small(name: str, *, seed: int = 0) -> MetaFormer:
    model: MetaFormer = drawn(create_model(name, resolution_px=64, num_classes=CLASSES), seed)
    return model


def logits(model: nn.Module, size: int = 64) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1)))
    return found


@pytest.mark.parametrize(
    "name", ["efficientformer_l1", "efficientformerv2_s0", "caformer_s18", "convformer_s18", "poolformerv2_s12"]
)
def test_timms_weights_give_timms_logits(name: str) -> None:
    reference = drawn(timm.create_model(name, pretrained=False))
    model = create_model(name).eval()
    assert load_weights(model, reference.state_dict()) == "timm"
    expected = logits(reference, 224)
    torch.testing.assert_close(logits(model, 224), expected, rtol=0, atol=float(1e-4 * expected.abs().max()))


@pytest.mark.parametrize("name", ["efficientformer_l1", "efficientformerv2_s0", "caformer_s18", "poolformerv2_s12"])
def test_timm_loads_what_is_exported_for_it(name: str) -> None:
    model = drawn(create_model(name))
    reference = timm.create_model(name, pretrained=False).eval()
    reference.load_state_dict(export_weights(model, "timm"))
    expected = logits(model, 224)
    torch.testing.assert_close(logits(reference, 224), expected, rtol=0, atol=float(1e-4 * expected.abs().max()))


@pytest.mark.parametrize(
    ("name", "layout", "detected"),
    [
        ("efficientformer_l1", "timm", "timm"),
        ("efficientformer_l1", "snap", "snap"),
        ("efficientformerv2_s0", "timm", "timm"),
        ("efficientformerv2_s0", "snap", "snap"),
        ("caformer_s18", "timm", "timm"),
        ("caformer_s18", "sail", "sail"),
        ("poolformerv2_s12", "sail", "sail"),
        ("poolformer_s12", "timm", "timm"),
        ("poolformer_s12", "sail", "snap"),
    ],
)
def test_every_layout_comes_back_as_it_went(name: str, layout: Any, detected: str) -> None:
    model, back = small(name), small(name, seed=1)
    assert load_weights(back, export_weights(model, layout)) == detected
    for key, tensor in model.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(back.state_dict()[key], tensor), key


def test_our_own_file_is_a_layout_too(tmp_path: Path) -> None:
    model, back = small("caformer_s18"), small("caformer_s18", seed=1)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    assert load_weights(back, tmp_path / "model.safetensors") == "slimformer"
    torch.testing.assert_close(logits(back), logits(model))


# Names and shapes of the original files (facts: EfficientFormer section 5, MetaFormer baselines section 2).
ORIGINAL = [
    ("efficientformer_l1", "snap", 281, {
        "patch_embed.0.weight": (24, 3, 3, 3),
        "patch_embed.3.bias": (48,),
        "patch_embed.4.running_mean": (48,),
        "network.0.0.layer_scale_1": (48,),
        "network.0.0.mlp.fc1.weight": (192, 48, 1, 1),
        "network.0.0.mlp.norm2.weight": (48,),
        "network.1.proj.weight": (96, 48, 3, 3),
        "network.5.norm.bias": (448,),
        "network.6.4.norm1.weight": (448,),
        "network.6.4.token_mixer.qkv.weight": (1536, 448),
        "network.6.4.token_mixer.attention_biases": (8, 49),
        "network.6.4.token_mixer.attention_bias_idxs": (49, 49),
        "network.6.4.token_mixer.proj.weight": (448, 1024),
        "network.6.4.mlp.fc2.weight": (448, 1792),
        "norm.weight": (448,),
        "head.bias": (1000,),
        "dist_head.weight": (1000, 448),
    }),
    ("efficientformerv2_s0", "snap", 573, {
        "patch_embed.3.weight": (32, 16, 3, 3),
        "network.0.0.mlp.fc1.weight": (128, 32, 1, 1),
        "network.0.0.mlp.norm1.bias": (128,),
        "network.0.0.mlp.mid.weight": (128, 1, 3, 3),
        "network.0.0.mlp.mid_norm.running_var": (128,),
        "network.0.0.layer_scale_2": (32, 1, 1),
        "network.1.proj.weight": (48, 32, 3, 3),
        "network.4.4.token_mixer.stride_conv.0.weight": (96, 1, 3, 3),
        "network.4.4.token_mixer.q.1.weight": (256,),
        "network.4.4.token_mixer.v_local.0.weight": (1024, 1, 3, 3),
        "network.4.4.token_mixer.talking_head1.weight": (8, 8, 1, 1),
        "network.4.4.token_mixer.proj.1.weight": (96, 1024, 1, 1),
        "network.4.4.token_mixer.proj.2.weight": (96,),
        "network.4.4.token_mixer.attention_biases": (8, 49),
        "network.5.conv.weight": (176, 96, 3, 3),
        "network.5.bn.weight": (176,),
        "network.5.attn.q.local.0.weight": (96, 1, 3, 3),
        "network.5.attn.q.proj.0.weight": (128, 96, 1, 1),
        "network.5.attn.v_local.1.bias": (512,),
        "network.5.attn.proj.1.weight": (176, 512, 1, 1),
        "network.5.attn.attention_biases": (8, 196),
        "network.5.attn.attention_bias_idxs": (49, 196),
        "norm.running_mean": (176,),
        "dist_head.bias": (1000,),
    }),
    ("caformer_s18", "sail", 206, {
        "downsample_layers.0.conv.weight": (64, 3, 7, 7),
        "downsample_layers.0.post_norm.weight": (64,),
        "downsample_layers.1.pre_norm.weight": (64,),
        "stages.0.0.norm1.weight": (64,),
        "stages.0.0.token_mixer.pwconv1.weight": (128, 64),
        "stages.0.0.token_mixer.act1.scale": (1,),
        "stages.0.0.token_mixer.dwconv.weight": (128, 1, 7, 7),
        "stages.0.0.mlp.act.bias": (1,),
        "stages.2.0.token_mixer.qkv.weight": (960, 320),
        "stages.2.0.res_scale1.scale": (320,),
        "norm.bias": (512,),
        "head.fc1.weight": (2048, 512),
        "head.norm.weight": (2048,),
        "head.fc2.weight": (1000, 2048),
    }),
    ("poolformer_s12", "sail", 132, {
        "patch_embed.proj.weight": (64, 3, 7, 7),
        "network.0.0.layer_scale_1": (64,),
        "network.0.0.norm1.bias": (64,),
        "network.0.0.mlp.fc1.weight": (256, 64, 1, 1),
        "network.1.proj.weight": (128, 64, 3, 3),
        "norm.weight": (512,),
        "head.weight": (1000, 512),
    }),
]  # fmt: skip


@pytest.mark.parametrize(("name", "layout", "count", "shapes"), ORIGINAL)
def test_exported_names_and_shapes_are_the_originals(
    name: str, layout: Any, count: int, shapes: dict[str, tuple[int, ...]]
) -> None:
    exported = export_weights(create_model(name), layout)
    assert {key: tuple(exported[key].shape) for key in shapes} == shapes
    assert len(exported) == count


def netspresso(model: MetaFormer, *, prefix: str) -> dict[str, Tensor]:
    """The model as NetsPresso Trainer names it: query, key and value apart, the head under another name."""
    found = {}
    for name, tensor in export_weights(model, "snap").items():
        name = re.sub(r"^patch_embed\.([03])\.", lambda m: f"patch_embed.stem.{int(m[1]) // 3}.block.conv.", name)
        name = re.sub(r"^patch_embed\.([14])\.", lambda m: f"patch_embed.stem.{int(m[1]) // 3}.block.norm.", name)
        name = re.sub(r"^network\.([135])\.(proj|norm)\.", lambda m: f"encoder.blocks.{m[1]}.proj.block."
                      f"{'conv' if m[2] == 'proj' else 'norm'}.", name)  # fmt: skip
        name = re.sub(r"^network\.", "encoder.blocks.", name)
        name = name.replace(".token_mixer.proj.", ".token_mixer.linear.")
        if name.startswith("encoder.blocks.6.4"):
            name = name.replace("norm1.", "layernorm_before.").replace("norm2.", "layernorm_after.")
            name = re.sub(r"mlp\.fc(\d)", r"channel_mlp.ffn.dense\1", name)
        else:
            name = re.sub(r"mlp\.fc(\d)", r"channel_mlp.ffn.conv_1x1_\1.block.conv", name)
            name = re.sub(r"mlp\.norm(\d)", r"channel_mlp.ffn.conv_1x1_\1.block.norm", name)
        if name.startswith(("head", "dist_head")):
            if prefix and name.startswith("head"):
                found[name.replace("head.", "head.classifier.1.")] = tensor
            continue
        if ".qkv." in name:
            rows = tensor.unflatten(0, (8, 192))
            for part, sizes in (("query", slice(0, 32)), ("key", slice(32, 64)), ("value", slice(64, 192))):
                found[prefix + name.replace("qkv", part)] = rows[:, sizes].flatten(0, 1)
        else:
            found[prefix + name] = tensor
    return found


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_netspressos_weights_are_joined_head_by_head(prefix: str) -> None:
    data = create_model("efficientformer_l1", resolution_px=64, num_classes=CLASSES).architecture
    single = data.model_copy(update={"head": data.head.model_copy(update={"distillation": False})})
    model, back = drawn(MetaFormer(single)), drawn(MetaFormer(single), 1)
    if not prefix:
        back.head.fc.load_state_dict(model.head.fc.state_dict())  # bare keys hold no classifier
    layout = load_weights(back, netspresso(model, prefix=prefix), new_classifier=not prefix)
    assert layout == ("netspresso_backbone" if prefix else "netspresso")
    torch.testing.assert_close(logits(back), logits(model))


def test_netspressos_classifier_of_two_layers_is_taken_with_its_size() -> None:
    one = create_model("efficientformer_l1", num_classes=CLASSES)
    tensors = netspresso(one, prefix="backbone.")
    draw = torch.Generator().manual_seed(0)
    tensors |= {
        "head.classifier.0.weight": torch.randn(12, 448, generator=draw),
        "head.classifier.0.bias": torch.randn(12, generator=draw),
        "head.classifier.3.weight": torch.randn(CLASSES, 12, generator=draw),
        "head.classifier.3.bias": torch.randn(CLASSES, generator=draw),
    }
    del tensors["head.classifier.1.weight"], tensors["head.classifier.1.bias"]
    model = MetaFormer(sized_as(recognized(tensors), tensors)).eval()
    assert load_weights(model, tensors) == "netspresso_backbone"
    features = torch.randn(2, 49, 448, generator=draw)
    hidden = torch.relu(F.linear(model.head.pooled(features), *(tensors[f"head.classifier.0.{p}"] for p in PARTS)))
    expected = F.linear(hidden, *(tensors[f"head.classifier.3.{p}"] for p in PARTS))
    torch.testing.assert_close(model.head(features), expected)


def test_two_classifiers_become_one_with_the_same_logits() -> None:
    model = small("efficientformer_l1")
    head = model.architecture.head.model_copy(update={"distillation": False})
    single = MetaFormer(model.architecture.model_copy(update={"head": head})).eval()
    load_weights(single, export_weights(model, "snap"))
    torch.testing.assert_close(logits(single), logits(model))


def test_missing_unexpected_and_misshapen_tensors_are_named() -> None:
    model = small("poolformerv2_s12")
    tensors = export_weights(model, "timm")
    del tensors["stem.conv.bias"]
    tensors["stranger"] = torch.zeros(1)
    tensors["head.norm.weight"] = torch.zeros(3)
    with pytest.raises(UserError) as refused:
        load_weights(model, tensors)
    for part in ("missing: stem.conv.bias", "unexpected: stranger", "head.norm.weight (3,) for (512,)"):
        assert part in str(refused.value)


def test_a_new_classifier_is_kept_only_when_asked_for() -> None:
    model, other = small("caformer_s18"), drawn(create_model("caformer_s18", resolution_px=64, num_classes=3), 1)
    kept = other.head.fc.fc2.weight.detach().clone()
    with pytest.raises(UserError, match=r"misshapen: head\.fc2\.weight"):
        load_weights(other, export_weights(model, "sail"))
    load_weights(other, export_weights(model, "sail"), new_classifier=True)
    assert torch.equal(other.head.fc.fc2.weight, kept)
    assert torch.equal(other.stem.conv.weight, model.stem.conv.weight)


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("executed",)


def test_a_pickle_that_would_execute_is_refused_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"model": {"w": torch.zeros(1)}, "extra": Harmful()}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match=r"bad.pth: refused, because it would execute code on loading"):
        read_tensors(tmp_path / "bad.pth")
    assert "executed" not in capsys.readouterr().out


def test_a_training_checkpoint_with_its_arguments_is_read(tmp_path: Path) -> None:
    model, averaged = small("efficientformer_l1"), small("efficientformer_l1", seed=3)
    content = {
        "model": export_weights(model, "snap"),
        "model_ema": export_weights(averaged, "snap"),
        "epoch": 3,
        "args": argparse.Namespace(lr=1e-3),
    }
    torch.save(content, tmp_path / "checkpoint.pth")
    back = small("efficientformer_l1", seed=1)
    load_weights(back, tmp_path / "checkpoint.pth")
    torch.testing.assert_close(logits(back), logits(model))
    load_weights(back, tmp_path / "checkpoint.pth", ema=True)
    torch.testing.assert_close(logits(back), logits(averaged))


@pytest.mark.parametrize("name", ["missing.pth", "empty.safetensors", "text.pth"])
def test_a_file_that_is_no_checkpoint_is_one_line(name: str, tmp_path: Path) -> None:
    if not name.startswith("missing"):
        (tmp_path / name).write_text("no checkpoint")
    with pytest.raises(UserError, match=name):
        read_tensors(tmp_path / name)


def test_a_bias_table_of_the_same_grid_is_itself_and_of_a_smaller_one_keeps_every_offset() -> None:
    table = torch.randn(8, 49)
    assert torch.equal(resized_table(table, (7, 7)), table)
    smaller = resized_table(table, (3, 5)).reshape(8, 3, 5)
    assert torch.equal(smaller, table.reshape(8, 7, 7)[:, :3, :5])


def test_a_bias_table_of_a_larger_grid_goes_from_the_same_nearest_to_the_same_farthest_offset() -> None:
    y, x = torch.meshgrid(torch.arange(7.0), torch.arange(7.0), indexing="ij")
    table = (2 * y + x).reshape(1, 49)  # a plane, which bicubic interpolation reproduces inside
    larger = resized_table(table, (13, 7)).reshape(13, 7)
    torch.testing.assert_close(larger[::2], table.reshape(7, 7), rtol=1e-5, atol=1e-4)
    assert float(larger[12, 6]) == pytest.approx(18.0, abs=1e-4)


def test_weights_of_one_resolution_load_at_another() -> None:
    model = small("efficientformer_l1")
    larger = create_model("efficientformer_l1", resolution_px=(128, 96), num_classes=CLASSES).eval()
    load_weights(larger, model.state_dict())
    with torch.no_grad():
        assert torch.isfinite(larger(torch.randn(1, 3, 128, 96))).all()
    table = larger.stages[3].blocks[3].token_mixer.attention_biases.reshape(8, 4, 3)
    expected = resized_table(model.stages[3].blocks[3].token_mixer.attention_biases, (4, 3)).reshape(8, 4, 3)
    assert torch.equal(table, expected)
