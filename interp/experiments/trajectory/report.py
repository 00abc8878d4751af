"""Tables, verdicts and page of the tracked path (`interp.tracking.report`)."""

from interp.experiments.trajectory.figures import STAGE_NOTE
from interp.tracking import report as tracked
from interp.tracking.records import TrackRecord
from interp.tracking.report import rate_table, verdicts

__all__ = ["rate_table", "report", "verdicts"]


def report(result: TrackRecord) -> str:
    """The report of the path as a page."""
    return tracked.report(result, stages=STAGE_NOTE)
