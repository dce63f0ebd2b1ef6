"""Bundles: nets as files, to be measured on a device that is not this machine, and what comes back from it.

A bundle is a folder with `plan.json`, the nets in the runtime's format below `nets/`, and `measure.py`
(`search.bundle_script`), which needs the runtime alone and writes `results.json`. Results are untrusted: those of
another plan, cut short, or with times that cannot be are refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic import Field, model_validator
from torch import nn

import search.bundle_script
from search.bench import speed_of
from search.latency_table import LeftOut, RuntimeName
from search.measure import (
    RETAKES,
    SAMPLE_MS,
    SETTLE_CALLS,
    SETTLE_MS,
    VISIT_MS,
    Machine,
    Progress,
    Rounds,
    Timing,
    rounds_of,
    timings_of,
    undisturbed,
)
from search.model_files import (
    ModelFile,
    bundled,
    bundled_suffix,
    model_file,
    remove_model,
    sha256_of,
    size_bytes,
    write_model,
)
from search.net_building import answered, described, module_of
from search.skeletons import Skeleton
from search.table_building import Condition
from supernet.architecture import Architecture
from supernet.block_types import Positive
from supernet.schema import Record, UserError, load, save, write_atomically

PLAN, RESULTS, SCRIPT = "plan.json", "results.json", "measure.py"
PRECISIONS = {  # of the runtimes that `measure.py` knows
    "onnxruntime": ("fp32", "int8"),
    "openvino": ("fp32", "int8"),
    "executorch": ("fp32",),
    "coreml": ("fp16", "fp32"),
}
# How a net is built, as a module or as the file of the runtime that it is already, and C,H,W of its input.
ShapedNet = tuple[Callable[[], nn.Module | ModelFile], tuple[int, int, int]]
LONGEST_CPU, LONGEST_REASON = 120, 300
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Milliseconds = Annotated[float, Field(ge=1e-6, le=1e7)]


class PlannedNet(Record):
    """One net of a bundle: its name, its file or folder below the bundle's, and B,C,H,W of its input."""

    name: str
    file: Annotated[str, Field(pattern=r"^nets/[0-9a-z-]+\.(onnx|openvino|pte|mlpackage)$")]
    size_bytes: Positive
    sha256: Sha256
    input_shape: tuple[Positive, Positive, Positive, Positive]


class BundleProtocol(Record):
    """How `measure.py` measures: the settings of `search.measure`."""

    rounds: Positive
    warmup: Positive
    min_runs: Positive
    settle: int = SETTLE_CALLS
    settle_ms: float = 0.0  # of older plans
    retakes: int = RETAKES
    sample_ms: float = SAMPLE_MS
    visit_ms: float = VISIT_MS


class Plan(Record):
    """What is to be measured, and how; `plugins` are the files that the nets' blocks come from.

    `left_out` are the candidates of a table's space that could not be written for the runtime.
    """

    schema_version: Literal[1] = 1
    runtime: Literal["onnxruntime", "openvino", "executorch", "coreml"]
    precision: Literal["fp32", "fp16", "int8"]
    threads: Positive
    batch_size: Positive
    protocol: BundleProtocol
    seed: int
    plugins: dict[str, Sha256]
    left_out: tuple[LeftOut, ...] = ()
    nets: Annotated[tuple[PlannedNet, ...], Field(min_length=1)]


class MeasuredNet(Record):
    """Times of one net: a sample a round, in ms, each the middle of so many calls."""

    calls: Annotated[int, Field(ge=1, le=10**9)]
    samples_ms: Annotated[tuple[Milliseconds, ...], Field(min_length=1)]


