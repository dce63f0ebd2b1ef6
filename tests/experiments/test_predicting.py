"""`slimformer predict` and `slimformer convert`: every kind of model, the same answer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from experiments.predicting import open_classifier, predictions
from supernet import Architecture, MetaFormer, UserError, create_model
from supernet.convert import convert_file, export_weights, recognized
from supernet.onnx_export import export_onnx
from supernet.schema import save
from train.preprocessing import Preprocessing

Slimformer = Callable[..., Any]
CLASSES = ("left", "right", "up")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    return tmp_path / "image.png"


@pytest.fixture
def delivered(_delivered: Path, tmp_path: Path) -> Path:
    """A delivered model's folder, without a run around it."""
    return Path(shutil.copytree(_delivered, tmp_path / "delivered"))


@pytest.fixture(scope="module")
def _delivered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("delivered")
    torch.manual_seed(0)
    model = create_model("efficientformer_l1", resolution_px=64, num_classes=3).eval()
    model.architecture.save(folder / "architecture.yaml")
    save_file(model.state_dict(), folder / "model.safetensors")
    export_onnx(model, folder / "model.onnx", in_channels=3, resolution_px=(64, 64))
    preprocessing = Preprocessing(
        resolution_px=(64, 64),
        channels=3,
        crop_fraction=0.8,
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.3, 0.4),
        class_names=CLASSES,
    )
    save(preprocessing, folder / "preprocessing.json")
    return folder


def test_an_image_is_scaled_cropped_and_normalised(tmp_path: Path) -> None:
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    pixels[:, :, 0] = 255
    Image.fromarray(pixels).save(tmp_path / "red.png")
    prepared = Preprocessing(
        resolution_px=(16, 8), channels=3, crop_fraction=0.8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.25, 1), class_names=()
    ).image(str(tmp_path / "red.png"))
    assert prepared.shape == (1, 3, 16, 8)
    assert torch.equal(prepared[0, :, 3, 3], torch.tensor([1.0, -2.0, -0.5]))


def test_an_image_of_the_models_size_is_left_as_it_is(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "small.png")
    prepared = Preprocessing(
        resolution_px=(16, 8), channels=3, crop_fraction=0.5, mean=(0, 0, 0), std=(1, 1, 1), class_names=()
    ).image(str(tmp_path / "small.png"))
    assert np.array_equal(prepared[0].permute(1, 2, 0) * 255, pixels)


def test_folder_onnx_file_and_architecture_say_the_same(delivered: Path, image: Path, slimformer: Slimformer) -> None:
    ways = [
        ["--model", delivered],
        ["--model", delivered / "model.onnx"],
        ["--model", delivered / "architecture.yaml", "--weights", delivered / "model.safetensors"],
    ]
    tables = []
    for way in ways:
        classifier = open_classifier(str(way[1]), weights=way[3] if len(way) > 2 else None)
        tables.append(predictions(classifier, [str(image)], top=2))
        assert slimformer("predict", image, *way).code == 0
    assert tables[0] == tables[1] == tables[2]
    assert len(tables[0]) == 2
    assert tables[0][0][1] in CLASSES


def test_probabilities_are_the_models_softmax_in_descending_order(delivered: Path, image: Path) -> None:
    classifier = open_classifier(str(delivered), weights=None)
    model = MetaFormer(Architecture.load(delivered / "architecture.yaml"))
    model.load_state_dict(load_file(delivered / "model.safetensors"))
    with torch.no_grad():
        expected = model.eval()(classifier.preprocessing.image(str(image))).softmax(dim=1)[0]
    found = dict(classifier.top(str(image), 5))
    assert list(found.values()) == sorted(found.values(), reverse=True)
    for name, probability in zip(CLASSES, expected.tolist(), strict=True):
        assert found[name] == pytest.approx(probability, abs=1e-5)


def test_a_run_answers_with_its_most_accurate_delivered_model(delivered: Path, image: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "delivered").mkdir(parents=True)
    delivered.rename(run / "delivered" / "good-1ms")
    write_evaluation(run, {"poor-1ms": 10, "good-1ms": 11})
    found, expected = (
        predictions(open_classifier(str(path), weights=None), [str(image)], top=3)
        for path in (run, run / "delivered" / "good-1ms")
    )
    assert found == expected


@pytest.mark.parametrize("name", ["..", "../../elsewhere", "/tmp", "missing-1ms"])
def test_a_run_that_names_no_model_of_its_own_is_refused(name: str, tmp_path: Path) -> None:
    write_evaluation(tmp_path, {name: 1})
    with pytest.raises(UserError, match=r"is not the name of a model|no model here"):
        open_classifier(str(tmp_path), weights=None)


