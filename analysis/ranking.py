"""How well a score ranks nets: Kendall's tau with a bootstrap interval, the best five, and the regret of the pick.

Ties count as ties, not as an order that happens to hold: tau is tau-b, and where a score cannot tell nets apart its
pick is a mean over them.
"""

# N nets, S bootstrap samples

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

SAMPLES = 1000
GROUPS = 3  # by latency: terciles
FEWEST = 3  # nets with which a correlation says anything


@dataclass(frozen=True)
class Ranking:
    """How a score agrees with the accuracies of trained nets (percent); None where it is not defined.

    The tercile figures are means over three groups of nets of similar latency, with as many nets in each.
    """

    tau: float | None
    tau_interval_95: tuple[float, float] | None
    spearman: float | None
    precision_at_5: float | None
    regret: float | None
    tercile_tau: float | None
    tercile_tau_interval_95: tuple[float, float] | None
    tercile_regret: float | None


def ranking(
    scores: Sequence[float], accuracies: Sequence[float], *, latencies_ms: Sequence[float], seed: int
) -> Ranking:
    """Compare a score, higher meaning better, with accuracies; the seed is the bootstrap's, over nets."""
    score_N, accuracy_N = np.asarray(scores, float), np.asarray(accuracies, float)
    groups_N = latency_groups(latencies_ms)
    weights_SN = _resampled(len(score_N), seed)
    one_N = np.ones((1, len(score_N)))
    spearman = _constant(score_N) or _constant(accuracy_N) or len(score_N) < FEWEST
    grouped = len(score_N) >= FEWEST * GROUPS
    regrets = [regret(score_N[groups_N == g], accuracy_N[groups_N == g]) for g in range(GROUPS)] if grouped else []
    return Ranking(
        tau=_known(taus(score_N, accuracy_N, one_N)[0]),
        tau_interval_95=_interval(taus(score_N, accuracy_N, weights_SN)),
        spearman=None if spearman else float(stats.spearmanr(score_N, accuracy_N).statistic),
        precision_at_5=precision_at(5, score_N, accuracy_N),
        regret=regret(score_N, accuracy_N) if len(score_N) else None,
        tercile_tau=_known(_grouped_taus(score_N, accuracy_N, one_N, groups_N)[0]) if grouped else None,
        tercile_tau_interval_95=(
            _interval(_grouped_taus(score_N, accuracy_N, weights_SN, groups_N)) if grouped else None
        ),
        tercile_regret=float(np.mean(regrets)) if grouped else None,
    )


def kendall_tau(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Kendall's tau-b of paired values; None for fewer than three pairs, or where all of one side are equal."""
    if len(first) < FEWEST:
        return None
    return _known(taus(np.asarray(first, float), np.asarray(second, float), np.ones((1, len(first))))[0])


def tau_interval(first: Sequence[float], second: Sequence[float], *, seed: int) -> tuple[float, float] | None:
    """The 95 % interval of `kendall_tau` by a bootstrap over pairs; None where it is not defined."""
    if len(first) < FEWEST:
        return None
    return _interval(taus(np.asarray(first, float), np.asarray(second, float), _resampled(len(first), seed)))


def tau_difference(
    scores: Sequence[float], others: Sequence[float], accuracies: Sequence[float], *, seed: int
) -> tuple[float | None, tuple[float, float] | None]:
    """By how much one score's tau is above another's on the same nets, and its 95 % interval on the same samples."""
    if len(scores) < FEWEST:
        return None, None
    accuracy_N = np.asarray(accuracies, float)

    def difference(weights_SN: np.ndarray) -> np.ndarray:
        one_S, other_S = (taus(np.asarray(values, float), accuracy_N, weights_SN) for values in (scores, others))
        return np.asarray(one_S - other_S)

    found = _known(difference(np.ones((1, len(accuracy_N))))[0])
    return found, _interval(difference(_resampled(len(accuracy_N), seed)))


def taus(first_N: np.ndarray, second_N: np.ndarray, weights_SN: np.ndarray) -> np.ndarray:
    """Tau-b of S samples, in each of which net n occurs weights_SN[s, n] times; nan where it is not defined."""
    signs_NN = np.sign(first_N[:, None] - first_N[None, :])
    other_NN = np.sign(second_N[:, None] - second_N[None, :])

    def pairs(values_NN: np.ndarray) -> np.ndarray:
        return np.asarray(((weights_SN @ values_NN) * weights_SN).sum(axis=1))

    ordered = np.sqrt(pairs(np.abs(signs_NN)) * pairs(np.abs(other_NN)))
    with np.errstate(invalid="ignore", divide="ignore"):
        shares_S: np.ndarray = pairs(signs_NN * other_NN) / ordered
    return shares_S


def precision_at(count: int, score_N: np.ndarray, accuracy_N: np.ndarray) -> float | None:
    """The share of the best-scored nets that are among as many most accurate ones; None with no more nets than that."""
    if len(score_N) <= count:
        return None
    return float(_membership(score_N, count) @ _membership(accuracy_N, count)) / count


def regret(score_N: np.ndarray, accuracy_N: np.ndarray) -> float:
    """By how many points the best-scored net is less accurate than the most accurate one."""
    return float(accuracy_N.max() - accuracy_N[score_N == score_N.max()].mean())


def latency_groups(latencies_ms: Sequence[float]) -> np.ndarray:
    """For each net the number (from 0) of its tercile by latency."""
    order = np.argsort(np.asarray(latencies_ms, float), kind="stable")
    groups_N = np.empty(len(order), dtype=int)
    for number, members in enumerate(np.array_split(order, GROUPS)):
        groups_N[members] = number
    return groups_N


def _membership(values_N: np.ndarray, count: int) -> np.ndarray:
    """The probability of each net to be among the `count` highest, where ties are broken by chance."""
    threshold = np.sort(values_N)[-count]
    above, tied = values_N > threshold, values_N == threshold
    return np.asarray(above + tied * (count - above.sum()) / tied.sum())


def _grouped_taus(
    first_N: np.ndarray, second_N: np.ndarray, weights_SN: np.ndarray, groups_N: np.ndarray
) -> np.ndarray:
    """The mean over groups of the taus within each; groups in which a sample has none are left out of its mean."""
    within = np.stack(
        [taus(first_N[groups_N == g], second_N[groups_N == g], weights_SN[:, groups_N == g]) for g in range(GROUPS)]
    )
    known = np.isfinite(within)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(known, within, 0.0).sum(axis=0) / known.sum(axis=0))


def _resampled(nets: int, seed: int) -> np.ndarray:
    """How often each net occurs in each bootstrap sample, S x N."""
    if nets == 0:
        return np.zeros((SAMPLES, 0))
    return np.random.default_rng(seed).multinomial(nets, np.full(nets, 1 / nets), size=SAMPLES).astype(float)


def _interval(values_S: np.ndarray) -> tuple[float, float] | None:
    known = values_S[np.isfinite(values_S)]
    if len(known) < 0.95 * len(values_S):
        return None
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _constant(values_N: np.ndarray) -> bool:
    return len(values_N) == 0 or bool((values_N == values_N[0]).all())
