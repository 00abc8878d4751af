"""Plotly figures: one theme, and the charts that several experiments share.

Colours are Okabe and Ito's, told apart by colour-blind readers; line dashes and bar patterns repeat the distinction in
black and white. Intervals are drawn wherever the result has them. Nothing here shows, saves or computes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from interp.stats import Estimate

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
PATTERNS = ("", "/", ".", "x", "\\", "-", "+", "|")
SYMBOLS = ("circle", "x", "square", "triangle-up", "diamond", "cross")
CONTROL_COLOUR = "#7F7F7F"

THEME = go.layout.Template(
    layout=go.Layout(
        font={"family": "Helvetica, Arial, sans-serif", "size": 15, "color": "#222"},
        title={"font": {"size": 17}, "x": 0.0, "xanchor": "left", "xref": "paper"},
        colorway=COLOURS,
        paper_bgcolor="white",
        plot_bgcolor="white",
        xaxis={"showgrid": False, "linecolor": "#444", "ticks": "outside", "zeroline": False},
        yaxis={
            "gridcolor": "#E6E6E6",
            "linecolor": "#444",
            "ticks": "outside",
            "zeroline": False,
            "automargin": True,  # keeps the title clear of the widest tick label
            "title": {"standoff": 12},
        },
        legend={"bgcolor": "rgba(255,255,255,0.85)", "orientation": "h", "y": -0.27, "x": 0},
        margin={"l": 70, "r": 20, "t": 60, "b": 120},
        width=860,
        height=500,
    )
)


def rate_bars(
    rates: Mapping[str, Mapping[str, Estimate]],
    *,
    title: str,
    y_title: str,
    controls: Sequence[str] = (),
) -> go.Figure:
    """Grouped bars with 95% intervals.

    Args:
        rates: estimates by series and group.
        controls: series drawn in grey.
    """
    figure = go.Figure()
    ordinary = 0
    for number, (series, groups) in enumerate(rates.items()):
        entries = list(groups.values())
        values = [entry.value for entry in entries]
        colour = CONTROL_COLOUR if series in controls else COLOURS[ordinary % len(COLOURS)]
        ordinary += series not in controls
        figure.add_bar(
            name=series,
            x=list(groups),
            y=values,
            marker=bar_marker(colour, number),
            error_y=intervals(entries),
            customdata=[[e.n, e.low, e.high] for e in entries],
            hovertemplate=f"{series}, %{{x}}: %{{y:.2f}} [%{{customdata[1]:.2f}}, %{{customdata[2]:.2f}}], "
            "n = %{customdata[0]}<extra></extra>",
        )
    figure.update_layout(
        template=THEME, title=title, barmode="group", yaxis={"title": y_title, "range": [0, 1.05]}
    )
    return figure


def bar_marker(colour: str, number: int) -> dict[str, Any]:
    """A bar's colour with its own hatching, so that bars can be distinguished in black and white."""
    pattern = {"bgcolor": colour, "fgcolor": "white", "size": 7, "solidity": 0.2}
    return {"color": colour, "pattern": {"shape": PATTERNS[number % len(PATTERNS)], **pattern}}


def intervals(entries: Sequence[Estimate]) -> dict[str, Any]:
    """Error bars from 95% intervals."""
    values = [entry.value for entry in entries]
    return {
        "type": "data",
        "symmetric": False,
        "array": [e.high - v for e, v in zip(entries, values, strict=True)],
        "arrayminus": [v - e.low for e, v in zip(entries, values, strict=True)],
        "color": "#222",
        "thickness": 1.3,
    }


def layer_lines(
    series: Mapping[str, Sequence[float | None]],
    *,
    title: str,
    y_title: str,
    layers: Sequence[int] | None = None,
    y_range: tuple[float, float] | None = None,
    reference: float | None = None,
    marked: tuple[int, str] | None = None,
    paired: Sequence[str] = (),
) -> go.Figure:
    """One line per series over layers.

    Args:
        reference: a dashed horizontal line, such as chance level.
        marked: a layer and its label, drawn as a vertical line.
        paired: suffixes of series names; series that differ only in the suffix share a colour and differ in dash.
    """
    figure = go.Figure()
    colours: dict[str, str] = {}
    for number, (name, values) in enumerate(series.items()):
        base = next((name.removesuffix(s) for s in paired if s and name.endswith(s)), name)
        dash = (
            next((DASHES[i] for i, s in enumerate(paired) if s and name.endswith(s)), DASHES[0])
            if paired
            else DASHES[number % 6]
        )
        colour = colours.setdefault(base, COLOURS[len(colours) % len(COLOURS)])
        figure.add_scatter(
            name=name,
            x=list(layers if layers is not None else range(len(values))),
            y=list(values),
            mode="lines+markers",
            line={"color": colour, "dash": dash, "width": 2.2},
            marker={"size": 6, "symbol": SYMBOLS[list(colours).index(base) % len(SYMBOLS)]},
            hovertemplate=f"{name}, layer %{{x}}: %{{y:.3f}}<extra></extra>",
        )
    if reference is not None:
        figure.add_hline(y=reference, line={"color": "#666", "dash": "dash", "width": 1})
    if marked is not None:
        figure.add_vline(
            x=marked[0],
            line={"color": "#666", "width": 1},
            annotation={"text": marked[1], "font": {"size": 13}},
        )
    figure.update_layout(
        template=THEME, title=title, xaxis={"title": "layer (input of the block)"}, yaxis={"title": y_title}
    )
    if y_range is not None:
        figure.update_yaxes(range=list(y_range))
    return figure


