"""Panels that figures of reading and of steering share: a column for each way in which prompts end."""

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from interp.data.prompts import Ending
from interp.display.charts import ENDING_LABELS, panels
from interp.experiments.harmfulness import Result

ENDING_TITLES: dict[Ending, str] = {"as-is": "as they are", "strip": "stripped", "period": "full stop"}
"""Short names of the endings, for tables."""
T_INST = "last instruction token (t_inst)"
T_POST_INST = "last token (t_post_inst)"


def by_ending(result: Result, endings: Sequence[Ending] | None = None, **options: Any) -> go.Figure:
    """Panels: a column per ending."""
    shown = result.endings if endings is None else endings
    titles = [ENDING_LABELS[ending] for ending in shown]
    return panels(titles, columns=len(shown), width=350, height=330, **options)
