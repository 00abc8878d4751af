"""Figures of the category experiment, drawn from a stored result alone."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go

from interp.data.prompts import COMPARED_ENDINGS
from interp.display.charts import (
    CONTROL,
    ENDING_LABELS,
    LAYER,
    Style,
    estimates_line,
    finish,
    layout_of,
    line,
    panels,
    reference_line,
    style,
    traces_of,
)
from interp.experiments.categories import CategoryDirections, Result
from interp.representations.records import BELIEFS, HarmAndRefusal

__all__ = ["DIRECTION_LABELS", "DIRECTION_NAMES", "ENDING_LABELS", "figures"]

DIRECTION_NAMES = HarmAndRefusal(harm="harmfulness", refusal="refusal")
"""The two kinds of directions in words."""
DIRECTION_LABELS = HarmAndRefusal(harm="harmfulness (t_inst)", refusal="refusal (t_post_inst)")
"""The same, with the token that they are read at."""


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
            f"{DIRECTION_LABELS.of(belief)} directions,<br>{ENDING_LABELS[ending]}",
            result.by_ending[ending].directions.of(belief),
        )
        for row, belief in enumerate(BELIEFS, start=1)
        for column, ending in enumerate(COMPARED_ENDINGS, start=1)
    ]


def category_label(name: str) -> str:
    """A category's name as readers see it."""
    return name.replace("_", ", ", 1).replace("_", " ")


def _heat_maps(result: Result) -> go.Figure:
    """Cosines of the categories' directions; the slider goes through the layers, its first stop is their mean."""
    shown = _panels(result)
    tables = [panel.table for panel in shown]
    figure = panels(
        [panel.title for panel in shown],
        columns=2,
        width=430,
        height=330,
        gap_below=8,
    )
    labels = [category_label(name) for name in tables[0].categories]
    for panel in shown:
        figure.add_heatmap(
            z=_mean_matrix(panel.table.cosines),
            x=labels,
            y=labels,
            coloraxis="coloraxis",
            texttemplate="%{z:.2f}",
            textfont={"size": 11},
            hovertemplate=f"{panel.name}: %{{y}} and %{{x}}: %{{z:.3f}}<extra></extra>",
            row=panel.row,
            col=panel.column,
        )
    steps = [
        {
            "label": "mean",
            "method": "restyle",
            "args": [{"z": [_rounded(_mean_matrix(t.cosines)) for t in tables]}],
        }
    ]
    steps += [
        {
            "label": str(layer),
            "method": "restyle",
            "args": [{"z": [_rounded(t.cosines[layer]) for t in tables]}],
        }
        for layer in range(len(tables[0].cosines))
    ]
    figure.update_xaxes(showticklabels=False, row=1)
    figure.update_yaxes(autorange="reversed")
    figure.update_layout(
        coloraxis={
            "colorscale": "RdBu_r",
            "cmin": -1,
            "cmid": 0,
            "cmax": 1,
            "colorbar": {"title": {"text": "cosine"}, "tickvals": [-1, -0.5, 0, 0.5, 1]},
        },
    )
    finish(
        figure,
        title="Cosine between the directions of each pair of harm categories",
        note=f"{_about(result)}; mean over layers, others by the slider",
        right=100,
        below=90,
    )
    drop = (layout_of(figure).margin.b - 80) / (
        layout_of(figure).height - layout_of(figure).margin.t - layout_of(figure).margin.b
    )
    figure.update_layout(
        sliders=[
            {
                "active": 0,
                "steps": steps,
                "currentvalue": {"prefix": "layer: ", "font": {"size": 13}},
                "font": {"size": 11},
                "y": -drop,
                "yanchor": "top",
                "len": 1.0,
                "pad": {"t": 0, "b": 0},
            }
        ]
    )
    return figure


def _rounded(matrix: Sequence[Sequence[float]]) -> list[list[float | None]]:
    """Three digits: what is shown, and a third of the bytes."""
    return [[round(value, 3) if math.isfinite(value) else None for value in row] for row in matrix]


def _mean_matrix(matrices: Sequence[Sequence[Sequence[float]]]) -> list[list[float]]:
    """Mean over the layers that have a direction."""
    known = [matrix for matrix in matrices if math.isfinite(matrix[0][0])]
    categories = range(len(known[0]))
    return [[sum(matrix[a][b] for matrix in known) / len(known) for b in categories] for a in categories]


def _lines(result: Result) -> go.Figure:
    """Off-diagonal mean against layer with its interval, and every control."""
    shown = _panels(result)
    figure = panels(
        [panel.title for panel in shown],
        columns=2,
        width=450,
        height=260,
        x_title=LAYER,
        y_title="mean cosine",
    )
    for row, column, _, _, table in shown:
        grey = CONTROL._replace(dash="dashdot", symbol="cross")
        first: dict[str, Any] = {"in_legend": (row, column) == (1, 1), "markers": False}
        own = style("harmful")
        for traces in (
            estimates_line("categories' labels shuffled (control)", table.shuffled, CONTROL, **first),
            estimates_line("different categories", table.off_diagonal, own, **first),
            line(
                "different categories, each fitted on one half",
                table.between,
                own._replace(dash="dash"),
                **first,
            ),
            line("same category, fitted on two halves", table.within, Style("#333333", "longdash"), **first),
            line("random groups for categories (control)", table.sham, grey, **first),
        ):
            figure.add_traces(_without_nan(traces), rows=row, cols=column)
    reference_line(figure, y=0)
    drawn = [v for trace in traces_of(figure) for v in trace.y or () if v is not None and math.isfinite(v)]
    figure.update_yaxes(range=[min(drawn, default=0.0) - 0.05, 1.03])
    return finish(
        figure,
        title="Mean cosine between directions of different harm categories, by layer",
        note=f"{_about(result)}; bands: 95% intervals",
    )


def _about(result: Result) -> str:
    """The model, and how many prompts a category has."""
    sizes = [count.of for count in result.counts.values()]
    n = f"{min(sizes)}" if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"
    return f"{result.provenance.model_name}; n = {n} harmful prompts of each category"


def _without_nan(traces: Sequence[Any]) -> list[go.Scatter]:
    """Layers without a direction leave a gap."""
    for trace in traces:
        trace.y = [None if value is None or not math.isfinite(value) else value for value in trace.y]
    return list(traces)
