"""What the exact solver keeps to besides the milliseconds of a budget: an experiment's `search.limits`."""

from __future__ import annotations

from pathlib import Path

from experiments.experiment import Experiment
from experiments.measuring import table_at
from experiments.run import Run
from search.latency_table import LatencyTable, UnmeasuredBlock
from search.limits import AnyLimit, Limit, PartLimit, latency_limit
from search.parts import LatencyKey, macs_of, parameters_of, peak_activations_of_part
from search.skeletons import recipes
from supernet import SearchSpace, UserError

BYTES_A_NUMBER = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}


def further_limits(run: Run) -> list[AnyLimit]:
    """The limits, in the order of the config's fields. Raises `UserError` for a table that does not fit the space."""
    config, limits = run.experiment.search.limits, list[AnyLimit]()
    if config is None:
        return limits
    if config.parameters is not None:
        limits.append(Limit("parameters", parameters_of, config.parameters))
    if config.macs is not None:
        limits.append(Limit("MACs", macs_of, config.macs))
    if config.peak_activation_mb is not None:
        megabytes = BYTES_A_NUMBER[run.precision] / 1e6

        def peak_mb(key: LatencyKey) -> float:
            return peak_activations_of_part(key) * megabytes

        limits.append(PartLimit("MB of activations at once", peak_mb, config.peak_activation_mb))
    for device in config.devices:
        table = _table(Path(device.table), run.space)
        limits.append(latency_limit(table, device.at_most_ms, name=f"ms by {device.table}"))
    return limits


def device_tables(experiment: Experiment) -> tuple[Path, ...]:
    """The files of further devices. Raises `UserError` for one that is not there."""
    limits = experiment.search.limits
    paths = () if limits is None else tuple(Path(device.table) for device in limits.devices)
    for path in paths:
        if not path.is_file():
            raise UserError(f"search.limits.devices: {path}: no such file; give the latency table of another device")
    return paths


def check_device_tables(run: Run) -> None:
    """Raise `UserError` for a table that cannot be read, or is of another space, before anything is trained."""
    for path in device_tables(run.experiment):
        _table(path, run.space)


def _table(path: Path, space: SearchSpace) -> LatencyTable:
    """The table of a device that runs every candidate of the space."""
    table = table_at(path)
    table.check_resolution(space.resolution_px, source=f"search.limits.devices: {path}")
    if table.left_out:
        left_out = ", ".join(f"stage {one.stage} without {one.candidate}" for one in table.left_out)
        raise UserError(f"search.limits.devices: {path} has {left_out}; leave that out of the space")
    try:
        for recipe in recipes(space, copies=1):
            table.ms(recipe.key)
    except UnmeasuredBlock as missing:
        raise UserError(f"search.limits.devices: {path} is the table of another space: {missing}") from None
    return table
