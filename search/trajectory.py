"""Trajectory: every step a slimming took, with the alternatives it rejected; one JSON line a step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from pydantic import Field

from search.actions import SlimmingAction, apply
from supernet import Architecture, SearchSpace, UserError
from supernet.schema import Record, parse, parse_json, write_atomically


class Alternative(Record):
    """One action that was considered at a step, and why it was not taken (None for the chosen one).

    `mes_gain` is what the Mobile Efficiency Score rises by, and `drop_per_mes` the drop per point of that, where the
    search goes by it instead of by milliseconds. `drop_per_ms` is None for an action that saves nothing, which is taken
    where none does.
    """

    action: SlimmingAction
    latency_ms: float
    saved_ms: float
    accuracy_percent: float
    accuracy_drop_points: float
    drop_per_ms: float | None
    mes_gain: float | None = None
    drop_per_mes: float | None = None
    chosen: bool
    reason: str | None

    @property
    def drop_per_gain(self) -> float | None:
        """What the search compares."""
        return self.drop_per_ms if self.drop_per_mes is None else self.drop_per_mes


class Step(Record):
    """The architecture after a step. Step 0 is the start and has no action; predictions are the table's."""

    step: int
    action: SlimmingAction | None
    architecture: Architecture
    digest: str
    latency_ms: float
    accuracy_percent: float
    saved_ms: float
    accuracy_drop_points: float
    alternatives: tuple[Alternative, ...]


class Trajectory(Record):
    """All steps from the largest architecture to the smallest budget."""

    steps: Annotated[tuple[Step, ...], Field(min_length=1)]

    def at(self, budget_ms: float) -> Step | None:
        """The first step whose predicted latency is within the budget, or None if it was not reached."""
        return next((step for step in self.steps if step.latency_ms <= budget_ms), None)

    def replay(self, space: SearchSpace) -> Architecture:
        """The last architecture, made again from the first one and the actions alone."""
        architecture = self.steps[0].architecture
        for step in self.steps[1:]:
            assert step.action is not None
            architecture = apply(step.action, architecture, space=space)
        return architecture

    def save(self, path: Path) -> None:
        """Write one JSON line a step."""
        lines = [json.dumps(step.model_dump(mode="json"), separators=(",", ":")) for step in self.steps]
        write_atomically(path, ("\n".join(lines) + "\n").encode())

    @classmethod
    def load(cls, path: Path) -> Trajectory:
        """Read a file of steps. Raises `UserError` naming the line that is wrong."""
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read ({error})") from None
        steps = []
        for number, line in enumerate(lines, start=1):
            try:
                data = parse_json(line)
            except ValueError as error:
                raise UserError(f"{path}, line {number}: not valid JSON ({error})") from None
            steps.append(parse(Step, data, source=f"{path}, line {number}"))
        if not steps:
            raise UserError(f"{path}: holds no steps")
        return cls(steps=tuple(steps))
