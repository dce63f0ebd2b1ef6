"""Block by block: the cuts of a model end with it, their differences add up to it, and the record is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from analysis.block_times_plot import block_times_figure
from experiments.benchmarks import block_times
from experiments.benchmarks.block_times import BlockTimesRecord, built_on, cuts, main, module_of
from search.runtimes import runtime
from supernet import Architecture, published_architecture
from supernet.block_types import Identity
from supernet.schema import UserError, load


@pytest.fixture(autouse=True)
def _empty_pictures() -> None:
    """Unlike other tests of this folder these look at a picture."""


@pytest.mark.parametrize("name", ["efficientformer_l1", "efficientformerv2_s0", "caformer_s18", "poolformer_s12"])
def test_the_cuts_of_a_model_have_one_part_more_each_and_end_with_the_model(name: str) -> None:
    architecture = published_architecture(name)
    found = list(cuts(architecture))
    blocks = sum(not isinstance(block, Identity) for stage in architecture.stages for block in stage.blocks)
    parts = [cut.part for cut in found for _ in range(cut.repeats)]
    assert (parts[0], parts[-1]) == ("stem", "head")
    assert parts.count("block") == blocks
    assert parts.count("downsampling") == len(architecture.stages) - 1
    assert found[-1].net == architecture
    sizes = []
    with torch.device("meta"):
        for cut in found:
            sizes.append(sum(parameter.numel() for parameter in module_of(cut.net).parameters()))
    assert sizes == sorted(sizes)
    assert sizes[-1] == sum(parameter.numel() for parameter in module_of(architecture).parameters())


def test_a_cut_computes_what_the_model_computes_so_far() -> None:
    architecture = published_architecture("poolformer_s12").model_copy(update={"resolution_px": (64, 64)})
    found = list(cuts(architecture))
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        for cut in found[:-1]:
            height, width = architecture.grids[max(cut.stage, 1) - 1]
            assert module_of(cut.net)(images).shape[-2:] == (height, width), cut
        assert module_of(found[-1].net)(images).shape == (1, 1000)


def test_equal_blocks_in_a_row_are_cut_off_together_and_others_alone() -> None:
    cuts_of = {name: list(cuts(published_architecture(name))) for name in ("poolformer_s12", "efficientformer_l1")}
    assert [cut.repeats for cut in cuts_of["poolformer_s12"] if cut.part == "block"] == [2, 2, 6, 2]
    last = [(cut.type, cut.repeats) for cut in cuts_of["efficientformer_l1"] if cut.stage == 4 and cut.part == "block"]
    assert last == [("mb4d", 3), ("mb3d", 1)]


def test_a_net_is_exported_once_for_all_runtimes_that_read_files(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    export = block_times.onnx_bytes
    monkeypatch.setattr(block_times, "onnx_bytes", lambda net, **sizes: seen.append(net) or export(net, **sizes))
    net = next(cuts(published_architecture("efficientformer_l1").model_copy(update={"resolution_px": (32, 32)}))).net
    exported: dict[Any, bytes] = {}
    for _ in range(2):
        built_on(runtime("onnxruntime", threads=1), net, (1, 3, 32, 32), exported)()
    built_on(runtime("eager", threads=1), net, (1, 3, 32, 32), exported)()
    assert len(seen) == len(exported) == 1


def test_the_record_adds_up_and_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def small(name: str) -> Architecture:
        architecture = published_architecture(name)
        return architecture.model_copy(update={"resolution_px": (32, 32), "stages": architecture.stages[:1]})

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
