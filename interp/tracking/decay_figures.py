"""Figures of the elasticity experiments: decay curves, heat map, Hooke's law, slope ratio.

Source of the figures: Ji et al. 2025, arXiv:2406.06144, figures 4 to 10. Each takes plain numbers and returns a figure.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import plotly.graph_objects as go

from interp.display.charts import (
    CONTROL_COLOUR,
    Style,
    finish,
    intervals,
    line,
    named,
    ordered,
    panels,
    rate_axis,
    with_ends,
)
from interp.display.styles import REFERENCE_COLOUR
from interp.stats import Estimate, Number

__all__ = [
    "DecayPanel", "SlopeRatio", "decay_panels", "heat_map", "hookes_law", "slope_ratios", "with_ends",
]  # fmt: skip


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
    panel: str = ""
    """Title of the panel that it is drawn in; one panel where no ratio names one."""


def decay_panels(
    shown: Mapping[str, DecayPanel],
    *,
    title: str,
    y_title: str,
    note: str = "",
    x_title: str = "negative examples",
    series_title: str = "{} positive examples",
    controls: Collection[int] = (0,),
    share: bool = True,
) -> go.Figure:
    """Score against negative examples, a line per N+ with the SD over seeds shaded, a panel per model (figures 4-6).

    Args:
        shown: panels by title.
        series_title: name of a series, with a place for its number.
        controls: sizes N+ that are controls, drawn in grey and labelled as such.
        share: whether the scores are shares, drawn within 0 and 1.
    """
    names = list(shown)
    figure = panels(
        names if len(names) > 1 else [""],
        columns=len(names),
        width=740 if len(names) == 1 else 360 if len(names) > 2 else 440,
        x_title=x_title,
        y_title=y_title,
    )
    sizes = list(dict.fromkeys(n for panel in shown.values() for n in panel.curves))
    looks = dict(
        zip([n for n in sizes if n not in controls], ordered(len(set(sizes) - set(controls))), strict=True)
    )
    looks |= {n: Style(CONTROL_COLOUR, "dot", "x") for n in sizes if n in controls}
    seen = set[int]()
    for column, panel in enumerate(shown.values(), start=1):
        place: dict[str, Any] = {"rows": 1, "cols": column} if len(names) > 1 else {}
        for n_plus, curves in panel.curves.items():
            name = series_title.format(f"{n_plus:,}") + (" (control)" if n_plus in controls else "")
            scores = np.asarray(curves, dtype=np.float64)
            mean = scores.mean(0)
            spread = scores.std(0, ddof=1) if len(scores) > 1 else np.zeros_like(mean)
            traces = line(
                name,
                mean.tolist(),
                looks[n_plus],
                x=list(panel.doses),
                low=(mean - spread).tolist(),
                high=(mean + spread).tolist(),
                within=(0.0, 1.0) if share else None,
                in_legend=n_plus not in seen,
            )
            seen.add(n_plus)
            figure.add_traces(traces, **place)
        if panel.base is not None:
            where: dict[str, Any] = {"row": 1, "col": column} if len(names) > 1 else {}
            figure.add_hline(
                y=float(np.mean(panel.base)),
                line={"color": REFERENCE_COLOUR, "dash": "dash", "width": 1.2},
                name="before alignment",
                showlegend=column == 1,
                **where,
            )
    if share:
        rate_axis(figure)
    return finish(figure, title=title, note=note)


def heat_map(
    doses: Sequence[Number],
    curves: Mapping[int, Sequence[Sequence[Number]]],
    *,
    title: str,
    score: str,
    note: str = "",
) -> go.Figure:
    """Heat map of the mean score for every N+ and N- (figure 7)."""
    values = [np.asarray(c, dtype=np.float64).mean(0) for c in curves.values()]
    figure = panels(x_title="negative examples", y_title="positive examples", height=80 + 60 * len(curves))
    figure.add_trace(
        go.Heatmap(
            z=values,
            x=[str(int(d)) for d in doses],
            y=[str(n) for n in curves],
            texttemplate="%{z:.0%}",
            textfont={"size": 14},
            colorscale="Blues",
            zmin=0,
            zmax=1,
            colorbar={"title": {"text": score}, "tickformat": ".0%", "tickvals": [0, 0.5, 1]},
            hovertemplate="%{y} positive, %{x} negative: %{z:.3f}<extra></extra>",
        )
    )
    figure.update_xaxes(type="category")
    figure.update_yaxes(type="category", showgrid=False)
    return finish(figure, title=title, note=note, right=130)


def hookes_law(
    series: Mapping[str, Sequence[tuple[Number, Number]]], *, title: str, unit: str = "nats", note: str = ""
) -> go.Figure:
    """Elastic invariant: E_a = |D_a| change of gamma_a against -E_p, in logarithms, with the identity line.

    On the line the two springs share one force. Points with an E that is not positive cannot be drawn; the
    legend counts them.

    Args:
        series: points (-E_p, E_a) by name.
    """
    figure = panels(
        x_title=f"−|D_p| × change of γ_p ({unit})",
        y_title="|D_a| × change of γ_a",
        height=430,
    )
    looks = named(list(series))
    drawn = [(x, y) for points in series.values() for x, y in points if x > 0 and y > 0]
    if drawn:
        low, high = min(map(min, drawn)), max(map(max, drawn))
        figure.add_scatter(
            x=[low, high],
            y=[low, high],
            mode="lines",
            line={"color": REFERENCE_COLOUR, "dash": "dash", "width": 1.2},
            name="equal (the theorem)",
        )
    for name, points in series.items():
        drawable = [(x, y) for x, y in points if x > 0 and y > 0]
        wrong = len(points) - len(drawable)
        figure.add_scatter(
            x=[x for x, _ in drawable],
            y=[y for _, y in drawable],
            mode="markers",
            name=name + (f" ({wrong} of {len(points)} of the wrong sign, not drawn)" if wrong else ""),
            marker={
                "symbol": looks[name].symbol,
                "size": 8,
                "color": looks[name].colour,
                "opacity": 0.8,
            },
            hovertemplate=f"{name}: -E_p %{{x:.3g}}, E_a %{{y:.3g}}<extra></extra>",
        )
    for update in (figure.update_xaxes, figure.update_yaxes):
        update(type="log", exponentformat="power", dtick=_decades(drawn))
    return finish(figure, title=title, note=note)


def _decades(points: Sequence[tuple[Number, Number]]) -> int:
    """Decades between ticks such that an axis has at most seven."""
    if not points:
        return 1
    span = math.log10(max(map(max, points)) / min(map(min, points)))
    return max(1, math.ceil(span / 7))


def slope_ratios(
    rows: Sequence[SlopeRatio], *, title: str, note: str = "", x_title: str = "k = |D_p| / |D_a|"
) -> go.Figure:
    """|R| against k on logarithmic axes with intervals and the line |R| = k; unresolved ratios are counted.

    Ratios of the wrong sign, R > 0, are hollow. Panels have one scale.
    """
    titles = list(dict.fromkeys(row.panel for row in rows))
    figure = panels(
        titles,
        columns=min(len(titles), 2),
        width=740 if len(titles) == 1 else 400,
        height=400 if len(titles) == 1 else 260,
        x_title=x_title,
        y_title="|R|",
    )
    ks = sorted({float(row.k) for row in rows})
    looks = _series_looks(rows)
    magnitudes: list[float] = []
    for number, panel in enumerate(titles):
        place: dict[str, Any] = {"row": number // 2 + 1, "col": number % 2 + 1} if len(titles) > 1 else {}
        figure.add_scatter(
            x=ks,
            y=ks,
            mode="lines",
            line={"color": REFERENCE_COLOUR, "dash": "dash", "width": 1.2},
            name="|R| = k (the theorem)",
            legendgroup="theorem",
            showlegend=number == 0,
            **place,
        )
        here = [row for row in rows if row.panel == panel]
        names = list(dict.fromkeys(row.series for row in here))
        for place_of, name in enumerate(names):
            of_series = [row for row in here if row.series == name]
            offset = 1.05 ** (place_of - (len(names) - 1) / 2)  # so that series do not hide each other
            for trace in _ratio_traces(name, of_series, looks[name], offset):
                magnitudes += [abs(value) for value in trace.y or ()]
                figure.add_trace(trace, **place)
    extent = [*magnitudes, *ks]
    ticks = {"type": "log", "dtick": 1, "exponentformat": "none", "separatethousands": True}
    figure.update_xaxes(**ticks)
    # An interval that covers 0 has no lower end on a logarithmic axis: it runs off the lower edge.
    figure.update_yaxes(range=[math.log10(min(extent)) - 0.7, math.log10(max(extent)) + 0.7], **ticks)
    return finish(figure, title=title, note=f"{note}; " * bool(note) + "hollow: R > 0, the wrong sign")


def _series_looks(rows: Sequence[SlopeRatio]) -> dict[str, Style]:
    names = list(dict.fromkeys(row.series for row in rows))
    if len({row.panel for row in rows}) == 1:
        return dict(zip(names, ordered(len(names)), strict=True))
    return named(names)


def _ratio_traces(name: str, rows: Sequence[SlopeRatio], look: Style, offset: float) -> list[go.Scatter]:
    """Resolved ratios as predicted, R < 0, and hollow those of the wrong sign."""
    resolved = [row for row in rows if row.ratio.measurable]
    unresolved = len(rows) - len(resolved)
    label = name + (f" ({unresolved} of {len(rows)} not resolved)" if unresolved else "")
    traces = list[go.Scatter]()
    for part, hollow in (
        ([row for row in resolved if row.ratio.value < 0], ""),
        ([row for row in resolved if row.ratio.value > 0], "-open"),
    ):
        if not part:
            continue
        estimates = [_magnitude(row.ratio) for row in part]
        has_intervals = any(estimate.low < estimate.high for estimate in estimates)
        traces.append(
            go.Scatter(
                x=[row.k * offset for row in part],
                y=[estimate.value for estimate in estimates],
                error_y=intervals(estimates, look.colour) if has_intervals else None,
                mode="markers",
                name=label,
                legendgroup=name,
                showlegend=not traces,
                marker={
                    "symbol": look.symbol.removesuffix("-open") + hollow,
                    "size": 9,
                    "color": look.colour,
                },
                customdata=[row.k for row in part],
                hovertemplate=f"{name}, k %{{customdata:.3g}}: |R| %{{y:.3g}}<extra></extra>",
            )
        )
    return traces


def _magnitude(ratio: Estimate) -> Estimate:
    """|R| with its interval, whose lower end is close to 0 where the interval of R covers 0."""
    value = abs(ratio.value)
    if not math.isfinite(ratio.low):
        return replace(ratio, value=value, low=value, high=value)
    nearer, farther = sorted((abs(ratio.low), abs(ratio.high)))
    covers_zero = ratio.low * ratio.high < 0
    return replace(ratio, value=value, low=value * 1e-9 if covers_zero else nearer, high=farther)
