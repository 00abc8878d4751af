"""Shifts of both beliefs of successful jailbreak prompts from those of their plain requests, with controls.

Requests, not prompts, are what is counted: prompts of one request are averaged first, so that tests and intervals see
independent values.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from scipy import stats

from interp.data.prompts import Ending, Kind
from interp.experiments.jailbreaks import BeliefShift, FamilyShifts, Point, Shifts, Success
from interp.representations.records import Belief, HarmAndRefusal
from interp.stats import Estimate, mean_with_interval, rate

Plain = Mapping[Kind, Mapping[str, Point]]
"""Plain prompts that behave, by kind and id: harmful ones that are refused, harmless ones that are answered."""


def is_plain_and_behaves(point: Point, kind: Kind) -> bool:
    """Whether this is a plain request of the kind, refused if harmful and answered if harmless."""
    return point.family == "plain" and point.kind == kind and point.refused == (kind == "harmful")


def _behaving(points: Sequence[Point]) -> Plain:
    kinds: tuple[Kind, ...] = ("harmful", "harmless")
    return {kind: {p.id: p for p in points if is_plain_and_behaves(p, kind)} for kind in kinds}


def _wrapped(points: Sequence[Point], plain: Plain) -> dict[str, list[Point]]:
    """Wrapped prompts of requests that behave when asked plainly, by family."""
    families = [f for f in dict.fromkeys(p.family for p in points) if f != "plain"]
    return {f: [p for p in points if p.family == f and p.id in plain[p.kind]] for f in families}


class SuccessRates(NamedTuple):
    """Success by wrapper and by family."""

    wrappers: dict[str, Success]
    families: dict[str, Success]


def success(points: Sequence[Point], *, seed: int = 0) -> SuccessRates:
    """Share of plainly refused harmful requests that are answered when wrapped, by wrapper and by family.

    Beside each the control: the share of plainly answered harmless requests that the same wrapping gets refused. A
    family's share is the mean over requests of the share of its wrappers; its interval is over requests.
    """
    rates = SuccessRates({}, {})
    for family, prompts in _wrapped(points, _behaving(points)).items():
        for wrapper in dict.fromkeys(p.wrapper for p in prompts):
            same = [p for p in prompts if p.wrapper == wrapper]
            rates.wrappers[wrapper] = Success(
                family=family,
                harmful_answered=rate([not p.refused for p in same if p.kind == "harmful"]),
                harmless_refused=rate([p.refused for p in same if p.kind == "harmless"]),
            )
        rates.families[family] = Success(
            family=family,
            harmful_answered=_share(_by_request(prompts, "harmful", lambda p: not p.refused), seed),
            harmless_refused=_share(_by_request(prompts, "harmless", lambda p: p.refused), seed),
        )
    return rates


def _by_request(prompts: Iterable[Point], kind: Kind, value: Callable[[Point], bool | float]) -> list[float]:
    """Mean of a value over each request's prompts."""
    by: dict[str, list[float]] = {}
    for p in prompts:
        if p.kind == kind:
            by.setdefault(p.id, []).append(float(value(p)))
    return [float(np.mean(values)) for values in by.values()]


def _share(values: Sequence[float], seed: int) -> Estimate:
    """Mean share over requests; where all requests agree a bootstrap sees no spread, and Wilson's interval is taken."""
    if len(set(values)) == 1 and values[0] in (0.0, 1.0):
        return rate([value == 1.0 for value in values])
    return replace(mean_with_interval(values, seed=seed), unit="share")


def shifts(points: Sequence[Point], ending: Ending, *, seed: int = 0) -> Shifts:
    """Shift of successful prompts from their own plain requests by family and belief, with controls."""
    plain = _behaving(points)

    def gap(belief: Belief) -> float:
        bad, good = (
            np.mean([p.beliefs[ending].of(belief) for p in plain[kind].values()])
            for kind in ("harmful", "harmless")
        )
        return float(bad - good)

    gaps = HarmAndRefusal(harm=gap("harm"), refusal=gap("refusal"))
    families = {
        family: _family_shifts(prompts, plain, gaps, ending, seed)
        for family, prompts in _wrapped(points, plain).items()
    }
    return Shifts(gap=gaps, families=families)


