"""What a model sees in images: a published one, an architecture file, a run, a delivered folder, an ONNX file."""

# B batch, C channels, H W pixels, K classes

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from timm.data import ImageNetInfo  # type: ignore[attr-defined]
from torch import Tensor

from analysis.files import EvaluationFile
from supernet import Architecture, MetaFormer, UserError, list_models, published
from supernet.convert import load_weights, sized_as
from supernet.onnx_export import open_session
from supernet.schema import load
from supernet.untrusted import read_tensors
from train.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

PREPROCESSING = "preprocessing.json"


@dataclass(frozen=True)
class Classifier:
    """A model with what it expects of an image and the names of its classes."""

    name: str
    preprocessing: Preprocessing
    logits: Callable[[Tensor], Tensor]

    def top(self, path: str, count: int) -> list[tuple[str, float]]:
        """The likeliest classes of an image file with their probabilities, the likeliest first."""
        probabilities_K = self.logits(self.preprocessing.image(path)).float().softmax(dim=1)[0]
        best = probabilities_K.topk(min(count, len(probabilities_K)))
        names = self.preprocessing.class_names
        return [(names[k], p) for k, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)]


def open_classifier(model: str, *, weights: Path | None) -> Classifier:
    """The classifier that a published name or a path means.

    A path is an ONNX file, an architecture file (with `weights`), a delivered model's folder, one that
    `save_pretrained` wrote, or a run folder, whose most accurate delivered model is taken. Raises `UserError`.
    """
    path = Path(model)
    if path.suffix == ".onnx":
        if weights is not None:
            raise UserError(f"--weights {weights}: {path} has its own")
        return _onnx(path)
    if path.is_dir():
        return _folder(path, weights)
    if path.suffix in (".yaml", ".yml", ".json"):
        return _with_weights(str(path), Architecture.load(path), weights, _beside(path))
    if model in list_models():
        if weights is None:
            raise UserError(f"{model}: needs --weights FILE, a checkpoint in any known layout")
        sized = sized_as(model, read_tensors(weights))
        return _with_weights(model, sized, weights, None, published(model).crop_fraction)
    raise UserError(f"{model}: neither a published model (slimformer models) nor a file or folder of one")


def _folder(path: Path, weights: Path | None) -> Classifier:
    found = _saved(path, weights)
    if found is None and (path / "evaluation.json").is_file():
        models = load(EvaluationFile, path / "evaluation.json").models
        if not models:
            raise UserError(f"{path}: no model was delivered")
        name = max(models, key=lambda model: model.accuracy_percent).name
        if Path(name).name != name:
            raise UserError(f"{path / 'evaluation.json'}: {name!r} is not the name of a model")
        path = path / "delivered" / name
        found = _saved(path, weights)
    if found is None:
        raise UserError(f"{path}: no model here (expected a delivered model, or a run whose models are evaluated)")
    return found


def _saved(path: Path, weights: Path | None) -> Classifier | None:
    """The model of a delivered folder, or of one that `save_pretrained` wrote."""
    for file in (path / "architecture.yaml", path / "config.json"):
        if file.is_file() and (path / "model.safetensors").is_file():
            tensors = weights or path / "model.safetensors"
            return _with_weights(str(path), Architecture.load(file), tensors, _beside(file))
    return None


def _beside(path: Path) -> Preprocessing | None:
    file = path.with_name(PREPROCESSING)
    return load(Preprocessing, file) if file.is_file() else None


def _with_weights(
    name: str,
    architecture: Architecture,
    weights: Path | None,
    preprocessing: Preprocessing | None,
    crop_fraction: float = 0.875,
) -> Classifier:
    if weights is None:
        raise UserError(f"{name}: needs --weights FILE, a checkpoint in any known layout")
    model = MetaFormer(architecture)
    load_weights(model, weights)
    deployed = model.eval().fused()

    def logits(images_BCHW: Tensor) -> Tensor:
        with torch.inference_mode():
            found: Tensor = deployed(images_BCHW)
        return found

    return Classifier(name, preprocessing or _assumed(architecture, crop_fraction), logits)


def _assumed(architecture: Architecture, crop_fraction: float) -> Preprocessing:
    """ImageNet's preprocessing and, where there are as many, its class names."""
    if architecture.in_channels not in (1, 3):
        raise UserError(f"images have 1 or 3 channels, the model takes {architecture.in_channels}")
    mean, std = IMAGENET_MEAN[: architecture.in_channels], IMAGENET_STD[: architecture.in_channels]
    return Preprocessing(
        resolution_px=architecture.resolution_px,
        channels=architecture.in_channels,
        crop_fraction=crop_fraction,
        mean=mean,
        std=std,
        class_names=_class_names(architecture.head.num_classes),
    )


def _class_names(count: int) -> tuple[str, ...]:
    if count == 1000:
        imagenet = ImageNetInfo("imagenet-1k")
        return tuple(imagenet.index_to_description(index) for index in range(count))
    return tuple(f"class {index}" for index in range(count))


def _onnx(path: Path) -> Classifier:
    session = open_session(path, threads=torch.get_num_threads())
    preprocessing = _beside(path)
    if preprocessing is None:
        raise UserError(f"{path}: needs {PREPROCESSING} beside it, which says how images are prepared")

    def logits(images_BCHW: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images_BCHW.numpy()})[0])

    return Classifier(str(path), preprocessing, logits)


def predictions(classifier: Classifier, images: Sequence[str], *, top: int) -> list[list[str]]:
    """Rows for a table: image, class, probability in percent."""
    return [
        [image if rank == 0 else "", name, f"{100 * probability:.1f}"]
        for image in images
        for rank, (name, probability) in enumerate(classifier.top(image, top))
    ]
