"""Traces of one series: bars, points, lines over bands, areas; each with its interval and what the pointer shows.

Nothing here knows titles, axes or panels (`interp.display.layout`), or what a colour means (`interp.display.styles`).
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import plotly.graph_objects as go

from interp.display.styles import CONTROL_COLOUR, Style, translucent
from interp.stats import Estimate

FEW = 10
"""A share of fewer prompts than this is set apart: nothing is concluded from it."""
FOOT = 0.015
"""How far bars of shares reach below zero, so that a bar of 0% can be seen."""


def counted(name: str, ns: Sequence[int] | int) -> str:
    """A series' name with the number of prompts behind it, one or from-to."""
    known = sorted({ns} if isinstance(ns, int) else set(ns))
    if not known:
        return name
    few = ", few" if known[0] < FEW else ""
    return f"{name} (n = {known[0]}{f' to {known[-1]}' if len(known) > 1 else ''}{few})"


def with_ends(estimate: Estimate) -> Estimate:
    """The estimate with missing interval ends replaced by its value, so that a figure draws no bar."""
    if math.isfinite(estimate.low):
        return estimate
    return replace(estimate, low=estimate.value, high=estimate.value)


def intervals(entries: Sequence[Estimate], colour: str = "#222") -> dict[str, Any]:
    """Error bars from 95% intervals."""
    values = [entry.value for entry in entries]
    return {
        "type": "data",
        "symmetric": False,
        "array": [e.high - v for e, v in zip(entries, values, strict=True)],
        "arrayminus": [v - e.low for e, v in zip(entries, values, strict=True)],
        "color": colour,
        "thickness": 1.3,
        "width": 4,
    }


def bars(
    name: str,
    labels: Sequence[str],
    entries: Sequence[Estimate],
    look: Style,
    *,
    share: bool = True,
    horizontal: bool = False,
    in_legend: bool = True,
) -> go.Bar:
    """One series of bars with 95% intervals.

    Args:
        share: whether the values are shares, whose bars begin a little below zero so that 0% is visible.
        horizontal: labels on the y axis.
    """
    foot = FOOT if share else 0.0
    values, long = [entry.value + foot for entry in entries], "x" if horizontal else "y"
    at = {long: values, ("y" if horizontal else "x"): list(labels)}
    return go.Bar(
        name=name,
        legendgroup=name,
        showlegend=in_legend,
        orientation="h" if horizontal else "v",
        base=-foot if share else None,
        marker=bar_marker(look),
        customdata=[[e.value, e.low, e.high, e.n] for e in entries],
        hovertemplate=f"{name}, %{{{'y' if horizontal else 'x'}}}: %{{customdata[0]:.3f}} "
        "[%{customdata[1]:.3f}, %{customdata[2]:.3f}], n = %{customdata[3]}<extra></extra>",
        **{f"error_{long}": intervals(entries)},
        **at,
    )


def points(
    name: str,
    x: Sequence[Any],
    entries: Sequence[Estimate],
    look: Style,
    *,
    horizontal: bool = False,
    in_legend: bool = True,
    lines: bool = False,
) -> go.Scatter:
    """Estimates as markers with 95% intervals, joined by a line where x is a quantity."""
    ends = [with_ends(entry) for entry in entries]
    values = [entry.value for entry in ends]
    return go.Scatter(
        name=name,
        legendgroup=name,
        showlegend=in_legend,
        x=values if horizontal else list(x),
        y=list(x) if horizontal else values,
        mode="lines+markers" if lines else "markers",
        marker={"color": look.colour, "symbol": look.symbol, "size": 9, "line": {"width": 1.4}},
        line={"color": look.colour, "dash": look.dash, "width": 2},
        customdata=[[e.low, e.high, e.n] for e in ends],
        hovertemplate=f"{name}, %{{{'y' if horizontal else 'x'}}}: %{{{'x' if horizontal else 'y'}:.3f}} "
        "[%{customdata[0]:.3f}, %{customdata[1]:.3f}], n = %{customdata[2]}<extra></extra>",
        **{"error_x" if horizontal else "error_y": intervals(ends, look.colour)},
    )


