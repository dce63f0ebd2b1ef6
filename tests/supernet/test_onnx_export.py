"""ONNX export: parity, the dynamic batch axis, and what is refused."""

from __future__ import annotations

import onnx
import pytest
import torch
from torch import nn

from supernet.architecture import Architecture, Downsampling, Head, Stage, Stem
from supernet.block_types import MB3D, MB4D, SeparableConv
from supernet.metaformer import MetaFormer
from supernet.model_zoo import create_model
from supernet.onnx_export import Exporter, export_onnx, onnx_bytes, onnx_parity, open_session
from supernet.schema import UserError

NET = Architecture(
    in_channels=2,
    resolution_px=(16, 24),
    stem=Stem(width_channels=16, hidden_channels=8, strides=(1, 2)),
    stages=(
        Stage(
            width_channels=16,
            downsampling=None,
            blocks=(MB4D(mlp_channels=32, layer_scale=0.5), SeparableConv(mixer_channels=32, mlp_channels=32)),
        ),
        Stage(
            width_channels=32,
            downsampling=Downsampling(),
            blocks=(
                MB4D(mlp_channels=32, layer_scale=0.5),
                MB3D(heads=2, key_channels=4, value_channels=8, mlp_channels=32, layer_scale=0.5),
            ),
        ),
        Stage(
            width_channels=48,
            downsampling=Downsampling(),
            blocks=(MB3D(heads=2, key_channels=4, value_channels=8, mlp_channels=32, layer_scale=0.5),),
        ),
    ),
    head=Head(num_classes=7, distillation=True),
)


@pytest.fixture(scope="module")
def model() -> MetaFormer:
    """A model whose norms are far from their defaults: those would not test their folding."""
    torch.manual_seed(0)
    model = MetaFormer(NET).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(
                    torch.rand(tensor.shape) + 0.5 if "var" in name else tensor + torch.randn(tensor.shape) / 5
                )
    return model


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(5, 2, 16, 24, generator=torch.Generator().manual_seed(1))


def test_shapes_are_known_behind_a_norm_over_the_whole_map() -> None:
    content = onnx_bytes(create_model("poolformer_s12", resolution_px=64).eval(), input_shape=(1, 3, 64, 64))
    graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(content)).graph
    shapes = {value.name: value.type.tensor_type.shape.dim for value in graph.value_info}
    pooled = [shapes[node.input[0]] for node in graph.node if node.op_type == "AveragePool"]
    assert len(pooled) == 12
    assert all(side.dim_value > 0 for shape in pooled for side in list(shape)[1:])


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_attention_on_a_known_grid_computes_no_shapes(exporter: Exporter) -> None:
    model = create_model("efficientformerv2_s0", resolution_px=64, num_classes=3).eval()
    graph = onnx.load_from_string(onnx_bytes(model, input_shape=(1, 3, 64, 64), exporter=exporter)).graph
    found = [node.op_type for node in graph.node]
    assert found.count("Softmax") == 5
    assert found.count("Shape") <= 3  # of the two that are interpolated, and of the head


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_a_pooling_block_is_exported_as_a_sum_that_onnx_runtime_keeps_in_its_blocked_layout(
    exporter: Exporter,
) -> None:
    net = NET.model_copy(update={"stages": (NET.stages[0].model_copy(update={"blocks": NET.stages[0].blocks[:1]}),)})
    content = onnx_bytes(MetaFormer(net).eval(), input_shape=(1, 2, 16, 24), exporter=exporter)
    kinds = {node.op_type for node in onnx.load_from_string(content).graph.node}
    assert "AveragePool" in kinds
    assert not kinds & {"Sub", "Where", "Less"}


def test_an_exported_model_computes_the_models_logits_for_any_batch(model, images, tmp_path):
    path = tmp_path / "model.onnx"
    export_onnx(model, path, in_channels=2, resolution_px=(16, 24))
    for count in (1, 5):
        parity = onnx_parity(model, path, images[:count])
        assert parity.max_relative < 1e-5
        assert parity.max_abs_difference >= 0


def test_parity_sees_a_changed_weight(model, images, tmp_path):
    path = tmp_path / "model.onnx"
    export_onnx(model, path, in_channels=2, resolution_px=(16, 24))
    changed = MetaFormer(NET).eval()
    changed.load_state_dict(model.state_dict())
    with torch.no_grad():
        changed.head.fc.bias += 0.5
    assert onnx_parity(changed, path, images).max_abs_difference == pytest.approx(0.25, rel=1e-3)


def test_both_exporters_compute_the_same():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.GELU()).eval()
    images, found = torch.randn(3, 2, 8, 8), []
    for exporter in ("torchscript", "dynamo"):
        content = onnx_bytes(net, input_shape=(2, 2, 8, 8), exporter=exporter)
        found.append(open_session(content, threads=1).run(None, {"images": images.numpy()})[0])
    assert found[0].shape == found[1].shape == (3, 8, 6, 6)
    assert abs(found[0] - found[1]).max() < 1e-6


def test_an_exported_model_names_its_input_and_output_and_leaves_the_batch_open(model, tmp_path):
    path = tmp_path / "model.onnx"
    export_onnx(model, path, in_channels=2, resolution_px=(16, 24))
    graph = onnx.load(path).graph
    ((images,), (logits,)) = graph.input, graph.output
    assert (images.name, logits.name) == ("images", "logits")
    assert images.type.tensor_type.shape.dim[0].dim_param == "batch"


def test_a_model_in_training_mode_is_not_exported(model, tmp_path):
    training = MetaFormer(NET).train()
    with pytest.raises(ValueError, match=r"model\.eval\(\)"):
        export_onnx(training, tmp_path / "model.onnx", in_channels=2, resolution_px=(16, 24))
    assert not list(tmp_path.iterdir())


def test_a_missing_file_is_a_users_mistake(model, images, tmp_path):
    with pytest.raises(UserError, match="no such file"):
        onnx_parity(model, tmp_path / "model.onnx", images)


def test_a_file_that_is_no_model_is_a_users_mistake(model, images, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(UserError, match="not an ONNX model"):
        onnx_parity(model, tmp_path / "model.onnx", images)
