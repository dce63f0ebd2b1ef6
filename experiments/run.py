"""Run: what the stages of one experiment share, opened when it is first needed."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import torch

from experiments.artifacts import RunFolder, environment
from experiments.console import Screen, counted
from experiments.experiment import Experiment
from experiments.plugins import without_methods
from search.bench import bytes_at_once
from search.latency_audit import LatencyAudit, evenly_spread
from search.latency_table import LatencyTable
from search.measure import Net, Timing, machine, measure
from search.net_building import Buildable, Built, NetT, build_models, building
from search.parts import keys, macs_of
from search.runtimes import Runtime, runtime
from supernet import Architecture, SearchSpace, Supernet, UserError
from train.checkpoint import load_weights
from train.data import ImageData, count_classes, open_data
from train.randomness import generator_for
from train.supernet_training import weights_path

AUDIT = "latency-audit.json"
Key = TypeVar("Key", bound=Hashable)

REFERENCES = 6  # nets of the audit that tell the machine's speed wherever a single net is measured
WARMUP_RUNS = 5
DRAWN_A_NET = 10  # different nets of which one is measured ...
DRAWS_A_NET = 50  # ... with so many draws at most
MOST_AT_ONCE = 4  # each holds the decoded images of its own


class Run:
    """An experiment, its folder, and everything that more than one stage needs."""

    def __init__(
        self,
        experiment: Experiment,
        folder: RunFolder,
        screen: Screen,
        *,
        command: str,
        plugins: Sequence[Path] = (),
    ) -> None:
        self.experiment, self.folder, self.screen, self.plugins = experiment, folder, screen, tuple(plugins)
        self.path = folder.path
        self.threads = all_threads(experiment)
        self.device = chosen_device(experiment.device)
        # Taken now, when the code is loaded: the checkout may change while a long stage runs.
        self.environment = environment(threads=self.threads, command=command)

    @property
    def processes(self) -> int:
        """How many models may be retrained at once."""
        return processes_at_once(self.experiment, self.device)

    @cached_property
    def data(self) -> ImageData:
        """The images, opened and decoded once."""
        return open_data(self.experiment.data, seed=self.experiment.seeds.data)

    @cached_property
    def space(self) -> SearchSpace:
        """The search space for these images, which it does not open."""
        return self.experiment.search_space(num_classes=count_classes(self.experiment.data))

    @cached_property
    def runnable_space(self) -> SearchSpace:
        """The same without the candidates that the table's runtime cannot build: what is searched.

        The supernet and its importance know all candidates.
        """
        return self.table.runnable(self.space)

    @property
    def supernet_directory(self) -> Path:
        """Where the supernet's training keeps its files."""
        return self.path / "supernet"

    @cached_property
    def supernet(self) -> Supernet:
        """The trained supernet."""
        supernet = Supernet(self.space)
        load_weights(supernet, weights_path(self.supernet_directory))
        return supernet.to(self.device)

    @cached_property
    def budgets_ms(self) -> tuple[float, ...]:
        """The budgets of the search, ascending: as given, or as shares of the largest architecture's prediction."""
        search = self.experiment.search
        if search.budgets_ms is not None:
            return tuple(sorted(set(search.budgets_ms)))
        largest_ms = self.table.latency_ms(self.runnable_space.largest)
        return tuple(sorted({float(f"{share * largest_ms:.3g}") for share in search.budgets_of_largest or ()}))

    @property
    def elsewhere(self) -> bool:
        """Whether latency is that of another device, from a bundle that was measured there."""
        return self.experiment.table.bundle is not None

    @property
    def precision(self) -> str:
        """The number format in which latency counts."""
        return (self.experiment.table.precision or "fp32") if self.elsewhere else self.runtime.precision

    @property
    def plugins_of_models(self) -> tuple[Path, ...]:
        """The plugins that models and latencies depend on: search methods need nothing to be trained again."""
        return without_methods(self.plugins)

    def audit_nets(self, space: SearchSpace) -> list[Architecture]:
        """The whole nets that audit the table and correct it: the smallest, the largest, and random ones between.

        They are spread over the MACs, because nothing is known of milliseconds yet, and in random order.
        """
        count = self.experiment.table.audit_nets
        generator = generator_for(self.experiment.seeds.table, "audit nets")
        nets = {net.digest: net for net in (space.smallest, space.largest)}
        for _ in range(DRAWS_A_NET * count):
            if len(nets) >= DRAWN_A_NET * count:
                break
            architecture = space.random(generator)
            nets[architecture.digest] = architecture
        drawn = list(nets.values())
        chosen = evenly_spread([sum(map(macs_of, keys(net))) for net in drawn], count)
        return [drawn[chosen[index]] for index in torch.randperm(len(chosen), generator=generator).tolist()]

    @cached_property
    def runtime(self) -> Runtime:
        """The runtime whose latency counts."""
        table = self.experiment.table
        return runtime(table.runtime, threads=table.threads, precision=table.precision)

    @cached_property
    def table(self) -> LatencyTable:
        """The measured table, with the correction that its audit on whole nets found (not in older files)."""
        written = self.folder.manifest.stages["table"].artifacts
        (name,) = (name for name in written if name != AUDIT)
        table = LatencyTable.load(self.path / name)
        table.check_resolution(self.space.resolution_px, source=self.path / name)
        if not self.elsewhere:
            there, here = (f"{one.name} {one.version}" for one in (table.runtime, self.runtime))
            changed = [] if there == here else [f"with {there}, but here is {here}"]
            if not table.machine.same_processor(this_machine := machine()):
                changed.append(f"on {table.machine.described}, but this is {this_machine.described}")
            if changed:
                raise UserError(
                    f"{self.path / name}: was measured {' and '.join(changed)}; measure one here:"
                    f" slimformer table {self.path} --redo"
                )
        return table.corrected(self.audit.correction)

    @cached_property
    def audit(self) -> LatencyAudit:
        """The whole nets that were measured together with the table."""
        return LatencyAudit.load(self.path / AUDIT)

    def build_nets(self, nets: Sequence[NetT]) -> dict[NetT, Net]:
        """Whole nets with random weights, on the runtime whose latency counts."""
        return build_models(nets, self.runtime, batch_size=self.experiment.table.batch_size, processes=self.threads)

    def measure_beside(
        self,
        references: Mapping[Architecture, Net],
        nets: Mapping[Key, Net],
        *,
        what: str,
        rounds: int,
        generator: torch.Generator,
        warmup: int = WARMUP_RUNS,
    ) -> tuple[dict[Key, Timing], float]:
        """Time nets in the same rounds as nets of the table's audit, all of them built.

        Returns their timings as they are, and the machine's slowdown: the median factor by which the nets of the audit
        take longer than they took when the table was measured.
        """
        every = dict[Architecture | Key, Net]([*nets.items(), *references.items()])
        with self.screen.bar(what) as advance:
            timings = measure(
                every,
                rounds=rounds,
                warmup=warmup,
                generator=generator,
                threads=self.runtime.threads,
                progress=counted(advance),
            )
        return {key: timings[key] for key in nets}, self.audit.slowdown({net: timings[net] for net in references})

    def measure_nets(
        self,
        nets: Sequence[NetT],
        *,
        what: str,
        rounds: int,
        generator: torch.Generator,
        warmup: int = WARMUP_RUNS,
        references: int = REFERENCES,
    ) -> tuple[dict[NetT, Timing], float]:
        """As `measure_beside`, of nets that are built here, beside at most so many of the audit.

        What memory does not hold at once (`search.bench`) is measured in chunks, each beside the same nets of the
        audit; later chunks are brought to the slowdown of the first.
        """
        audited, room = self.audit.references(references), bytes_at_once()
        left = list(dict.fromkeys(list[NetT | Architecture]([*audited, *nets])))
        beside: dict[NetT | Architecture, Built] = {}
        timings: dict[NetT, Timing] = {}
        slowdown = 1.0
        while left:
            built = beside | self._built(
                left,
                room=room - sum(net.size_bytes for net in beside.values()),
                least=1 if beside else len(audited) + 1,
            )
            beside = {net: built[net] for net in audited}
            left = [net for net in left if net not in built]
            found, now = self.measure_beside(
                {net: built[net].net for net in audited},
                {net: built[net].net for net in nets if net in built and net not in timings},
                what=what,
                rounds=rounds,
                generator=generator,
                warmup=warmup,
            )
            del built
            if timings:
                found = {net: timing.scaled(slowdown / now) for net, timing in found.items()}
            else:
                slowdown = now
            timings |= found
        return {net: timings[net] for net in nets}, slowdown

    def _built(self, nets: Sequence[NetT], *, room: float, least: int) -> dict[NetT, Built]:
        """The first of these nets on the runtime, until their weights fill the room, but so many at least."""
        built: dict[NetT, Built] = {}
        batch_size = self.experiment.table.batch_size
        with closing(building(nets, self.runtime, batch_size=batch_size, processes=self.threads)) as made:
            while len(built) < len(nets) and (room > 0 or len(built) < least):
                net = nets[len(built)]
                built[net] = next(made)()
                room -= built[net].size_bytes
        return built

    def measure_at_tables_speed(self, net: Architecture | Buildable, *, what: str) -> float:
        """The latency of a whole net in ms, at the speed that the machine had when the table was measured."""
        timings, slowdown = self.measure_nets(
            [net],
            what=what,
            rounds=self.experiment.evaluate.latency_rounds,
            generator=generator_for(self.experiment.seeds.table, "measure", net.digest),
        )
        return timings[net].median_ms / slowdown


def chosen_device(name: str) -> torch.device:
    """The device of an experiment. Raises `UserError` for CUDA where there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device: cuda was asked for, but torch finds no CUDA device here (use auto or cpu)")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def all_threads(experiment: Experiment) -> int:
    """The threads that a run may use in all."""
    return experiment.threads or len(os.sched_getaffinity(0))


def processes_at_once(experiment: Experiment, device: torch.device) -> int:
    """How many models may be retrained at once on this device."""
    if device.type != "cpu":
        return 1
    return experiment.processes or min(all_threads(experiment), MOST_AT_ONCE)
