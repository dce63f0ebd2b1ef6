"""The recipe: its learning rate, its groups, its precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from train.recipe import (
    RecipeConfig,
    autocast,
    learning_rate,
    make_average,
    make_optimizer,
    resolved_precision,
    set_learning_rate,
)

CPU = torch.device("cpu")
CONFIG = RecipeConfig(epochs=10, batch_size=8, learning_rate=1e-2, warmup_epochs=2, min_learning_rate=1e-4)


def rates(config: RecipeConfig) -> list[float]:
    return [learning_rate(config, step=step, steps_per_epoch=5) for step in range(50)]


def test_the_learning_rate_rises_linearly_then_falls_to_its_smallest() -> None:
    values = rates(CONFIG)
    assert values[10] == max(values) == CONFIG.learning_rate
    rise = torch.tensor(values[:10]).diff()
    assert torch.allclose(rise, rise[:1], rtol=1e-3)
    assert values[10:] == sorted(values[10:], reverse=True)
    assert CONFIG.min_learning_rate < values[-1] < 2 * CONFIG.min_learning_rate
    assert values[30] == pytest.approx((CONFIG.learning_rate + CONFIG.min_learning_rate) / 2)


@pytest.mark.parametrize(
    "change", [{"epochs": 12}, {"learning_rate": 2e-2}, {"warmup_epochs": 1.0}, {"min_learning_rate": 0.0}]
)
def test_every_field_of_the_schedule_changes_it(change: dict[str, Any]) -> None:
    assert rates(CONFIG) != rates(CONFIG.model_copy(update=change))


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(3)
        self.attention_biases = nn.Parameter(torch.zeros(2, 9))
        self.layer_scale_1 = nn.Parameter(torch.ones(3, 1, 1))


def test_only_the_weights_of_linear_maps_decay() -> None:
    net = _Net()
    optimizer = make_optimizer(net.named_parameters(), CONFIG)
    assert isinstance(optimizer, torch.optim.AdamW)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(decays) == len(list(net.parameters()))
    assert {name for name, p in net.named_parameters() if decays[id(p)]} == {"linear.weight"}
    set_learning_rate(optimizer, 0.5)
    assert {group["lr"] for group in optimizer.param_groups} == {0.5}


def test_automatic_precision_is_bf16_only_where_the_device_computes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for native, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr("train.recipe.computes_bf16", lambda device, native=native: native)
        assert resolved_precision("auto", CPU) == expected
    assert resolved_precision("bf16", CPU) == "bf16"
    assert resolved_precision("fp32", CPU) == "fp32"
    assert resolved_precision("auto", torch.device("meta")) == "fp32"


def test_autocast_computes_in_the_precision_asked_for() -> None:
    linear = nn.Linear(4, 4)
    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        with autocast(precision, CPU):  # type: ignore[arg-type]
            assert linear(torch.ones(2, 4)).dtype == dtype


def test_the_average_follows_quickly_at_first_and_slowly_later() -> None:
    net = nn.Linear(1, 1)
    average = make_average(net, decay=0.99)
    decays = [average.get_decay(step) for step in (1, 5, 50, 100_000)]
    assert decays == sorted(decays)
    assert decays[0] == 0.0
    assert decays[-1] == 0.99


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"warmup_epochs": 10.0}, "must be below epochs"),
        ({"min_learning_rate": 1.0}, "is above learning_rate"),
        ({"batch_size": 1}, "greater than or equal to 2"),
        ({"ema_decay": 1.0}, "less than 1"),
        ({"precision": "fp16"}, "'auto', 'fp32' or 'bf16'"),
    ],
)
def test_values_out_of_range_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RecipeConfig(**{"epochs": 10, "batch_size": 8, "learning_rate": 1e-2, **fields})
