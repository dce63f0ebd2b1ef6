"""`slimformer audit`: how wrong a run's latency table is, on whole nets that it has never seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from experiments.artifacts import Environment
from experiments.console import Screen, counted
from experiments.run import DRAWS_A_NET, Run
from search.correction import fit_correction
from search.isolated import isolated_ms, isolated_nets
from search.latency_audit import LatencyErrors, LatencyPair, corrected, errors, evenly_spread, pair_of
from search.latency_table import LatencyTable
from search.net_building import CannotBuild
from search.parts import LatencyKey, keys
from supernet import Architecture, SearchSpace, UserError, cost
from supernet.schema import save
from train.randomness import generator_for

ISOLATED_ROUNDS = 10  # of visits of every part alone


class PredictorErrors(LatencyErrors):
    """The errors of one way to predict, on the same nets."""

    within_3_percent: float


class AuditRecord(PredictorErrors):
    """Predicted against measured latency of whole nets that neither table nor correction have seen.

    `remeasurement_percent` is what the same nets differ by between the two halves of the rounds: the floor. A net took
    `slowdown` times what it took when the table was measured, which is divided out; `recalibrated` is the table with a
    correction that was fitted on the same nets as its own, but measured in the rounds of the audit: what would be left
    had the machine not changed in any other way either (None in older records).
    `uncorrected` is the table's sum alone, `isolated_sum` that of every part timed alone; `macs`, `parameters` and
    `isolated_blocks` (that sum again) are straight lines fitted on the nets that the correction was fitted on. Parts
    alone are None where the runtime cannot run one.
    """

    schema_version: Literal[1] = 1
    runtime: str
    version: str
    precision: str
    threads: int
    batch_size: int
    num_architectures: int
    remeasurement_percent: float
    slowdown: float | None = None
    worst: Architecture
    recalibrated: PredictorErrors | None = None
    uncorrected: PredictorErrors
    macs: PredictorErrors
    parameters: PredictorErrors
    isolated_blocks: PredictorErrors | None
    isolated_sum: PredictorErrors | None = None  # None in older records
    environment: Environment
    pairs: tuple[LatencyPair, ...]


def spread_nets(
    space: SearchSpace, table: LatencyTable, *, count: int, seen: set[str], generator: torch.Generator
) -> list[Architecture]:
    """Random nets, as evenly over the range of predicted latency as they come, without those of these digests.

    Raises `UserError` where there are no others.
    """
    found: dict[str, tuple[float, Architecture]] = {}
    drawn = set[str]()
    for _ in range(DRAWS_A_NET * count):
        net = space.random(generator)
        drawn.add(net.digest)
        if net.digest not in seen:
            found[net.digest] = (table.latency_ms(net), net)
    if not found:
        raise UserError(
            f"the space has {len(drawn)} net{'s' if len(drawn) > 1 else ''}, and the table's audit has measured all of"
            " them: there is none that it has not seen"
        )
    pairs = list(found.values())
    return [pairs[index][1] for index in evenly_spread([latency_ms for latency_ms, _ in pairs], count)]


def audit_run(run: Run, *, nets: int, rounds: int, seed: int) -> AuditRecord:
    """Measure so many unseen nets of a run's space, at the speed that the machine had when its table was made."""
    fitted, table = run.audit.pairs, run.table
    references = [pair.architecture for pair in fitted]
    generator = generator_for(seed, "audit")
    chosen = spread_nets(
        run.runnable_space, table, count=nets, seen={pair.digest for pair in fitted}, generator=generator
    )
    parts = _parts_alone(run, [*chosen, *references])
    timings, slowdown = run.measure_nets(
        [*chosen, *references],
        what="measuring whole nets",
        rounds=rounds,
        generator=generator,
        warmup=3,
        references=len(fitted),  # all, because the noise of what a few measured then would be a bias of every error
    )

    def measured(of: Sequence[Architecture]) -> list[LatencyPair]:
        return [pair_of(net, table, timings[net], speed=1 / slowdown) for net in of]

    pairs, again = measured(chosen), fit_correction(measured(references))
    alone = None
    if parts is not None:
        with run.screen.bar("measuring parts alone") as advance:
            ms = isolated_ms(
                parts,
                rounds=ISOLATED_ROUNDS,
                threads=run.runtime.threads,
                generator=generator,
                progress=counted(advance),
            )
        alone = {key: one / slowdown for key, one in ms.items()}
    lines = _by_lines(fitted, pairs, alone)
    halves = [abs(pair.remeasured_ms / pair.measured_ms - 1) for pair in pairs]
    return AuditRecord(
        **predictor_errors(pairs).model_dump(),
        runtime=run.runtime.name,
        version=run.runtime.version,
        precision=run.runtime.precision,
        threads=run.runtime.threads,
        batch_size=run.experiment.table.batch_size,
        num_architectures=len(pairs),
        remeasurement_percent=100 * float(np.mean(halves)),
        slowdown=slowdown,
        worst=max(pairs, key=lambda pair: abs(pair.error_percent)).architecture,
        recalibrated=predictor_errors([corrected(pair, again) for pair in pairs]),
        uncorrected=predictor_errors([_valued(pair, sum(pair.kinds_ms.values())) for pair in pairs]),
        macs=lines["macs"],
        parameters=lines["parameters"],
        isolated_blocks=lines.get("isolated_blocks"),
        isolated_sum=None if alone is None else predictor_errors([_valued(pair, _sum(pair, alone)) for pair in pairs]),
        environment=run.environment,
        pairs=tuple(pairs),
    )


