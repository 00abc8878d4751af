"""Decay curves after several amounts of alignment: statistics with intervals, and whether they show rebound.

Rebound in the sense of Ji et al. 2025 (arXiv:2406.06144, figure 4): the more positive examples N+ a model was aligned
on, the faster its score falls over the first negative examples, and the slower over the last. Two effects that look
similar are distinguished from it. A higher start falls faster at an equal time constant, so the trend of tau is tested
next to those of the slopes. And a score that crosses its level before alignment does not imply that the model has
returned: that needs KL or a compression rate.

    statistics = summarise(doses, {1000: curves, 10000: curves}, base=0.5)    # curves: [seed][dose]
    statistics.verdict, statistics.groups[1000].tau

The verdicts are "consistent with rebound", "not consistent with rebound" and "not resolved". None of them proves
elasticity: rebound is an asymmetry of optimisation, not a disposition, and differs from alignment faking.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from interp.stats import Estimate, Number, fitted_slope, over_seeds
from interp.tracking.decay_curves import crossing, fit_decay, half_life, knee, slope_within

Curves = Sequence[Sequence[Number]]
"""Scores of one N+, indexed [seed][dose]."""
Verdict = Literal["consistent with rebound", "not consistent with rebound", "not resolved"]
Floor = Literal["base", "fitted"]
"""The asymptote of the decay that tau belongs to: the score before alignment, or a fitted level."""


@dataclass(frozen=True, kw_only=True)
class GroupStatistics:
    """Statistics over the seeds of one N+; curves without a value are counted as missing."""

    start: Estimate
    """Score after alignment, S(0)."""
    initial_slope: Estimate
    """Change of the score per negative example in the initial range; negative when it falls."""
    late_slope: Estimate
    """Change of the score per negative example in the late range."""
    half_life: Estimate
    """Negative examples until the score has fallen half of the way to the base score."""
    knee: Estimate
    """Negative examples at which the slope changes."""
    tau: Estimate
    """Time constant towards the base score, in negative examples; geometric mean over seeds."""
    tau_fitted_floor: Estimate
    """Time constant towards a fitted floor."""
    return_by_score: Estimate
    """Negative examples until the score is back at the base score."""
    return_by_kl: Estimate | None
    """Negative examples until KL to the model before alignment is at or below the threshold; None where no KL was
    given."""


@dataclass(frozen=True, kw_only=True)
class Trends:
    """Trends of the statistics with N+: change per factor e of N+, over all seeds."""

    steepness: Estimate
    """Trend of minus the initial slope; above 0 under rebound."""
    late_steepness: Estimate
    """Trend of the late slope's magnitude; below 0 under rebound."""
    log_tau: Estimate
    """Trend of log tau; below 0 under rebound."""


class Judgement(NamedTuple):
    """The verdict on rebound and the reason for it."""

    verdict: Verdict
    why: str
    """The reason, half a sentence."""


@dataclass(frozen=True, kw_only=True)
class ReboundStatistics:
    """Statistics of every N+, their trends, and the verdict."""

    groups: dict[int, GroupStatistics]
    """Statistics by N+."""
    trends: Trends
    """Trends over the N+ above 0."""
    verdict: Verdict
    """The verdict of `judge`."""
    why: str
    """The reason, half a sentence."""
    initial_range: tuple[float, float]
    """Doses between which the initial slope is taken."""
    late_range: tuple[float, float]
    """Doses between which the late slope is taken."""
    kl_threshold: float
    """KL in nats at or below which a model counts as returned."""
    tau_floor: Floor
    """Which tau the trend uses: `fitted` where most curves have none towards the base score."""

    @property
    def aligned(self) -> dict[int, GroupStatistics]:
        """The groups with alignment, N+ above 0."""
        return {n_plus: group for n_plus, group in self.groups.items() if n_plus > 0}


def initial_range(doses: Sequence[Number]) -> tuple[float, float]:
    """Range of the initial slope: the first tenth of the doses, and at least up to the first dose after 0.

    The paper's grid ends at 2000, so this is its first 200.
    """
    return float(doses[0]), float(max(doses[1], doses[-1] / 10))


