"""Which checkpoint of each method is compared: the one nearest to a target that all share, and whether near enough.

By refusal the target is a setting. By KL it is the largest KL to the base that every method reaches, so that none has
to be trained further than its alignment went. Steps play no part.
"""

import math
from collections.abc import Mapping, Sequence

from interp.experiments.method_elasticity.results import Arm, Match, Matching, Moment
from interp.stats import Estimate

KEYS: Mapping[Matching, str] = {"refusal": "refusal", "kl": "kl"}
"""Name of the value that a matching reads."""


def shared_kl(alignments: Mapping[Arm, Sequence[Moment]]) -> float:
    """The largest KL to the base that every one of these alignments reaches after its start; NaN without any."""
    largest = [
        max((_value(moment, "kl") for moment in moments if moment.step > 0), default=math.nan)
        for moments in alignments.values()
    ]
    return min(largest, default=math.nan)


def matched(arm: Arm, seed: int, moments: Sequence[Moment], matching: Matching, target: float | int) -> Match:
    """The measured checkpoint nearest to the target: by difference for refusal, by ratio for KL; the first of equals.

    It counts as matched where the target lies in the interval of its value, which for refusal is Wilson's.

    Raises:
        ValueError: no checkpoint after the start has the value.
    """
    key = KEYS[matching]
    usable = [moment for moment in moments if moment.step > 0 and math.isfinite(_value(moment, key))]
    if not usable:
        raise ValueError(
            f"{arm}, seed {seed}: no checkpoint has a {key}; measure at least once after the start"
        )
    nearest = min(usable, key=lambda moment: _distance(matching, _value(moment, key), float(target)))
    reached = nearest.values[key]
    return Match(
        arm=arm,
        seed=seed,
        matching=matching,
        target=float(target),
        step=nearest.step,
        reached=reached,
        matched=holds(reached, target),
    )


def start_as_match(arm: Arm, seed: int, start: Moment, matching: Matching, target: float | int) -> Match:
    """The start itself, for the control without alignment."""
    reached = start.values.get(KEYS[matching], Estimate.unmeasured())
    return Match(
        arm=arm,
        seed=seed,
        matching=matching,
        target=float(target),
        step=0,
        reached=reached,
        matched=holds(reached, target),
    )


def holds(estimate: Estimate, value: float | int) -> bool:
    """Whether the interval of an estimate holds a value; without an interval nothing is held."""
    return estimate.low <= value <= estimate.high


def _value(moment: Moment, key: str) -> float:
    estimate = moment.values.get(key)
    return math.nan if estimate is None else float(estimate.value)


def _distance(matching: Matching, value: float, target: float) -> float:
    if matching == "refusal":
        return abs(value - target)
    return abs(math.log(max(value, 1e-12) / max(target, 1e-12)))
