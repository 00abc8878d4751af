"""The figures of the tracked path (`interp.tracking.figures`)."""

import plotly.graph_objects as go

from interp.tracking import figures as tracked
from interp.tracking.records import TrackRecord

STAGE_NOTE = "align trains on refusals, stubs on empty affirmative replies"
"""What the stages of the path train on, for the figures' notes."""


def figures(result: TrackRecord) -> dict[str, go.Figure]:
    """Every figure for which the path has values, by name."""
    return tracked.figures(result, stages=STAGE_NOTE)
