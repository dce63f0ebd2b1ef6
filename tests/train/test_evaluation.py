"""Evaluation: figures against plain references, and nothing about the model is changed that was not asked for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from train.data import ImageData
from train.evaluation import Accuracy, accuracy, accuracy_of_batches, refit_batchnorm
from train.splits import evaluation_batches


class _Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4, momentum=0.3)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4 * 36, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.drop(self.norm(self.conv(x)).flatten(1)))
        return logits


@pytest.fixture
def net() -> _Classifier:
    torch.manual_seed(0)
    return _Classifier()


def test_accuracy_counts_every_image_once(net: _Classifier, few_digits: ImageData) -> None:
    net.train()
    found = accuracy(net, few_digits.train, batch_size=20, precision="fp32")
    assert net.training
    net.eval()
    images, labels = next(evaluation_batches(few_digits.train, 96))
    assert found == Accuracy(correct=int((net(images).argmax(1) == labels).sum()), total=96)
    assert found == accuracy_of_batches(net, [(images, labels)], precision="fp32")
    assert found.percent == 100 * found.correct / 96


def test_refitted_statistics_are_those_of_the_images(net: _Classifier, few_digits: ImageData) -> None:
    net.train()
    net.conv.eval()
    images, labels = next(evaluation_batches(few_digits.train, 96))
    refit_batchnorm(net, [(images[:48], labels[:48]), (images[48:], labels[48:])], precision="fp32")
    features = net.conv(images)
    assert torch.allclose(net.norm.running_mean, features.mean((0, 2, 3)), atol=1e-5)  # type: ignore[arg-type]
    halves = torch.stack([half.var((0, 2, 3)) for half in (features[:48], features[48:])])
    assert torch.allclose(net.norm.running_var, halves.mean(0), rtol=1e-4)  # type: ignore[arg-type]
    assert net.norm.momentum == 0.3
    assert net.training
    assert net.drop.training
    assert not net.conv.training


def test_dropout_is_off_while_statistics_are_fitted(few_digits: ImageData) -> None:
    net = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm2d(1))
    net.append(nn.Conv2d(1, 1, 1))
    batches = list(evaluation_batches(few_digits.train, 96))
    refit_batchnorm(net, batches, precision="fp32")
    norm = net[1]
    assert isinstance(norm, nn.BatchNorm2d)
    assert torch.allclose(norm.running_var, batches[0][0].var(), rtol=1e-4)  # type: ignore[arg-type]


def test_without_batch_norm_or_batches_nothing_happens(net: _Classifier) -> None:
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    refit_batchnorm(net, [], precision="fp32")
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    refit_batchnorm(nn.Sequential(nn.Linear(2, 2)), [(torch.ones(1, 2), torch.zeros(1))], precision="fp32")
