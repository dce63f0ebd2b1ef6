"""Block by block: the cuts of a model end with it, their differences add up to it, and the record is drawn."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from analysis.block_times_plot import block_times_figure
from experiments.benchmarks import block_times
from experiments.benchmarks.block_times import BlockTimesRecord, cuts, main, module_of
from supernet import Architecture, published_architecture
from supernet.block_types import Identity
from supernet.schema import UserError, load


@pytest.mark.parametrize("name", ["efficientformer_l1", "efficientformerv2_s0", "caformer_s18", "poolformer_s12"])
def test_the_cuts_of_a_model_have_one_part_more_each_and_end_with_the_model(name: str) -> None:
    architecture = published_architecture(name)
    found = list(cuts(architecture))
    blocks = sum(not isinstance(block, Identity) for stage in architecture.stages for block in stage.blocks)
    parts = [part for part, *_ in found]
    assert (parts[0], parts[-1]) == ("stem", "head")
    assert parts.count("block") == blocks
    assert parts.count("downsampling") == len(architecture.stages) - 1
    assert found[-1][3] == architecture
    sizes = []
    with torch.device("meta"):
        for *_, net in found:
            sizes.append(sum(parameter.numel() for parameter in module_of(net).parameters()))
    assert sizes == sorted(sizes)
    assert sizes[-1] == sum(parameter.numel() for parameter in module_of(architecture).parameters())


def test_a_cut_computes_what_the_model_computes_so_far() -> None:
    architecture = published_architecture("poolformer_s12").model_copy(update={"resolution_px": (64, 64)})
    found = list(cuts(architecture))
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        for number, (part, stage, _, net) in enumerate(found[:-1]):
            height, width = architecture.grids[max(stage, 1) - 1]
            assert module_of(net)(images).shape[-2:] == (height, width), (number, part)
        assert module_of(found[-1][3])(images).shape == (1, 1000)


def test_the_record_adds_up_and_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def small(name: str) -> Architecture:
        return published_architecture(name).model_copy(update={"resolution_px": (32, 32)})

    monkeypatch.setattr(block_times, "published_architecture", small)
    record_path, figure_path = tmp_path / "record.json", tmp_path / "figure.svg"
    words = ["--models", "poolformer_s12", "--ranked", "efficientformerv2_s0", "--rounds", "2"]
    main([*words, "--runtimes", "onnxruntime", "eager", "--out", str(record_path), "--figure", str(figure_path)])
    record = load(BlockTimesRecord, record_path)
    assert [(times.model, times.runtime) for times in record.models] == [
        ("poolformer_s12", "onnxruntime"),
        ("poolformer_s12", "eager"),
    ]
    for times in record.models:
        assert sum(part.ms for part in times.parts) == pytest.approx(times.whole_ms, abs=1e-3)
        assert times.whole_ms == next(
            one.ms for one in record.ranking if (one.model, one.runtime) == (times.model, times.runtime)
        )
    assert {one.model for one in record.ranking} == {"poolformer_s12", "efficientformerv2_s0"}
    drawing = figure_path.read_text()
    assert drawing.startswith("<svg")
    assert "poolformer_s12" in drawing
    assert "rounds" in record.environment.command


def test_a_figure_of_something_else_is_refused() -> None:
    with pytest.raises(UserError, match="block times: "):
        block_times_figure({"schema_version": 1})
