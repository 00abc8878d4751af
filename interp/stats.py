"""Numbers with their uncertainty: rates, means, AUROC, slopes and ratios, each an `Estimate` with its 95% interval.

| statistic | interval |
|---|---|
| `rate` | Wilson's score interval |
| `mean_with_interval`, `ratio_with_interval` | percentile bootstrap over the rows |
| `auroc` | percentile bootstrap, positives and negatives resampled separately |
| `over_seeds`, `fitted_slope`, `paired_test` | Student's t |
| `ratio_of_means` | Fieller |

A quantity that could not be measured is marked as such (`Estimate.measurable`), never a zero, and excluded observations
are counted (`Estimate.missing`). An interval only covers the sampling that its function names: not the choice of
prompts, of a model or of a judge.

    rate([True, True, False])              # 0.67 [0.21, 0.94]
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator

if TYPE_CHECKING:  # numpy and scipy are loaded where they compute: types and records need neither
    import numpy as np
    from torch import Tensor

_CONTAINING = ("Wilson", "t", "Fieller", "exact")
"""Intervals that contain their value by construction; percentiles of resamples can leave a biased one out."""
_ROUNDING = 1e-6
"""Relative rounding of stored numbers."""

Number = int | float
"""Type of counts and measurements."""

Measured = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""A float that may be not measurable: NaN in memory, null in JSON."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its 95% interval."""

    value: Measured
    """The estimate; NaN when there is nothing to estimate it from."""
    n: int
    """Number of observations: prompts, seeds, points or documents, depending on the function that made it."""
    low: Measured = math.nan
    """Lower end of the 95% interval; NaN without an interval (one observation)."""
    high: Measured = math.nan
    """Upper end of the 95% interval."""
    unit: str = ""
    """Unit of the value: `share`, `AUROC`, `nats`; empty where the name of its field gives it."""
    interval: str = ""
    """Method of the interval, e.g. `Wilson`, `bootstrap`, `t`, `Fieller`; empty without one."""
    missing: int = 0
    """Number of observations without a value, such as curves that never cross a level."""

    def __post_init__(self) -> None:
        """Check that the numbers can be an estimate and its interval; NaN passes every comparison.

        Raises:
            ValueError: a negative count, ends in the wrong order, a value outside an interval that contains it by
                construction, or an AUROC or Wilson share outside 0 to 1.
        """
        if self.n < 0 or self.missing < 0:
            raise ValueError(f"counts must be 0 or more, got n {self.n} and missing {self.missing}")
        ends = [self.low, self.value, self.high] if self.interval in _CONTAINING else [self.low, self.high]
        for lower, upper in pairwise(ends):
            if lower - upper > _ROUNDING * max(abs(lower), abs(upper)):
                raise ValueError(
                    f"low, value and high must be in order, got {self.low:g}, {self.value:g} and {self.high:g}"
                )
        if (self.unit == "AUROC" or self.interval == "Wilson") and not _within_unit(*ends, self.value):
            raise ValueError(f"{self.unit or 'a rate'} must be within 0 to 1, got {self}")

    @classmethod
    def unmeasured(cls, n: int = 0, *, unit: str = "", missing: int = 0) -> "Estimate":
        """An estimate that is not measurable, for lack of observations."""
        return cls(value=math.nan, n=n, unit=unit, missing=missing)

    @property
    def measurable(self) -> bool:
        """Whether there is a value."""
        return math.isfinite(self.value)

    @property
    def positive(self) -> bool:
        """The whole interval is above 0."""
        return self.low > 0

    @property
    def negative(self) -> bool:
        """The whole interval is below 0."""
        return self.high < 0

    def above(self, other: "Estimate") -> bool:
        """The whole interval is above the other's."""
        return self.low > other.high

    def below(self, other: "Estimate") -> bool:
        """The whole interval is below the other's."""
        return self.high < other.low

    @property
    def percent(self) -> str:
        """A share as text in percent, e.g. `97% [89, 99]`."""
        if not self.measurable:
            return "not measurable"
        return f"{100 * self.value:.0f}% [{100 * self.low:.0f}, {100 * self.high:.0f}]"

    @property
    def points(self) -> str:
        """A difference of shares as text in percentage points, e.g. `+12 points [+3, +21]`."""
        if not self.measurable:
            return "not measurable"
        return f"{100 * self.value:+.0f} points [{100 * self.low:+.0f}, {100 * self.high:+.0f}]"

    def rounded(self, digits: int = 2, *, factor: Number = 1) -> str:
        """The value and its interval to so many digits, and how many are missing, e.g. `0.53 [0.41, 0.65] (1 missing)`.

        Args:
            factor: multiplies value and interval, for instance 100 for a slope per 100 examples.
        """
        text = "none"
        if self.measurable:
            text = f"{self.value * factor:.{digits}f}"
            if math.isfinite(self.low):
                text += f" [{self.low * factor:.{digits}f}, {self.high * factor:.{digits}f}]"
        return text + (f" ({self.missing} missing)" if self.missing else "")

    def __str__(self) -> str:
        if not self.measurable:
            return "not measurable"
        digits = ".3g" if self.unit == "" else ".2f"
        ends = f" [{self.low:{digits}}, {self.high:{digits}}]" if math.isfinite(self.low) else ""
        return f"{self.value:{digits}}{ends}"


