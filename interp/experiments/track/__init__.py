"""Stored runs of `interp track`: the same measurements along a series of checkpoints.

The method is a room of its own (`interp.tracking`), because other experiments track what they train. What a run is
measured on are checkpoints, not settings, so `interp track` and `interp.track` make it; here it is opened, drawn and
compared like any other. Nothing here imports torch.
"""

from dataclasses import dataclass

from interp.experiments.definition import Experiment, ExperimentResult
from interp.tracking.records import NAME, SUMMARY, TrackingSettings, TrackRecord


@dataclass(frozen=True, kw_only=True)
class Result(ExperimentResult, TrackRecord):
    """A stored trajectory; `interp.tracking.trajectory.Trajectory(result)` is its tidy table."""

    @property
    def config(self) -> TrackingSettings:
        """Settings of the run."""
        return self.settings


EXPERIMENT = Experiment(
    name=NAME,
    summary=SUMMARY,
    config=TrackingSettings,
    result=Result,
    package=__name__,
    default_model=None,
    made_by="interp track CHECKPOINTS --out FOLDER",
)
