"""Figures of the jailbreak experiment, drawn from a stored result alone."""

from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.data.prompts import COMPARED_ENDINGS
from interp.display.charts import COLOURS, CONTROL_COLOUR, THEME, bar_marker, intervals
from interp.experiments.jailbreaks import Point, Result
from interp.representations.records import BELIEFS

ENDING_LABELS = {"as-is": "messages as they are", "period": "all ended by a full stop"}
_SYMBOLS = ("triangle-up", "diamond", "square", "star", "pentagon", "hexagon")
_PALETTE = (COLOURS[0], COLOURS[2], COLOURS[3], COLOURS[4], COLOURS[5], COLOURS[7])
_BELIEF_LABELS = {"harm": "harm belief (t_inst)", "refusal": "refusal belief (t_post_inst)"}


def figures(result: Result) -> dict[str, go.Figure]:
    """Every figure, from the stored result."""
    return {"fig06_beliefs": _scatter(result), "success": _success(result), "shifts": _shifts(result)}


def _scatter(result: Result) -> go.Figure:
    """Figure 6: both beliefs of prompts that succeed, by family, beside plain refused harmful requests."""
    figure = make_subplots(
        rows=1,
        cols=2,
        shared_yaxes=True,
        subplot_titles=[ENDING_LABELS[ending] for ending in COMPARED_ENDINGS],
    )
    for name, points, colour, symbol in _clouds(result):
        for column, ending in enumerate(COMPARED_ENDINGS, start=1):
            figure.add_scatter(
                name=f"{name} (n = {len(points)})",
                legendgroup=name,
                showlegend=column == 1,
                x=[p.beliefs[ending].harm for p in points],
                y=[p.beliefs[ending].refusal for p in points],
                customdata=[[p.id, p.wrapper] for p in points],
                mode="markers",
                marker={
                    "color": colour,
                    "symbol": symbol,
                    "size": 7,
                    "opacity": 0.65,
                    "line": {"width": 1, "color": colour},
                },
                hovertemplate=f"{name}: %{{customdata[0]}}, %{{customdata[1]}}<br>harm %{{x:.3f}}, refusal %{{y:.3f}}"
                "<extra></extra>",
                row=1,
                col=column,
            )
    figure.add_vline(x=0, line={"color": "#666", "dash": "dash", "width": 1})
    figure.add_hline(y=0, line={"color": "#666", "dash": "dash", "width": 1})
    figure.update_xaxes(title="harm belief at t_inst")
    figure.update_yaxes(title="refusal belief at t_post_inst", col=1)
    figure.update_layout(
        template=THEME,
        title=f"Beliefs of jailbreaks that succeed, {result.provenance.model_name}",
        width=1100,
        height=560,
        margin={"t": 100},
        legend={"y": -0.2},
    )
    return figure


def _clouds(result: Result) -> list[tuple[str, list[Point], str, str]]:
    """Name, points, colour and symbol of what figure 6 shows: plain requests, then successes by family."""
    plain = [p for p in result.points if p.family == "plain"]
    refused = [p for p in plain if p.kind == "harmful" and p.refused]
    answered = [p for p in plain if p.kind == "harmless" and not p.refused]
    ids = {p.id for p in refused}
    clouds = [
        ("plain harmful, refused", refused, COLOURS[1], "circle"),
        ("plain harmless, answered", answered, CONTROL_COLOUR, "x-thin-open"),
    ]
    for number, family in enumerate(result.families):
        successes = [
            p
            for p in result.points
            if p.family == family and p.kind == "harmful" and not p.refused and p.id in ids
        ]
        clouds.append((f"{family}, answered", successes, _PALETTE[number % 6], _SYMBOLS[number % 6]))
    return clouds


def _success(result: Result) -> go.Figure:
    """Answered harmful requests by wrapper, and refused harmless ones: what the wrapper does to any request."""
    figure = go.Figure()
    by = result.wrappers
    names = [f"{name}<br><sub>{entry.family}</sub>" for name, entry in by.items()]
    series = (
        (
            "harmful, refused plainly: answered when wrapped",
            [entry.harmful_answered for entry in by.values()],
            COLOURS[1],
        ),
        (
            "harmless, answered plainly: refused when wrapped (control)",
            [entry.harmless_refused for entry in by.values()],
            CONTROL_COLOUR,
        ),
    )
    for number, (label, entries, colour) in enumerate(series):
        figure.add_bar(
            name=label,
            x=names,
            y=[e.value for e in entries],
            error_y=intervals(entries),
            marker=bar_marker(colour, number),
            customdata=[[e.n, e.low, e.high] for e in entries],
            hovertemplate=f"{label}, %{{x}}: %{{y:.2f}} [%{{customdata[1]:.2f}}, %{{customdata[2]:.2f}}], "
            "n = %{customdata[0]}<extra></extra>",
        )
    figure.update_layout(
        template=THEME,
        barmode="group",
        title=f"What each wrapper changes, {result.provenance.model_name}",
        yaxis={"title": "share of requests", "range": [0, 1.05]},
        xaxis={"tickangle": -45},
        width=1100,
        height=620,
        margin={"b": 200},
        legend={"y": -0.5},
    )
    return figure


def _shifts(result: Result) -> go.Figure:
    """How far each belief moves from the plain request, with the controls."""
    figure = make_subplots(
        rows=2,
        cols=2,
        shared_xaxes=True,
        shared_yaxes="rows",  # pyright: ignore[reportArgumentType]
        subplot_titles=[
            f"{_BELIEF_LABELS[name]}, {ENDING_LABELS[e]}" for name in BELIEFS for e in COMPARED_ENDINGS
        ],
        vertical_spacing=0.12,
    )
    for row, name in enumerate(BELIEFS, start=1):
        for column, ending in enumerate(COMPARED_ENDINGS, start=1):
            families = result.shifts[ending].families
            shifts = [shift.beliefs.of(name) for shift in families.values()]
            arms = (
                ("moved", "harmful, answered when wrapped", [s.moved for s in shifts], COLOURS[1]),
                ("still_refused", "harmful, still refused", [s.still_refused for s in shifts], COLOURS[0]),
                (
                    "harmless",
                    "harmless, the same wrappers (control)",
                    [s.harmless for s in shifts],
                    CONTROL_COLOUR,
                ),
            )
            place: dict[str, Any] = {"row": row, "col": column}
            for number, (key, label, entries, colour) in enumerate(arms):
                figure.add_bar(
                    name=label,
                    legendgroup=key,
                    showlegend=(row, column) == (1, 1),
                    x=list(families),
                    y=[e.value for e in entries],
                    error_y=intervals(entries),
                    marker=bar_marker(colour, number),
                    customdata=[e.n for e in entries],
                    hovertemplate=f"{label}, %{{x}}: %{{y:.3f}}, n = %{{customdata}} requests<extra></extra>",
                    **place,
                )
            figure.add_hline(
                y=-result.shifts[ending].gap.of(name),
                line={"color": "#666", "dash": "dot", "width": 1},
                annotation={"text": "as far as plain harmless lie from plain harmful", "font": {"size": 11}},
                annotation_position="top left",
                **place,
            )
    figure.update_yaxes(title="shift from the plain request", col=1)
    figure.update_layout(
        template=THEME,
        barmode="group",
        title=f"Which belief moves when a request is wrapped, {result.provenance.model_name}",
        width=1100,
        height=800,
        margin={"t": 100},
        legend={"y": -0.08},
    )
    return figure