def band(
    name: str,
    mean: Sequence[float],
    spread: Sequence[float],
    *,
    colour: str,
    dash: str = "solid",
    symbol: str | None = None,
) -> list[go.Scatter]:
    """A line over layers with a band of one spread to either side.

    Args:
        symbol: marker on the line, which tells it from another of the same dash in black and white.
    """
    layers = list(range(len(mean)))
    upper = [m + s for m, s in zip(mean, spread, strict=True)]
    lower = [m - s for m, s in zip(mean, spread, strict=True)]
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    area = go.Scatter(
        x=[*layers, *layers[::-1]],
        y=[*upper, *lower[::-1]],
        fill="toself",
        fillcolor=f"rgba({red},{green},{blue},0.12)",
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        showlegend=False,
        legendgroup=name,
    )
    line = go.Scatter(
        x=layers,
        y=list(mean),
        name=name,
        legendgroup=name,
        mode="lines" if symbol is None else "lines+markers",
        line={"color": colour, "dash": dash, "width": 2.2},
        marker={"symbol": symbol or "circle", "size": 7},
        customdata=list(spread),
        hovertemplate=f"{name}, layer %{{x}}: %{{y:.3f}} (SD %{{customdata:.3f}})<extra></extra>",
    )
    return [area, line]


def head_map(
    values: Sequence[Sequence[float]],
    *,
    title: str,
    label: str,
    layers: Sequence[int] | None = None,
    rows: Sequence[str] | None = None,
) -> go.Figure:
    """A map over layers and heads, or layers and token roles, with colours centred on zero.

    Args:
        values: by layer and head.
        label: name of what the colours show.
        layers: numbers of the layers; 0, 1, ... when None.
        rows: names of the second axis; head numbers when None.
    """
    across = list(zip(*values, strict=True))
    heads = list(rows) if rows is not None else list(range(len(across)))
    figure = go.Figure(
        go.Heatmap(
            z=[list(row) for row in across],
            x=list(layers) if layers is not None else list(range(len(values))),
            y=heads,
            colorscale="RdBu_r",
            zmid=0,
            colorbar={"title": {"text": label, "side": "right"}},
            hovertemplate=f"layer %{{x}}, {'head ' if rows is None else ''}%{{y}}: %{{z:.3g}}<extra></extra>",
        )
    )
    figure.update_layout(
        template=THEME,
        title=title,
        xaxis={"title": "layer"},
        yaxis={"title": "head" if rows is None else "token role", "autorange": "reversed"},
    )
    return figure


def distributions(samples: Mapping[str, Sequence[float]], *, title: str, x_title: str) -> go.Figure:
    """One row per group: every value as a point, the density above, quartiles in a box."""
    figure = go.Figure()
    for number, (name, values) in enumerate(samples.items()):
        colour = COLOURS[number % len(COLOURS)]
        figure.add_violin(
            name=f"{name} (n = {len(values)})",
            x=list(values),
            orientation="h",
            side="positive",
            width=1.4,
            points="all",
            pointpos=-0.25,
            jitter=0.25,
            box={"visible": True, "width": 0.12},
            marker={"color": colour, "size": 5, "opacity": 0.6, "symbol": SYMBOLS[number % len(SYMBOLS)]},
            line={"color": colour, "width": 1.6},
            spanmode="hard",
            showlegend=False,
            hovertemplate=f"{name}: %{{x:.3g}}<extra></extra>",
        )
    figure.update_layout(
        template=THEME,
        title=title,
        xaxis={"title": x_title},
        margin={"l": 150, "b": 70},
        height=120 + 110 * len(samples),
    )
    return figure
