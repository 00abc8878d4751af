"""Figure forms of the elasticity experiments, from stored numbers: decline panels, heat map, Hooke's law, slope ratio.

Source of the forms: Ji et al. 2025, arXiv:2406.06144, figures 4 to 10. Each takes plain numbers and returns a figure.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.display.charts import COLOURS, CONTROL_COLOUR, DASHES, THEME, intervals

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star")


def decline_panels(
    panels: Mapping[str, Mapping[str, Any]],
    *,
    title: str,
    y_title: str,
    x_title: str = "negative examples N-",
    series_title: str = "N+",
    y_range: tuple[float, float] | None = (0.0, 1.03),
) -> go.Figure:
    """Score against negative examples, one line an N+ with the SD over seeds shaded, one panel a model (figures 4-6).

    Args:
        panels: panel → `{"doses", "curves": N+ → [seed][dose], "base": score before alignment or one a seed}`.
    """
    names = list(panels)
    figure = make_subplots(
        cols=len(names),
        shared_yaxes=True,
        subplot_titles=names if len(names) > 1 else None,
        horizontal_spacing=0.04,
    )
    shown: dict[str, int] = {}
    for column, name in enumerate(names, start=1):
        panel = panels[name]
        doses = list(panel["doses"])
        for n_plus, curves in panel["curves"].items():
            first = n_plus not in shown
            number = shown.setdefault(n_plus, len(shown))
            control = n_plus == "0"
            colour = CONTROL_COLOUR if control else COLOURS[number % len(COLOURS)]
            scores = np.asarray(curves, dtype=np.float64)
            mean = scores.mean(0)
            spread = scores.std(0, ddof=1) if len(scores) > 1 else np.zeros_like(mean)
            red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
            figure.add_scatter(
                x=[*doses, *doses[::-1]],
                y=[*(mean + spread), *(mean - spread)[::-1]],
                fill="toself",
                fillcolor=f"rgba({red},{green},{blue},0.15)",
                line={"width": 0},
                mode="lines",
                hoverinfo="skip",
                showlegend=False,
                legendgroup=n_plus,
                row=1,
                col=column,
            )
            figure.add_scatter(
                x=doses,
                y=list(mean),
                customdata=list(spread),
                name=f"{series_title} = {n_plus}" + (" (control)" if control else ""),
                legendgroup=n_plus,
                showlegend=first,
                mode="lines+markers",
                line={"color": colour, "dash": DASHES[number % len(DASHES)], "width": 2.2},
                marker={"symbol": SYMBOLS[number % len(SYMBOLS)], "size": 7},
                hovertemplate=f"{series_title} = {n_plus}, {x_title} %{{x}}: %{{y:.3f}} (SD %{{customdata:.3f}}, "
                f"{len(scores)} seeds)<extra></extra>",
                row=1,
                col=column,
            )
        if panel.get("base") is not None:
            figure.add_hline(
                y=float(np.mean(panel["base"])),
                line={"color": "#666", "dash": "dash", "width": 1},
                annotation={"text": "before alignment", "font": {"size": 12}}
                if column == len(names)
                else None,
                row=1,  # pyright: ignore[reportArgumentType]
                col=column,  # pyright: ignore[reportArgumentType]
            )
        figure.update_xaxes(title=x_title, row=1, col=column)
    figure.update_yaxes(title=y_title, row=1, col=1)
    if y_range is not None:
        figure.update_yaxes(range=list(y_range))
    figure.update_layout(template=THEME, title=title, width=max(860, 380 * len(names) + 60))
    if len(names) > 1:
        figure.update_layout(margin={"t": 90})
    return figure


def heat_map(
    doses: Sequence[float | int],
    curves: Mapping[str, Sequence[Sequence[float | int]]],
    *,
    title: str,
    score: str,
) -> go.Figure:
    """Mean score of every N+ and N- (figure 7)."""
    values = [np.asarray(c, dtype=np.float64).mean(0) for c in curves.values()]
    figure = go.Figure(
        go.Heatmap(
            z=values,
            x=[str(int(d)) for d in doses],
            y=[str(n) for n in curves],
            text=[[f"{v:.2f}" for v in row] for row in values],
            texttemplate="%{text}",
            colorscale="Blues",
            zmin=0,
            zmax=1,
            colorbar={"title": {"text": score}},
            hovertemplate="N+ %{y}, N- %{x}: %{z:.3f}<extra></extra>",
        )
    )
    figure.update_layout(
        template=THEME,
        title=title,
        xaxis={"title": "negative examples N-", "type": "category"},
        yaxis={"title": "positive examples N+", "type": "category"},
    )
    return figure


def hookes_law(
    series: Mapping[str, Sequence[tuple[float, float]]], *, title: str, unit: str = "nats"
) -> go.Figure:
    """Elastic invariant: E_a = |D_a| change of gamma_a against -E_p, in logarithms, with the identity line.

    On the line the two springs share one force. Points with an E that is not positive cannot be drawn; the
    legend counts them.

    Args:
        series: name → (-E_p, E_a).
    """
    figure = go.Figure()
    drawn = [(x, y) for points in series.values() for x, y in points if x > 0 and y > 0]
    if drawn:
        low, high = min(map(min, drawn)), max(map(max, drawn))
        figure.add_scatter(
            x=[low, high],
            y=[low, high],
            mode="lines",
            line={"color": "#666", "dash": "dash", "width": 1},
            name="identity (theorem)",
        )
    for number, (name, points) in enumerate(series.items()):
        kept = [(x, y) for x, y in points if x > 0 and y > 0]
        left = len(points) - len(kept)
        figure.add_scatter(
            x=[x for x, _ in kept],
            y=[y for _, y in kept],
            mode="markers",
            name=name + (f" ({left} of {len(points)} of the wrong sign, not drawn)" if left else ""),
            marker={
                "symbol": SYMBOLS[number % len(SYMBOLS)],
                "size": 8,
                "color": COLOURS[number % len(COLOURS)],
                "opacity": 0.8,
            },
            hovertemplate=f"{name}: -E_p %{{x:.3g}}, E_a %{{y:.3g}}<extra></extra>",
        )
    axis = {"type": "log", "exponentformat": "power", "dtick": _decades(drawn)}
    figure.update_layout(
        template=THEME,
        title=title,
        height=600,
        margin={"b": 170},
        legend={"y": -0.2},
        xaxis={**axis, "title": f"-E_p = -|D_p| x change of gamma_p ({unit})"},
        yaxis={**axis, "title": "E_a = |D_a| x change of gamma_a"},
    )
    return figure


def _decades(points: Sequence[tuple[float, float]]) -> int:
    if not points:
        return 1
    span = math.log10(max(map(max, points)) / min(map(min, points)))
    return max(1, math.ceil(span / 7))


def slope_ratios(
    rows: Sequence[Mapping[str, Any]], *, title: str, x_title: str = "k = |D_p| / |D_a|"
) -> go.Figure:
    """|R| against k in logarithms with intervals and the theorem's line |R| = k; unresolved ratios are counted.

    Args:
        rows: `{"series", "k", "ratio": {"value", "low", "high", "resolved"}}`.
    """
    figure = go.Figure()
    ks = sorted({float(row["k"]) for row in rows})
    figure.add_scatter(
        x=ks, y=ks, mode="lines", line={"color": "#666", "dash": "dash", "width": 1}, name="theorem, |R| = k"
    )
    names = list(dict.fromkeys(row["series"] for row in rows))
    drawn: list[float] = []
    for number, series in enumerate(names):
        mine = [row for row in rows if row["series"] == series]
        kept = [r for r in mine if r["ratio"]["value"] is not None and r["ratio"].get("resolved", True)]
        missing = len(mine) - len(kept)
        beside = 1.05 ** (number - (len(names) - 1) / 2)  # so that series do not hide each other
        right = [r for r in kept if r["ratio"]["value"] < 0]
        for label, part, hollow in (
            (series, right, ""),
            (f"{series}, R > 0", [r for r in kept if r["ratio"]["value"] > 0], "-open"),
        ):
            if not part:
                continue
            entries = [_magnitude(r["ratio"]) for r in part]
            drawn += [e["value"] for e in entries]
            known = any(e["low"] < e["high"] for e in entries)
            figure.add_scatter(
                x=[r["k"] * beside for r in part],
                y=[e["value"] for e in entries],
                error_y={**intervals(entries), "color": COLOURS[number % len(COLOURS)]} if known else None,
                mode="markers",
                name=label
                + (
                    f" ({missing} of {len(mine)} not resolved)"
                    if missing and (not hollow or not right)
                    else ""
                ),
                marker={
                    "symbol": SYMBOLS[number % len(SYMBOLS)] + hollow,
                    "size": 8,
                    "color": COLOURS[number % len(COLOURS)],
                },
                customdata=[r["k"] for r in part],
                hovertemplate=f"{label}, k %{{customdata:.3g}}: |R| %{{y:.3g}}<extra></extra>",
            )
    span = [*drawn, *ks]
    figure.update_layout(
        template=THEME,
        title=title,
        height=620,
        margin={"b": 190},
        legend={"y": -0.2},
        xaxis={"title": x_title, "type": "log", "dtick": 1},
        yaxis={
            "title": "|R| = |change of gamma_a / of gamma_p|",
            "type": "log",
            "dtick": 1,
            # An interval that covers 0 has no lower end in logarithms: it runs off the lower edge.
            "range": [math.log10(min(span)) - 0.7, math.log10(max(span)) + 0.7],
        },
    )
    return figure


def _magnitude(ratio: Mapping[str, Any]) -> dict[str, float]:
    value = abs(ratio["value"])
    if ratio.get("low") is None or ratio.get("high") is None:
        return {"value": value, "low": value, "high": value}
    ends = sorted((abs(ratio["low"]), abs(ratio["high"])))
    crosses = ratio["low"] * ratio["high"] < 0
    return {"value": value, "low": value * 1e-9 if crosses else ends[0], "high": ends[1]}
