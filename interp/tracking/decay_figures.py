"""Figures of the elasticity experiments: decay curves, heat map, Hooke's law, slope ratio.

Source of the figures: Ji et al. 2025, arXiv:2406.06144, figures 4 to 10. Each takes plain numbers and returns a figure.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.display.charts import COLOURS, CONTROL_COLOUR, DASHES, THEME, intervals
from interp.stats import Estimate, Number

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star")


@dataclass(frozen=True, kw_only=True)
class DecayPanel:
    """Decay curves of one model."""

    doses: Sequence[Number]
    """Numbers of negative examples N-, ascending."""
    curves: Mapping[int, Sequence[Sequence[Number]]]
    """Scores [seed][dose] by N+."""
    base: Number | Sequence[Number] | None = None
    """Score before alignment, one for all seeds or one per seed; None draws no level."""


@dataclass(frozen=True, kw_only=True)
class SlopeRatio:
    """One slope ratio R at one size ratio k."""

    series: str
    """Name of the series that it belongs to."""
    k: Number
    """Size ratio |D_p| / |D_a|."""
    ratio: Estimate
    """Slope ratio R = change of gamma_a / change of gamma_p; not measurable where it is not resolved."""


def with_ends(estimate: Estimate) -> Estimate:
    """The estimate with missing interval ends replaced by its value, so that a figure draws no bar."""
    if math.isfinite(estimate.low):
        return estimate
    return replace(estimate, low=estimate.value, high=estimate.value)


def decay_panels(
    panels: Mapping[str, DecayPanel],
    *,
    title: str,
    y_title: str,
    x_title: str = "negative examples N-",
    series_title: str = "N+",
    controls: Collection[int] = (0,),
    y_range: tuple[float, float] | None = (0.0, 1.03),
) -> go.Figure:
    """Score against negative examples, a line per N+ with the SD over seeds shaded, a panel per model (figures 4-6).

    Args:
        panels: panels by title.
        controls: sizes N+ that are controls, drawn in grey and labelled as such.
    """
    names = list(panels)
    figure = make_subplots(
        cols=len(names),
        shared_yaxes=True,
        subplot_titles=names if len(names) > 1 else None,
        horizontal_spacing=0.04,
    )
    numbers: dict[int, int] = {}
    for column, (name, panel) in enumerate(panels.items(), start=1):
        for n_plus, curves in panel.curves.items():
            first = n_plus not in numbers
            number = numbers.setdefault(n_plus, len(numbers))
            control = n_plus in controls
            traces = _mean_with_band(
                panel.doses,
                curves,
                label=f"{series_title} = {n_plus}",
                name=f"{series_title} = {n_plus}" + (" (control)" if control else ""),
                x_title=x_title,
                number=number,
                colour=CONTROL_COLOUR if control else COLOURS[number % len(COLOURS)],
                in_legend=first,
            )
            for trace in traces:
                figure.add_trace(trace, row=1, col=column)
        if panel.base is not None:
            figure.add_hline(
                y=float(np.mean(panel.base)),
                line={"color": "#666", "dash": "dash", "width": 1},
                annotation={"text": "before alignment", "font": {"size": 12}} if name == names[-1] else None,
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


def _mean_with_band(
    doses: Sequence[Number],
    curves: Sequence[Sequence[Number]],
    *,
    label: str,
    name: str,
    x_title: str,
    number: int,
    colour: str,
    in_legend: bool,
) -> tuple[go.Scatter, go.Scatter]:
    """The mean over seeds as a line, and one SD to either side as a band."""
    x, scores = list(doses), np.asarray(curves, dtype=np.float64)
    mean = scores.mean(0)
    spread = scores.std(0, ddof=1) if len(scores) > 1 else np.zeros_like(mean)
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    band = go.Scatter(
        x=[*x, *x[::-1]],
        y=[*(mean + spread), *(mean - spread)[::-1]],
        fill="toself",
        fillcolor=f"rgba({red},{green},{blue},0.15)",
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        showlegend=False,
        legendgroup=label,
    )
    line = go.Scatter(
        x=x,
        y=list(mean),
        customdata=list(spread),
        name=name,
        legendgroup=label,
        showlegend=in_legend,
        mode="lines+markers",
        line={"color": colour, "dash": DASHES[number % len(DASHES)], "width": 2.2},
        marker={"symbol": SYMBOLS[number % len(SYMBOLS)], "size": 7},
        hovertemplate=f"{label}, {x_title} %{{x}}: %{{y:.3f}} (SD %{{customdata:.3f}}, "
        f"{len(scores)} seeds)<extra></extra>",
    )
    return band, line


def heat_map(
    doses: Sequence[Number],
    curves: Mapping[int, Sequence[Sequence[Number]]],
    *,
    title: str,
    score: str,
) -> go.Figure:
    """Heat map of the mean score for every N+ and N- (figure 7)."""
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
    series: Mapping[str, Sequence[tuple[Number, Number]]], *, title: str, unit: str = "nats"
) -> go.Figure:
    """Elastic invariant: E_a = |D_a| change of gamma_a against -E_p, in logarithms, with the identity line.

    On the line the two springs share one force. Points with an E that is not positive cannot be drawn; the
    legend counts them.

    Args:
        series: points (-E_p, E_a) by name.
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
        drawable = [(x, y) for x, y in points if x > 0 and y > 0]
        wrong = len(points) - len(drawable)
        figure.add_scatter(
            x=[x for x, _ in drawable],
            y=[y for _, y in drawable],
            mode="markers",
            name=name + (f" ({wrong} of {len(points)} of the wrong sign, not drawn)" if wrong else ""),
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


def _decades(points: Sequence[tuple[Number, Number]]) -> int:
    """Decades between ticks such that an axis has at most seven."""
    if not points:
        return 1
    span = math.log10(max(map(max, points)) / min(map(min, points)))
    return max(1, math.ceil(span / 7))


def slope_ratios(rows: Sequence[SlopeRatio], *, title: str, x_title: str = "k = |D_p| / |D_a|") -> go.Figure:
    """|R| against k on logarithmic axes with intervals and the line |R| = k; unresolved ratios are counted."""
    figure = go.Figure()
    ks = sorted({float(row.k) for row in rows})
    figure.add_scatter(
        x=ks, y=ks, mode="lines", line={"color": "#666", "dash": "dash", "width": 1}, name="theorem, |R| = k"
    )
    names = list(dict.fromkeys(row.series for row in rows))
    magnitudes: list[float] = []
    for number, series in enumerate(names):
        of_series = [row for row in rows if row.series == series]
        resolved = [row for row in of_series if row.ratio.measurable]
        unresolved = len(of_series) - len(resolved)
        offset = 1.05 ** (number - (len(names) - 1) / 2)  # so that series do not hide each other
        as_predicted = [row for row in resolved if row.ratio.value < 0]
        for label, part, hollow in (
            (series, as_predicted, ""),
            (f"{series}, R > 0", [row for row in resolved if row.ratio.value > 0], "-open"),
        ):
            if not part:
                continue
            note = ""
            if unresolved and (not hollow or not as_predicted):
                note = f" ({unresolved} of {len(of_series)} not resolved)"
            estimates = [_magnitude(row.ratio) for row in part]
            magnitudes += [estimate.value for estimate in estimates]
            colour = COLOURS[number % len(COLOURS)]
            has_intervals = any(estimate.low < estimate.high for estimate in estimates)
            figure.add_scatter(
                x=[row.k * offset for row in part],
                y=[estimate.value for estimate in estimates],
                error_y={**intervals(estimates), "color": colour} if has_intervals else None,
                mode="markers",
                name=label + note,
                marker={"symbol": SYMBOLS[number % len(SYMBOLS)] + hollow, "size": 8, "color": colour},
                customdata=[row.k for row in part],
                hovertemplate=f"{label}, k %{{customdata:.3g}}: |R| %{{y:.3g}}<extra></extra>",
            )
    extent = [*magnitudes, *ks]
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
            # An interval that covers 0 has no lower end on a logarithmic axis: it runs off the lower edge.
            "range": [math.log10(min(extent)) - 0.7, math.log10(max(extent)) + 0.7],
        },
    )
    return figure


def _magnitude(ratio: Estimate) -> Estimate:
    """|R| with its interval, whose lower end is close to 0 where the interval of R covers 0."""
    value = abs(ratio.value)
    if not math.isfinite(ratio.low):
        return replace(ratio, value=value, low=value, high=value)
    nearer, farther = sorted((abs(ratio.low), abs(ratio.high)))
    covers_zero = ratio.low * ratio.high < 0
    return replace(ratio, value=value, low=value * 1e-9 if covers_zero else nearer, high=farther)
