"""What delivered models take on this machine, and whether one over its budget is too slow or the machine is.

Other programs and the processor's clock make all nets slower for seconds or minutes. So nets of the table's audit are
measured in the same rounds: they tell the machine's speed against what it was when the table was measured.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from experiments.models import Job, measured_file, trained_model
from experiments.run import REFERENCES, Run
from search.measure import Net, Timing
from search.runtimes import FileRuntime
from supernet import Architecture
from train.randomness import generator_for

FIRST_PAUSE_SECONDS = 0.5
PAUSES = 7  # 63.5 s in all, for all models together
SHORT_PAUSES = 3  # for a net that is over its budget at the table's speed too: 3.5 s


@dataclass(frozen=True)
class Latency:
    """One model's measurements, in the order in which they were taken.

    `speeds` says how many times as fast the machine was at each when the table was measured.
    """

    timings: tuple[Timing, ...]
    speeds: tuple[float, ...]

    @property
    def timing(self) -> Timing:
        """The fastest measurement: other programs only ever make a net slower."""
        return min(self.timings, key=lambda timing: timing.median_ms)

    @property
    def at_tables_speed_ms(self) -> float:
        """What the net takes at the speed that the machine had when the table was measured."""
        return statistics.median(
            timing.median_ms / speed for timing, speed in zip(self.timings, self.speeds, strict=True)
        )

    def then(self, later: Latency) -> Latency:
        """With the measurements that were taken later."""
        return Latency((*self.timings, *later.timings), (*self.speeds, *later.speeds))


class DeliveredNets:
    """Measures delivered files themselves, or their modules on a runtime that reads no files."""

    def __init__(self, run: Run) -> None:
        self.run = run

    @cached_property
    def references(self) -> dict[Architecture, Net]:
        """Whole nets of the audit, built once."""
        return self.run.build_nets(self.run.audit.references(REFERENCES))

    def _delivered(self, job: Job) -> Net:
        folder = self.run.path / "delivered" / job.name
        architecture = Architecture.load(folder / "architecture.yaml")
        shape = (self.run.experiment.table.batch_size, *architecture.input_shape)
        if isinstance(self.run.runtime, FileRuntime):
            name = measured_file(self.run.experiment.table.runtime, self.run.precision)
            return self.run.runtime.load(folder / name, shape)
        return self.run.runtime.build(trained_model(architecture, folder / "model.safetensors"), shape)

    def measure(self, jobs: Sequence[Job]) -> dict[str, Latency]:
        """Time the delivered models of some jobs, by name."""
        if not jobs:
            return {}
        timings, slowdown = self.run.measure_beside(
            self.references,
            {job.name: self._delivered(job) for job in jobs},
            what="measuring delivered models",
            rounds=self.run.experiment.evaluate.latency_rounds,
            generator=generator_for(self.run.experiment.seeds.table, "delivered"),
        )
        return {name: Latency((timing,), (slowdown,)) for name, timing in timings.items()}

    def undisturbed(self, jobs: Sequence[Job]) -> dict[str, Latency]:
        """Time delivered models; those over their budgets again, after pauses."""
        first = self.measure(jobs)
        over = [job for job in jobs if first[job.name].timing.median_ms > job.budget_ms]
        if over:
            speed = first[over[0].name].speeds[0]
            self.run.screen.line(
                f"  over the budget: {', '.join(job.name for job in over)} (the machine takes {speed:.2f} times what it"
                " took for the table); measuring again after pauses"
            )
        return least_disturbed(first, jobs, self.measure)


def least_disturbed(
    first: Mapping[str, Latency], jobs: Sequence[Job], measure_again: Callable[[list[Job]], Mapping[str, Latency]]
) -> dict[str, Latency]:
    """Measure again, after pauses, what is over its budget; for long only where the machine is slower than it was.

    A measurement of a small net is over in milliseconds, so the pauses, each twice as long as the last and shared by
    all nets, are what outlasts a disturbance.
    """
    found = dict(first)
    for pause in range(PAUSES):
        over = [job for job in jobs if found[job.name].timing.median_ms > job.budget_ms]
        if pause >= SHORT_PAUSES:
            over = [job for job in over if found[job.name].at_tables_speed_ms <= job.budget_ms]
        if not over:
            break
        time.sleep(FIRST_PAUSE_SECONDS * 2**pause)
        for name, latency in measure_again(over).items():
            found[name] = found[name].then(latency)
    return found
