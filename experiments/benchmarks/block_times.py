"""Benchmark: where the milliseconds of published models go, block by block, on several runtimes.

    python -m experiments.benchmarks.block_times

A model is cut after its stem, after every downsampling and every run of equal blocks, and not at all; a part takes what
the net with it takes more than the net without it, so runtimes fuse and lay out each as they do in the model. Equal
blocks in a row share what they take together: a cut after each would double the nets, and every difference would carry
the noise of two of them. All nets of a runtime are measured in the same rounds, and whole models with them, for the
ranking; a net of many milliseconds is timed once a round. The record's figure: `docs/block-times.svg`.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from analysis.block_times_plot import block_times_figure
from analysis.figure_style import save_figure
from experiments.artifacts import Environment, environment
from experiments.console import Screen, counted
from search.measure import Net, Timing, machine, measure
from search.net_building import module_of
from search.runtimes import FileRuntime, Runtime, runtime, runtime_names
from search.skeletons import Skeleton
from supernet import Architecture, list_models, published_architecture
from supernet.block_types import Identity, MetaFormerBlock
from supernet.onnx_export import onnx_bytes
from supernet.schema import Record, load, save
from train.randomness import generator_for

ROOM = Path(__file__).parent.parent
FIGURE = ROOM.parent / "docs" / "block-times.svg"
MODELS = ("efficientformer_l1", "efficientformerv2_s0", "caformer_s18")
RANKED = ("convformer_s18", "efficientformerv2_s1", "poolformer_s12", "poolformerv2_s12")  # whole, beside those
RUNTIMES = ("onnxruntime", "openvino", "eager")
WARMUP = 2
Part = Literal["stem", "downsampling", "block", "head"]


class PartTime(Record):
    """A part of a model in the order they run: its stage (0 for the stem, the last for the head), its type, its ms."""

    part: Part
    stage: int
    type: str
    ms: float


class ModelTimes(Record):
    """A model on one runtime: the parts, which add up to the median of the whole model; equal ones in a row share."""

    model: str
    runtime: str
    whole_ms: float
    parts: tuple[PartTime, ...]


class WholeTime(Record):
    """A whole model on one runtime, median ms."""

    model: str
    runtime: str
    ms: float


class BlockTimesRecord(Record):
    """All times and the condition that they hold under: fp32, batch 1, one thread."""

    schema_version: Literal[1] = 1
    date: str
    versions: dict[str, str]
    rounds: int
    environment: Environment
    models: tuple[ModelTimes, ...]
    ranking: tuple[WholeTime, ...]


class Cut(NamedTuple):
    """So many equal parts in a row, with their stage and type, and the net that ends with them."""

    part: Part
    stage: int
    type: str
    repeats: int
    net: Skeleton | Architecture


def cuts(architecture: Architecture) -> Iterator[Cut]:
    """All parts in the order they run; the last cut's net is the whole model."""
    stages = architecture.stages

    def cut(number: int, blocks: int) -> Skeleton:
        """The net up to so many blocks of this stage."""
        last = stages[number - 1].model_copy(update={"blocks": stages[number - 1].blocks[:blocks]})
        return Skeleton(
            in_channels=architecture.in_channels,
            grid=architecture.resolution_px,
            stem=architecture.stem,
            stages=(*stages[: number - 1], last),
            head=None,
        )

    yield Cut("stem", 0, "stem", 1, cut(1, 0))
    for number, stage in enumerate(stages, start=1):
        if stage.downsampling is not None and number > 1:
            yield Cut("downsampling", number, "downsampling", 1, cut(number, 0))
        done = 0
        for block, equal in itertools.groupby(stage.blocks):
            count = len(list(equal))
            done += count
            if not isinstance(block, Identity):
                name = block.mixer.type if isinstance(block, MetaFormerBlock) else block.type
                yield Cut("block", number, name, count, cut(number, done))
    yield Cut("head", len(stages), "head", 1, architecture)


def built_on(
    device: Runtime,
    net: Skeleton | Architecture,
    shape: tuple[int, ...],
    exported: dict[Skeleton | Architecture, bytes],
) -> Net:
    """A net on a runtime; `exported` keeps its ONNX file for the next runtime that reads one."""
    if not isinstance(device, FileRuntime):
        return device.build(module_of(net), shape)
    if net not in exported:
        exported[net] = onnx_bytes(module_of(net), input_shape=shape)
    return device.load(exported[net], shape)


