"""Numbers of the arms over seeds, from a stored result. Imports no torch.

Along unlearning: half-life and time constant of the refusal rate towards that of the start, and the exponent with
which the code length of refusals grows. Between legs: examples of alignment until half of the way from the start's
refusal rate to the matched one, against the half-life (forward over inverse), and against the examples to the same
refusal rate the second time (first over second). An example is a pair, a stub or a rollout, so forward over inverse
compares unlike things for policy optimisation; first over second compares like with like.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from interp.experiments.method_elasticity import Result
from interp.experiments.method_elasticity.fits import decline, examples_to, growth_exponent
from interp.experiments.method_elasticity.results import METHODS, Alignment, Arm, Leg, Match, Matching, Moment
from interp.stats import Estimate, as_wide_as, over_seeds


@dataclass(frozen=True, kw_only=True)
class ArmNumbers:
    """One arm under one matching, over seeds; seeds without a number are counted as missing."""

    arm: Arm
    matching: Matching
    matched: int
    """Seeds whose checkpoint is matched to the target."""
    seeds: int
    """Seeds that were unlearned."""
    start: Estimate
    """Refusal rate of the aligned model on the test prompts."""
    end: Estimate
    """Refusal rate after all stubs."""
    over_refusal: Estimate
    """Refusal rate of the aligned model on harmless prompts."""
    half_life: Estimate
    """Stubs until half of the way to the start's refusal rate is gone, geometric mean."""
    tau: Estimate
    """Time constant of that decline in stubs, geometric mean."""
    kl_start: Estimate
    """KL(base || aligned), nats a token."""
    kl_end: Estimate
    """KL(base || unlearned)."""
    exponent: Estimate
    """Exponent of the growth of the refusals' code length; with one seed, of its one fit."""
    first: Estimate
    """Examples of the first alignment until half of the way from the start to the matched refusal rate."""
    second: Estimate
    """Examples of the second alignment to the same rate."""
    first_over_second: Estimate
    """`first` over `second`, geometric mean; above 1 is faster the second time."""
    forward_over_inverse: Estimate
    """`first` over `half_life`, geometric mean; above 1 is harder to go on than back."""


def numbers(result: Result, matching: Matching) -> dict[Arm, ArmNumbers]:
    """The numbers of every arm that was unlearned under a matching, in the order of the settings."""
    floors = start_rates(result)
    table = {}
    for arm in result.config.arms:
        legs = [leg for leg in result.unlearned if (leg.arm, leg.matching) == (arm, matching)]
        if legs:
            table[arm] = _arm_numbers(result, arm, matching, legs, floors)
    return table


def start_rates(result: Result) -> dict[int, float]:
    """Refusal rate of the start on the test prompts by seed: that of the arm that is not aligned, or 0."""
    starts = {
        leg.seed: leg.moments[0].values["refusal"].value for leg in result.unlearned if leg.arm == "none"
    }
    return {seed: starts.get(seed, 0.0) for seed in {leg.seed for leg in result.unlearned}}


def curve(moments: Sequence[Moment], name: str) -> tuple[list[int], list[float]]:
    """Examples and values of one measure, where it has a value."""
    known = [
        (moment.examples, moment.values[name].value)
        for moment in moments
        if name in moment.values and math.isfinite(moment.values[name].value)
    ]
    return [x for x, _ in known], [y for _, y in known]


def rate_over_seeds(rates: Sequence[Estimate]) -> Estimate:
    """Mean of a rate over seeds that share their prompts; the rate itself of one seed.

    Seeds that agree on a dozen prompts say nothing of other prompts. Each end is therefore the farther one of Student's
    t over seeds and of the mean of the seeds' own ends, which is the interval over prompts.
    """
    if len(rates) == 1:
        return rates[0]
    mean = over_seeds([rate.value for rate in rates], within=(0.0, 1.0))
    return as_wide_as(mean, rates)


def pooled(result: Result, value: Callable[[ArmNumbers], Estimate], matching: Matching) -> Estimate:
    """Geometric mean over methods of their values, with a t interval over methods."""
    found = [value(row) for arm, row in numbers(result, matching).items() if arm in METHODS]
    return over_seeds([estimate.value for estimate in found], log=True)


