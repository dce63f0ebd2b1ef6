"""A device that is not this machine: its table comes from a bundle that was measured there, and so do final latencies.

The way of it: `slimformer table EXPERIMENT --bundle DIR` writes the bundle, `python measure.py` in it on the device
writes `results.json`, and `table.bundle: DIR` in the experiment takes both as the latency table. Delivered models go
the same way: the export writes `on-device/`, and goes on when its results are there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from experiments.artifacts import sha256
from experiments.console import counted
from experiments.models import Job, measured_file
from experiments.run import Run
from search.bundle import (
    PLAN,
    RESULTS,
    SCRIPT,
    Measured,
    ShapedNet,
    check_bundle,
    exported,
    read_bundle,
    write_bundle,
)
from search.latency_table import LatencyTable, LeftOut, Protocol, RuntimeName
from search.measure import Machine, Timing, most_redone
from search.model_files import ModelFile, content_of, files_of, write_model
from search.net_building import CannotBuild, described
from search.skeletons import Skeleton
from search.table_building import refused_candidates, table_nets, table_of, without_refused
from supernet import Architecture, SearchSpace, UserError
from supernet.schema import digest

ON_DEVICE = "on-device"
FEWEST_WHOLE_NETS = 4  # that audit a table, as in `table.audit_nets`

Nets = dict[str, Skeleton | Architecture]


def write_table_bundle(run: Run, directory: Path) -> None:
    """Write the nets of a run's latency table, and the whole nets that audit it, to be measured elsewhere.

    Candidates that cannot be written for the runtime are named and left out. Raises `UserError`, with the reasons, if
    the space cannot do without.
    """
    config = run.experiment.table
    precision = config.precision or "fp32"
    check_bundle(directory, runtime=config.runtime, precision=precision)
    export = partial(exported, runtime=config.runtime, precision=precision, batch_size=config.batch_size)
    with TemporaryDirectory() as kept:
        tries = _Tries(Path(kept), export)
        with run.screen.bar("trying the blocks") as advance:
            left_out = refused_candidates(run.space, tries.tried, counted(advance))
        for one in left_out:
            run.screen.line(f"  warning: stage {one.stage} is written without {one.candidate}: {one.reason}")
        nets = {
            name: (partial(tries.content, net), net.input_shape)
            for name, net in _table_nets(run, without_refused(run.space, left_out)).items()
        }
        what = "writing the table's nets"
        _written(run, directory, nets, rounds=config.rounds, left_out=left_out, what=what)
    size_mb = sum(file.stat().st_size for file in files_of(directory / "nets")) / 1e6
    run.screen.line(
        f"{directory}: {len(nets)} nets, {size_mb:,.0f} MB. Copy it to the device, run python {SCRIPT} in it, put"
        f" {RESULTS} back, and set table.bundle: {directory}"
    )


def read_table_bundle(run: Run) -> tuple[LatencyTable, dict[Architecture, Timing]]:
    """The table of a measured bundle, and the timings of its whole nets. Raises `UserError` if it is another's."""
    directory, config = Path(run.experiment.table.bundle or ""), run.experiment.table
    bundle = read_bundle(directory)
    plan = bundle.plan
    here = (config.runtime, config.precision or "fp32", config.threads, config.batch_size)
    there = (plan.runtime, plan.precision, plan.threads, plan.batch_size)
    if there != here:
        raise UserError(
            f"{directory}: was written for {_described(*there)}, but the experiment asks for {_described(*here)}"
        )
    if plan.plugins != _plugins(run):
        raise UserError(f"{directory}: was written with other plugins, or before they were edited; write it again")
    largest = max(net.input_shape[2:] for net in plan.nets)
    if largest != run.space.resolution_px:  # whole nets are in every plan
        sizes = ["x".join(map(str, size)) for size in (largest, run.space.resolution_px)]
        raise UserError(f"{directory}: was written for {sizes[0]} pixels, but the experiment has {sizes[1]}")
    space = without_refused(run.space, plan.left_out)
    nets = _table_nets(run, space)
    if {net.name for net in plan.nets} != nets.keys():
        raise UserError(
            f"{directory}: was written for another space or set of audit nets, or by another version; write it again:"
            " slimformer table EXPERIMENT.yaml --bundle DIR"
        )
    left_out = plan.left_out
    if bundle.refused:
        refused = _refused_there(space, nets, bundle)
        nets = _needed(run, space, refused, nets, bundle)
        space, left_out = without_refused(space, refused), (*left_out, *refused)
    timings = bundle.timings
    table = table_of(
        space,
        {net: timings[name] for name, net in nets.items() if isinstance(net, Skeleton)},
        left_out=left_out,
        condition=bundle.condition,
        protocol=Protocol(
            rounds=bundle.rounds.done,
            standard_error_percent=config.standard_error_percent,
            warmup=plan.protocol.warmup,
            copies=config.copies,
            settle=plan.protocol.settle,
            settle_ms=plan.protocol.settle_ms,
            nets=len(nets),
            seed=plan.seed,
            redone=bundle.rounds.redone,
            dropped=bundle.rounds.dropped,
            most_redone=most_redone(plan.protocol.rounds),
            drift=(round(bundle.rounds.fastest, 4), round(bundle.rounds.slowest, 4)),
        ),
    )
    return table, {net: timings[name] for name, net in nets.items() if isinstance(net, Architecture)}


