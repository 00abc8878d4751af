"""Estimates from scores of texts: AUROC, rate found, and differences paired by text.

Scores that are undefined for a text (NaN) are left out and counted as missing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from interp.detectors.detector import calibrated_threshold, true_positive_rate
from interp.experiments.machine_text.results import Separation
from interp.experiments.machine_text.texts import Twins
from interp.stats import Estimate, auroc, mean_with_interval, rate

_RESAMPLES = 500


def finite(values: Sequence[float]) -> list[float]:
    """The values that are there."""
    return [value for value in values if math.isfinite(value)]


def area(machine: Sequence[float], human: Sequence[float], *, seed: int) -> Estimate:
    """AUROC of machine-written against human texts."""
    sides = finite(machine), finite(human)
    missing = len(machine) + len(human) - len(sides[0]) - len(sides[1])
    if not all(sides):
        return Estimate.unmeasured(unit="AUROC", missing=missing)
    return replace(auroc(*sides, seed=seed), missing=missing)


def separation(twins: Twins, detector: str, *, false_positive_rate: float, seed: int) -> Separation:
    """One detector on pairs."""
    machine, human = twins.column(detector)
    return Separation(
        human=tuple(human),
        machine=tuple(machine),
        auroc=area(machine, human, seed=seed),
        found=true_positive_rate(
            finite(machine), finite(human), false_positive_rate=false_positive_rate, seed=seed
        ),
    )


def area_difference(
    first: tuple[Sequence[float], Sequence[float]],
    second: tuple[Sequence[float], Sequence[float]],
    *,
    seed: int,
) -> Estimate:
    """AUROC of the first pair of (machine, human) scores less that of the second; row i of all four is pair i.

    The bootstrap resamples pairs, the same for both, and a text with its twin.
    """
    rows = np.array([*zip(*first, *second, strict=True)], dtype=np.float64).reshape(-1, 4)
    rows = rows[np.isfinite(rows).all(1)]
    if len(rows) < 2:
        return Estimate.unmeasured(len(rows), unit="AUROC difference")

    def difference(part: np.ndarray) -> float:
        one, other = (auroc(part[:, i].tolist(), part[:, i + 1].tolist(), resamples=0).value for i in (0, 2))
        return one - other

    generator = np.random.default_rng(seed)
    draws = [difference(rows[generator.integers(0, len(rows), len(rows))]) for _ in range(_RESAMPLES)]
    low, high = np.quantile(draws, (0.025, 0.975))
    return Estimate(
        value=difference(rows),
        n=len(rows),
        low=float(low),
        high=float(high),
        unit="AUROC difference",
        interval="bootstrap over pairs",
    )


def share_above(values: Sequence[float], threshold: float | None) -> Estimate:
    """Share of the texts with a score that exceed a threshold; not measurable without one."""
    if threshold is None:
        return Estimate.unmeasured(len(values), unit="share")
    return rate([value > threshold for value in finite(values)])


def thresholds(
    human: Mapping[str, Sequence[float]], *, false_positive_rate: float
) -> dict[str, float | None]:
    """By detector the lowest threshold that at most this share of human texts exceeds; None for too few texts."""
    found: dict[str, float | None] = {}
    for name, values in human.items():
        scores = finite(values)
        enough = false_positive_rate * len(scores) >= 1 - 1e-9
        found[name] = calibrated_threshold(scores, false_positive_rate) if enough else None
    return found


def paired_change(
    after: Mapping[str, float], before: Mapping[str, float], *, unit_of: float, seed: int
) -> Estimate:
    """Mean difference over the ids that both have, in units of `unit_of`."""
    ids = [name for name in after if name in before]
    changes = finite([(after[name] - before[name]) / unit_of for name in ids])
    estimate = mean_with_interval(changes, seed=seed, unit="standard deviations of human texts")
    return replace(estimate, missing=len(ids) - len(changes))


def variance(values: Sequence[float], *, seed: int) -> Estimate:
    """Variance with a bootstrap interval."""
    data = np.asarray(values, dtype=np.float64)
    generator = np.random.default_rng(seed)
    draws = data[generator.integers(0, len(data), (2000, len(data)))].var(1, ddof=1)
    low, high = np.quantile(draws, (0.025, 0.975))
    return Estimate(
        value=float(data.var(ddof=1)),
        n=len(data),
        low=float(low),
        high=float(high),
        interval="bootstrap",
    )
