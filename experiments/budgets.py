"""`slimformer audit --budgets`: whether nets delivered for budgets over the whole range keep them, measured afresh."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from experiments.artifacts import Environment
from experiments.console import Screen
from experiments.run import Run
from search.baselines import random_architecture
from search.delivery import Delivery, deliver
from search.slimming import BudgetUnreachable
from supernet import Architecture, UserError
from supernet.schema import Record, save
from train.randomness import generator_for

LOWEST, HIGHEST = 0.05, 0.95  # of the way from the smallest net's latency to the largest's


class DeliveredNet(Record):
    """One budget and the net delivered for it, measured afresh: as it is, and at the speed of the table's day.

    `shortfall` is why the delivery loop settled for a net that is faster than it had to be, if it did.
    """

    budget_ms: float
    predicted_ms: float
    found_ms: float
    measured_ms: float
    measured_p10_ms: float
    measured_p90_ms: float
    at_tables_speed_ms: float
    rounds: int
    architecture: Architecture
    shortfall: str | None = None


class UnreachableBudget(Record):
    """A budget that no net was delivered for, and why."""

    budget_ms: float
    reason: str


class DeliveryRecord(Record):
    """Budgets spread over the range of a space, and how the nets that were delivered for them measure.

    Each budget begins with another random architecture, which the delivery loop measures and corrects; `found_ms` is
    its last word. `slack_percent` is how far a fresh measurement is below the budget (negative: above), the mean of
    those as they are; `at_tables_speed` is the same with the machine's change of speed since then divided out.
    """

    schema_version: Literal[1] = 1
    runtime: str
    version: str
    precision: str
    threads: int
    batch_size: int
    margin: float
    slack: float
    budgets: int
    within_budget: int
    within_budget_at_tables_speed: int
    slack_percent: float
    slack_percent_at_tables_speed: float
    speed: float
    environment: Environment
    nets: tuple[DeliveredNet, ...]
    unreachable: tuple[UnreachableBudget, ...]


def audit_budgets(run: Run, *, budgets: int, rounds: int, seed: int) -> DeliveryRecord:
    """Deliver a random net for each of so many budgets, then measure all of them again, in the same rounds.

    Raises `UserError` if no budget could be kept.
    """
    found, unreachable = list[Delivery](), list[UnreachableBudget]()
    for number, budget_ms in enumerate(spread_budgets(run, budgets), start=1):
        try:
            found.append(_delivered(run, budget_ms, seed=seed, number=number))
        except BudgetUnreachable as reason:
            unreachable.append(UnreachableBudget(budget_ms=budget_ms, reason=str(reason)))
            run.screen.line(f"  {reason}")
    if not found:
        raise UserError(f"{run.path}: no budget could be kept")
    nets, slowdown = _measured_afresh(run, found, rounds=rounds, seed=seed)
    slack = [100 * (1 - net.measured_ms / net.budget_ms) for net in nets]
    slack_then = [100 * (1 - net.at_tables_speed_ms / net.budget_ms) for net in nets]
    return DeliveryRecord(
        runtime=run.runtime.name,
        version=run.runtime.version,
        precision=run.runtime.precision,
        threads=run.runtime.threads,
        batch_size=run.experiment.table.batch_size,
        margin=run.experiment.search.margin,
        slack=run.experiment.search.slack,
        budgets=budgets,
        within_budget=sum(percent >= 0 for percent in slack),
        within_budget_at_tables_speed=sum(percent >= 0 for percent in slack_then),
        slack_percent=float(np.mean(slack)),
        slack_percent_at_tables_speed=float(np.mean(slack_then)),
        speed=slowdown,
        environment=run.environment,
        nets=tuple(nets),
        unreachable=tuple(unreachable),
    )


def spread_budgets(run: Run, count: int) -> list[float]:
    """Budgets in ms at even steps between what the fastest and the largest net of a run's space are predicted."""
    smallest_ms = run.table.latency_ms(run.table.fastest(run.runnable_space))
    largest_ms = run.table.latency_ms(run.runnable_space.largest)
    shares = np.linspace(LOWEST, HIGHEST, count)
    return [float(f"{smallest_ms + share * (largest_ms - smallest_ms):.4g}") for share in shares]


