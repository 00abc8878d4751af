"""Decline curves → numbers with intervals: half-life, time constant, knee, slopes, exponents, slope ratios.

A decline curve is a behaviour score S against the number of reverse ("negative") examples N-, one curve a seed. The
questions asked of it are those of Ji et al. 2025 (arXiv:2406.06144, sections on rebound and on the theorem of
elasticity): how fast does it fall at first, how fast later, when is it back at the level before alignment?

A steeper start alone says little: from a higher start an exponential of the same rate also falls faster. So the time
constant tau of S = floor + (start - floor) exp(-N-/tau) is fitted, which a higher start leaves alone.

Statistics are computed per seed and their interval is Student's t over seeds, so what is shared by the points of one
seed is not counted as evidence twice. A curve that never reaches what is asked for is counted as missing.

    taus = [fit_decay(doses, curve).tau.value for curve in curves]
    over_seeds(taus, log=True)                      # Estimate: value, n, low, high, missing
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy import optimize, stats

Number = int | float
"""Counts and measurements."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its 95% interval."""

    value: float
    """The estimate; NaN when there is nothing to estimate it from."""
    n: int
    """Observations behind it: seeds, points or documents, as the function that made it says."""
    low: float
    """Lower end of the 95% interval; NaN when it has none (one observation)."""
    high: float
    """Upper end of the 95% interval."""
    missing: int = 0
    """Observations that have no such number, such as curves that never cross a level."""

    def as_dict(self) -> dict[str, float | int]:
        """Plain numbers, as results store them."""
        return asdict(self)

    @property
    def positive(self) -> bool:
        """The whole interval is above 0."""
        return self.low > 0

    @property
    def negative(self) -> bool:
        """The whole interval is below 0."""
        return self.high < 0

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


@dataclass(frozen=True, kw_only=True)
class Decay:
    """S = floor + (start - floor) exp(-dose / tau)."""

    start: float
    """S at dose 0."""
    floor: float
    """S after many examples; given, or fitted."""
    tau: Estimate
    """Examples in which the distance to the floor falls to 1/e; NaN when nothing falls. n counts points."""
    rmse: float
    """Root mean squared error of the fit, in units of S."""

    def at(self, doses: Sequence[Number]) -> list[float]:
        """The fitted curve."""
        return [self.floor + (self.start - self.floor) * math.exp(-d / self.tau.value) for d in doses]


def over_seeds(values: Sequence[Number], *, log: bool = False) -> Estimate:
    """Mean over seeds with Student's t interval; NaN and infinite values are counted as missing.

    Args:
        log: average logarithms (for time constants and counts, which spread multiplicatively); the geometric mean comes
            back. Values of 0 or less are missing then.
    """
    data = np.asarray(values, dtype=np.float64)
    kept = data[np.isfinite(data) & ((data > 0) if log else True)]
    missing = len(data) - len(kept)
    if len(kept) == 0:
        return Estimate(value=math.nan, n=0, low=math.nan, high=math.nan, missing=missing)
    used = np.log(kept) if log else kept
    mean = float(used.mean())
    half = math.nan
    if len(used) > 1:
        half = float(stats.t.ppf(0.975, len(used) - 1) * used.std(ddof=1) / math.sqrt(len(used)))
    ends = (mean, mean - half, mean + half)
    value, low, high = (math.exp(min(e, 700.0)) for e in ends) if log else ends
    return Estimate(value=value, n=len(kept), low=low, high=high, missing=missing)


def fitted_slope(x: Sequence[Number], y: Sequence[Number]) -> Estimate:
    """Least-squares slope of y on x with its t interval; points that are not finite are counted as missing.

    Raises:
        ValueError: x and y differ in length, or fewer than two different x.
    """
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(a) != len(b):
        raise ValueError(f"x and y must have the same length, got {len(a)} and {len(b)}")
    kept = np.isfinite(a) & np.isfinite(b)
    a, b, missing = a[kept], b[kept], int((~kept).sum())
    if len(np.unique(a)) < 2:
        if missing:
            return Estimate(value=math.nan, n=len(a), low=math.nan, high=math.nan, missing=missing)
        raise ValueError(f"a slope needs at least two different x, got {sorted(set(a.tolist()))}")
    found = stats.linregress(a, b)
    half = math.nan if len(a) < 3 else float(stats.t.ppf(0.975, len(a) - 2) * found.stderr)  # pyright: ignore[reportAttributeAccessIssue]
    slope = float(found.slope)  # pyright: ignore[reportAttributeAccessIssue]
    return Estimate(value=slope, n=len(a), low=slope - half, high=slope + half, missing=missing)