def late_range(doses: Sequence[Number]) -> tuple[float, float]:
    """Range of the late slope: the last half of the doses, and at least the last two."""
    return float(min(doses[-2], doses[-1] / 2)), float(doses[-1])


def summarise(
    doses: Sequence[Number],
    curves: Mapping[int, Curves],
    *,
    base: Number | Sequence[Number],
    kl: Mapping[int, Curves] | None = None,
    kl_threshold: Number = 0.01,
    score_epsilon: Number = 0.0,
) -> ReboundStatistics:
    """Statistics of every N+, trends over log N+, and the verdict.

    Args:
        doses: numbers of negative examples, ascending from 0.
        curves: scores [seed][dose] by N+.
        base: score before alignment, one for all seeds or one per seed.
        kl: KL to the model before alignment [seed][dose], by N+.
        kl_threshold: KL in nats at or below which a model counts as returned (0.01 in Ji et al. 2025, table 3).
        score_epsilon: distance above the base score at or below which a score counts as returned.

    Raises:
        ValueError: doses that do not ascend from 0, or curves of another length.
    """
    doses = [float(d) for d in doses]
    _check(doses, curves, kl or {})
    values: dict[int, _SeedValues] = {}
    groups: dict[int, GroupStatistics] = {}
    for n_plus, group in curves.items():
        levels = [float(base)] * len(group) if isinstance(base, (int, float)) else [float(b) for b in base]
        values[n_plus] = _seed_values(doses, group, levels, score_epsilon)
        back = None if kl is None else [_first_below(doses, curve, kl_threshold) for curve in kl[n_plus]]
        groups[n_plus] = _group_statistics(values[n_plus], back)
    aligned = {n_plus: group for n_plus, group in values.items() if n_plus > 0}
    floor = _floor(aligned)
    trends = _trends(aligned, floor)
    verdict, why = judge(trends)
    return ReboundStatistics(
        groups=groups,
        trends=trends,
        verdict=verdict,
        why=why,
        initial_range=initial_range(doses),
        late_range=late_range(doses),
        kl_threshold=float(kl_threshold),
        tau_floor=floor,
    )


def judge(trends: Trends) -> Judgement:
    """Verdict and reason from the trends; the rule was fixed before any data were seen.

    Consistent: with more positive examples the curve is steeper at first, flatter later and has a shorter time
    constant, each interval excluding 0. Not consistent: one of the three is reversed. Anything else is not resolved.
    """
    signs = (
        ("the initial decline", trends.steepness.positive, trends.steepness.negative, "is flatter"),
        ("the late decline", trends.late_steepness.negative, trends.late_steepness.positive, "is steeper"),
        ("the time constant", trends.log_tau.negative, trends.log_tau.positive, "is longer"),
    )
    supporting = [what for what, as_predicted, _, _ in signs if as_predicted]
    if against := [f"{what} {reading}" for what, _, opposite, reading in signs if opposite]:
        return Judgement(
            "not consistent with rebound",
            f"with more positive examples {', '.join(against)}, opposite to rebound",
        )
    if len(supporting) == len(signs):
        return Judgement(
            "consistent with rebound",
            "with more positive examples the initial decline is steeper, the late one flatter, tau shorter",
        )
    if set(supporting) == {"the initial decline", "the late decline"}:
        why = "the slopes go rebound's way but the time constant does not differ: a higher start would do the same"
    else:
        why = (
            f"trends whose interval leaves out 0: {', '.join(supporting) or 'none'}; rebound needs initial decline, "
            "late decline and time constant"
        )
    return Judgement("not resolved", why)


class _SeedValues(NamedTuple):
    """Statistics of the curves of one N+, one value per seed; NaN where a curve has none."""

    start: list[float]
    initial_slope: list[float]
    late_slope: list[float]
    half_life: list[float]
    knee: list[float]
    tau: list[float]
    tau_fitted_floor: list[float]
    return_by_score: list[float]


