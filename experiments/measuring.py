"""`slimformer measure`: whole models on a runtime, next to what a latency table predicts of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from experiments.artifacts import Environment
from experiments.console import Screen, counted
from experiments.run import AUDIT
from search.correction import Correction
from search.latency_audit import LatencyAudit
from search.latency_table import LatencyTable
from search.measure import Net, Timing, machine, measure
from search.model_files import SUFFIXES, file_suffix, input_shape
from search.net_building import CannotBuild, module_of, runnable
from search.runtimes import FileRuntime, Runtime
from supernet import Architecture, UserError, list_models, published_architecture
from supernet.schema import Record, nearest
from train.randomness import generator_for

DESCRIPTIONS = (".yaml", ".yml", ".json")


class MeasuredModel(Record):
    """One whole model: milliseconds of an inference, and what the table predicted (null where it has a part less).

    `predicted_error_ms` is the prediction's standard error, as far as it comes from the entries' (null where one has
    none).
    """

    name: str
    median_ms: float
    p10_ms: float
    p90_ms: float
    runs: int
    predicted_ms: float | None
    predicted_error_ms: float | None = None


class Measurement(Record):
    """The file that `slimformer measure --save` writes: models measured in the same rounds, and the condition."""

    schema_version: Literal[1] = 1
    runtime: str
    version: str
    precision: str
    threads: int
    batch_size: int
    environment: Environment
    models: tuple[MeasuredModel, ...]


@dataclass(frozen=True)
class Measurable:
    """A model to measure: how it is built on a runtime, and its architecture where that is known."""

    name: str
    build: Callable[[Runtime, int], Net]
    architecture: Architecture | None


def measurable(model: str, *, resolution_px: int | None) -> Measurable:
    """What a published name, an architecture file, a folder or a file of a model means. Raises `UserError`."""
    path = Path(model)
    if path.suffix in SUFFIXES:
        if resolution_px is not None:
            raise UserError(f"{path}: a model's file has its own resolution; measure it without --resolution")
        return Measurable(model, lambda runtime, batch_size: _file(runtime, path, batch_size), None)
    if path.is_dir():
        found = next((path / name for name in ("architecture.yaml", "config.json") if (path / name).is_file()), None)
        if found is None:
            raise UserError(f"{path}: no model here (expected architecture.yaml or config.json)")
        architecture = Architecture.load(found)
    elif path.suffix in DESCRIPTIONS:
        architecture = Architecture.load(path)
    elif model in list_models():
        architecture = published_architecture(model)
    else:
        raise UserError(f"{model}: neither a file nor a published model{nearest(model, list_models())}")
    if resolution_px is not None:
        architecture = architecture.model_copy(update={"resolution_px": (resolution_px, resolution_px)})

    def build(runtime: Runtime, batch_size: int) -> Net:
        module, shape = module_of(architecture), (batch_size, *architecture.input_shape)
        return runnable(model, runtime, shape, lambda: runtime.build(module, shape))

    return Measurable(model, build, architecture)


def _file(runtime: Runtime, path: Path, batch_size: int) -> Net:
    """A model's file on a runtime that runs such files. Raises `UserError` for any other, `CannotBuild` if refused."""
    if not isinstance(runtime, FileRuntime):
        raise UserError(f"{path}: the runtime {runtime.name} runs no files; give it an architecture or a name")
    if path.suffix != file_suffix(runtime.name):
        raise UserError(f"{path}: the runtime {runtime.name} runs {file_suffix(runtime.name)} files alone")
    shape = input_shape(path)
    sides = tuple(side for side in shape[1:] if isinstance(side, int))
    if len(shape) != 4 or len(sides) != 3:
        raise UserError(f"{path}: its input is {list(shape)}, not images of one size")
    wanted = (batch_size, *sides)
    return runnable(str(path), runtime, wanted, lambda: runtime.load(path, wanted))


def table_at(path: Path) -> LatencyTable:
    """The table of a file or of a run folder; an older one, that is the sum alone, with the correction of its audit."""
    folder = path if path.is_dir() else path.parent
    if path.is_dir():
        found = sorted(file for file in path.glob("latency-*.json") if file.name != AUDIT)
        if len(found) != 1:
            raise UserError(f"{path}: holds {len(found)} latency tables; name one file")
        path = found[0]
    table = LatencyTable.load(path)
    if table.correction == Correction() and (folder / AUDIT).is_file():
        audit = LatencyAudit.load(folder / AUDIT)
        there = (table.runtime.name, table.precision, table.threads, table.batch_size)
        if there == (audit.runtime, audit.precision, audit.threads, audit.batch_size):
            table = table.corrected(audit.correction)
    return table