def _parts_alone(run: Run, nets: Sequence[Architecture]) -> dict[LatencyKey, Callable[[], object]] | None:
    """Every part of these nets in a net of its own; None, and a line that says why, where one cannot be run."""
    wanted = (key for net in nets for key in keys(net))
    try:
        return isolated_nets(wanted, run.runtime, batch_size=run.experiment.table.batch_size)
    except CannotBuild as refused:
        run.screen.line(f"  parts are not timed alone: {refused.reason}")
        return None


def _sum(pair: LatencyPair, alone: Mapping[LatencyKey, float]) -> float:
    """The ms of a net's parts timed alone; a reshape takes none."""
    return sum(alone.get(key, 0.0) for key in keys(pair.architecture))


def _by_lines(
    fitted: Sequence[LatencyPair], pairs: Sequence[LatencyPair], alone: Mapping[LatencyKey, float] | None
) -> dict[str, PredictorErrors]:
    """The errors of what needs no table: a straight line through one figure of a net, fitted on the table's own nets.

    The figures are MACs, parameters, and the sum of all parts timed alone, where they were.
    """
    costs = {pair.digest: cost(pair.architecture) for pair in (*fitted, *pairs)}

    def line(value: Callable[[LatencyPair], float]) -> PredictorErrors:
        correction = fit_correction([_valued(pair, value(pair)) for pair in fitted])
        return predictor_errors([corrected(_valued(pair, value(pair)), correction) for pair in pairs])

    lines = {
        "macs": line(lambda pair: costs[pair.digest].macs / 1e9),
        "parameters": line(lambda pair: costs[pair.digest].parameters / 1e6),
    }
    if alone is not None:
        lines["isolated_blocks"] = line(lambda pair: _sum(pair, alone))
    return lines


def _valued(pair: LatencyPair, value: float) -> LatencyPair:
    """A net that is predicted by this figure alone."""
    return pair.model_copy(update={"predicted_ms": value, "kinds_ms": {"": value}, "parameters": 0, "numbers": 0})


def predictor_errors(pairs: Sequence[LatencyPair]) -> PredictorErrors:
    """The errors of these predictions, with the share within 3 %."""
    within = 100 * float(np.mean([abs(pair.error_percent) <= 3 for pair in pairs]))
    return PredictorErrors(**errors(pairs).model_dump(), within_3_percent=within)


def save_audit(record: AuditRecord, folder: Path) -> Path:
    """Write the record as `audit.json`; it says the condition."""
    path = folder / "audit.json"
    save(record, path)
    return path


def print_audit(record: AuditRecord, path: Path, screen: Screen) -> None:
    """Print a row a way to predict, how well the nets can be measured at all, and where the record lies."""
    header = ["prediction", "error %", "within 3 %", "5 %", "10 %", "bias %", "worst %", "tau"]
    title = f"{record.num_architectures} whole nets, {record.runtime} {record.version}"
    screen.table(title, header, _rows(record))
    screen.line(
        f"Measured again, the same nets differ by {record.remeasurement_percent:.1f} % on average. Written: {path}"
    )


def _rows(record: AuditRecord) -> list[list[str]]:
    """Rows for a table: a way to predict, mean absolute error, shares within 3, 5 and 10 %, bias, worst, tau."""
    ways: list[tuple[str, PredictorErrors]] = [
        ("table, corrected", record),
        *([] if record.recalibrated is None else [("table, corrected again", record.recalibrated)]),
        ("table, sum of parts", record.uncorrected),
        *([] if record.isolated_sum is None else [("parts timed alone, sum", record.isolated_sum)]),
        *([] if record.isolated_blocks is None else [("parts timed alone, line", record.isolated_blocks)]),
        ("MACs, line", record.macs),
        ("parameters, line", record.parameters),
    ]
    return [
        [
            name,
            f"{found.mean_absolute_error_percent:.1f}",
            f"{found.within_3_percent:.0f}",
            f"{found.within_5_percent:.0f}",
            f"{found.within_10_percent:.0f}",
            f"{found.bias_percent:+.1f}",
            f"{found.worst_percent:.1f}",
            "-" if found.kendall_tau is None else f"{found.kendall_tau:.3f}",
        ]
        for name, found in ways
    ]
