"""What a user would pick instead of a search, in a comparison: timm's models as wide as each budget lets them be."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import timm

from experiments.compare_record import (
    EXTERNAL_METHOD,
    FoundExternal,
    MethodResult,
    StudiedNet,
    Whole,
    method_result,
)
from experiments.external_nets import FAMILIES, ExternalName, ExternalNet
from experiments.run import Run
from experiments.study_units import FailedTraining, TrainedNet
from supernet import UserError
from supernet.architecture import PatchStem
from supernet.schema import load, save


class Externals:
    """The external nets of a comparison: one search of the width for each name and budget, kept in `working`.

    Raises `UserError` where the run's table is of another device.
    """

    def __init__(self, names: Sequence[ExternalName], run: Run, working: Path) -> None:
        self.names, self.run, self.working = names, run, working
        if names and run.elsewhere:
            raise UserError("compare.external: timm's models are measured here, but the table is of another device")

    def _path(self, name: ExternalName, budget_ms: float) -> Path:
        return self.working / f"{name}-timm-{timm.__version__}-{budget_ms:g}ms.json"

    def found(self, name: ExternalName, budget_ms: float) -> FoundExternal | None:
        """What was found for a budget, if it was looked for."""
        path = self._path(name, budget_ms)
        return load(FoundExternal, path) if path.exists() else None

    @property
    def nets(self) -> dict[str, ExternalNet]:
        """Every net that was found, by its digest."""
        found = [self.found(name, budget_ms) for name in self.names for budget_ms in self.run.budgets_ms]
        return {each.net.digest: each.net for each in found if each is not None and each.net is not None}

    @property
    def missing(self) -> int:
        """How many widths are still to be found."""
        return sum(self.found(name, budget_ms) is None for name in self.names for budget_ms in self.run.budgets_ms)

    def search(self) -> None:
        """Find the widths that are missing."""
        for name in self.names:
            for budget_ms in self.run.budgets_ms:
                if self.found(name, budget_ms) is not None:
                    continue
                found = self._search(name, budget_ms)
                self.working.mkdir(parents=True, exist_ok=True)
                save(found, self._path(name, budget_ms))
                shown = found.unreachable if found.net is None else f"{found.net.scale:g} of its width"
                self.run.screen.line(f"  {EXTERNAL_METHOD}{name}, {budget_ms:g} ms: {shown}, {found.seconds:.0f} s")

    def results(
        self,
        *,
        search_seed: int,
        retrain_seeds: tuple[int, ...],
        studied: Callable[[ExternalNet], StudiedNet],
        results: Mapping[tuple[str, int], TrainedNet],
        failed: Sequence[FailedTraining],
        references: Mapping[float, Whole],
    ) -> tuple[MethodResult, ...]:
        """The figures of every name at every budget; `references` are those of random search, by budget."""
        asked = [(name, budget_ms) for budget_ms in self.run.budgets_ms for name in self.names]
        return tuple(
            method_result(
                EXTERNAL_METHOD + name,
                budget_ms,
                search_seeds=(search_seed,),
                retrain_seeds=retrain_seeds,
                found=[] if (found := self.found(name, budget_ms)) is None else [found],
                nets=[] if found is None or found.net is None else [studied(found.net)],
                results=results,
                failed=failed,
                reference=references.get(budget_ms),
            )
            for name, budget_ms in asked
        )

    def _search(self, name: ExternalName, budget_ms: float) -> FoundExternal:
        run, began = self.run, time.monotonic()
        scales, tried = FAMILIES[name].scales, dict[float, float]()
        others = [found for other in run.budgets_ms if (found := self.found(name, other)) is not None]
        known = {scale: ms for found in others for scale, ms in found.tried}  # so that all budgets judge one figure

        def ms_of(scale: float) -> float:
            if scale not in known:
                net = external_net(run, name, scale=scale)
                known[scale] = run.measure_at_tables_speed(net, what=f"measuring {name}, {scale:g} of its width")
            tried[scale] = known[scale]
            return tried[scale]

        scale = widest(scales, ms_of, at_most_ms=(1 - run.experiment.search.margin) * budget_ms)
        narrowest = f"{scales[0]:g} of {name}'s width, the narrowest, takes {tried[scales[0]]:.4g} ms"
        return FoundExternal(
            name=name,
            budget_ms=budget_ms,
            net=None if scale is None else external_net(run, name, scale=scale),
            tried=tuple(sorted(tried.items())),
            unreachable=narrowest if scale is None else None,
            seconds=round(time.monotonic() - began, 2),
        )


def widest(scales: Sequence[float], ms_of: Callable[[float], float], *, at_most_ms: float) -> float | None:
    """The largest of the ascending scales that takes at most so long, by doubling from the smallest and bisection.

    Few are asked for, and none that is much more than twice the answer: a wider net is taken to be a slower one. None
    if even the smallest takes longer.
    """
    if ms_of(scales[0]) > at_most_ms:
        return None
    within, beyond = 0, 1
    while beyond < len(scales) and ms_of(scales[beyond]) <= at_most_ms:
        within, beyond = beyond, 2 * beyond + 1
    beyond = min(beyond, len(scales))
    while beyond - within > 1:
        middle = (within + beyond) // 2
        if ms_of(scales[middle]) <= at_most_ms:
            within = middle
        else:
            beyond = middle
    return scales[within]


def external_net(run: Run, name: ExternalName, *, scale: float) -> ExternalNet:
    """A model of timm's for a run's images, with a stem that shrinks them as the run's own does."""
    largest = run.space.largest
    stride = largest.stem.stride if isinstance(largest.stem, PatchStem) else math.prod(largest.stem.strides)
    return ExternalNet(
        name=name,
        scale=scale,
        in_channels=largest.in_channels,
        resolution_px=largest.resolution_px,
        num_classes=largest.head.num_classes,
        stem_stride=1 if stride == 1 else 2 if stride == 2 else 4,
    )