def _within_unit(*values: float) -> bool:
    return not any(value < -_ROUNDING or value > 1 + _ROUNDING for value in values)


def rate(successes: Sequence[bool]) -> Estimate:
    """Share of successes with its 95% Wilson score interval."""
    from scipy import stats

    n, k = len(successes), sum(successes)
    if n == 0:
        return Estimate.unmeasured()
    interval = stats.binomtest(k, n).proportion_ci(method="wilson")
    return Estimate(
        value=k / n, n=n, low=float(interval.low), high=float(interval.high), unit="share", interval="Wilson"
    )


def mean_with_interval(
    values: Sequence[float], *, seed: int = 0, resamples: int = 2000, unit: str = ""
) -> Estimate:
    """Mean with its 95% percentile-bootstrap interval over the values."""
    import numpy as np

    data = np.asarray(values, dtype=np.float64)
    if len(data) == 0:
        return Estimate.unmeasured()
    generator = np.random.default_rng(seed)
    draws = data[generator.integers(0, len(data), (resamples, len(data)))].mean(1)
    low, high = np.quantile(draws, (0.025, 0.975))
    return Estimate(
        value=float(data.mean()),
        n=len(data),
        low=float(low),
        high=float(high),
        unit=unit,
        interval="bootstrap",
    )


def as_wide_as(found: Estimate, parts: Sequence[Estimate]) -> Estimate:
    """The estimate with each end at least as far out as the mean of those of its parts.

    Seeds that agree, or prompts that all do, leave a mean over them no interval; the parts' own intervals still say how
    few there were.
    """
    low, high = (sum(ends) / len(parts) for ends in zip(*((p.low, p.high) for p in parts), strict=True))
    return replace(found, low=min(found.low, low), high=max(found.high, high))


def auroc(
    positive: "Tensor | Sequence[float]",
    negative: "Tensor | Sequence[float]",
    *,
    seed: int = 0,
    resamples: int = 500,
) -> Estimate:
    """Probability that a positive scores above a negative (ties count half), with a stratified bootstrap interval.

    Raises:
        ValueError: one side is empty, or scores that are not finite.
    """
    import numpy as np

    a, b = _array(positive), _array(negative)
    value = float(_auroc(a, b))
    generator = np.random.default_rng(seed)
    low = high = math.nan
    if resamples:
        samples = [side[generator.integers(0, len(side), (resamples, len(side)))] for side in (a, b)]
        low, high = np.quantile(_auroc(*samples), (0.025, 0.975))
    return Estimate(
        value=value,
        n=len(a) + len(b),
        low=float(low),
        high=float(high),
        unit="AUROC",
        interval="stratified bootstrap" if resamples else "",
    )


def _array(values: "Tensor | Sequence[float]") -> "np.ndarray":
    import numpy as np

    plain: Any = values
    if hasattr(plain, "detach"):  # a tensor, perhaps in half precision or on a GPU
        plain = plain.detach().double().cpu().numpy()
    return np.asarray(plain, dtype=np.float64)