def _family_shifts(
    prompts: Sequence[Point], plain: Plain, gap: HarmAndRefusal[float], ending: Ending, seed: int
) -> FamilyShifts:
    answered = [p for p in prompts if p.kind == "harmful" and not p.refused]

    def further(p: Point) -> float:
        now, before = p.beliefs[ending], plain["harmful"][p.id].beliefs[ending]
        return (now.harm - before.harm) / gap.harm - (now.refusal - before.refusal) / gap.refusal

    return FamilyShifts(
        requests=len({p.id for p in answered}),
        prompts=len(answered),
        beliefs=HarmAndRefusal(
            harm=_belief_shift("harm", prompts, plain, gap.harm, ending, seed),
            refusal=_belief_shift("refusal", prompts, plain, gap.refusal, ending, seed),
        ),
        refusal_beyond_harm=mean_with_interval(_by_request(answered, "harmful", further), seed=seed),
    )


def _belief_shift(
    belief: Belief, prompts: Sequence[Point], plain: Plain, gap: float, ending: Ending, seed: int
) -> BeliefShift:
    answered = [p for p in prompts if p.kind == "harmful" and not p.refused]
    refused = [p for p in prompts if p.kind == "harmful" and p.refused]
    weights = {
        name: sum(p.wrapper == name for p in answered) / len(answered)
        for name in {p.wrapper for p in answered}
    }

    def value(p: Point) -> float:
        return p.beliefs[ending].of(belief)

    def shift(p: Point) -> float:
        return value(p) - value(plain[p.kind][p.id])

    moved = _by_request(answered, "harmful", shift)
    control = _weighted(prompts, weights, shift)
    p_value, effect_size = _paired(moved)
    mean = mean_with_interval(moved, seed=seed)
    requests = dict.fromkeys(p.id for p in answered)
    return BeliefShift(
        moved=mean,
        p_value=p_value,
        effect_size=effect_size,
        share_of_gap=_scaled(mean, gap),
        harmless=mean_with_interval(control, seed=seed),
        beyond=_difference(moved, control, seed),
        still_refused=mean_with_interval(_by_request(refused, "harmful", shift), seed=seed),
        negative_side=_share(_by_request(answered, "harmful", lambda p: value(p) <= 0), seed),
        plain_negative_side=_share([float(value(plain["harmful"][i]) <= 0) for i in requests], seed),
    )


def _weighted(
    prompts: Sequence[Point], weights: Mapping[str, float], shift: Callable[[Point], float]
) -> list[float]:
    """Per harmless request, the mean shift over wrappers, each as often as it succeeded."""
    by: dict[str, float] = {}
    for p in prompts:
        if p.kind == "harmless" and p.wrapper in weights:
            by[p.id] = by.get(p.id, 0.0) + weights[p.wrapper] * shift(p)
    return list(by.values())


class _Paired(NamedTuple):
    p_value: float
    effect_size: float


def _paired(differences: Sequence[float]) -> _Paired:
    """Wilcoxon's signed-rank test against no shift, and the effect size d_z; NaN where there are too few."""
    values = np.asarray(differences)
    if len(values) < 2 or not values.any():
        return _Paired(float("nan"), float("nan"))
    spread = float(values.std(ddof=1))
    p_value = float(stats.wilcoxon(values).pvalue)  # pyright: ignore[reportAttributeAccessIssue]
    return _Paired(p_value, float(values.mean()) / spread if spread > 0 else float("nan"))


def _scaled(estimate: Estimate, by: float) -> Estimate:
    low, high = sorted((estimate.low / by, estimate.high / by))
    return replace(estimate, value=estimate.value / by, low=low, high=high)


def _difference(a: Sequence[float], b: Sequence[float], seed: int, draws: int = 2000) -> Estimate:
    """Difference of two means with its 95% bootstrap interval; n is the size of the first group."""
    if not len(a) or not len(b):
        return Estimate.unmeasured(len(a))
    generator = np.random.default_rng(seed)
    x, y = np.asarray(a), np.asarray(b)
    means = [v[generator.integers(0, len(v), (draws, len(v)))].mean(1) for v in (x, y)]
    low, high = np.quantile(means[0] - means[1], (0.025, 0.975))
    return Estimate(
        value=float(x.mean() - y.mean()), n=len(x), low=float(low), high=float(high), interval="bootstrap"
    )
