"""Analysis of rebound's points: shift of the representation and slope ratio. Imports no torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from interp.experiments.rebound import Point
from interp.experiments.rebound.curves import negatives, positives
from interp.stats import Estimate, fitted_slope, over_seeds, ratio_of_means
from interp.tracking.rebound import initial_range

# The representation side


@dataclass(frozen=True, kw_only=True)
class ShiftLeft:
    """Remaining share of the alignment's shift along a direction after a number of negative examples."""

    n_minus: int
    """Negative examples."""
    shift: Estimate
    """Shift since the model before alignment, in lengths of the direction; t interval over prompts and seeds."""
    share: Estimate
    """Its share of the shift at N- = 0; Fieller's interval, which treats the two means as independent, so it is wide.
    Not measurable where the alignment's own shift does not differ from 0."""


def directions(points: Sequence[Point]) -> list[str]:
    """Names of the directions that were followed; controls last."""
    names = list(points[0].shifts) if points else []
    return sorted(names, key=lambda name: name.startswith("control"))


def shifts_left(points: Sequence[Point]) -> dict[str, dict[int, list[ShiftLeft]]]:
    """Direction → N+ above 0 → what is left of the alignment's shift at every N-."""
    return {
        name: {
            n_plus: [_shift_left(points, name, n_plus, n_minus) for n_minus in negatives(points)]
            for n_plus in positives(points)
            if n_plus
        }
        for name in directions(points)
    }


def _shift_left(points: Sequence[Point], name: str, n_plus: int, n_minus: int) -> ShiftLeft:
    shifts = [p.shifts[name] for p in points if (p.n_plus, p.n_minus) == (n_plus, n_minus)]
    since_base = [value for shift in shifts for value in shift.since_base]
    at_aligned = [value for shift in shifts for value in shift.at_aligned]
    return ShiftLeft(
        n_minus=n_minus, shift=over_seeds(since_base), share=ratio_of_means(since_base, at_aligned)
    )


def lost_per_example(points: Sequence[Point]) -> dict[str, dict[int, Estimate]]:
    """Direction → N+ → share of the projection lost per negative example over the initial range; over seeds.

    Only where the alignment's own shift is resolved; otherwise the estimate is empty and counts its seeds as missing.
    """
    return {
        name: {
            n_plus: _lost(points, name, n_plus, resolved=entries[0].share.measurable)
            for n_plus, entries in by.items()
        }
        for name, by in shifts_left(points).items()
    }


def _lost(points: Sequence[Point], name: str, n_plus: int, *, resolved: bool) -> Estimate:
    values = []
    for seed in sorted({p.seed for p in points}):
        curve = sorted((p for p in points if (p.n_plus, p.seed) == (n_plus, seed)), key=lambda p: p.n_minus)
        _, last = initial_range([p.n_minus for p in curve])
        shift = [float(np.mean(p.shifts[name].since_base)) for p in curve]
        early = [
            (p.n_minus, 1 - value / shift[0])
            for p, value in zip(curve, shift, strict=True)
            if p.n_minus <= last and shift[0]
        ]
        usable = resolved and len(early) > 1
        values.append(fitted_slope(*zip(*early, strict=True)).value if usable else math.nan)
    return over_seeds(values)


# Slope ratio


@dataclass(frozen=True, kw_only=True)
class RatioPoint:
    """Slope ratio after so many positive and negative examples."""

    n_plus: int
    n_minus: int
    change_a: Estimate
    """Change of bits per byte on held-out positives since N- = 0, paired by document, pooled over seeds."""
    change_p: Estimate
    """Change of bits per byte on prose, paired and pooled likewise."""
    ratio: Estimate
    """R(l) = change_a / change_p, Fieller's interval; not measurable where the change on prose does not differ from
    0."""


def slope_ratios(points: Sequence[Point]) -> list[RatioPoint]:
    """The slope ratio at every N+ and N- above 0."""
    rows = []
    for n_plus in (n for n in positives(points) if n):
        for n_minus in (n for n in negatives(points) if n):
            alignment = _changes(points, "positive", n_plus, n_minus)
            prose = _changes(points, "prose", n_plus, n_minus)
            rows.append(
                RatioPoint(
                    n_plus=n_plus,
                    n_minus=n_minus,
                    change_a=over_seeds(alignment),
                    change_p=over_seeds(prose),
                    ratio=ratio_of_means(alignment, prose),
                )
            )
    return rows


def _changes(
    points: Sequence[Point], corpus: Literal["positive", "prose"], n_plus: int, n_minus: int
) -> list[float]:
    """Bits per byte minus those at N- = 0, by seed and document."""
    at = {(p.seed, p.n_minus): p.bits(corpus) for p in points if p.n_plus == n_plus}
    return [
        float(value)
        for p in points
        if (p.n_plus, p.n_minus) == (n_plus, n_minus)
        for value in np.subtract(at[p.seed, n_minus], at[p.seed, 0])
    ]
