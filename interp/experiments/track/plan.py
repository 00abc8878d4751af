"""What tracking a series costs, by stage (`interp.experiments.plans`); the number of checkpoints is a setting.

Opening a checkpoint and hashing its weights are not counted, as loading is in no plan.
"""

from dataclasses import dataclass

from interp.engine.costs import Work
from interp.experiments.sizes import Sizes
from interp.experiments.tracked import checkpoint, reference, samples_scored, with_borderline
from interp.storage.settings import Count
from interp.tracking.records import TrackingSettings


@dataclass(frozen=True, kw_only=True)
class Settings(TrackingSettings):
    """Settings of tracking, and the length of the series."""

    checkpoints: Count = 12
    """Number of checkpoints."""


def plan(config: Settings, sizes: Sizes) -> dict[str, Work]:
    """Work by stage.

    Raises:
        ValueError: groups of measures that are not planned.
    """
    sizes = with_borderline(sizes)
    stages = {
        "reference": reference(config, sizes),
        "checkpoints": checkpoint(config, sizes) * config.checkpoints,
    }
    if "kl" in config.measures:
        stages["reference on samples"] = samples_scored(config, sizes) * config.checkpoints
    return stages
