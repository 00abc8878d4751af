"""Figure 11: scores of the candidate directions by source layer and token."""

import plotly.graph_objects as go

from interp.display.charts import Style, area, finish, highlight, line, panels, style
from interp.display.styles import REFERENCE_COLOUR
from interp.experiments.refusal_direction import Result

SCORES = {
    "bypass": "harmful prompts, direction ablated<br>(bypass score: refusal metric, nats)",
    "induce": "harmless prompts, direction added<br>(induce score: refusal metric, nats)",
    "kl": "harmless prompts, direction ablated<br>(KL divergence, nats)",
}
"""Scores of a candidate, as its fields are called."""
_TICKS = {0.0001: "0.0001", 0.001: "0.001", 0.01: "0.01", 0.1: "0.1", 1: "1", 10: "10"}


def selection(result: Result, note: str) -> go.Figure:
    """Scores against source layer, a line per source token; random directions as a grey band."""
    figure = panels(
        list(SCORES.values()),
        columns=3,
        width=330,
        height=360,
        gap=70,
        shared_y="no",
        x_title="layer that the direction is taken from",
    )
    names = _token_names(result)
    for column, score in enumerate(SCORES, start=1):
        for position, name in names.items():
            rows = [row for row in result.candidates if row.position == position]
            values = [getattr(row, score) for row in rows]
            traces = line(name, values, Style("#BDBDBD"), x=[row.layer for row in rows], markers=False)
            figure.add_traces(traces, rows=1, cols=column)
    chosen = names[result.selected.position]
    highlight(figure, chosen, others="other template tokens", look=style("refusal")._replace(dash="solid"))
    for column, score in enumerate(SCORES, start=1):
        if result.random_directions.directions:
            figure.add_trace(_random_range(result, score, column == 1), row=1, col=column)
        _levels(figure, result, score, column)
        figure.add_trace(_selected(result, score, column == 1), row=1, col=column)
    figure.update_yaxes(type="log", tickvals=list(_TICKS), ticktext=list(_TICKS.values()), row=1, col=3)
    return finish(
        figure,
        title="Scores of the candidate directions",
        note=f"{note}; dashed: without intervention, and the limit on KL",
    )


def _token_names(result: Result) -> dict[int, str]:
    """Names of the source tokens in the legend, by position from the end."""
    positions = sorted({row.position for row in result.candidates})
    return {position: f"token {position}, {result.post_inst_tokens[position]!r}" for position in positions}


def _levels(figure: go.Figure, result: Result, score: str, column: int) -> None:
    """The dashed level that a score is read against."""
    baseline = result.selection_baseline
    levels = {"bypass": baseline.harmful, "induce": baseline.harmless, "kl": result.rule.kl_threshold}
    if (level := levels[score]) is not None:
        line_style = {"color": REFERENCE_COLOUR, "dash": "dash", "width": 1.2}
        figure.add_hline(y=level, line=line_style, row=1, col=column)  # pyright: ignore[reportArgumentType]


def _random_range(result: Result, score: str, in_legend: bool) -> go.Scatter:
    """What random directions score, from the lowest to the highest, as an area over the layers."""
    random, last = result.random_directions, max(row.layer for row in result.candidates)
    layers = list(random.layers) if score == "induce" else [0, last]
    values = [d.induce if score == "induce" else [getattr(d, score)] * 2 for d in random.directions]
    low, high = ([f(v) for v in zip(*values, strict=True)] for f in (min, max))
    name = f"range of {len(random.directions)} random directions (control)"
    return area(name, layers, low, high, showlegend=in_legend)


def _selected(result: Result, score: str, in_legend: bool) -> go.Scatter:
    """The selected candidate as a star."""
    picked = result.selected
    return go.Scatter(
        x=[picked.layer],
        y=[getattr(picked, score)],
        mode="markers",
        name=f"selected: layer {picked.layer}, token {picked.position}",
        showlegend=in_legend,
        marker={"symbol": "star", "size": 15, "color": "#FFD400", "line": {"color": "black", "width": 1.2}},
        hovertemplate=f"selected, layer %{{x}}: %{{y:.3f}}<extra>{score}</extra>",
    )