class Results(Record):
    """What `measure.py` writes; `plan` is the sha256 of the plan's file, nets of one chunk were measured together.

    `redone` rounds were disturbed and measured again; `refused` are the nets that do not run on the device, with the
    runtime's words.
    """

    schema_version: Literal[1] = 1
    plan: Sha256
    runtime: RuntimeName
    machine: Machine
    date: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d$")]
    chunks: tuple[dict[str, MeasuredNet], ...]
    redone: Annotated[int, Field(ge=0)] = 0
    refused: dict[str, Annotated[str, Field(max_length=LONGEST_REASON)]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _named(self) -> Results:
        if len(self.machine.cpu) > LONGEST_CPU:  # it becomes part of a file's name
            raise ValueError(f"machine.cpu: has {len(self.machine.cpu)} characters, but at most {LONGEST_CPU} may be")
        return self


class Measured(NamedTuple):
    """A bundle that was measured: by the nets' names what they took, or why they did not run, and its rounds."""

    plan: Plan
    condition: Condition
    timings: dict[str, Timing]
    refused: dict[str, str]
    rounds: Rounds


def check_bundle(directory: Path, *, runtime: str, precision: str) -> None:
    """Raise `UserError` for a runtime that `measure.py` does not know, and for a folder that holds something else."""
    if precision not in PRECISIONS.get(runtime, ()):
        known = ", ".join(f"{name} in {' or '.join(formats)}" for name, formats in PRECISIONS.items())
        raise UserError(
            f"a bundle measures with {known}, not with {runtime} in {precision}: set table.runtime and table.precision"
        )
    if directory.exists() and any(directory.iterdir()) and not (directory / PLAN).exists():
        raise UserError(f"{directory}: is not empty and holds no bundle; name another folder")


def exported(net: Skeleton | Architecture, *, runtime: str, precision: str, batch_size: int) -> ModelFile:
    """A net as a bundle holds it. Raises `CannotBuild` if it cannot be written for the runtime."""
    module, shape = module_of(net), (batch_size, *net.input_shape)

    def content() -> ModelFile:
        return bundled(runtime, model_file(runtime, module, shape, precision=precision), shape)

    return answered(described(net), runtime, shape, content)


def write_bundle(
    directory: Path,
    nets: Mapping[str, ShapedNet],
    *,
    runtime: str,
    precision: str,
    threads: int,
    batch_size: int,
    rounds: int,
    seed: int,
    plugins: Mapping[str, str] | None = None,
    left_out: tuple[LeftOut, ...] = (),
    warmup: int = 3,
    min_runs: int = 30,
    progress: Progress | None = None,
) -> Plan:
    """Write a bundle of nets by their names; the plan comes last.

    Results that are there and belong to this very plan count on; those of another are kept as `results-*.json`. Raises
    as `check_bundle` does.
    """
    check_bundle(directory, runtime=runtime, precision=precision)
    planned = []
    for number, (name, (build, shape)) in enumerate(nets.items(), start=1):
        net, input_shape = build(), (batch_size, *shape)
        made = model_file(runtime, net, input_shape, precision=precision) if isinstance(net, nn.Module) else net
        content = bundled(runtime, made, input_shape)
        file = f"nets/{number:04}{bundled_suffix(runtime)}"
        write_model(directory / file, content)
        planned.append(
            PlannedNet(
                name=name,
                file=file,
                size_bytes=size_bytes(content),
                sha256=sha256_of(content),
                input_shape=input_shape,
            )
        )
        if progress is not None:
            progress(number, len(nets))
    plan = Plan.model_validate(
        {
            "runtime": runtime,
            "precision": precision,
            "threads": threads,
            "batch_size": batch_size,
            "protocol": BundleProtocol(rounds=rounds, warmup=warmup, min_runs=min_runs, settle_ms=SETTLE_MS),
            "seed": seed,
            "plugins": dict(plugins or {}),
            "left_out": left_out,
            "nets": tuple(planned),
        }
    )
    measured = (directory / PLAN).exists() and (directory / RESULTS).exists()
    counts_on = measured and load(Plan, directory / PLAN) == plan
    if measured and not counts_on:
        before = hashlib.sha256((directory / PLAN).read_bytes()).hexdigest()[:8]
        (directory / RESULTS).rename(directory / f"results-{before}.json")
    write_atomically(directory / SCRIPT, Path(search.bundle_script.__file__).read_bytes())
    if not counts_on:  # results name the plan's bytes, which an older version wrote otherwise
        save(plan, directory / PLAN)
    for left in {*(directory / "nets").glob("[0-9]*.*")} - {directory / net.file for net in planned}:
        remove_model(left)  # of an earlier bundle, which was larger or for another runtime
    return plan


def read_bundle(directory: Path) -> Measured:
    """A bundle's plan, the condition under which it was measured, and what came of every net.

    Raises `UserError` if it was not measured yet, and for results of another plan, cut short, or with impossible times.
    """
    plan_path, path = directory / PLAN, directory / RESULTS
    plan = load(Plan, plan_path)
    if not path.exists():
        older = sorted(file.name for file in directory.glob("results-*.json"))
        raise UserError(
            f"{directory}: was not measured yet; copy the folder to the device, run python {SCRIPT} in it, put"
            f" {RESULTS} back here, and give the same command again"
            + (f" ({', '.join(older)}: of an earlier {PLAN})" if older else "")
        )
    results = load(Results, path)
    if results.plan != hashlib.sha256(plan_path.read_bytes()).hexdigest():
        raise UserError(f"{path}: belongs to another {PLAN} than the one beside it; measure this bundle on the device")
    if results.runtime.name != plan.runtime:
        raise UserError(f"{path}: was measured with {results.runtime.name}, but {PLAN} asks for {plan.runtime}")
    _check_complete(plan, results, path)
    condition = Condition(
        runtime=results.runtime,
        precision=plan.precision,
        threads=plan.threads,
        batch_size=plan.batch_size,
        machine=results.machine,
        date=results.date,
    )
    timings, rounds = _timings(results)
    return Measured(plan, condition, timings, results.refused, rounds)


def _check_complete(plan: Plan, results: Results, path: Path) -> None:
    planned = {net.name for net in plan.nets}
    timed = {name for chunk in results.chunks for name in chunk}
    found = timed | results.refused.keys()
    if unknown := sorted(found - planned):
        raise UserError(f"{path}: has times of nets that {PLAN} does not know, {unknown[0]} for one")
    if both := sorted(timed & results.refused.keys()):
        raise UserError(f"{path}: has times of {both[0]}, and says that it does not run; measure anew")
    if missing := planned - found:
        raise UserError(
            f"{path}: {len(missing)} of {len(planned)} nets have no times; run python {SCRIPT} on the device again,"
            " it goes on"
        )
    for chunk in results.chunks:
        if (reference := _reference(plan, results)) not in chunk:
            raise UserError(f"{path}: a chunk lacks the net {reference}, which links the chunks; measure anew")
        for name, net in chunk.items():
            if len(net.samples_ms) != plan.protocol.rounds:
                raise UserError(
                    f"{path}: {name} has {len(net.samples_ms)} samples, but {PLAN} asks for {plan.protocol.rounds}"
                )


def _reference(plan: Plan, results: Results) -> str:
    """The first net that runs on the device."""
    return next(net.name for net in plan.nets if net.name not in results.refused)


def _timings(results: Results) -> tuple[dict[str, Timing], Rounds]:
    """Drift divided out within each chunk, and the chunks brought to the speed of the first by the nets in several."""
    timings: dict[str, Timing] = {}
    rounds = Rounds()
    for chunk in results.chunks:
        all_ms = np.array([net.samples_ms for net in chunk.values()])
        times_ms = all_ms[:, undisturbed(all_ms)]
        done = times_ms.shape[1]
        runs = [net.calls for net in chunk.values()]
        found = dict(zip(chunk, timings_of(times_ms, runs=runs), strict=True))
        speed = speed_of(timings, found)
        of_chunk = rounds_of(times_ms, done=done, redone=0, dropped=all_ms.shape[1] - done)
        rounds = rounds.joined(of_chunk, speed=speed)
        for name, timing in found.items():
            timings.setdefault(name, timing.scaled(speed))
    return timings, replace(rounds, redone=results.redone)