def _delivered(run: Run, budget_ms: float, *, seed: int, number: int) -> Delivery:
    """What the delivery loop makes of another random architecture for each number. Raises `BudgetUnreachable`."""
    search = run.experiment.search

    def solve(asked_ms: float) -> Architecture:
        generator = generator_for(seed, "delivery", str(number))
        return random_architecture(
            run.runnable_space, table=run.table, budget_ms=asked_ms, generator=generator, tolerance=search.slack
        )

    return deliver(
        budget_ms=budget_ms,
        margin=search.margin,
        slack=search.slack,
        solve=solve,
        predict_ms=run.table.latency_ms,
        measure_ms=lambda net: run.measure_at_tables_speed(net, what=f"delivering for {budget_ms:g} ms"),
    )


def _measured_afresh(
    run: Run, found: Sequence[Delivery], *, rounds: int, seed: int
) -> tuple[list[DeliveredNet], float]:
    """The delivered nets with a new measurement of each, and the machine's slowdown since the table's day."""
    timings, slowdown = run.measure_nets(
        [delivery.architecture for delivery in found],
        what="measuring delivered nets afresh",
        rounds=rounds,
        generator=generator_for(seed, "delivered afresh"),
        references=len(run.audit.pairs),
    )
    nets = []
    for delivery in found:
        timing, last = timings[delivery.architecture], delivery.delivered
        nets.append(
            DeliveredNet(
                budget_ms=delivery.budget_ms,
                predicted_ms=last.predicted_ms,
                found_ms=last.measured_ms or last.predicted_ms,
                measured_ms=timing.median_ms,
                measured_p10_ms=timing.p10_ms,
                measured_p90_ms=timing.p90_ms,
                at_tables_speed_ms=timing.median_ms / slowdown,
                rounds=len(delivery.rounds),
                shortfall=delivery.shortfall,
                architecture=delivery.architecture,
            )
        )
    return nets, slowdown


def save_delivery(record: DeliveryRecord, folder: Path) -> Path:
    """Write the record as `delivery.json`; it says the condition."""
    path = folder / "delivery.json"
    save(record, path)
    return path


def print_delivery(record: DeliveryRecord, path: Path, screen: Screen) -> None:
    """Print a row a delivered net, how many keep their budgets, and where the record lies."""
    header = ["budget ms", "predicted", "measured", "at table's speed", "slack %", "slack % then", "rounds"]
    title = f"Nets delivered for {record.budgets} budgets, {record.runtime} {record.version}"
    screen.table(title, header, _rows(record))
    for net in record.nets:
        if net.shortfall:
            screen.line(f"  {net.budget_ms:g} ms: {net.shortfall}")
    screen.line(
        f"{record.within_budget} of {record.budgets} within their budgets as measured,"
        f" {record.within_budget_at_tables_speed} at the table's speed (a net takes {record.speed:.2f} times"
        f" what it took then). Written: {path}"
    )


def _rows(record: DeliveryRecord) -> list[list[str]]:
    """Rows for a table: budget, predicted, measured as it is and at the table's speed, slack of both in %, rounds."""
    return [
        [
            f"{net.budget_ms:g}",
            f"{net.predicted_ms:.4g}",
            f"{net.measured_ms:.4g}",
            f"{net.at_tables_speed_ms:.4g}",
            f"{100 * (1 - net.measured_ms / net.budget_ms):.1f}",
            f"{100 * (1 - net.at_tables_speed_ms / net.budget_ms):.1f}",
            str(net.rounds),
        ]
        for net in record.nets
    ]