def line(
    name: str,
    values: Sequence[float | int | None],
    look: Style,
    *,
    x: Sequence[Any] | None = None,
    low: Sequence[float | int] | None = None,
    high: Sequence[float | int] | None = None,
    markers: bool = True,
    width: float | int = 2.2,
    in_legend: bool = True,
    within: tuple[float, float] | None = None,
) -> list[go.Scatter]:
    """A line, below it a band where the ends are given: the band first, so that lines lie over bands.

    Args:
        within: bounds that the band is cut at, e.g. (0, 1) for shares.
    """
    at = list(range(len(values)) if x is None else x)
    traces = list[go.Scatter]()
    if low is not None and high is not None:
        known = [i for i, (a, b) in enumerate(zip(low, high, strict=True)) if _finite(a) and _finite(b)]
        clip = (lambda v: min(max(v, within[0]), within[1])) if within else (lambda v: v)
        traces.append(
            go.Scatter(
                x=[at[i] for i in (*known, *known[::-1])],
                y=[*(clip(high[i]) for i in known), *(clip(low[i]) for i in known[::-1])],
                fill="toself",
                fillcolor=translucent(look.colour, 0.15),
                line={"width": 0},
                mode="lines",
                hoverinfo="skip",
                showlegend=False,
                legendgroup=name,
            )
        )
    ends = [[a, b] for a, b in zip(low, high, strict=True)] if low is not None and high is not None else None
    shown = " [%{customdata[0]:.3f}, %{customdata[1]:.3f}]" if ends else ""
    traces.append(
        go.Scatter(
            x=at,
            y=list(values),
            name=name,
            legendgroup=name,
            showlegend=in_legend,
            mode="lines+markers" if markers else "lines",
            line={"color": look.colour, "dash": look.dash, "width": width},
            marker={"symbol": look.symbol, "size": 7},
            customdata=ends,
            hovertemplate=f"{name}, %{{x}}: %{{y:.3f}}{shown}<extra></extra>",
        )
    )
    return traces


def estimates_line(
    name: str, entries: Sequence[Estimate], look: Style, *, x: Sequence[Any] | None = None, **options: Any
) -> list[go.Scatter]:
    """A line of estimates over its 95% band."""
    low, high = [e.low for e in entries], [e.high for e in entries]
    return line(name, [e.value for e in entries], look, x=x, low=low, high=high, **options)


def band(
    name: str, mean: Sequence[float], spread: Sequence[float], look: Style, **options: Any
) -> list[go.Scatter]:
    """A line over layers with a band of one spread to either side."""
    low = [m - s for m, s in zip(mean, spread, strict=True)]
    high = [m + s for m, s in zip(mean, spread, strict=True)]
    return line(name, mean, look, low=low, high=high, **options)


def area(
    name: str, x: Sequence[Any], low: Sequence[float], high: Sequence[float], **options: Any
) -> go.Scatter:
    """A grey area: what chance, shuffled labels or random directions give."""
    return go.Scatter(
        x=[*x, *list(x)[::-1]],
        y=[*high, *list(low)[::-1]],
        fill="toself",
        mode="lines",
        line={"width": 0},
        fillcolor=translucent(CONTROL_COLOUR, 0.4),
        name=name,
        legendgroup=name,
        hoverinfo="skip",
        **options,
    )


def bar_marker(look: Style) -> dict[str, Any]:
    """A bar's colour with its own hatching, so that bars can be distinguished in black and white."""
    pattern = {"bgcolor": look.colour, "fgcolor": "white", "size": 7, "solidity": 0.2}
    return {"color": look.colour, "line": {"width": 0}, "pattern": {"shape": look.pattern, **pattern}}


def _finite(value: float | int | None) -> bool:
    return value is not None and math.isfinite(value)
