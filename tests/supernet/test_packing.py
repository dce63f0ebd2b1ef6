"""Packed weights: the same product, never an old weight's."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.flop_counter import FlopCounterMode

from supernet import packing
from supernet.fused import fused
from supernet.packing import PackedLinear, Packing

DEPRECATED = pytest.mark.filterwarnings(
    "ignore:.*is deprecated:FutureWarning", "ignore:.*is deprecated:DeprecationWarning"
)  # of torch.jit, which torch.func uses itself
X_BNC = torch.randn(2, 9, 128, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def packed_calls(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The weights that were packed. (Where the machine has no packed product, the tests do not run.)"""
    if not packing._KNOWN:
        pytest.skip("no packed products on this processor, or not in this torch")
    found: list[Tensor] = []
    pack = Packing._of

    def counting(self: Packing, weight: Tensor, *, rows: int) -> Tensor:
        before = self._kept
        after = pack(self, weight, rows=rows)
        if self._kept is not before:
            found.append(weight)
        return after

    monkeypatch.setattr(Packing, "_of", counting)
    return found


def layer(*, bias: bool = True) -> PackedLinear:
    torch.manual_seed(1)
    return PackedLinear.of(nn.Linear(128, 256, bias=bias)).requires_grad_(False)


def expected(linear: nn.Linear, x: Tensor = X_BNC) -> Tensor:
    return F.linear(x, linear.weight, linear.bias)


@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_layer_computes_the_linear_map_and_packs_once(packed_calls: list[Tensor], bias: bool) -> None:
    linear = layer(bias=bias)
    for x in (X_BNC, X_BNC.transpose(0, 1), X_BNC[:1], X_BNC[0]):
        torch.testing.assert_close(linear(x), expected(linear, x), rtol=1e-5, atol=1e-5)
    assert len(packed_calls) == 1


def test_the_layer_has_the_parameters_that_it_was_made_of() -> None:
    torch.manual_seed(1)
    linear = nn.Linear(128, 256)
    packed = PackedLinear.of(linear)
    packed(X_BNC)
    assert packed.weight is linear.weight
    assert list(packed.state_dict()) == ["weight", "bias"]
    assert (packed.in_features, packed.out_features) == (128, 256)


def test_a_changed_weight_is_packed_again(packed_calls: list[Tensor]) -> None:
    linear = layer()
    linear(X_BNC)
    linear.weight.mul_(2)
    torch.testing.assert_close(linear(X_BNC), expected(linear), rtol=1e-5, atol=1e-5)
    linear.weight.data = torch.randn(256, 128)
    torch.testing.assert_close(linear(X_BNC), expected(linear), rtol=1e-5, atol=1e-5)
    linear.load_state_dict(layer().state_dict())
    torch.testing.assert_close(linear(X_BNC), expected(linear), rtol=1e-5, atol=1e-5)
    linear.weight = nn.Parameter(torch.randn(256, 128), requires_grad=False)
    torch.testing.assert_close(linear(X_BNC), expected(linear), rtol=1e-5, atol=1e-5)
    assert len(packed_calls) == 5


def test_another_view_of_the_same_memory_is_packed_again(packed_calls: list[Tensor]) -> None:
    torch.manual_seed(2)
    linear = PackedLinear.of(nn.Linear(128, 128, bias=False)).requires_grad_(False)
    linear(X_BNC)
    linear.weight = nn.Parameter(linear.weight.detach().t(), requires_grad=False)
    torch.testing.assert_close(linear(X_BNC), expected(linear), rtol=1e-5, atol=1e-5)
    assert len(packed_calls) == 2


def test_a_converted_layer_lets_go_of_the_packed_copy(packed_calls: list[Tensor]) -> None:
    linear = layer()
    linear(X_BNC)
    linear.double()(X_BNC.double())
    assert packed_calls
    assert linear.packing._kept is None


def test_the_biases_alone_may_have_gradients() -> None:
    linear = layer()
    assert linear.bias is not None
    linear.bias.requires_grad_()
    linear(X_BNC).sum().backward()
    assert linear.bias.grad is not None


@DEPRECATED
def test_transforms_and_counters_see_an_ordinary_product(packed_calls: list[Tensor]) -> None:
    linear, tangent = layer(), torch.ones_like(X_BNC)
    _, found = torch.func.jvp(linear, (X_BNC,), (tangent,))
    torch.testing.assert_close(found, tangent @ linear.weight.t(), rtol=1e-5, atol=1e-5)
    with FlopCounterMode(display=False) as counter:
        linear(X_BNC)
    assert counter.get_total_flops() == 2 * X_BNC.numel() * 256
    assert not packed_calls


def test_the_deploy_form_keeps_a_layer_that_computes_more_than_a_product() -> None:
    torch.manual_seed(3)
    hooked, normed = nn.Linear(128, 128), weight_norm(nn.Linear(128, 128))
    hooked.register_forward_hook(lambda module, inputs, output: 2 * output)
    model = nn.Sequential(hooked, normed, nn.Linear(128, 128)).eval()
    deployed = fused(model)
    assert [type(layer) is PackedLinear for layer in deployed] == [False, False, True]
    with torch.no_grad():
        torch.testing.assert_close(deployed(X_BNC), model(X_BNC), rtol=1e-5, atol=1e-5)


def test_a_weight_packed_in_inference_mode_serves_outside_of_it_too() -> None:
    linear = layer()
    with torch.inference_mode():
        linear(X_BNC)
    torch.testing.assert_close(linear(X_BNC), expected(linear), rtol=1e-5, atol=1e-5)


def test_copies_and_files_hold_no_packed_weight(packed_calls: list[Tensor]) -> None:
    linear = layer()
    linear(X_BNC)
    copied, file = copy.deepcopy(linear), io.BytesIO()
    torch.save(linear, file)
    file.seek(0)
    for again in (copied, torch.load(file, weights_only=False)):
        assert again.packing._kept is None
        torch.testing.assert_close(again(X_BNC), expected(linear), rtol=1e-5, atol=1e-5)


def test_gradients_other_formats_and_single_rows_take_the_ordinary_product(packed_calls: list[Tensor]) -> None:
    linear = layer()
    x = X_BNC.clone().requires_grad_()
    linear(x).sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(x.grad, linear.weight.sum(dim=0).expand_as(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(X_BNC).dtype == torch.bfloat16
    assert copy.deepcopy(linear).double()(X_BNC.double()).dtype == torch.float64
    assert torch.equal(linear(X_BNC[0, 0]), expected(linear, X_BNC[0, 0]))
    assert linear(X_BNC[:0]).shape == (0, 9, 256)
    assert not packed_calls


@DEPRECATED
def test_traced_and_exported_forms_know_nothing_of_it() -> None:
    linear = layer()
    forms = (
        torch.fx.symbolic_trace(linear),
        torch.export.export(linear, (X_BNC,)).module(),
        torch.jit.trace(linear, X_BNC),  # type: ignore[no-untyped-call]
    )
    for form in forms:
        torch.testing.assert_close(form(X_BNC), expected(linear), rtol=1e-5, atol=1e-5)
        assert "linear" in str(form.graph)
        assert "mkldnn" not in str(form.graph)
