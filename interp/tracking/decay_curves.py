"""Statistics of one decay curve: time constant, half-life, knee, slopes, the dose at which it crosses a level.

A decay curve is a behaviour score S against the number of negative (reverse) training examples N-, the dose; there is
one curve per seed. The statistics answer the questions of Ji et al. 2025 (arXiv:2406.06144, sections on rebound and on
the theorem of elasticity): how fast does it fall at first, how fast later, when is it back at the level before
alignment?

A steeper initial slope alone is weak evidence: from a higher start an exponential of the same rate also falls faster.
Hence the time constant tau of S = floor + (start - floor) exp(-N-/tau) is fitted, which does not depend on the start.

Each statistic is computed per seed and gets a Student's t interval over seeds (`interp.stats.over_seeds`), since the
points of one seed are not independent. A statistic that a curve does not have, because it never reaches the level in
question, is NaN and counted as missing.

    taus = [fit_decay(doses, curve).tau.value for curve in curves]
    over_seeds(taus, log=True)                      # Estimate: value, n, low, high, missing
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from interp.stats import Estimate, Number


@dataclass(frozen=True, kw_only=True)
class Decay:
    """A fitted exponential decay, S = floor + (start - floor) exp(-dose / tau)."""

    start: float
    """S at dose 0."""
    floor: float
    """S in the limit of many examples; given, or fitted."""
    tau: Estimate
    """Examples in which the distance to the floor falls to 1/e; NaN without a decay. n counts points."""
    rmse: float
    """Root mean squared error of the fit, in units of S."""

    def at(self, doses: Sequence[Number]) -> list[float]:
        """Values of the fitted curve at these doses."""
        return [self.floor + (self.start - self.floor) * math.exp(-d / self.tau.value) for d in doses]


def fit_decay(doses: Sequence[Number], scores: Sequence[Number], *, floor: Number | None = None) -> Decay:
    """Fit an exponential decay by least squares; tau has an interval from the covariance of the fit.

    Args:
        floor: level that the curve falls to; fitted when not given. Behaviour may end below its level before
            alignment, so report both a given and a fitted floor.

    Returns:
        The fit; tau is NaN where the drop start - floor does not differ from 0, since nothing decays.

    Raises:
        ValueError: too few points for the parameters.
    """
    import numpy as np

    x, y = np.asarray(doses, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    needed = 3 if floor is None else 2
    if len(x) != len(y) or len(np.unique(x)) < needed:
        raise ValueError(
            f"a decay with {'a fitted' if floor is None else 'a given'} floor needs as many scores as doses and "
            f"at least {needed} different doses, got {len(y)} scores at {len(np.unique(x))} doses"
        )
    reach = float(x.max() - x.min())
    # Fit log tau to keep tau positive, and the drop instead of start, whose interval shows whether anything decays.
    end = float(y[x == x.max()].mean()) if floor is None else floor
    start = float(y[x == x.min()].mean())

    shortest, longest = math.log(reach / 1000), math.log(reach * 1000)

    def curve(dose: np.ndarray, drop: float, log_tau: float, *rest: float) -> np.ndarray:
        tau = math.exp(min(max(log_tau, shortest), longest))
        return (rest[0] if rest else end) + drop * np.exp(-dose / tau)

    from scipy import optimize, stats  # takes seconds to import, and settings are checked without it

    guess = [start - end or 1e-3, math.log(reach / 3), *([end] if floor is None else [])]
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", optimize.OptimizeWarning
        )  # no covariance: handled below as not resolved
        parameters, covariance = optimize.curve_fit(curve, x, y, guess, maxfev=20000)
    error = y - curve(x, *parameters)
    freedom = len(x) - len(guess)
    t = stats.t.ppf(0.975, freedom) if freedom else math.nan
    spread = np.sqrt(np.diag(covariance))
    drop, log_tau = float(parameters[0]), float(parameters[1])
    resolved = shortest < log_tau < longest and (freedom == 0 or abs(drop) > t * float(spread[0]))
    half = t * float(spread[1])
    tau = Estimate(
        value=math.exp(log_tau) if resolved else math.nan,
        n=len(x),
        low=math.exp(max(log_tau - half, -700.0)) if resolved else math.nan,
        high=math.exp(min(log_tau + half, 700.0)) if resolved else math.nan,
        missing=0 if resolved else len(x),
    )
    bottom = float(parameters[2]) if floor is None else float(floor)
    return Decay(start=bottom + drop, floor=bottom, tau=tau, rmse=float(np.sqrt((error**2).mean())))


def crossing(doses: Sequence[Number], scores: Sequence[Number], level: Number) -> float:
    """The first dose at which the score reaches the level, interpolated linearly; NaN when it never does."""
    above = scores[0] > level
    if scores[0] == level:
        return float(doses[0])
    pairs = zip(doses, scores, doses[1:], scores[1:], strict=False)
    for dose, score, next_dose, next_score in pairs:
        if (next_score <= level) if above else (next_score >= level):
            return float(dose + (next_dose - dose) * (level - score) / (next_score - score))
    return math.nan


def half_life(doses: Sequence[Number], scores: Sequence[Number], base: Number) -> float:
    """Examples until S has fallen half of the way from S(0) to the base level; NaN when it never does."""
    return crossing(doses, scores, (scores[0] + base) / 2)


def knee(doses: Sequence[Number], scores: Sequence[Number]) -> float:
    """The dose at which a continuous line of two pieces bends, by least squares over breakpoints.

    NaN with fewer than four points, and where two pieces fit no better than one line (F test at 5%, with five points or
    more).
    """
    import numpy as np

    x, y = np.asarray(doses, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if len(x) < 4:
        return math.nan

    def misfit(at: float | None) -> float:
        columns = [np.ones_like(x), x] + ([] if at is None else [np.maximum(x - at, 0)])
        design = np.column_stack(columns)
        return float(((y - design @ np.linalg.lstsq(design, y, rcond=None)[0]) ** 2).sum())

    candidates = np.linspace(x[1], x[-2], 201)
    errors = [misfit(at) for at in candidates]
    best, straight = min(errors), misfit(None)
    freedom = len(x) - 4
    if straight <= 1e-12 * max(float((y**2).sum()), 1e-300):
        return math.nan
    if freedom > 0 and best > 0:
        from scipy import stats

        f = ((straight - best) / 2) / (best / freedom)
        if stats.f.sf(f, 2, freedom) > 0.05:
            return math.nan
    return float(candidates[int(np.argmin(errors))])


def slope_within(doses: Sequence[Number], scores: Sequence[Number], first: Number, last: Number) -> float:
    """Least-squares slope of one curve between two doses, per example; NaN with fewer than two points there."""
    import numpy as np

    x, y = np.asarray(doses, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    inside = (first <= x) & (x <= last)
    return float(np.polyfit(x[inside], y[inside], 1)[0]) if len(np.unique(x[inside])) > 1 else math.nan