class _Tries:
    """Nets as files; those that were tried are kept, to be made once."""

    def __init__(self, folder: Path, export: Callable[[Skeleton | Architecture], ModelFile]) -> None:
        self.folder, self.export = folder, export

    def tried(self, nets: Sequence[Skeleton]) -> Iterator[CannotBuild | None]:
        """Make each file, and say why it cannot be made, if so."""
        for net in nets:
            error = None
            try:
                write_model(self.folder / digest(net), self.export(net))
            except CannotBuild as refused:
                error = refused
            yield error

    def content(self, net: Skeleton | Architecture) -> ModelFile:
        """A net's file. Raises `CannotBuild`."""
        kept = self.folder / digest(net)
        return content_of(kept) if kept.exists() else self.export(net)


def _refused_there(space: SearchSpace, nets: Nets, bundle: Measured) -> tuple[LeftOut, ...]:
    """The candidates that do not run on the device alone."""
    reasons = {nets[name]: reason for name, reason in bundle.refused.items()}

    def tried(lone: Sequence[Skeleton]) -> Iterator[CannotBuild | None]:
        return (CannotBuild(_reason(net, reasons[net], bundle)) if net in reasons else None for net in lone)

    return refused_candidates(space, tried)


def _needed(run: Run, space: SearchSpace, left_out: tuple[LeftOut, ...], nets: Nets, bundle: Measured) -> Nets:
    """The nets of the table, and of its audit, that do without these candidates.

    Raises `UserError` if one of them does not run on the device, or if they were not in the bundle.
    """
    gone = {(one.stage, one.candidate) for one in left_out}
    again = "leave that out of the space and write the bundle again"
    wholes = [net for net in nets.values() if isinstance(net, Architecture) and not gone & set(_candidates(space, net))]
    parts = table_nets(without_refused(space, left_out), copies=run.experiment.table.copies)
    needed: Nets = {digest(net): net for net in list[Skeleton | Architecture]([*parts, *wholes])}
    for name, net in needed.items():
        if name in bundle.refused:
            raise UserError(f"{run.experiment.table.bundle}: {_reason(net, bundle.refused[name], bundle)}; {again}")
    if needed.keys() - nets.keys() or len(wholes) < FEWEST_WHOLE_NETS:
        what = "parts are measured beside it" if needed.keys() - nets.keys() else "nearly all whole nets have it"
        raise UserError(f"{run.experiment.table.bundle}: {left_out[0].reason}, but {what}; {again}")
    return needed


def _candidates(space: SearchSpace, net: Architecture) -> Iterator[tuple[int, str]]:
    """The stage and the name of every candidate that a net has."""
    for number, chosen in enumerate(space.choices(net), start=1):
        yield from ((number, candidate.name) for candidate in chosen)


def _reason(net: Skeleton | Architecture, reason: str, bundle: Measured) -> str:
    runtime = bundle.condition.runtime
    return f"{runtime.name} {runtime.version} on the device cannot run {described(net)} ({reason})"


def bundle_files(directory: str | None) -> tuple[Path, ...]:
    """The files of a bundle that a table is made of; none without a bundle. Raises `UserError` for one not there."""
    if directory is None:
        return ()
    files = (Path(directory) / PLAN, Path(directory) / RESULTS)
    if not all(file.is_file() for file in files):
        read_bundle(Path(directory))  # says which, and what to do
    return files


def measured_elsewhere(run: Run, jobs: list[Job]) -> dict[str, Timing]:
    """What delivered models take on the device of the table, from the results of a bundle of them.

    Raises `UserError`, with what to do, until the results are there.
    """
    if not jobs:
        return {}
    directory = run.path / ON_DEVICE
    nets: dict[str, ShapedNet] = {}
    for job in jobs:
        folder = run.path / "delivered" / job.name
        architecture = Architecture.load(folder / "architecture.yaml")
        file = folder / measured_file(run.experiment.table.runtime, run.precision)
        nets[job.name] = (partial(content_of, file), architecture.input_shape)
    rounds = run.experiment.evaluate.latency_rounds
    _written(run, directory, nets, rounds=rounds, what="writing delivered models")
    measured = read_bundle(directory)
    condition, timings = measured.condition, measured.timings
    for name, reason in measured.refused.items():
        raise UserError(f"{directory}: {name} does not run on the device ({reason})")
    here, there = _device(condition.machine, condition.runtime), _device(run.table.machine, run.table.runtime)
    if here != there:
        raise UserError(f"{directory}: was measured on {here}, but the table on {there}")
    return timings


def _table_nets(run: Run, space: SearchSpace) -> Nets:
    """All nets of the table of a space and its audit, by their digests."""
    parts = table_nets(space, copies=run.experiment.table.copies)
    nets: list[Skeleton | Architecture] = [*parts, *run.audit_nets(space)]
    return {digest(net): net for net in nets}


def _written(
    run: Run,
    directory: Path,
    nets: Mapping[str, ShapedNet],
    *,
    rounds: int,
    left_out: tuple[LeftOut, ...] = (),
    what: str,
) -> None:
    config = run.experiment.table
    with run.screen.bar(what) as advance:
        write_bundle(
            directory,
            nets,
            runtime=config.runtime,
            precision=config.precision or "fp32",
            threads=config.threads,
            batch_size=config.batch_size,
            rounds=rounds,
            seed=run.experiment.seeds.table,
            plugins=_plugins(run),
            left_out=left_out,
            progress=counted(advance),
        )


def _plugins(run: Run) -> dict[str, str]:
    return {path.name: sha256(path) for path in run.plugins_of_models}


def _device(machine: Machine, runtime: RuntimeName) -> str:
    return f"{machine.cpu} ({machine.cores} cores, {machine.memory_gb:g} GB) with {runtime.name} {runtime.version}"


def _described(runtime: str, precision: str, threads: int, batch_size: int) -> str:
    return f"{runtime} ({precision}, batch {batch_size}, {threads} thread{'s' if threads > 1 else ''})"
