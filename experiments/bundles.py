"""A device that is not this machine: its table comes from a bundle that was measured there, and so do final latencies.

The way of it: `slimformer table EXPERIMENT --bundle DIR` writes the bundle, `python measure.py` in it on the device
writes `results.json`, and `table.bundle: DIR` in the experiment takes both as the latency table. Delivered models go
the same way: the export writes `on-device/`, and goes on when its results are there.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from experiments.artifacts import sha256
from experiments.console import counted
from experiments.models import Job, measured_file
from experiments.run import Run
from search.bundle import PLAN, RESULTS, SCRIPT, ShapedNet, read_bundle, write_bundle
from search.latency_table import LatencyTable, Protocol, RuntimeName
from search.measure import Machine, Timing
from search.model_files import content_of, files_of
from search.net_building import module_of
from search.skeletons import Skeleton
from search.table_building import table_nets, table_of
from supernet import Architecture, UserError
from supernet.schema import digest

ON_DEVICE = "on-device"


def write_table_bundle(run: Run, directory: Path) -> None:
    """Write the nets of a run's latency table, and the whole nets that audit it, to be measured elsewhere."""
    nets = {name: (partial(module_of, net), net.input_shape) for name, net in _table_nets(run).items()}
    _written(run, directory, nets, rounds=run.experiment.table.rounds, what="writing the table's nets")
    size_mb = sum(file.stat().st_size for file in files_of(directory / "nets")) / 1e6
    run.screen.line(
        f"{directory}: {len(nets)} nets, {size_mb:,.0f} MB. Copy it to the device, run python {SCRIPT} in it, put"
        f" {RESULTS} back, and set table.bundle: {directory}"
    )


def read_table_bundle(run: Run) -> tuple[LatencyTable, dict[Architecture, Timing]]:
    """The table of a measured bundle, and the timings of its whole nets. Raises `UserError` if it is another's."""
    directory, config = Path(run.experiment.table.bundle or ""), run.experiment.table
    plan, condition, timings = read_bundle(directory)
    nets = _table_nets(run)
    here = (config.runtime, config.precision or "fp32", config.threads, config.batch_size)
    there = (plan.runtime, plan.precision, plan.threads, plan.batch_size)
    if there != here:
        raise UserError(
            f"{directory}: was written for {_described(*there)}, but the experiment asks for {_described(*here)}"
        )
    if plan.plugins != _plugins(run):
        raise UserError(f"{directory}: was written with other plugins, or before they were edited; write it again")
    if {net.name for net in plan.nets} != nets.keys():
        raise UserError(
            f"{directory}: was written for another space, resolution or set of audit nets; write it again:"
            " slimformer table EXPERIMENT.yaml --bundle DIR"
        )
    table = table_of(
        run.space,
        {net: timings[name] for name, net in nets.items() if isinstance(net, Skeleton)},
        condition=condition,
        protocol=Protocol(
            rounds=plan.protocol.rounds,
            standard_error_percent=config.standard_error_percent,
            warmup=plan.protocol.warmup,
            copies=config.copies,
            settle=plan.protocol.settle,
            settle_ms=plan.protocol.settle_ms,
            nets=len(nets),
            seed=plan.seed,
        ),
    )
    return table, {net: timings[name] for name, net in nets.items() if isinstance(net, Architecture)}


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
    _, condition, timings = read_bundle(directory)
    here, there = _device(condition.machine, condition.runtime), _device(run.table.machine, run.table.runtime)
    if here != there:
        raise UserError(f"{directory}: was measured on {here}, but the table on {there}")
    return timings


def _table_nets(run: Run) -> dict[str, Skeleton | Architecture]:
    """All nets of the table and its audit, by their digests."""
    parts = table_nets(run.space, copies=run.experiment.table.copies)
    nets: list[Skeleton | Architecture] = [*parts, *run.audit_nets(run.space)]
    return {digest(net): net for net in nets}


def _written(run: Run, directory: Path, nets: Mapping[str, ShapedNet], *, rounds: int, what: str) -> None:
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
            progress=counted(advance),
        )


def _plugins(run: Run) -> dict[str, str]:
    return {path.name: sha256(path) for path in run.plugins}


def _device(machine: Machine, runtime: RuntimeName) -> str:
    return f"{machine.cpu} ({machine.cores} cores, {machine.memory_gb:g} GB) with {runtime.name} {runtime.version}"


def _described(runtime: str, precision: str, threads: int, batch_size: int) -> str:
    return f"{runtime} ({precision}, batch {batch_size}, {threads} thread{'s' if threads > 1 else ''})"
