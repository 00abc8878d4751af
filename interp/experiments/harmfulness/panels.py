"""Panels that figures of reading and of steering share: a column for each way in which prompts end."""

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.data.prompts import Ending
from interp.display.charts import THEME
from interp.experiments.harmfulness import Result

ENDING_TITLES: dict[Ending, str] = {"as-is": "as they are", "strip": "stripped", "period": "full stop"}


def by_ending(result: Result, rows: Sequence[str] = ("",), **options: Any) -> go.Figure:
    """Panels: a row each, a column per ending."""
    endings = result.endings
    titles = [
        f"{row}{', ' if row else ''}prompts {ENDING_TITLES[ending]}" for row in rows for ending in endings
    ]
    figure = make_subplots(
        rows=len(rows),
        cols=len(endings),
        subplot_titles=titles,
        shared_yaxes=options.pop("shared_yaxes", True),
        horizontal_spacing=0.04,
        vertical_spacing=0.16,
    )
    figure.update_layout(
        template=THEME, width=1200, height=330 * len(rows) + 190, margin={"t": 110}, **options
    )
    return figure