def _auroc(a: "np.ndarray", b: "np.ndarray") -> "np.ndarray":
    """AUROC along the last axis, for many resamples at once."""
    import numpy as np
    from scipy import stats

    n, m = a.shape[-1], b.shape[-1]
    if n == 0 or m == 0:
        raise ValueError(f"AUROC needs scores on both sides, got {n} and {m}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("AUROC needs finite scores")
    ranks = stats.rankdata(np.concatenate([a, b], axis=-1), axis=-1)
    return np.asarray((ranks[..., :n].sum(-1) - n * (n + 1) / 2) / (n * m))


def ratio_with_interval(
    sums: "np.ndarray", counts: "np.ndarray", *, seed: int = 0, unit: str = ""
) -> Estimate:
    """Sum of sums over sum of counts, with a 95% percentile-bootstrap interval over the rows; n is the counts' sum."""
    import numpy as np

    if len(sums) == 0:
        return Estimate.unmeasured()
    index = np.random.default_rng(seed).integers(0, len(sums), (2000, len(sums)))
    draws = sums[index].sum(1) / counts[index].sum(1)
    low, high = np.quantile(draws, (0.025, 0.975))
    return Estimate(
        value=float(sums.sum() / counts.sum()),
        n=int(counts.sum()),
        low=float(low),
        high=float(high),
        unit=unit,
        interval="bootstrap",
    )


def over_seeds(
    values: Sequence[Number], *, log: bool = False, within: tuple[float, float] | None = None
) -> Estimate:
    """Mean over seeds with Student's t interval; NaN and infinite values are counted as missing.

    Args:
        within: range of the quantity, (0, 1) for a share, to which the interval is cut.
        log: average logarithms (for time constants and counts, which spread multiplicatively); the geometric mean comes
            back. Values of 0 or less are missing then.
    """
    import numpy as np
    from scipy import stats

    data = np.asarray(values, dtype=np.float64)
    usable = data[np.isfinite(data) & ((data > 0) if log else True)]
    missing = len(data) - len(usable)
    if len(usable) == 0:
        return Estimate.unmeasured(missing=missing)
    used = np.log(usable) if log else usable
    mean = float(used.mean())
    half = math.nan
    if len(used) > 1:
        half = float(stats.t.ppf(0.975, len(used) - 1) * used.std(ddof=1) / math.sqrt(len(used)))
    ends = (mean, mean - half, mean + half)
    value, low, high = (math.exp(min(e, 700.0)) for e in ends) if log else ends
    if within is not None:
        low, high = max(low, within[0]), min(high, within[1])
    return Estimate(
        value=value,
        n=len(usable),
        low=low,
        high=high,
        interval="t" if len(usable) > 1 else "",
        missing=missing,
    )


def fitted_slope(x: Sequence[Number], y: Sequence[Number]) -> Estimate:
    """Least-squares slope of y on x with its t interval; points that are not finite are counted as missing.

    Raises:
        ValueError: x and y differ in length, or fewer than two different x.
    """
    import numpy as np
    from scipy import stats

    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(a) != len(b):
        raise ValueError(f"x and y must have the same length, got {len(a)} and {len(b)}")
    usable = np.isfinite(a) & np.isfinite(b)
    a, b, missing = a[usable], b[usable], int((~usable).sum())
    if len(np.unique(a)) < 2:
        if missing:
            return Estimate.unmeasured(len(a), missing=missing)
        raise ValueError(f"a slope needs at least two different x, got {sorted(set(a.tolist()))}")
    line = stats.linregress(a, b)
    half = math.nan if len(a) < 3 else float(stats.t.ppf(0.975, len(a) - 2) * line.stderr)  # pyright: ignore[reportAttributeAccessIssue]
    slope = float(line.slope)  # pyright: ignore[reportAttributeAccessIssue]
    return Estimate(
        value=slope,
        n=len(a),
        low=slope - half,
        high=slope + half,
        interval="t" if len(a) > 2 else "",
        missing=missing,
    )


def ratio_of_means(numerators: Sequence[Number], denominators: Sequence[Number]) -> Estimate:
    """Mean of independent numerators over mean of denominators, with Fieller's 95% interval.

    Fieller's interval is bounded exactly when the denominator's own interval excludes 0; otherwise the ratio is
    unbounded and reported as not measurable, never as a number.

    Args:
        numerators: paired differences, one per document (or seed).
        denominators: paired differences of another set of documents, independent of the numerators.
    """
    import numpy as np
    from scipy import stats

    a, b = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    n = min(len(a), len(b))
    if n < 2:
        return Estimate.unmeasured(n)
    top, bottom = float(a.mean()), float(b.mean())
    var_top, var_bottom = float(a.var(ddof=1)) / len(a), float(b.var(ddof=1)) / len(b)
    t = float(stats.t.ppf(0.975, n - 1))
    if bottom == 0 or (g := t**2 * var_bottom / bottom**2) >= 1:
        return Estimate.unmeasured(n, missing=1)
    value = top / bottom
    half = t / abs(bottom) * math.sqrt(max(var_top * (1 - g) + value**2 * var_bottom, 0.0))
    return Estimate(
        value=value, n=n, low=(value - half) / (1 - g), high=(value + half) / (1 - g), interval="Fieller"
    )


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """Paired differences tested against 0."""

    difference: Estimate
    """Mean of first minus second with a t interval; n counts pairs."""
    p_value: Measured
    """p value of the two-sided paired t test; NaN with fewer than two pairs."""


def paired_test(first: Sequence[Number], second: Sequence[Number]) -> PairedTest:
    """Paired t test of first minus second.

    Raises:
        ValueError: the two differ in length.
    """
    import numpy as np
    from scipy import stats

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
