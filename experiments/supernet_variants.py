"""Supernets trained otherwise than a run's, for an ablation: what each of their parts does to how well they rank."""

from __future__ import annotations

from experiments.artifacts import RunFolder, digest_of
from experiments.experiment import overridden
from experiments.importances import IMPORTANCE_FILES
from experiments.run import Run
from experiments.scorers import Scorers, Scores, kept_importance
from experiments.stages import clear_checkpoint, stage_named, train_supernet_stage
from experiments.study import RankConfig
from experiments.study_units import StudyFolder
from supernet import Architecture, UserError
from supernet.schema import plain

FIELDS = ("supernet.", "seeds.supernet", "data.alpha_fraction")
SCORES = ("supernet_accuracy", "supernet_accuracy_no_refit", "supernet_loss", "alpha_importance")


class SupernetVariants:
    """The variants of a rank study: their supernets, each in a folder named after its settings, and their scores.

    All are scored on the run's own images. Raises `UserError` for one that changes anything else than the supernet's
    training, or whose alphas would learn from these.
    """

    def __init__(self, config: RankConfig, run: Run, folder: StudyFolder) -> None:
        self.run, self.folder = run, folder
        self.runs = {name: self._variant(name, overrides) for name, overrides in config.variants.items()}
        self._scorers: dict[str, Scorers] = {}

    def _variant(self, name: str, overrides: tuple[str, ...]) -> Run:
        run, source = self.run, f"rank.variants.{name}"
        for override in overrides:
            if not override.startswith(FIELDS):
                raise UserError(
                    f"{source}: {override}: only fields of supernet, seeds.supernet and data.alpha_fraction can be"
                    " changed"
                )
        experiment = overridden(run.experiment, overrides, source=source)
        if experiment.data.alpha_fraction > run.experiment.data.alpha_fraction:
            raise UserError(
                f"{source}: data.alpha_fraction: {experiment.data.alpha_fraction} would give the alphas images that all"
                f" supernets are scored on; ask for at most {run.experiment.data.alpha_fraction}, the run's own"
            )
        settings = stage_named("supernet").settings(plain(experiment))
        path = self.folder.path / "variants" / digest_of([settings, self.folder.images, self.folder.plugins])[:16]
        variant = Run(experiment, RunFolder(path), run.screen, command=run.environment.command, plugins=run.plugins)
        variant.space, variant.table = run.space, run.table
        return variant

    def train(self) -> None:
        """Train the supernets that are missing; an interrupted one goes on."""
        for number, (name, variant) in enumerate(self.runs.items(), start=1):
            if name in self.trained:
                continue
            self.run.screen.line(f"supernet {number} of {len(self.runs)} variants: {name}")
            if variant.experiment.data == self.run.experiment.data:
                variant.data = self.run.data
            variant.path.mkdir(parents=True, exist_ok=True)
            train_supernet_stage(variant)
            clear_checkpoint("supernet", variant.path)

    @property
    def trained(self) -> list[str]:
        """The names of those whose supernet is there."""
        return [name for name, run in self.runs.items() if (run.path / IMPORTANCE_FILES["alpha"]).exists()]

    def of(self, architecture: Architecture, *, key: str) -> Scores:
        """What every trained variant says of an architecture, as "variant/score"; `key` names the images."""
        found: Scores = {}
        for name in self.trained:
            run = self.runs[name]
            if name not in self._scorers:
                run.data = self.run.data
                self._scorers[name] = Scorers(run, run.path / "scores" / key)
            scorers = self._scorers[name]
            held_out = scorers.held_out(architecture)
            values = (
                held_out.accuracy_percent,
                held_out.accuracy_without_refit_percent,
                -held_out.cross_entropy,
                kept_importance(scorers.importance, run.space, architecture),
            )
            found |= {f"{name}/{score}": value for score, value in zip(SCORES, values, strict=True)}
        return found
