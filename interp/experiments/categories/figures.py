"""Figures of the category experiment, drawn from a stored result alone."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.data.prompts import COMPARED_ENDINGS, Ending
from interp.display.charts import COLOURS, CONTROL_COLOUR, THEME
from interp.experiments.categories import CategoryDirections, Result
from interp.representations.records import BELIEFS, HarmAndRefusal
from interp.stats import Estimate

DIRECTION_NAMES = HarmAndRefusal(harm="harmfulness", refusal="refusal")
"""The two kinds of directions in words."""
DIRECTION_LABELS = HarmAndRefusal(harm="harmfulness (t_inst)", refusal="refusal (t_post_inst)")
"""The same, with the token that they are read at."""
ENDING_LABELS: dict[Ending, str] = {"as-is": "prompts as they are", "period": "all ended by a full stop"}
"""Labels of the prompt endings."""


def figures(result: Result) -> dict[str, go.Figure]:
    """Every figure, from the stored result."""
    return {"category_cosines": _heat_maps(result), "off_diagonal": _lines(result)}


class _Panel(NamedTuple):
    """One of the four panels of a figure."""

    row: int
    column: int
    name: str
    """`harmfulness` or `refusal`."""
    title: str
    table: CategoryDirections


def _panels(result: Result) -> list[_Panel]:
    return [
        _Panel(
            row,
            column,
            DIRECTION_NAMES.of(belief),
            f"{DIRECTION_LABELS.of(belief)}, {ENDING_LABELS[ending]}",
            result.by_ending[ending].directions.of(belief),
        )
        for row, belief in enumerate(BELIEFS, start=1)
        for column, ending in enumerate(COMPARED_ENDINGS, start=1)
    ]


def _heat_maps(result: Result) -> go.Figure:
    """Cosines of the categories' directions; the slider goes through the layers, its first stop is their mean."""
    panels = _panels(result)
    tables = [panel.table for panel in panels]
    n_layers = len(tables[0].cosines)
    figure = make_subplots(
        rows=2,
        cols=2,
        subplot_titles=[panel.title for panel in panels],
        horizontal_spacing=0.16,
        vertical_spacing=0.2,
    )
    for panel in panels:
        figure.add_heatmap(
            z=_mean_matrix(panel.table.cosines),
            x=panel.table.categories,
            y=panel.table.categories,
            coloraxis="coloraxis",
            texttemplate="%{z:.2f}",
            textfont={"size": 8},
            hovertemplate=f"{panel.name}: %{{y}} and %{{x}}: %{{z:.3f}}<extra></extra>",
            row=panel.row,
            col=panel.column,
        )
    steps = [
        {"label": "mean", "method": "restyle", "args": [{"z": [_mean_matrix(t.cosines) for t in tables]}]}
    ]
    steps += [
        {"label": str(layer), "method": "restyle", "args": [{"z": [t.cosines[layer] for t in tables]}]}
        for layer in range(n_layers)
    ]
    figure.update_xaxes(tickangle=-45, tickfont={"size": 10})
    figure.update_yaxes(autorange="reversed", tickfont={"size": 10})
    figure.update_layout(
        template=THEME,
        title=f"Cosine of the categories' directions, {result.provenance.model_name}",
        coloraxis={
            "colorscale": "RdBu_r",
            "cmin": -1,
            "cmid": 0,
            "cmax": 1,
            "colorbar": {"title": "cosine", "x": 1.07},
        },
        sliders=[
            {"active": 0, "steps": steps, "currentvalue": {"prefix": "layer: "}, "y": -0.16, "len": 1.0}
        ],
        width=1150,
        height=1080,
        margin={"l": 170, "t": 100, "b": 170},
    )
    return figure


def _mean_matrix(matrices: Sequence[Sequence[Sequence[float]]]) -> list[list[float]]:
    """Mean over the layers that have a direction."""
    known = [matrix for matrix in matrices if math.isfinite(matrix[0][0])]
    categories = range(len(known[0]))
    return [[sum(matrix[a][b] for matrix in known) / len(known) for b in categories] for a in categories]


def _lines(result: Result) -> go.Figure:
    """Off-diagonal mean against layer with its interval, and every control."""
    panels = _panels(result)
    figure = make_subplots(
        rows=2,
        cols=2,
        shared_xaxes=True,
        shared_yaxes=True,
        subplot_titles=[panel.title for panel in panels],
        vertical_spacing=0.1,
    )
    for row, column, _, _, table in panels:
        for trace in (
            *_area("labels shuffled, 95%", table.shuffled, CONTROL_COLOUR, "dot"),
            *_area("different categories, 95%", table.off_diagonal, COLOURS[1], "solid"),
            *_plain("same category, split halves", table.within, COLOURS[2], "dash"),
            *_plain("different categories, split halves", table.between, COLOURS[1], "dash"),
            *_plain("sham categories (shared reference)", table.sham, CONTROL_COLOUR, "dashdot"),
        ):
            trace.showlegend = bool(trace.showlegend) and (row, column) == (1, 1)
            figure.add_trace(trace, row=row, col=column)
    figure.add_hline(y=0, line={"color": "#666", "dash": "dash", "width": 1})
    figure.update_xaxes(title="layer", row=2)
    figure.update_yaxes(title="mean cosine", col=1, range=[-0.3, 1.03])
    figure.update_layout(
        template=THEME,
        title=f"How alike the directions of different harm categories are, {result.provenance.model_name}",
        width=1100,
        height=760,
        margin={"t": 100, "b": 150},
        legend={"y": -0.12},
    )
    return figure


def _area(name: str, entries: Sequence[Estimate], colour: str, dash: str) -> list[go.Scatter]:
    known = [(layer, e) for layer, e in enumerate(entries) if e.measurable]
    layers = [layer for layer, _ in known]
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    interval = go.Scatter(
        x=[*layers, *layers[::-1]],
        y=[*(e.high for _, e in known), *(e.low for _, e in known[::-1])],
        fill="toself",
        fillcolor=f"rgba({red},{green},{blue},0.18)",
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        showlegend=False,
    )
    return [interval, *_plain(name, [e.value for e in entries], colour, dash)]


def _plain(name: str, values: Sequence[float], colour: str, dash: str) -> list[go.Scatter]:
    return [
        go.Scatter(
            x=list(range(len(values))),
            y=list(values),
            name=name,
            mode="lines",
            showlegend=True,
            line={"color": colour, "dash": dash, "width": 2.2},
            hovertemplate=f"{name}, layer %{{x}}: %{{y:.3f}}<extra></extra>",
        )
    ]