def exponents(factors: Mapping[str, Sequence[Number]], response: Sequence[Number]) -> dict[str, Estimate]:
    """Exponents e_i of |response| = c * product_i factor_i^e_i: least squares in logarithms, t intervals.

    Responses that are 0 or not finite are left out and counted as missing.

    Raises:
        ValueError: a factor that is not positive, or that does not vary.
    """
    names = list(factors)
    logs = np.array([[math.log(v) if v > 0 else math.nan for v in factors[name]] for name in names]).T
    if not np.isfinite(logs).all():
        raise ValueError(f"every value of {', '.join(names)} must be positive")
    if (logs.max(0) == logs.min(0)).any():
        raise ValueError(f"each of {', '.join(names)} must take at least two values")
    size = np.abs(np.asarray(response, dtype=np.float64))
    kept = np.isfinite(size) & (size > 0)
    design = np.column_stack([np.ones(int(kept.sum())), logs[kept]])
    missing, freedom = int((~kept).sum()), len(design) - design.shape[1]
    if freedom < 0 or np.linalg.matrix_rank(design) < design.shape[1]:
        nothing = Estimate(value=math.nan, n=len(design), low=math.nan, high=math.nan, missing=missing)
        return dict.fromkeys(names, nothing)
    target = np.log(size[kept])
    coefficients, *_ = np.linalg.lstsq(design, target, rcond=None)
    residual = target - design @ coefficients
    scale = math.nan if freedom == 0 else float(residual @ residual) / freedom
    errors = np.sqrt(scale * np.diag(np.linalg.inv(design.T @ design)))
    t = stats.t.ppf(0.975, freedom) if freedom else math.nan
    return {
        name: Estimate(
            value=float(coefficients[i]),
            n=len(design),
            low=float(coefficients[i] - t * errors[i]),
            high=float(coefficients[i] + t * errors[i]),
            missing=missing,
        )
        for i, name in enumerate(names, start=1)
    }


