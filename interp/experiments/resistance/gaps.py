"""The gap between the two arms: forward minus inverse, paired over seeds; positive when the inverse arm is easier.

The statistics behind every figure, table and sentence about a stored result. Imports no torch.
"""

from collections.abc import Sequence
from typing import Literal

from interp.experiments.resistance import Arm, Result, TrainedArm
from interp.stats import PairedTest, paired_test

Measure = Literal["final", "excess", "before", "before_excess", "change", "self_entropy", "kl_change"]
"""Numbers of a `TrainedArm`."""
LOSSES: dict[Measure, str] = {
    "final": "final loss",
    "excess": "excess loss (final minus the target's self-entropy)",
    "before": "loss before training (control)",
    "before_excess": "excess loss before training (control)",
    "change": "change of the loss by training",
}
"""The losses whose gaps are shown, and what they are called."""


def pairs(result: Result) -> list[str]:
    """Pairs of checkpoints in the order they were run."""
    return list(dict.fromkeys(arm.pair for arm in result.arms))


def values(result: Result, pair: str, arm: Arm, measure: Measure) -> list[float]:
    """A measure of one pair and arm, by seed."""
    return [_value(row, measure) for row in _rows(result, pair, arm)]


def gap(result: Result, pair: str, measure: Measure) -> PairedTest:
    """Forward minus inverse of one pair, paired by seed."""
    return paired_test(values(result, pair, "forward", measure), values(result, pair, "inverse", measure))


def overall_gap(result: Result, measure: Measure) -> PairedTest:
    """Forward minus inverse averaged over pairs within each seed, so that a seed counts once."""
    return paired_test(*(_mean_of_pairs(result, arm, measure) for arm in ("forward", "inverse")))


def _mean_of_pairs(result: Result, arm: Arm, measure: Measure) -> list[float]:
    by_pair = (values(result, pair, arm, measure) for pair in pairs(result))
    return [sum(of_seed) / len(of_seed) for of_seed in zip(*by_pair, strict=True)]


def _rows(result: Result, pair: str, arm: Arm) -> Sequence[TrainedArm]:
    return sorted((r for r in result.arms if (r.pair, r.arm) == (pair, arm)), key=lambda row: row.seed)


def _value(row: TrainedArm, measure: Measure) -> float:
    return getattr(row, measure)
