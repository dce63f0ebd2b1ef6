"""`slimformer study`: what a study asks for and is not done yet is done; its records are written as results come."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from analysis.study_plot import scorer_text, write_study_figures
from analysis.wording import method_text
from experiments.compare_record import REFERENCE, CompareRecord
from experiments.compare_study import CompareStudy
from experiments.console import Advance
from experiments.locking import LOCK, held
from experiments.pipeline import minutes
from experiments.rank_study import RankRecord, RankStudy
from experiments.run import Run
from experiments.study import Study
from experiments.study_units import (
    StudyFolder,
    Training,
    distinct,
    failed,
    failures,
    left_of,
    train_net,
    trained,
)
from experiments.workers import Report, train_at_once
from supernet import UserError
from supernet.schema import load, save
from train.retraining import check_retraining

CONFIG = "study-config.json"
RANK_RECORD, COMPARE_RECORD = "rank_study.json", "study.json"


def run_study(study: Study, run: Run, path: Path, *, only_report: bool) -> None:
    """Do what is missing of a study in its folder, and leave its records there; or only report what there is."""
    with locked(path, study):
        opened = OpenStudy(study, run, path)
        save(study, path / CONFIG)
        torch.set_num_threads(run.threads)
        if not only_report:
            opened.prepare()
            opened.train()
        elif opened.rank is not None:
            opened.rank.score()
        opened.write_records()
        opened.report()


class OpenStudy:
    """A study at work: its sections, and how far its trainings are."""

    def __init__(self, study: Study, run: Run, path: Path) -> None:
        self.run, self.path = run, path
        folder = StudyFolder(path, run)
        self.rank = None if study.rank is None else RankStudy(study, study.rank, run, folder)
        self.compare = None if study.compare is None else CompareStudy(study, study.compare, run, folder)

    def prepare(self) -> None:
        """Everything but the trainings: scores, searches, measurements."""
        check_retraining(self.run.data, self.run.experiment.train)
        if self.rank is not None:
            self.rank.train_variants()
            self.rank.score()
        if self.compare is not None:
            self.compare.search()
        self.write_records()

    def train(self) -> None:
        """Train what is not trained yet, several nets at once on a CPU."""
        run, everything = self.run, self.trainings
        left = left_of(everything)
        if not left:
            return
        run.screen.line(f"{len(left)} of {len(everything)} trainings to do")
        with run.screen.bar(f"training {len(everything)} nets") as advance:
            follower = _Follower(self, everything, left, advance)
            if run.processes > 1:
                train_at_once(run, left, processes=run.processes, train=train_net, tell=follower.tell)
                return
            for task in left:

                def progress(done: int, total: int, figures: dict[str, float], task: Training = task) -> None:
                    follower.tell(Report(task, done, total, figures))

                train_net(run, task, progress)
                follower.tell(Report(task, finished=True))

    @property
    def trainings(self) -> list[Training]:
        """All trainings of the study, each once."""
        ranked = [] if self.rank is None else self.rank.trainings
        return distinct([*ranked, *([] if self.compare is None else self.compare.trainings)])

    def write_records(self) -> None:
        """Write what is known by now."""
        if self.rank is not None:
            save(self.rank.record(), self.path / RANK_RECORD)
        if self.compare is not None:
            save(self.compare.record(), self.path / COMPARE_RECORD)

    def report(self) -> None:
        """Draw the figures, and print the records as tables."""
        screen = self.run.screen
        figures = write_study_figures(self.path)
        if self.rank is not None:
            ranks = self.rank.record()
            ceiling = ""
            if ranks.seed_ceiling_tau is not None:
                ceiling = f", retrained with another seed {_two(ranks.seed_ceiling_tau)}"
            if ranks.seed_ceiling_interval_95 is not None:
                ceiling += f" ({_range(ranks.seed_ceiling_interval_95)})"
            done = ranks.trainings - ranks.missing - len(ranks.failed)
            screen.table(f"Kendall's tau of {done} trainings{ceiling}", *rank_table(ranks))
            if any("/" in found.scorer for found in ranks.scorers):
                screen.table("Supernets trained otherwise, against the run's own", *variant_table(ranks))
        if self.compare is not None:
            compared = self.compare.record()
            done = compared.trainings - compared.missing - len(compared.failed)
            screen.table(f"Test accuracy, {done} trainings", *compare_table(compared))
            screen.table("Mean over the budgets", *overall_table(compared))
        for failure in failures(self.trainings):
            screen.line(f"{failure.name}, seed {failure.seed}, failed and is left out: {failure.reason}")
        left = len(left_of(self.trainings))
        if left:
            screen.line(f"{left} trainings are missing; run the same command again to go on")
        screen.line("Written: " + ", ".join(str(path) for path in (*self.records, *figures)))

    @property
    def records(self) -> list[Path]:
        """The records of this study's sections."""
        sections = ((self.rank, RANK_RECORD), (self.compare, COMPARE_RECORD))
        return [self.path / name for section, name in sections if section is not None]