def fit_decay(doses: Sequence[Number], scores: Sequence[Number], *, floor: Number | None = None) -> Decay:
    """Fit an exponential decline by least squares; tau with an interval from the fit's covariance.

    Args:
        floor: level it falls to; fitted when not given. Behaviour may end below the level before alignment, so a fixed
            floor and a fitted one are both worth looking at.

    Returns:
        tau is NaN where the drop start - floor does not differ from 0: then there is nothing whose speed could be told.

    Raises:
        ValueError: too few points for the parameters.
    """
    x, y = np.asarray(doses, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    needed = 3 if floor is None else 2
    if len(x) != len(y) or len(np.unique(x)) < needed:
        raise ValueError(
            f"a decay with {'a fitted' if floor is None else 'a given'} floor needs as many scores as doses and "
            f"at least {needed} different doses, got {len(y)} scores at {len(np.unique(x))} doses"
        )
    reach = float(x.max() - x.min())
    # Log tau, so that it stays positive; drop instead of start, so that its interval says whether there is a decline.
    end = float(y[x == x.max()].mean()) if floor is None else floor
    start = float(y[x == x.min()].mean())

    least, most = math.log(reach / 1000), math.log(reach * 1000)

    def curve(dose: np.ndarray, drop: float, log_tau: float, *rest: float) -> np.ndarray:
        tau = math.exp(min(max(log_tau, least), most))
        return (rest[0] if rest else end) + drop * np.exp(-dose / tau)

    guess = [start - end or 1e-3, math.log(reach / 3), *([end] if floor is None else [])]
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", optimize.OptimizeWarning)  # no covariance: not resolved below
        found, covariance = optimize.curve_fit(curve, x, y, guess, maxfev=20000)
    error = y - curve(x, *found)
    freedom = len(x) - len(guess)
    t = stats.t.ppf(0.975, freedom) if freedom else math.nan
    spread = np.sqrt(np.diag(covariance))
    drop, log_tau = float(found[0]), float(found[1])
    resolved = least < log_tau < most and (freedom == 0 or abs(drop) > t * float(spread[0]))
    half = t * float(spread[1])
    tau = Estimate(
        value=math.exp(log_tau) if resolved else math.nan,
        n=len(x),
        low=math.exp(max(log_tau - half, -700.0)) if resolved else math.nan,
        high=math.exp(min(log_tau + half, 700.0)) if resolved else math.nan,
        missing=0 if resolved else len(x),
    )
    bottom = float(found[2]) if floor is None else float(floor)
    return Decay(start=bottom + drop, floor=bottom, tau=tau, rmse=float(np.sqrt((error**2).mean())))


def crossing(doses: Sequence[Number], scores: Sequence[Number], level: Number) -> float:
    """The first dose at which the score has come to the level, interpolated between points; NaN when it never does."""
    above = scores[0] > level
    if scores[0] == level:
        return float(doses[0])
    pairs = zip(doses, scores, doses[1:], scores[1:], strict=False)
    for dose, score, next_dose, next_score in pairs:
        if (next_score <= level) if above else (next_score >= level):
            return float(dose + (next_dose - dose) * (level - score) / (next_score - score))
    return math.nan


def half_life(doses: Sequence[Number], scores: Sequence[Number], base: Number) -> float:
    """Examples until half of the distance between S(0) and the base level is gone; NaN when it never is."""
    return crossing(doses, scores, (scores[0] + base) / 2)


def knee(doses: Sequence[Number], scores: Sequence[Number]) -> float:
    """Where a continuous line of two pieces bends, by least squares over all breakpoints; NaN below four points.

    NaN, too, where two pieces fit no better than one line (F test, 5%) with points to spare.
    """
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
        f = ((straight - best) / 2) / (best / freedom)
        if stats.f.sf(f, 2, freedom) > 0.05:
            return math.nan
    return float(candidates[int(np.argmin(errors))])


def slope_within(doses: Sequence[Number], scores: Sequence[Number], first: Number, last: Number) -> float:
    """Least-squares slope of one curve between two doses, per example; NaN with fewer than two points there."""
    x, y = np.asarray(doses, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    kept = (first <= x) & (x <= last)
    return float(np.polyfit(x[kept], y[kept], 1)[0]) if len(np.unique(x[kept])) > 1 else math.nan


@dataclass(frozen=True, kw_only=True)
class Ratio(Estimate):
    """A ratio of two means; NaN and not resolved when the denominator's interval covers 0."""

    resolved: bool
    """Whether the denominator differs from 0."""

    def __str__(self) -> str:
        return super().__str__() if self.resolved else "not resolved"


def ratio_of_means(numerators: Sequence[Number], denominators: Sequence[Number]) -> Ratio:
    """Mean of independent numerators over mean of denominators, with Fieller's 95% interval.

    Fieller's interval is bounded exactly when the denominator's own interval leaves out 0; otherwise the ratio may be
    anything and is reported as not resolved, never as a number.

    Args:
        numerators: paired differences, one a document (or seed).
        denominators: the same for the other set of documents; independent of the numerators.
    """
    a, b = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    n = min(len(a), len(b))
    if n < 2:
        return Ratio(value=math.nan, n=n, low=math.nan, high=math.nan, resolved=False)
    top, bottom = float(a.mean()), float(b.mean())
    var_top, var_bottom = float(a.var(ddof=1)) / len(a), float(b.var(ddof=1)) / len(b)
    t = float(stats.t.ppf(0.975, n - 1))
    if bottom == 0 or (g := t**2 * var_bottom / bottom**2) >= 1:
        return Ratio(value=math.nan, n=n, low=math.nan, high=math.nan, missing=1, resolved=False)
    value = top / bottom
    half = t / abs(bottom) * math.sqrt(max(var_top * (1 - g) + value**2 * var_bottom, 0.0))
    return Ratio(value=value, n=n, low=(value - half) / (1 - g), high=(value + half) / (1 - g), resolved=True)


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """Differences of pairs against 0."""

    difference: Estimate
    """Mean of first minus second, t interval; n counts pairs."""
    p_value: float
    """Two-sided paired t test; NaN with fewer than two pairs."""


def paired_test(first: Sequence[Number], second: Sequence[Number]) -> PairedTest:
    """Paired t test of first minus second.

    Raises:
        ValueError: the two differ in length.
    """
    if len(first) != len(second):
        raise ValueError(f"pairs need two lists of the same length, got {len(first)} and {len(second)}")
    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    estimate = over_seeds(difference.tolist())
    if estimate.n < 2:
        return PairedTest(difference=estimate, p_value=math.nan)
    if float(np.ptp(difference)) == 0:
        return PairedTest(difference=estimate, p_value=1.0 if difference[0] == 0 else 0.0)
    return PairedTest(
        difference=estimate,
        p_value=float(stats.ttest_1samp(difference, 0.0, nan_policy="omit").pvalue),  # pyright: ignore[reportAttributeAccessIssue]
    )