def _check(doses: Sequence[float], *families: Mapping[int, Curves]) -> None:
    if len(doses) < 3 or doses[0] != 0 or any(b <= a for a, b in itertools.pairwise(doses)):
        raise ValueError(
            f"doses must ascend from 0 and be three or more, such as 0, 100, 500; got {list(doses)}"
        )
    for n_plus, group in (item for family in families for item in family.items()):
        if wrong := [len(curve) for curve in group if len(curve) != len(doses)]:
            raise ValueError(
                f"curves of N+ = {n_plus} must have {len(doses)} scores, one a dose; got {wrong[0]}"
            )


def _seed_values(
    doses: Sequence[Number], group: Curves, levels: Sequence[Number], epsilon: Number
) -> _SeedValues:
    pairs = list(zip(group, levels, strict=True))
    return _SeedValues(
        start=[float(curve[0]) for curve in group],
        initial_slope=[slope_within(doses, curve, *initial_range(doses)) for curve in group],
        late_slope=[slope_within(doses, curve, *late_range(doses)) for curve in group],
        half_life=[half_life(doses, c, level) if c[0] > level else math.nan for c, level in pairs],
        knee=[knee(doses, curve) for curve in group],
        tau=[_tau(doses, curve, level) for curve, level in pairs],
        tau_fitted_floor=[_tau(doses, curve, None) for curve in group],
        return_by_score=[_first_below(doses, curve, level + epsilon) for curve, level in pairs],
    )


def _group_statistics(values: _SeedValues, return_by_kl: Sequence[float] | None) -> GroupStatistics:
    return GroupStatistics(
        start=over_seeds(values.start),
        initial_slope=over_seeds(values.initial_slope),
        late_slope=over_seeds(values.late_slope),
        half_life=over_seeds(values.half_life),
        knee=over_seeds(values.knee),
        tau=over_seeds(values.tau, log=True),
        tau_fitted_floor=over_seeds(values.tau_fitted_floor, log=True),
        return_by_score=over_seeds(values.return_by_score),
        return_by_kl=None if return_by_kl is None else over_seeds(return_by_kl),
    )


def _floor(aligned: Mapping[int, _SeedValues]) -> Floor:
    """The base score where most curves have a time constant towards it, else a fitted level: a curve that ends below
    the base score has none."""
    known = [math.isfinite(tau) for group in aligned.values() for tau in group.tau]
    return "base" if sum(known) > len(known) / 2 else "fitted"


def _trends(aligned: Mapping[int, _SeedValues], floor: Floor) -> Trends:
    import numpy as np

    sizes = [math.log(n_plus) for n_plus, group in aligned.items() for _ in group.start]
    groups = aligned.values()

    def trend(values: Sequence[float]) -> Estimate:
        return fitted_slope(sizes, values) if len(set(sizes)) > 1 else Estimate.unmeasured(len(sizes))

    taus = [tau for group in groups for tau in (group.tau if floor == "base" else group.tau_fitted_floor)]
    return Trends(
        steepness=trend([-slope for group in groups for slope in group.initial_slope]),
        late_steepness=trend([abs(slope) for group in groups for slope in group.late_slope]),
        log_tau=trend(np.log(taus).tolist()),
    )


def _tau(doses: Sequence[Number], curve: Sequence[Number], floor: Number | None) -> float:
    """Time constant of one curve; NaN where it does not fall, or reaches no floor within the doses."""
    if len(doses) < (4 if floor is None else 3) or (floor is not None and curve[0] <= floor):
        return math.nan
    try:
        tau = fit_decay(doses, curve, floor=floor).tau.value
    except RuntimeError:  # scipy: no convergence
        return math.nan
    return tau if 0 < tau < 20 * doses[-1] else math.nan


def _first_below(doses: Sequence[Number], curve: Sequence[Number], level: Number) -> float:
    """The dose at which a curve first reaches the level from above; NaN where it starts there, or never does."""
    return crossing(doses, curve, level) if curve[0] > level else math.nan