@dataclass(frozen=True, kw_only=True)
class _SeedNumbers:
    half_life: float
    tau: float
    exponent: Estimate
    first: float
    second: float
    first_over_second: float
    forward_over_inverse: float


def _arm_numbers(
    result: Result, arm: Arm, matching: Matching, legs: Sequence[Leg], floors: dict[int, float]
) -> ArmNumbers:
    seeds = [_seed_numbers(result, leg, floors[leg.seed]) for leg in legs]
    exponents = [seed.exponent for seed in seeds]
    by_seed = over_seeds([exponent.value for exponent in exponents])
    matches = [match for leg in legs if (match := match_of(result, leg)) is not None]

    def over(name: str, moment: int, within: tuple[float, float] | None = None) -> Estimate:
        return over_seeds([_value(leg.moments[moment], name) for leg in legs], within=within)

    return ArmNumbers(
        arm=arm,
        matching=matching,
        matched=sum(match.matched for match in matches),
        seeds=len(legs),
        start=rate_over_seeds([leg.moments[0].values["refusal"] for leg in legs]),
        end=rate_over_seeds([leg.moments[-1].values["refusal"] for leg in legs]),
        over_refusal=over("over_refusal", 0, within=(0.0, 1.0)),
        half_life=over_seeds([seed.half_life for seed in seeds], log=True),
        tau=over_seeds([seed.tau for seed in seeds], log=True),
        kl_start=over("kl", 0),
        kl_end=over("kl", -1),
        exponent=exponents[0] if len(exponents) == 1 else by_seed,
        first=over_seeds([seed.first for seed in seeds], log=True),
        second=over_seeds([seed.second for seed in seeds], log=True),
        first_over_second=over_seeds([seed.first_over_second for seed in seeds], log=True),
        forward_over_inverse=over_seeds([seed.forward_over_inverse for seed in seeds], log=True),
    )


def _seed_numbers(result: Result, leg: Leg, floor: float) -> _SeedNumbers:
    fallen = decline(*curve(leg.moments, "refusal"), floor)
    growth = growth_exponent(*curve(leg.moments, "refusals"))
    first, second = examples_both_times(result, leg)
    return _SeedNumbers(
        half_life=fallen.half_life,
        tau=fallen.tau,
        exponent=growth,
        first=first,
        second=second,
        first_over_second=_ratio(first, second),
        forward_over_inverse=_ratio(first, fallen.half_life),
    )


def examples_both_times(result: Result, leg: Leg) -> tuple[float, float]:
    """Examples of the first and of the second alignment to one refusal rate, on the prompts of matching.

    The rate is half-way between those of the start and of the matched checkpoint. NaN where an alignment begins above
    it or never comes there.
    """
    match = match_of(result, leg)
    first = _alignment(result.alignments, leg)
    if match is None or first is None:
        return math.nan, math.nan
    level = (first.moments[0].values["refusal"].value + _reached(first, match)) / 2
    second = _alignment(result.aligned_again, leg) if leg.matching == "refusal" else None
    return (
        examples_to(*curve(first.moments, "refusal"), level),
        math.nan if second is None else examples_to(*curve(second.moments, "refusal"), level),
    )


def match_of(result: Result, leg: Leg) -> Match | None:
    """The checkpoint that a leg started from; None for the arm that is not aligned."""
    key = leg.arm, leg.seed, leg.matching
    return next((m for m in result.matches if (m.arm, m.seed, m.matching) == key), None)


def _alignment(alignments: Sequence[Alignment], leg: Leg) -> Alignment | None:
    return next((a for a in alignments if (a.arm, a.seed) == (leg.arm, leg.seed) and a.moments), None)


def _reached(alignment: Alignment, match: Match) -> float:
    return next(m.values["refusal"].value for m in alignment.moments if m.step == match.step)


def _value(moment: Moment, name: str) -> float:
    estimate = moment.values.get(name)
    return math.nan if estimate is None else float(estimate.value)


def _ratio(top: float, bottom: float) -> float:
    return top / bottom if top > 0 and bottom > 0 else math.nan