def write_evaluation(run: Path, correct: dict[str, int]) -> None:
    """An `evaluation.json` with models of these names, of 20 images so many right."""
    models = [
        {
            "name": name,
            "method": "search",
            "budget_ms": 1.0,
            "predicted_ms": 0.9,
            "measured_ms": 0.9,
            "runtime": "onnxruntime",
            "correct": count,
            "accuracy_percent": 5.0 * count,
            "parameters": 1,
            "macs": 1,
            "architecture": "unused",
        }
        for name, count in correct.items()
    ]
    content = {"schema_version": 1, "test_images": 20, "models": models}
    (run / "evaluation.json").write_text(json.dumps(content), encoding="utf-8")


def test_what_save_pretrained_wrote_is_a_model(delivered: Path, image: Path, tmp_path: Path) -> None:
    model = MetaFormer(Architecture.load(delivered / "architecture.yaml"))
    model.load_state_dict(load_file(delivered / "model.safetensors"))
    model.save_pretrained(tmp_path / "hub")
    (delivered / "preprocessing.json").rename(tmp_path / "hub" / "preprocessing.json")
    found = predictions(open_classifier(str(tmp_path / "hub"), weights=None), [str(image)], top=3)
    (tmp_path / "hub" / "preprocessing.json").rename(delivered / "preprocessing.json")
    assert found == predictions(open_classifier(str(delivered), weights=None), [str(image)], top=3)


def test_a_published_model_answers_with_imagenets_names(tmp_path: Path, image: Path) -> None:
    model = create_model("poolformerv2_s12")
    save_file(export_weights(model, "timm"), tmp_path / "timm.safetensors")
    classifier = open_classifier("poolformerv2_s12", weights=tmp_path / "timm.safetensors")
    assert classifier.preprocessing.class_names[0].startswith("tench")
    assert classifier.preprocessing.crop_fraction == 1.0
    assert len(classifier.top(str(image), 5)) == 5


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--model", "caformer_s18"], "needs --weights"),
        (["--model", "caformer_s81"], "neither a published model"),
        (["--model", "."], "no model here"),
        (["--model", "model.onnx"], "no such file"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], problem: str, image: Path, slimformer: Slimformer) -> None:
    assert problem in slimformer("predict", image, *arguments).mistake


def test_an_unreadable_image_is_named(delivered: Path, tmp_path: Path, slimformer: Slimformer) -> None:
    (tmp_path / "broken.png").write_bytes(b"nothing")
    assert "broken.png" in slimformer("predict", tmp_path / "broken.png", "--model", delivered).mistake


@pytest.mark.parametrize(
    ("name", "layout", "suffix"),
    [
        ("efficientformer_l1", "snap", ".pth"),
        ("efficientformerv2_s0", "timm", ".safetensors"),
        ("caformer_s18", "sail", ".pth"),
    ],
)
def test_convert_there_and_back_gives_the_same_tensors(
    name: str, layout: str, suffix: str, tmp_path: Path, slimformer: Slimformer
) -> None:
    model = create_model(name, num_classes=7, in_channels=1)
    save_file(model.state_dict(), tmp_path / "ours.safetensors")
    there, back = tmp_path / f"theirs{suffix}", tmp_path / "back.safetensors"
    assert slimformer("convert", tmp_path / "ours.safetensors", "--to", layout, "--out", there).code == 0
    assert slimformer("convert", there, "--to", "slimformer", "--out", back).code == 0
    found = load_file(back)
    for key, tensor in model.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(found[key], tensor), key


def test_every_published_model_is_recognised_or_one_with_the_same_tensors() -> None:
    names = ("efficientformer_l3", "efficientformerv2_s1", "poolformer_s24", "randformer_s12", "poolformerv2_s12")
    with torch.device("meta"):
        states = {name: create_model(name, num_classes=3).state_dict() for name in names}
    same = {"poolformerv2_s12": ("identityformer_s12", "poolformerv2_s12")}
    for name, state in states.items():
        assert recognized(state) in same.get(name, (name,))


def test_a_foreign_checkpoint_is_refused_with_a_way_out(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "foreign.safetensors")
    with pytest.raises(UserError, match="--model"):
        convert_file(tmp_path / "foreign.safetensors", tmp_path / "out.pth", to="timm")
    with pytest.raises(UserError, match=r"\.safetensors or \.pth"):
        convert_file(tmp_path / "foreign.safetensors", tmp_path / "out.bin", to="timm")
