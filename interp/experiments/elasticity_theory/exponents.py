"""The exponents of a power law in several factors, by least squares on logarithms, with Student t intervals."""

import math
from collections.abc import Mapping, Sequence

from interp.stats import Estimate, Number


def exponents(factors: Mapping[str, Sequence[Number]], response: Sequence[Number]) -> dict[str, Estimate]:
    """Exponents e_i of |response| = c * product_i factor_i^e_i: least squares in logarithms, t intervals.

    Responses that are 0 or not finite are excluded and counted as missing.

    Raises:
        ValueError: a factor that is not positive, or that does not vary.
    """
    import numpy as np
    from scipy import stats

    names = list(factors)
    logs = np.array([[math.log(v) if v > 0 else math.nan for v in factors[name]] for name in names]).T
    if not np.isfinite(logs).all():
        raise ValueError(f"every value of {', '.join(names)} must be positive")
    if (logs.max(0) == logs.min(0)).any():
        raise ValueError(f"each of {', '.join(names)} must take at least two values")
    size = np.abs(np.asarray(response, dtype=np.float64))
    usable = np.isfinite(size) & (size > 0)
    design = np.column_stack([np.ones(int(usable.sum())), logs[usable]])
    missing, freedom = int((~usable).sum()), len(design) - design.shape[1]
    if freedom < 0 or np.linalg.matrix_rank(design) < design.shape[1]:
        nothing = Estimate.unmeasured(len(design), missing=missing)
        return dict.fromkeys(names, nothing)
    target = np.log(size[usable])
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
            interval="t" if freedom else "",
            missing=missing,
        )
        for i, name in enumerate(names, start=1)
    }
