"""`slimformer audit RUN --against OTHER`: a table that was measured twice, how far the two agree."""

from __future__ import annotations

from pathlib import Path

from experiments.console import Screen
from experiments.experiment import Experiment
from experiments.measuring import table_at
from search.agreement import Agreement, agreement
from supernet.schema import save
from train.data import count_classes
from train.randomness import generator_for


def compare_tables(experiment: Experiment, run: Path, other: Path, *, nets: int, seed: int) -> tuple[Agreement, Path]:
    """Compare a run's table with that of another run or file, by random nets of the run's space; write the record.

    Raises `UserError` for tables that cannot be compared.
    """
    first, second = table_at(run), table_at(other)
    space = first.runnable(experiment.search_space(num_classes=count_classes(experiment.data)))
    generator = generator_for(seed, "agreement")
    record = agreement(first, second, [space.random(generator) for _ in range(nets)])
    path = run / "agreement.json"
    save(record, path)
    return record, path


def print_agreement(record: Agreement, path: Path, screen: Screen) -> None:
    """Print a row a thing compared, the largest difference, and where the record lies."""
    header = ["compared", "number", "mean %", "median %", "within 3 %", "worst %"]
    screen.table(f"{record.environment}, {' and '.join(record.dates)}", header, _rows(record))
    worst = record.worst_entry
    screen.line(
        f"The second took {record.speed:.3f} times as long, which is divided out. Largest difference:"
        f" {worst.first_ms:.4f} and {worst.second_ms:.4f} ms, {worst.entry}. Written: {path}"
    )


def _rows(record: Agreement) -> list[list[str]]:
    """Rows for a table: what is compared, how many, mean and median difference, share within 3 %, worst."""
    found = [
        ("whole nets, corrected", record.num_architectures, record.nets),
        ("whole nets, sum of parts", record.num_architectures, record.uncorrected),
        ("entries, weighted by ms", record.num_entries, record.entries),
    ]
    return [
        [
            name,
            str(count),
            f"{differences.mean_percent:.2f}",
            f"{differences.median_percent:.2f}",
            f"{differences.within_3_percent:.0f}",
            f"{differences.worst_percent:.1f}",
        ]
        for name, count, differences in found
    ]
