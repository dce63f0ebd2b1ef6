"""Records for reading a study's files, `rank_study.json` and `study.json`: what the figures draw of them."""

from __future__ import annotations

from typing import Literal

from analysis.files import FileRecord

Interval = tuple[float, float]


class ScoredNet(FileRecord):
    """One architecture: predicted ms, test accuracy in percent by seed, and every score by its name."""

    digest: str
    table_ms: float
    accuracy_percent: dict[str, float]
    scores: dict[str, float]


class ScorerFigures(FileRecord):
    """How one score ranks the nets; None where too few are trained to say."""

    scorer: str
    kendall_tau: float | None
    tau_interval_95: Interval | None
    tercile_tau: float | None


class RankSeeds(FileRecord):
    """The seeds over which a net's accuracy is averaged."""

    seeds: tuple[int, ...]


class RankStudyFile(FileRecord):
    """`rank_study.json`: scores against trainings."""

    schema_version: Literal[1]
    experiment: str
    config: RankSeeds
    trainings: int
    missing: int
    seed_ceiling_tau: float | None
    scorers: tuple[ScorerFigures, ...]
    architectures: tuple[ScoredNet, ...]

    def accuracy_percent(self, net: ScoredNet) -> float | None:
        """The mean over the study's seeds, or None while one is missing."""
        known = [net.accuracy_percent.get(str(seed)) for seed in self.config.seeds]
        values = [value for value in known if value is not None]
        return sum(values) / len(values) if len(values) == len(known) else None


class MethodFigures(FileRecord):
    """A method at a budget: mean accuracy in percent with its interval, and the latencies of its nets in ms."""

    method: str
    budget_ms: float
    accuracy_percent: tuple[float, ...]
    mean: float | None
    interval_95: Interval | None
    measured_ms: tuple[float, ...]


class StudyFile(FileRecord):
    """`study.json`: methods against each other; `speed` is what the machine took for what took 1 with the table."""

    schema_version: Literal[1]
    experiment: str
    trainings: int
    missing: int
    budgets_ms: tuple[float, ...]
    speed: float | None = None
    results: tuple[MethodFigures, ...]
