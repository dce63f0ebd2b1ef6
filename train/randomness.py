"""Randomness that is a function of (seed, purpose, epoch, step), so that nothing random has to be saved.

A run that is resumed in the middle of an epoch draws the same numbers as one that was never interrupted, because no
generator outlives the step it was made for.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def derived_seed(seed: int, *labels: str | int) -> int:
    """A 63-bit seed that depends on `seed` and every label: `derived_seed(0, "order", epoch)`."""
    text = "/".join(str(part) for part in (seed, *labels))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator_for(seed: int, *labels: str | int) -> torch.Generator:
    """A fresh CPU generator for one purpose, seeded with `derived_seed`."""
    return torch.Generator().manual_seed(derived_seed(seed, *labels))


def beta_draw(alpha: float, generator: torch.Generator) -> float:
    """One draw from Beta(alpha, alpha). Torch's own Beta takes no generator, numpy's does."""
    seed = int(torch.randint(2**62, (), generator=generator))
    return float(np.random.default_rng(seed).beta(alpha, alpha))