def times_on(
    device: Runtime,
    models: Sequence[str],
    ranked: Sequence[str],
    *,
    rounds: int,
    exported: dict[Skeleton | Architecture, bytes],
    screen: Screen,
) -> tuple[list[ModelTimes], list[WholeTime]]:
    """Measure the cuts of some models and other models as a whole, in the same rounds."""
    built: dict[tuple[str, int], Net] = {}
    parts = {model: list(cuts(published_architecture(model))) for model in models}
    parts |= {model: [Cut("head", 0, "head", 1, published_architecture(model))] for model in ranked}
    with screen.bar(f"building on {device.name}") as advance:
        total = sum(len(found) for found in parts.values())
        for model, found in parts.items():
            for number, cut in enumerate(found):
                shape = (1, *published_architecture(model).input_shape)
                built[model, number] = built_on(device, cut.net, shape, exported)
                advance(len(built), total, {})
    with screen.bar(f"measuring on {device.name}") as advance:
        timings: dict[tuple[str, int], Timing] = measure(
            built,
            rounds=rounds,
            warmup=WARMUP,
            min_runs=rounds,
            generator=generator_for(0, "block times", device.name),
            progress=counted(advance),
        )
    of_models = []
    for model in models:
        before_ms, told = 0.0, []
        for number, cut in enumerate(parts[model]):
            ms = timings[model, number].median_ms
            part = PartTime(part=cut.part, stage=cut.stage, type=cut.type, ms=round((ms - before_ms) / cut.repeats, 6))
            told += [part] * cut.repeats
            before_ms = ms
        of_models.append(ModelTimes(model=model, runtime=device.name, whole_ms=round(before_ms, 5), parts=tuple(told)))
    whole = [
        WholeTime(model=model, runtime=device.name, ms=round(timings[model, len(parts[model]) - 1].median_ms, 5))
        for model in parts
    ]
    return of_models, whole


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.block_times", description=_SUMMARY)
    parser.add_argument("--models", nargs="+", choices=list_models(), default=list(MODELS), metavar="MODEL")
    parser.add_argument("--ranked", nargs="*", choices=list_models(), default=list(RANKED), metavar="MODEL")
    parser.add_argument("--runtimes", nargs="+", choices=runtime_names(), default=list(RUNTIMES))
    parser.add_argument("--rounds", type=int, default=20, help="visits of every net (default: 20)")
    parser.add_argument("--out", type=Path, help="default: experiments/records/, named after the machine")
    parser.add_argument("--figure", type=Path, default=FIGURE, help="default: docs/block-times.svg")
    return parser.parse_args(words)


_SUMMARY = "Where the milliseconds of published models go, block by block, on several runtimes."


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print, write the record and draw it."""
    arguments = _arguments(words)
    command = shlex.join(["python", "-m", "experiments.benchmarks.block_times", *(words or sys.argv[1:])])
    screen, where = Screen(), environment(threads=1, command=command)
    devices = [runtime(name, threads=1) for name in arguments.runtimes]
    ranked = [name for name in arguments.ranked if name not in arguments.models]
    models: list[ModelTimes] = []
    ranking: list[WholeTime] = []
    exported: dict[Skeleton | Architecture, bytes] = {}
    for device in devices:
        found, whole = times_on(
            device, arguments.models, ranked, rounds=arguments.rounds, exported=exported, screen=screen
        )
        models += found
        ranking += whole
    record = BlockTimesRecord(
        date=datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        versions={device.name: device.version for device in devices},
        rounds=arguments.rounds,
        environment=where,
        models=tuple(models),
        ranking=tuple(ranking),
    )
    path = arguments.out or ROOM / "records" / f"block-times-{machine().slug}-fp32-t1.json"
    save(record, path)
    names = list(dict.fromkeys(time.model for time in ranking))
    rows = [[name, *(f"{time.ms:.2f}" for time in ranking if time.model == name)] for name in names]
    screen.table("Whole models, median ms", ["model", *arguments.runtimes], rows)
    save_figure(block_times_figure(load(BlockTimesRecord, path).model_dump(mode="json")), arguments.figure)
    screen.line(f"Written: {path}, {arguments.figure}")


if __name__ == "__main__":
    main()
