"""timm's model contract, checked as timm's own tests check its models."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.layers import get_spatial_dim
from timm.models._manipulate import reinit_non_persistent_buffers
from timm.optim import param_groups_layer_decay  # type: ignore[attr-defined]
from torch import Tensor

import supernet.timm_models
from supernet import create_model, list_models
from supernet.convert import load_weights

SMALLEST = ("efficientformer_l1", "efficientformerv2_s0", "poolformer_s12", "randformer_s12", "caformer_s18")
NAMES = [pytest.param(name, marks=() if name in SMALLEST else pytest.mark.long, id=name) for name in list_models()]
SIZE = 64
# torch deprecates scripting in favour of torch.compile and torch.export; timm's contract still has it
SCRIPTING = pytest.mark.filterwarnings(*(f"ignore:.torch.jit:{kind}Warning" for kind in ("Future", "Deprecation")))


def images(channels: int = 3) -> Tensor:
    return torch.randn(2, channels, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def built(name: str, **options: Any) -> Any:
    return timm.create_model(f"slim_{name}", img_size=SIZE, **options).eval()


def test_every_published_model_is_registered() -> None:
    assert {f"slim_{name}" for name in list_models()} | {"slim_metaformer"} <= set(timm.list_models("slim_*"))
    assert supernet.timm_models.slim_caformer_s18.__doc__ == "caformer_s18 as published."  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", NAMES)
def test_the_configuration_is_true(name: str) -> None:
    model = timm.create_model(f"slim_{name}").eval()
    config = model.default_cfg
    names = model.state_dict().keys()
    classifiers = config["classifier"] if isinstance(config["classifier"], tuple) else (config["classifier"],)
    assert f"{config['first_conv']}.weight" in names
    assert all(f"{classifier}.weight" in names for classifier in classifiers)
    assert config["input_size"][1:] == model.architecture.resolution_px
    assert config["pool_size"] == model.architecture.grids[-1]
    assert [info["reduction"] for info in model.feature_info] == [4, 8, 16, 32]


@pytest.mark.parametrize("name", NAMES)
def test_features_head_and_classifier_fit_together(name: str) -> None:
    model = built(name, num_classes=7)
    with torch.no_grad():
        features = model.forward_features(images())
        assert [features.shape[axis] for axis in get_spatial_dim("NCHW")] == list(model.architecture.grids[-1])
        pooled = model.forward_head(features, pre_logits=True)
        assert pooled.shape == (2, model.head_hidden_size)
        torch.testing.assert_close(model(images()), model.forward_head(features))
        model.reset_classifier(0)
        torch.testing.assert_close(model(images()), pooled)
        model.reset_classifier(0, "")
        torch.testing.assert_close(model(images()), features)
        model.reset_classifier(5, "avg")
        assert model(images()).shape == (2, 5)
        assert built(name, num_classes=0)(images()).shape == (2, model.num_features)
        assert built(name, num_classes=0, global_pool="")(images()).shape == features.shape


@pytest.mark.parametrize("name", NAMES)
def test_a_backward_pass_reaches_every_parameter(name: str) -> None:
    model = built(name, num_classes=7).train()
    model(images()).mean().backward()
    for where, parameter in model.named_parameters():
        assert parameter.grad is not None, where


@pytest.mark.parametrize("name", NAMES)
def test_features_only_and_intermediates_agree(name: str) -> None:
    extractor = timm.create_model(f"slim_{name}", img_size=SIZE, features_only=True, out_indices=(1, 3)).eval()
    model = built(name)
    with torch.no_grad():
        for feature, channels, reduction in zip(
            extractor(images()), extractor.feature_info.channels(), extractor.feature_info.reduction(), strict=True
        ):
            assert feature.shape == (2, channels, SIZE // reduction, SIZE // reduction)
        last, found = model.forward_intermediates(images(), indices=(0, 3))
        torch.testing.assert_close(last, model.forward_features(images()))
        torch.testing.assert_close(found[1], last)
        early = model.forward_intermediates(images(), indices=[0], stop_early=True, intermediates_only=True)
        torch.testing.assert_close(early[0], found[0])


@pytest.mark.parametrize("name", NAMES)
def test_checkpointed_gradients_are_the_same(name: str) -> None:
    model = built(name, num_classes=7)
    model(images()).square().mean().backward()
    expected = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    model.set_grad_checkpointing()
    model(images()).square().mean().backward()
    found = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))


@pytest.mark.parametrize("option", ["drop_rate", "drop_path_rate"])
@pytest.mark.parametrize("name", ["caformer_s18", "poolformerv2_s12"])
def test_every_kind_of_dropout_is_taken(name: str, option: str) -> None:
    model = built(name, in_chans=1, num_classes=3, **{option: 0.5})
    assert torch.equal(model(images(1)), model(images(1)))
    assert not torch.equal(model.train()(images(1)), model(images(1)))
    still = built(name, in_chans=1, num_classes=3).train()
    assert torch.equal(still(images(1)), still(images(1)))


def test_a_model_of_other_classes_and_channels_is_saved_and_read(tmp_path: Path) -> None:
    model = built("poolformer_s12", in_chans=1, num_classes=7)
    model.reset_classifier(5)
    model.save_pretrained(tmp_path)
    back = supernet.timm_models.SlimMetaFormer.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(back(images(1)), model(images(1)))


def test_weights_of_timms_model_of_the_same_name_give_its_logits() -> None:
    reference = timm.create_model("efficientformer_l1").eval()
    model = timm.create_model("slim_efficientformer_l1").eval()
    load_weights(model, reference.state_dict())
    batch = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(model(batch), reference(batch), rtol=1e-4, atol=1e-4)


def test_a_distilled_model_gives_one_tensor_until_it_is_told_to_distill() -> None:
    model = built("efficientformer_l1", num_classes=3).train()
    assert isinstance(model(images()), Tensor)
    model.set_distilled_training(True)
    assert len(model(images())) == 2


def test_any_architecture_file_is_a_timm_model(tmp_path: Path) -> None:
    architecture = create_model("poolformer_s12", resolution_px=(48, 96), num_classes=4).architecture
    architecture.save(tmp_path / "mine.yaml")
    model = timm.create_model("slim_metaformer", architecture=str(tmp_path / "mine.yaml"), num_classes=4)
    assert model.default_cfg["input_size"] == (3, 48, 96)
    assert model.default_cfg["first_conv"] == "stem.conv"
    assert model(torch.randn(1, 3, 48, 96)).shape == (1, 4)


def test_parameters_fall_into_groups_of_depth() -> None:
    groups = param_groups_layer_decay(built("caformer_s18"), layer_decay=0.5)
    assert len({group["lr_scale"] for group in groups}) == 18 + 2  # a group a block, the stem, the head


def test_pretrained_weights_are_refused_with_the_way_to_load_them() -> None:
    with pytest.raises(RuntimeError, match="load_weights"):
        timm.create_model("slim_caformer_s18", pretrained=True)


@SCRIPTING
@pytest.mark.parametrize("name", NAMES)
def test_a_scripted_model_computes_the_same_also_while_training_and_from_a_file(name: str, drawn: Any) -> None:
    model = drawn(built(name, num_classes=7, scriptable=True))
    scripted = torch.jit.script(model)
    buffer = io.BytesIO()
    torch.jit.save(scripted, buffer)
    buffer.seek(0)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(buffer)(images()), model(images()))
        torch.testing.assert_close(scripted.train()(images()), model.train()(images()), rtol=1e-3, atol=1e-4)


@SCRIPTING
@pytest.mark.parametrize("name", ["efficientformer_l1", "caformer_s18"])
def test_a_scripted_feature_extractor_gives_the_same_maps(name: str) -> None:
    extractor = timm.create_model(f"slim_{name}", img_size=SIZE, features_only=True, out_indices=(0, 2)).eval()
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.script(extractor)(images()), extractor(images()))


@pytest.mark.filterwarnings("ignore:The TorchScript type system:UserWarning")  # about torch.fx.GraphModule itself
@SCRIPTING
@pytest.mark.parametrize("name", ["efficientformer_l1", "efficientformerv2_s0", "caformer_s18", "randformer_s12"])
def test_a_symbolically_traced_model_can_be_scripted(name: str) -> None:
    model = built(name)
    graph = torch.fx.Tracer(param_shapes_constant=True).trace(model)
    scripted = torch.jit.script(torch.fx.GraphModule(model, graph))
    with torch.no_grad():
        torch.testing.assert_close(scripted(images()), model(images()))


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_made_on_the_device_and_in_the_precision_that_are_wanted(name: str) -> None:
    model = built(name, device="meta", dtype=torch.bfloat16)
    assert all(tensor.device.type == "meta" for tensor in (*model.parameters(), *model.buffers()))
    assert all(parameter.dtype == torch.bfloat16 for parameter in model.parameters())
    model.requires_grad_(False).reset_classifier(0)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    model.reset_classifier(3)
    assert model(torch.empty(1, 3, SIZE, SIZE, device="meta", dtype=torch.bfloat16)).shape == (1, 3)


@pytest.mark.parametrize("name", ["efficientformer_l1", "efficientformerv2_s0"])
def test_a_model_made_without_memory_is_filled_from_a_state_dict_and_timms_call_for_the_rest(
    name: str, drawn: Any
) -> None:
    model, empty = drawn(built(name)), built(name, device="meta").to_empty(device="cpu")
    for buffer in empty.buffers():
        buffer.zero_()  # an index of garbage could end the process
    empty.load_state_dict(model.state_dict())
    reinit_non_persistent_buffers(empty)
    with torch.no_grad():
        assert torch.equal(empty(images()), model(images()))


@pytest.mark.parametrize("prune_norm", [True, False])
@pytest.mark.parametrize("name", ["efficientformer_l1", "caformer_s18"])
def test_a_pruned_model_holds_no_parameter_that_its_features_do_not_use(name: str, prune_norm: bool) -> None:
    model = built(name).train()
    assert model.prune_intermediate_layers([0, 3], prune_norm=prune_norm) == [0, 3]
    model(images()).mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
