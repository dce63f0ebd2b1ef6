"""A space that searches can walk through in no time, with a table and scores that are arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from search.importance import Importance, MetaPathImportance, StageImportance
from supernet.architecture import Architecture
from supernet.block_types import Identity
from supernet.schema import parse
from supernet.space import SearchSpace


@pytest.fixture(autouse=True)
def _no_full_collections(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a measurement collects first takes a third of a second in a process full of tests."""
    monkeypatch.setattr("search.measure.gc.collect", lambda: 0)


@pytest.fixture(scope="session")
def space() -> SearchSpace:
    """Three stages; stage 2 cannot be skipped, the last two can hold token blocks."""
    attention = {"type": "mb3d", "heads": 2, "key_channels": 4, "value_channels": 4}
    return parse(
        SearchSpace,
        {
            "in_channels": 3,
            "resolution_px": [32, 32],
            "num_classes": 5,
            "stages": [
                {"depth": 2, "width_channels": {"smallest": 16, "largest": 48}, "candidates": ["mb4d", "identity"]},
                {"depth": 1, "width_channels": {"smallest": 32, "largest": 64}, "candidates": ["mb4d", attention]},
                {
                    "depth": 2,
                    "width_channels": {"smallest": 64, "largest": 96},
                    "candidates": ["mb4d", attention, "identity"],
                },
            ],
        },
        source="the tests",
    )


class SizeTable:
    """Latencies that are a sum: 1 ms, 0.25 ms a block, 0.5 ms more a token block, 0.01 ms a channel of width."""

    def __init__(self, *, block_ms: float = 0.25, tokens_ms: float = 0.5, channel_ms: float = 0.01) -> None:
        self.block_ms, self.tokens_ms, self.channel_ms = block_ms, tokens_ms, channel_ms

    def latency_ms(self, architecture: Architecture) -> float:
        total = 1.0
        for stage in architecture.stages:
            total += self.channel_ms * stage.width_channels
            for block in stage.blocks:
                if not isinstance(block, Identity):
                    total += self.block_ms + self.tokens_ms * (block.layout == "tokens")
        return round(total, 6)

    def fastest(self, space: SearchSpace) -> Architecture:
        return space.smallest


@pytest.fixture
def table() -> SizeTable:
    return SizeTable()


@pytest.fixture(name="size_table")
def _size_table() -> type[SizeTable]:
    return SizeTable


def make_importance(space: SearchSpace, scores: Mapping[tuple[int, int], float | None]) -> Importance:
    metapaths = tuple(
        MetaPathImportance(
            stage=stage,
            block=block,
            candidates=tuple(candidate.name for candidate in space.candidates(stage)),
            probabilities=tuple(1 / len(space.candidates(stage)) for _ in space.candidates(stage)),
            score=scores[stage, block],
        )
        for stage, block in space.positions
    )
    stages = tuple(
        StageImportance(stage=number, score=sum(m.score or 0.0 for m in metapaths if m.stage == number))
        for number in range(1, len(space.stages) + 1)
    )
    return Importance(
        space_digest=space.digest,
        mixing="hard",
        temperature=1.0,
        metapaths=metapaths,
        stages=stages,
        discretization_gap=None,
    )


@pytest.fixture(name="make_importance")
def _make_importance() -> Callable[..., Importance]:
    return make_importance


@pytest.fixture
def importance(space: SearchSpace) -> Importance:
    """Block 2 of stage 1 is the least important position, stage 2 the least important stage."""
    scores: dict[tuple[int, int], float | None] = {(1, 1): 3.0, (1, 2): 1.0, (2, 1): 2.0, (3, 1): 4.0, (3, 2): 5.0}
    assert set(scores) == set(space.positions)
    return make_importance(space, scores)
