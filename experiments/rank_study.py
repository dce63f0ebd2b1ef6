"""The rank study: architectures spread over the latencies, trained alone, against every way of scoring them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np

from analysis.ranking import kendall_tau, ranking, tau_difference, tau_interval
from experiments.artifacts import Environment, digest_of
from experiments.console import counted
from experiments.importances import MEASURED
from experiments.run import Run
from experiments.scorers import Scorers, Scores
from experiments.study import RankConfig, Study
from experiments.study_units import FailedTraining, StudyFolder, Training, failures, trained
from experiments.supernet_variants import SupernetVariants
from supernet import Architecture, UserError, cost
from supernet.schema import Record
from train.randomness import derived_seed, generator_for
from train.retraining import RetrainConfig

BINS = 10  # equal parts of the range of predicted latencies
DRAWS = 3000  # always as many, so that a larger study begins with the nets of a smaller one
BOOTSTRAP_SEED = derived_seed(0, "bootstrap") % 2**32  # the same samples for every score

Interval = tuple[float, float]


class RankedNet(Record):
    """One architecture: what it costs, its test accuracy in percent by seed, and every score by its name."""

    digest: str
    table_ms: float
    macs: int
    parameters: int
    accuracy_percent: dict[str, float]
    scores: dict[str, float]


class ScorerRanking(Record):
    """How a score ranks the trained nets; null where too few are trained to say.

    Accuracies are means over the study's seeds. Kendall's tau is tau-b; intervals are 95 %, by a bootstrap over nets.
    `precision_at_5` is the share of its best five among the most accurate five, `regret` by how many points its best
    is less accurate than the most accurate net. The tercile figures are means over three groups of similar latency,
    with as many nets in each: what a search at a given latency needs, where size alone says little.
    `seed_ceiling_tau` is the tau between two trainings of the same nets with different seeds; a perfect score, without
    a training's noise of its own, would be somewhat above it.
    """

    scorer: str
    num_architectures: int
    kendall_tau: float | None
    tau_interval_95: Interval | None
    spearman: float | None
    precision_at_5: float | None
    regret: float | None
    tercile_tau: float | None
    tercile_tau_interval_95: Interval | None
    tercile_regret: float | None
    seed_ceiling_tau: float | None
    tau_difference: float | None = None
    tau_difference_interval_95: Interval | None = None


class RankRecord(Record):
    """`rank_study.json`: scores against trainings; `missing` of its `trainings` are still to do, `failed` diverged.

    A net with a training that failed is in no figure that needs it. `seed_sd_points` is the standard deviation of one
    training's accuracy over seeds, from the nets of the ceiling; `seed_ceiling_interval_95` is by a bootstrap over
    these nets, as the intervals of the scores' taus are.
    """

    added_later: ClassVar[frozenset[str]] = frozenset({"seed_ceiling_interval_95", "failed"})

    schema_version: Literal[1] = 1
    study: str
    experiment: str
    recipe: RetrainConfig
    config: RankConfig
    test_set: str
    test_images: int
    trainings: int
    missing: int
    training_minutes: float
    seed_ceiling_tau: float | None
    seed_ceiling_architectures: int
    seed_sd_points: float | None
    environment: Environment
    scorers: tuple[ScorerRanking, ...]
    architectures: tuple[RankedNet, ...]
    seed_ceiling_interval_95: Interval | None = None
    failed: tuple[FailedTraining, ...] = ()


def spread_architectures(run: Run, config: RankConfig) -> list[Architecture]:
    """The smallest, the largest and random architectures, taken in turn from each part of the range of latencies.

    Deterministic; the first so many are spread as well as all. Raises `UserError` if there are not enough.
    """
    table, space = run.table, run.runnable_space
    low_ms, high_ms = table.latency_ms(space.smallest), table.latency_ms(space.largest)
    generator = generator_for(config.draw_seed, "architectures of a rank study")
    drawn = {net.digest: net for net in (space.smallest, space.largest)}
    bins: list[list[Architecture]] = [[] for _ in range(BINS)]
    for _ in range(DRAWS):
        net = space.random(generator)
        if net.digest not in drawn:
            drawn[net.digest] = net
            share = (table.latency_ms(net) - low_ms) / max(high_ms - low_ms, 1e-12)
            bins[min(BINS - 1, max(0, int(BINS * share)))].append(net)
    if len(drawn) < config.architectures:
        raise UserError(
            f"rank.architectures: {config.architectures}, but {DRAWS} random ones of this space are {len(drawn)}"
            " different ones; ask for no more"
        )
    turns = [net for turn in range(max(map(len, bins))) for group in bins for net in group[turn : turn + 1]]
    return [space.smallest, space.largest, *turns][: config.architectures]


class RankStudy:
    """The rank section of a study: its architectures, their scores, its trainings and its record."""

    def __init__(self, study: Study, config: RankConfig, run: Run, folder: StudyFolder) -> None:
        self.study, self.config, self.run, self.folder = study, config, run, folder
        self.nets = spread_architectures(run, config)
        self.sizes = {net.digest: cost(net) for net in self.nets}
        self.table_ms = {net.digest: run.table.latency_ms(net) for net in self.nets}
        self.scores: dict[str, Scores] = {}
        self.variants = SupernetVariants(config, run, folder)

    @property
    def ceiling_nets(self) -> list[Architecture]:
        """Those trained with one more seed, at even steps of the order of latencies."""
        if self.config.ceiling is None:
            return []
        ordered = sorted(self.nets, key=lambda net: (self.table_ms[net.digest], net.digest))
        return [ordered[at] for at in np.linspace(0, len(ordered) - 1, self.config.ceiling.architectures).astype(int)]

    @property
    def trainings(self) -> list[Training]:
        """Every net with every seed, then the ceiling's."""
        wanted = [(net, seed) for seed in self.config.seeds for net in self.nets]
        if self.config.ceiling is not None:
            wanted += [(net, self.config.ceiling.seed) for net in self.ceiling_nets]
        return [self.folder.training(net, seed, macs=self.sizes[net.digest].macs) for net, seed in wanted]

    def train_variants(self) -> None:
        """Train the supernets of the ablation that are missing."""
        self.variants.train()

    @property
    def score_key(self) -> str:
        """The digest of all that scores depend on besides their architectures: the name of the folder they are kept in.

        The supernet's files tell its space, but not which of its candidates the table's runtime can build.
        """
        run, search = self.run, self.run.experiment.search
        images = [search.refit_images, search.score_images, run.experiment.evaluate.batch_size]
        left_out = [] if run.runnable_space == run.space else [run.runnable_space.digest]
        return digest_of([self.folder.supernet, self.folder.images, images, *left_out])[:16]

    def score(self) -> None:
        """Score every architecture in every way; what was scored before is read."""
        run, key = self.run, self.score_key
        scorers = Scorers(run, self.folder.path / "scores" / key)
        for kind in MEASURED:
            scorers.measured(kind)
        with run.screen.bar("scoring single choices") as advance:
            scorers.contributions(counted(advance))
        with run.screen.bar("scoring architectures") as advance:
            for number, net in enumerate(self.nets, start=1):
                self.scores[net.digest] = scorers.of(net) | self.variants.of(net, key=key)
                advance(number, len(self.nets), {})

    def record(self) -> RankRecord:
        """What is known by now."""
        tasks = self.trainings
        results = {(task.name, task.seed): result for task in tasks if (result := trained(task)) is not None}
        percent = {key: result.accuracy_percent for key, result in results.items()}
        known = [net.digest for net in self.nets if all((net.digest, seed) in percent for seed in self.config.seeds)]
        accuracy = {name: float(np.mean([percent[name, seed] for seed in self.config.seeds])) for name in known}
        ceiling, ceiling_interval, ceiling_nets, seed_sd = self._ceiling(percent)
        failed = failures(tasks)
        return RankRecord(
            study=self.study.name,
            experiment=self.run.experiment.name,
            recipe=self.study.train,
            config=self.config,
            test_set=self.run.experiment.data.path,
            test_images=next((result.total for result in results.values()), 0),
            trainings=len(tasks),
            missing=len(tasks) - len(results) - len(failed),
            training_minutes=round(sum(result.seconds for result in results.values()) / 60, 2),
            seed_ceiling_tau=ceiling,
            seed_ceiling_architectures=ceiling_nets,
            seed_sd_points=seed_sd,
            environment=self.run.environment,
            scorers=self._rankings(known, accuracy, ceiling),
            architectures=tuple(
                RankedNet(
                    digest=net.digest,
                    table_ms=self.table_ms[net.digest],
                    macs=self.sizes[net.digest].macs,
                    parameters=self.sizes[net.digest].parameters,
                    accuracy_percent={str(seed): percent[name, seed] for name, seed in percent if name == net.digest},
                    scores=self.scores.get(net.digest, {}),
                )
                for net in self.nets
            ),
            seed_ceiling_interval_95=ceiling_interval,
            failed=failed,
        )

    def _ceiling(
        self, percent: Mapping[tuple[str, int], float]
    ) -> tuple[float | None, Interval | None, int, float | None]:
        """Tau between two trainings of the same nets with its interval, how many they are, one training's spread."""
        if self.config.ceiling is None:
            return None, None, 0, None
        first, second = self.config.seeds[0], self.config.ceiling.seed
        names = [net.digest for net in self.ceiling_nets]
        both = [name for name in names if (name, first) in percent and (name, second) in percent]
        one, other = [percent[name, first] for name in both], [percent[name, second] for name in both]
        spread = float(np.std(np.subtract(one, other), ddof=1)) / 2**0.5 if len(both) > 1 else None
        return kendall_tau(one, other), tau_interval(one, other, seed=BOOTSTRAP_SEED), len(both), spread

    def _rankings(
        self, known: Sequence[str], accuracy: Mapping[str, float], ceiling: float | None
    ) -> tuple[ScorerRanking, ...]:
        scored = [name for name in known if name in self.scores]
        if not scored:
            return ()
        rankings = []
        trained_percent = [accuracy[name] for name in scored]
        for scorer in self.scores[scored[0]]:
            values = [self.scores[name][scorer] for name in scored]
            latencies_ms = [self.table_ms[name] for name in scored]
            found = ranking(values, trained_percent, latencies_ms=latencies_ms, seed=BOOTSTRAP_SEED)
            variant, _, base = scorer.rpartition("/")
            difference, interval = None, None
            if variant:
                own = [self.scores[name][base] for name in scored]
                difference, interval = tau_difference(values, own, trained_percent, seed=BOOTSTRAP_SEED)
            rankings.append(
                ScorerRanking(
                    scorer=scorer,
                    num_architectures=len(scored),
                    kendall_tau=found.tau,
                    tau_interval_95=found.tau_interval_95,
                    spearman=found.spearman,
                    precision_at_5=found.precision_at_5,
                    regret=found.regret,
                    tercile_tau=found.tercile_tau,
                    tercile_tau_interval_95=found.tercile_tau_interval_95,
                    tercile_regret=found.tercile_regret,
                    seed_ceiling_tau=ceiling,
                    tau_difference=difference,
                    tau_difference_interval_95=interval,
                )
            )
        return tuple(rankings)