def rank_table(record: RankRecord) -> tuple[list[str], list[list[str]]]:
    """Header and a row a score, the best by tau first."""
    header = ["score", "tau", "95 %", "in thirds", "95 %", "Spearman", "best 5", "regret", "in thirds"]
    own = [found for found in record.scorers if "/" not in found.scorer]
    ordered = sorted(own, key=lambda found: -2 if found.kendall_tau is None else found.kendall_tau)
    rows = [
        [
            scorer_text(found.scorer),
            _two(found.kendall_tau),
            _range(found.tau_interval_95),
            _two(found.tercile_tau),
            _range(found.tercile_tau_interval_95),
            _two(found.spearman),
            _two(found.precision_at_5),
            _two(found.regret),
            _two(found.tercile_regret),
        ]
        for found in reversed(ordered)
    ]
    return header, rows


def variant_table(record: RankRecord) -> tuple[list[str], list[list[str]]]:
    """Header and a row a variant of the ablation and score."""
    header = ["supernet", "score", "tau", "95 %", "to the run's own", "95 %", "in thirds", "regret"]
    rows = []
    for found in record.scorers:
        variant, _, score = found.scorer.rpartition("/")
        if variant:
            change = "" if found.tau_difference is None else f"{found.tau_difference:+.2f}"
            between = _range(found.tau_difference_interval_95)
            tau, interval = _two(found.kendall_tau), _range(found.tau_interval_95)
            thirds, regret = _two(found.tercile_tau), _two(found.regret)
            rows.append([variant, scorer_text(score), tau, interval, change, between, thirds, regret])
    return header, rows


def compare_table(record: CompareRecord) -> tuple[list[str], list[list[str]]]:
    """Header and a row a method and budget."""
    header = ["method", "budget", "ms", "runs", "mean %", "95 %", "to random search", "95 %", "minutes"]
    rows = [
        [
            method_text(found.method),
            f"{found.budget_ms:g}",
            f"{np.mean(found.measured_ms):.3f}" if found.measured_ms else "",
            str(len(found.accuracy_percent)),
            _two(found.mean),
            _range(found.interval_95),
            "" if found.difference_to_random is None else f"{found.difference_to_random:+.2f}",
            _range(found.difference_interval_95),
            f"{found.minutes:.1f}",
        ]
        for found in record.results
    ]
    return header, rows


def overall_table(record: CompareRecord) -> tuple[list[str], list[list[str]]]:
    """Header and a row a method, the most accurate last."""
    header = ["method", "nets scored", "budgets", "used", "mean %", "to random search", "95 %", "to uniform", "95 %"]
    rows = []
    for found in sorted(record.overall, key=lambda each: each.mean):
        scored = "" if found.nets_scored is None else f"{found.nets_scored:.0f}"
        used = "" if found.share_of_budget is None else f"{100 * found.share_of_budget:.0f} %"
        row = [method_text(found.method), scored, str(len(found.budgets_ms)), used, _two(found.mean)]
        for other in (REFERENCE, "uniform"):
            difference = found.against.get(other)
            row += ["", ""] if difference is None else [f"{difference.mean:+.2f}", _range(difference.interval_95)]
        rows.append(row)
    return header, rows


def _two(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _range(bounds: tuple[float, float] | None) -> str:
    return "" if bounds is None else f"{bounds[0]:.2f} to {bounds[1]:.2f}"


class _Follower:
    """Shows the trainings as one bar, which counts multiply-accumulates, and a line for each that is done."""

    def __init__(self, study: OpenStudy, everything: list[Training], left: list[Training], advance: Advance) -> None:
        self.study, self.advance = study, advance
        self.all, self.macs = len(everything), sum(task.macs for task in everything)
        self.done = len(everything) - len(left)
        self.before = self.macs - sum(task.macs for task in left)
        self.shares: dict[Training, float] = {}
        self.began = time.monotonic()

    def tell(self, report: Report[Training]) -> None:
        """Take in how far a training is; at its end, write the records."""
        task = report.task
        self.shares[task] = 1.0 if report.finished else report.done / report.total
        now = sum(share * each.macs for each, share in self.shares.items())
        per_mille = int(1000 * (self.before + now) / self.macs)
        self.advance(per_mille, 1000, report.figures or {})
        if not report.finished:
            return
        self.done += 1
        self.study.write_records()
        left = (self.macs - self.before - now) / now * (time.monotonic() - self.began)
        self.study.run.screen.line(
            f"  {self.done} of {self.all}: {task.name}, seed {task.seed}: {_outcome(task)}"
            + (f"; about {minutes(left)} left" if self.done < self.all else "")
        )


def _outcome(task: Training) -> str:
    """What a training that has ended came to."""
    result, failure = trained(task), failed(task)
    if result is None:
        assert failure is not None
        return f"failed, {failure.reason}"
    return f"{result.accuracy_percent:.2f} %, {task.macs / 1e6:.1f} M MACs, {result.seconds:.0f} s"


@contextmanager
def locked(path: Path, study: Study) -> Iterator[None]:
    """Hold a study's folder. Raises `UserError` for a folder of something else, or one that is held."""
    if (path / CONFIG).exists():
        name = load(Study, path / CONFIG).name
        if name != study.name:
            raise UserError(
                f"{path}: belongs to the study {name!r}, not to {study.name!r}; name another folder with --out"
            )
    elif path.is_dir() and any(entry.name != LOCK for entry in path.iterdir()):
        raise UserError(f"{path}: is not empty and holds no study; name another folder with --out")
    with held(path, as_what="a study's folder", busy="another process is at work on this study"):
        yield
