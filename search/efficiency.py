"""MobileEfficiency: EfficientFormerV2's score of a net's size and latency, the higher the better."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from search.parts import keys, parameters_of
from supernet import Architecture
from supernet.schema import Record

BASE = 100.0  # the paper's "Score", a constant for simplicity

Unit = Annotated[float, Field(gt=0)]
Exponent = Annotated[float, Field(ge=0)]


class MobileEfficiency(Record):
    """The constants of the Mobile Efficiency Score: a unit for each metric, and how much the metric counts.

    MES = 100 * (parameters / U_size)^-a_size * (latency / U_latency)^-a_latency (EfficientFormerV2, arXiv:2212.08059,
    equation 7, which prints the exponent without the minus sign; a smaller net must score higher). The defaults are
    those that the paper's table of scores follows, with MobileNetV2 for a unit; they were not checked against its text.
    The units scale every score alike: what is chosen depends on the exponents alone.
    """

    size_unit_millions: Unit = 3.0
    size_exponent: Exponent = 0.5
    latency_unit_ms: Unit = 1.0
    latency_exponent: Exponent = 1.0

    def of(self, architecture: Architecture, *, latency_ms: float) -> float:
        """The score of an architecture that takes so many milliseconds; its parameters are counted here."""
        return self.score(millions=sum(map(parameters_of, keys(architecture))) / 1e6, latency_ms=latency_ms)

    def score(self, *, millions: float, latency_ms: float) -> float:
        """The score of a net with so many million parameters and milliseconds."""
        size = (millions / self.size_unit_millions) ** -self.size_exponent
        return float(BASE * size * (latency_ms / self.latency_unit_ms) ** -self.latency_exponent)
