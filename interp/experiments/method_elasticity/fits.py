"""Half-lives, time constants and exponents of one curve. Imports no torch.

A curve is a number against examples seen. Each function gives NaN, or an estimate that is not measurable, where the
curve does not have the number asked for; what counts as that is said there.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from interp.stats import Estimate, Number, fitted_slope
from interp.tracking.decay_curves import crossing, fit_decay, half_life

_RISEN = 0.9
"""Share of the largest growth up to which the exponent is fitted."""


class Decline(NamedTuple):
    """Statistics of one declining curve."""

    half_life: float
    """Examples until half of the way to the floor is gone; NaN where it never is, or the curve starts below."""
    tau: float
    """Time constant of an exponential decline to the floor, in examples; NaN without one."""


def decline(examples: Sequence[Number], scores: Sequence[Number], floor: Number) -> Decline:
    """How fast a score declines towards a floor."""
    if not scores[0] > floor:
        return Decline(math.nan, math.nan)
    try:
        tau = fit_decay(examples, scores, floor=floor).tau.value
    except (RuntimeError, ValueError):  # no convergence, or too few points
        tau = math.nan
    within = 0 < tau < 20 * examples[-1]
    return Decline(half_life(examples, scores, floor), tau if within else math.nan)


def examples_to(examples: Sequence[Number], scores: Sequence[Number], level: Number) -> float:
    """Examples until a rising score reaches a level; NaN where it starts there or above, or never does."""
    return crossing(examples, scores, level) if scores[0] < level else math.nan


def growth_exponent(examples: Sequence[Number], losses: Sequence[Number]) -> Estimate:
    """Exponent p of a growth L(t) - L(0) = c t^p: slope of its logarithm against that of t, with a t interval.

    Fitted on the points after 0 up to the first at which 90% of the largest growth is reached, since no power continues
    once there is nothing left to lose. Not measurable with fewer than three such points, or where one of them is not
    above the start.
    """
    growth = [loss - losses[0] for loss in losses]
    largest = max(growth)
    if not largest > 0:
        return Estimate.unmeasured(missing=1)
    last = next(i for i, value in enumerate(growth) if value >= _RISEN * largest)
    rising = [(t, g) for t, g in zip(examples[1 : last + 1], growth[1 : last + 1], strict=True) if g > 0]
    if len(rising) < 3 or len(rising) < last:
        return Estimate.unmeasured(len(rising), missing=1)
    return fitted_slope(*zip(*((math.log(t), math.log(g)) for t, g in rising), strict=True))
