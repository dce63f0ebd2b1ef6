"""The benchmark against timm: both sides are the same function, a step trains, and the record has its conditions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from experiments.benchmarks import against_timm
from experiments.benchmarks.against_timm import AgainstTimmRecord, Comparison, inference_nets, main, pair, training_step
from supernet.schema import load


@pytest.mark.long
def test_both_sides_compute_the_same_in_every_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda model: model)  # which takes a minute
    images = torch.randn(1, 3, 64, 64)
    nets = inference_nets(pair("poolformerv2_s12", resolution_px=64), images)
    expected = nets["eager", "timm"]()
    assert isinstance(expected, torch.Tensor)
    for (way, side), run in nets.items():
        found = run()
        logits = torch.from_numpy(found[0]) if isinstance(found, list) else found
        torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-4, msg=f"{way}, {side}")
    assert set(nets) == {
        *((way, side) for way in ("eager", "compiled", "onnxruntime") for side in ("ours", "timm")),
        ("fused", "ours"),
    }


def test_a_training_step_learns_the_batch() -> None:
    torch.manual_seed(0)
    step = training_step(
        pair("poolformerv2_s12", resolution_px=32)["ours"], torch.randn(4, 3, 32, 32), torch.arange(4), "fp32"
    )
    losses = [float(step()) for _ in range(12)]  # type: ignore[arg-type]
    assert losses[-1] < losses[0]


def test_the_record_holds_every_comparison_and_its_conditions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def comparison(name: str, way: against_timm.Way) -> Comparison:
        return against_timm._comparison(name, way, 1, 224, 9.0, 10.0)

    monkeypatch.setattr(against_timm, "compare_inference", lambda name, rounds: [comparison(name, "eager")])
    monkeypatch.setattr(against_timm, "compare_training", lambda name, **options: comparison(name, "training"))
    main(["--models", "caformer_s18", "--out", str(tmp_path / "record.json")])
    record = load(AgainstTimmRecord, tmp_path / "record.json")
    assert [(one.model, one.way, one.ratio) for one in record.comparisons] == [
        ("caformer_s18", "eager", 0.9),
        ("caformer_s18", "training", 0.9),
    ]
    assert "--models caformer_s18" in record.environment.command