def check_condition(table: LatencyTable, runtime: Runtime, *, batch_size: int) -> None:
    """Raise `UserError` if a table was measured under another condition than the runtime's."""
    there = (table.environment, table.batch_size)
    name = f"{runtime.name} {runtime.version} on {machine().cpu}"
    threads = f"{runtime.threads} thread{'s' if runtime.threads > 1 else ''}"
    here = (f"{name} ({runtime.precision}, batch {batch_size}, {threads})", batch_size)
    if there != here:
        raise UserError(f"the table is of {there[0]}, but this would measure {here[0]}")
    this_machine = machine()
    if not table.machine.same_processor(this_machine):
        raise UserError(f"the table is of {table.machine.described}, but this is {this_machine.described}")


def check_resolution(table: LatencyTable, models: Sequence[Measurable]) -> None:
    """Raise `UserError` if a table is of another resolution than all models that it could predict."""
    known = {model.name: model.architecture.resolution_px for model in models if model.architecture is not None}
    if known and table.resolution_px not in known.values():
        sizes = ", ".join(f"{_size(size)} ({name})" for name, size in known.items())
        raise UserError(f"the table is of {_size(table.resolution_px)} pixels, but this would measure {sizes}")


def _size(resolution_px: tuple[int, int]) -> str:
    return f"{resolution_px[0]}x{resolution_px[1]}"


def measured(
    models: Sequence[Measurable],
    runtime: Runtime,
    *,
    batch_size: int,
    rounds: int,
    table: LatencyTable | None,
    screen: Screen,
) -> list[MeasuredModel]:
    """Measure all models in the same rounds, in random order; those that the runtime refuses are named and left out.

    Raises `UserError` where it refuses all.
    """
    nets: dict[str, Net] = {}
    refused: list[str] = []
    for model in models:
        try:
            nets[model.name] = model.build(runtime, batch_size)
        except CannotBuild as error:
            refused.append(error.reason)
    if not nets:
        raise UserError("; ".join(refused))
    for reason in refused:
        screen.line(f"  warning: {reason}")
    with screen.bar("measuring") as advance:
        timings = measure(
            nets,
            rounds=rounds,
            warmup=5,
            generator=generator_for(0, "measure models"),
            threads=runtime.threads,
            progress=counted(advance),
        )
    return [_result(model, timings[model.name], table, screen) for model in models if model.name in timings]


def _result(model: Measurable, timing: Timing, table: LatencyTable | None, screen: Screen) -> MeasuredModel:
    predicted_ms = error_ms = None
    if table is not None:
        try:
            architecture = _predictable(model, table)
            predicted_ms, error_ms = table.latency_ms(architecture), table.standard_error_ms(architecture)
        except UserError as reason:
            screen.line(f"  no prediction of {model.name}: {reason}")
        else:
            if count := table.parts_between(architecture):
                screen.line(f"  {model.name}: {count} of the parts of its prediction lie between measured ones")
    return MeasuredModel(
        name=model.name,
        median_ms=timing.median_ms,
        p10_ms=timing.p10_ms,
        p90_ms=timing.p90_ms,
        runs=timing.runs,
        predicted_ms=predicted_ms,
        predicted_error_ms=error_ms if error_ms is not None and math.isfinite(error_ms) else None,
    )


def _predictable(model: Measurable, table: LatencyTable) -> Architecture:
    """The architecture of a model that a table may know. Raises `UserError` with the reason why it cannot."""
    if model.architecture is None:
        raise UserError("a file does not say of what parts it is made; name its architecture")
    if model.architecture.resolution_px != table.resolution_px:
        here, there = _size(model.architecture.resolution_px), _size(table.resolution_px)
        raise UserError(f"the table is of {there} pixels, and the model of {here}")
    return model.architecture


def rows_of(results: Sequence[MeasuredModel]) -> list[list[str]]:
    """Rows for a table: model, median, 10th to 90th percentile, predicted ± error, measured over predicted."""
    rows = []
    for result in results:
        predicted, ratio = "-", "-"
        if result.predicted_ms is not None:
            predicted, ratio = f"{result.predicted_ms:.3f}", f"{result.median_ms / result.predicted_ms:.3f}"
            if result.predicted_error_ms is not None:
                predicted += f" ± {result.predicted_error_ms:.3f}"
        spread = f"{result.p10_ms:.3f} to {result.p90_ms:.3f}"
        rows.append([result.name, f"{result.median_ms:.3f}", spread, predicted, ratio])
    return rows
