"""Distillation: the losses against their formulas, and teachers that see what they were trained on."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F

from supernet.metaformer import MetaFormer
from supernet.schema import UserError
from supernet.space import SearchSpace
from train.checkpoint import save_weights
from train.distillation import (
    DistillationConfig,
    Teacher,
    classification_loss,
    distillation_loss,
    divergence,
    in_place_loss,
    mean_logits,
    open_teacher,
)
from train.splits import Normalisation

OURS = Normalisation(mean=(0.3,), std=(0.4,))
GENERATOR = torch.Generator().manual_seed(0)
LABEL_HEAD, TEACHER_HEAD, TEACHER = (torch.randn(6, 5, generator=GENERATOR) for _ in range(3))
LABELS = torch.tensor([0, 1, 2, 3, 4, 0])


def test_hard_distillation_is_half_label_half_the_teachers_class() -> None:
    config = DistillationConfig(teacher="x", weight=0.5, hard=True)
    from_labels = F.cross_entropy(LABEL_HEAD, LABELS, label_smoothing=0.1)
    for outputs, head in (((LABEL_HEAD, TEACHER_HEAD), TEACHER_HEAD), (LABEL_HEAD, LABEL_HEAD)):
        found = distillation_loss(outputs, LABELS, TEACHER, config=config, label_smoothing=0.1)
        assert torch.allclose(found, 0.5 * from_labels + 0.5 * F.cross_entropy(head, TEACHER.argmax(1)))


def test_soft_distillation_is_the_divergence_at_its_temperature() -> None:
    config = DistillationConfig(teacher="x", weight=0.3, temperature=2.0, hard=False)
    student, teacher = (TEACHER_HEAD / 2).softmax(1), (TEACHER / 2).softmax(1)
    kl = 4 * (teacher * (teacher / student).log()).sum(1).mean()
    found = distillation_loss((LABEL_HEAD, TEACHER_HEAD), LABELS, TEACHER, config=config, label_smoothing=0.0)
    assert torch.allclose(found, 0.7 * F.cross_entropy(LABEL_HEAD, LABELS) + 0.3 * kl)


def test_a_students_divergence_from_itself_is_zero_and_from_others_positive() -> None:
    assert abs(float(divergence(TEACHER, TEACHER, temperature=3.0))) < 1e-6
    assert float(divergence(LABEL_HEAD, TEACHER, temperature=1.0)) > 0.1


@pytest.mark.parametrize("change", [{"weight": 0.9}, {"temperature": 3.0}, {"hard": True}])
def test_every_field_changes_the_loss(change: dict[str, float | bool]) -> None:
    base = DistillationConfig(teacher="x", hard=False)
    losses = [
        float(distillation_loss(LABEL_HEAD, LABELS, TEACHER, config=config, label_smoothing=0.0))
        for config in (base, base.model_copy(update=change))
    ]
    assert losses[0] != losses[1]


def test_two_heads_without_a_teacher_both_learn_the_labels() -> None:
    both = classification_loss((LABEL_HEAD, TEACHER_HEAD), LABELS, label_smoothing=0.0)
    assert torch.allclose(both, (F.cross_entropy(LABEL_HEAD, LABELS) + F.cross_entropy(TEACHER_HEAD, LABELS)) / 2)
    assert torch.equal(mean_logits((LABEL_HEAD, TEACHER_HEAD)), (LABEL_HEAD + TEACHER_HEAD) / 2)


def test_in_place_distillation_weighs_labels_and_the_largest() -> None:
    labels = F.cross_entropy(LABEL_HEAD, LABELS)
    assert torch.equal(in_place_loss(LABEL_HEAD, LABELS, TEACHER, weight=0.0, label_smoothing=0.0), labels)
    found = in_place_loss(LABEL_HEAD, LABELS, TEACHER, weight=0.25, label_smoothing=0.0)
    assert torch.allclose(found, 0.75 * labels + 0.25 * divergence(LABEL_HEAD, TEACHER, temperature=1.0))


def test_a_teacher_sees_its_own_normalisation_and_never_learns() -> None:
    wants = Normalisation(mean=(0.5,), std=(0.25,))
    teacher = Teacher(torch.nn.Identity(), seen_as=OURS, wants=wants)
    pixels = torch.rand(2, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(teacher((pixels - 0.3) / 0.4), (pixels - 0.5) / 0.25, atol=1e-6)
    frozen = Teacher(torch.nn.Linear(2, 2), seen_as=OURS, wants=OURS)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert not frozen.model.training


def _open(config: DistillationConfig, *, classes: int = 10, resolution_px: tuple[int, int] = (8, 8)) -> Teacher:
    return open_teacher(config, in_channels=1, num_classes=classes, resolution_px=resolution_px, normalisation=OURS)


def test_our_own_architecture_can_teach(tmp_path: Path, space: SearchSpace) -> None:
    model = MetaFormer(space.smallest).eval()
    space.smallest.save(tmp_path / "teacher.yaml")
    save_weights(model, tmp_path / "teacher.safetensors")
    config = DistillationConfig(teacher=str(tmp_path / "teacher.yaml"), weights=str(tmp_path / "teacher.safetensors"))
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(_open(config)(images), model(images))
    with pytest.raises(UserError, match="knows 10 classes, the data have 3"):
        _open(config, classes=3)
    with pytest.raises(UserError, match=r"made for \(8, 8\) px"):
        _open(config, resolution_px=(16, 16))
    with pytest.raises(UserError, match=r"distillation\.weights: required"):
        _open(config.model_copy(update={"weights": None}))


def test_a_timm_model_can_teach_from_a_file_of_weights(tmp_path: Path) -> None:
    model = timm.create_model("resnet10t", in_chans=1, num_classes=10).eval()
    save_weights(model, tmp_path / "w.safetensors")
    teacher = _open(DistillationConfig(teacher="timm:resnet10t", weights=str(tmp_path / "w.safetensors")))
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(teacher(images), model(images))


def test_an_unknown_timm_model_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match=r"timm has no model 'resnet10tt' \(did you mean resnet10t\?\)"):
        _open(DistillationConfig(teacher="timm:resnet10tt"))


def test_a_checkpoint_of_timms_own_script_can_teach(tmp_path: Path) -> None:
    model = timm.create_model("resnet10t", in_chans=1, num_classes=10).eval()
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "model_best.pth")
    teacher = _open(DistillationConfig(teacher="timm:resnet10t", weights=str(tmp_path / "model_best.pth")))
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(teacher(images), model(images))


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    save_weights(timm.create_model("resnet10t", in_chans=1, num_classes=11), tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"w\.safetensors: not the weights of timm:resnet10t \(.*size mismatch"):
        _open(DistillationConfig(teacher="timm:resnet10t", weights=str(tmp_path / "w.safetensors")))


def test_published_weights_that_cannot_be_had_are_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, **options: object) -> None:
        raise OSError("no route\nto host")

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(UserError, match=r"no weights for timm's resnet10t could be loaded \(no route to host\)"):
        _open(DistillationConfig(teacher="timm:resnet10t"))
