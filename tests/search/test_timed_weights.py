"""Weights of nets that are only timed: cheap, the same at every call, and no two tensors alike."""

from __future__ import annotations

import onnx
import pytest
import torch
from torch import nn

from search.net_building import module_of
from search.skeletons import Skeleton, build_skeleton
from search.timed_weights import STREAM, timed_weights
from supernet import published_architecture
from supernet.architecture import Stage
from supernet.block_types import MB3D, MB4D
from supernet.onnx_export import onnx_bytes

COPIES = Skeleton(
    in_channels=8,
    grid=(4, 4),
    stem=None,
    stages=(
        Stage(width_channels=32, downsampling=None, blocks=(MB4D(mlp_channels=128),) * 3 + (MB3D(mlp_channels=64),)),
    ),
    head=None,
)


def test_copies_of_a_block_have_weights_of_their_own_which_an_exporter_must_not_merge() -> None:
    module = build_skeleton(COPIES)
    weights = [parameter for parameter in module.parameters() if parameter.dim() > 1]
    assert len({tuple(weight.flatten().tolist()) for weight in weights}) == len(weights)
    initializers = onnx.load_from_string(onnx_bytes(module, input_shape=(1, 8, 4, 4))).graph.initializer
    assert sum(tuple(i.dims) == (128, 32, 1, 1) for i in initializers) == 3


def test_weights_are_the_same_at_every_call_and_leave_torchs_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    net = published_architecture("efficientformer_l1").model_copy(update={"resolution_px": (64, 64)})
    first, second = (module_of(net).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_net_with_these_weights_computes_finite_numbers_that_depend_on_the_image() -> None:
    net = published_architecture("efficientformer_l1").model_copy(update={"resolution_px": (64, 64)})
    with torch.inference_mode():
        logits = module_of(net)(torch.randn(2, 3, 64, 64))
    assert logits.isfinite().all()
    assert not torch.equal(logits[0], logits[1])


@pytest.mark.parametrize("size", [(3,), (STREAM + 5,)])
def test_random_weights_come_from_the_stream_and_others_stay_as_they_are(size: tuple[int, ...]) -> None:
    with timed_weights():
        drawn = [nn.init.trunc_normal_(torch.empty(size), std=0.02), torch.empty(size).uniform_(-1, 1)]
        ones, still_random = nn.init.ones_(torch.empty(size)), torch.randn(size)
    assert all(values.abs().max() <= 0.04 for values in drawn)
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(ones, torch.ones(size))
    assert still_random.abs().max() > 0.04


def test_a_tensor_that_is_a_view_with_gaps_is_filled_too() -> None:
    with timed_weights():
        view = torch.full((4, 4), 9.0)[:, ::2].normal_(0, 0.02)
    assert (view.abs() < 1).all()
