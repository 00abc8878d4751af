"""Plotly figures: the charts from which every experiment draws its own.

What a series means decides how it looks (`interp.display.styles`); how much room titles, ticks and legend need is
measured (`interp.display.layout`). Intervals are drawn wherever the result has them: bands on lines, bars on bars and
points.
Nothing here shows, saves or computes.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from interp.display.layout import THEME, finish, layout_of, mark, panels, reference_line, selector, traces_of
from interp.display.styles import (
    COLOURS,
    CONTROL,
    CONTROL_COLOUR,
    DASHES,
    ENDING_LABELS,
    PATTERNS,
    SYMBOLS,
    Style,
    named,
    ordered,
    style,
    translucent,
)
from interp.display.traces import (
    FEW,
    FOOT,
    area,
    band,
    bar_marker,
    bars,
    counted,
    estimates_line,
    intervals,
    line,
    points,
    with_ends,
)
from interp.stats import Estimate

__all__ = [
    "COLOURS",
    "CONTROL",
    "CONTROL_COLOUR",
    "DASHES",
    "ENDING_LABELS",
    "FEW",
    "FOOT",
    "LAYER",
    "PATTERNS",
    "SYMBOLS",
    "THEME",
    "Style",
    "area",
    "band",
    "bar_marker",
    "bars",
    "counted",
    "distributions",
    "estimates_line",
    "finish",
    "head_map",
    "highlight",
    "intervals",
    "layer_lines",
    "layout_of",
    "line",
    "log_ticks",
    "mark",
    "named",
    "ordered",
    "panels",
    "points",
    "rate_axis",
    "rate_bars",
    "reference_line",
    "selector",
    "style",
    "traces_of",
    "translucent",
    "with_ends",
]  # fmt: skip

LAYER = "layer (input of the block)"


def rate_axis(figure: go.Figure, *, horizontal: bool = False, high: float = 1.04) -> None:
    """Axes of shares: 0 to 100%, with room for the foot of the bars."""
    update = figure.update_xaxes if horizontal else figure.update_yaxes
    update(range=[-FOOT, high], tickformat=".0%", tickvals=[0, 0.25, 0.5, 0.75, 1])


def log_ticks(values: Iterable[int | float]) -> dict[str, object]:
    """A logarithmic axis with a tick at each of these values and nowhere else, as keywords of `update_xaxes`.

    Example:
        >>> log_ticks([16, 64])["ticktext"]
        ['16', '64']
    """
    ticks = sorted(set(values))
    return {
        "type": "log",
        "tickvals": ticks,
        "ticktext": [f"{tick:,g}" if tick < 1 else f"{tick:,}" for tick in ticks],
    }


def rate_bars(
    rates: Mapping[str, Mapping[str, Estimate]],
    *,
    title: str,
    y_title: str,
    note: str = "",
    looks: Mapping[str, Style] | None = None,
) -> go.Figure:
    """Grouped bars with 95% intervals.

    Args:
        rates: estimates by series and group.
        looks: looks by series; the project's table where not given.
    """
    looks = looks or named(list(rates))
    figure = panels(y_title=y_title)
    for series, groups in rates.items():
        entries = list(groups.values())
        name = counted(series, [e.n for e in entries if e.measurable])
        figure.add_trace(bars(name, list(groups), entries, looks[series]))
    figure.update_layout(barmode="group")
    rate_axis(figure)
    return finish(figure, title=title, note=note)


def layer_lines(
    series: Mapping[str, Sequence[float | None] | Sequence[Estimate]],
    *,
    title: str,
    y_title: str,
    note: str = "",
    layers: Sequence[int] | None = None,
    y_range: tuple[float, float] | None = None,
    reference: float | None = None,
    reference_name: str | None = None,
    marked: tuple[int, str] | None = None,
    looks: Mapping[str, Style] | None = None,
) -> go.Figure:
    """One line per series over layers; estimates have their 95% bands.

    Args:
        reference: height of a dashed horizontal line, such as chance level.
        marked: a layer and its label, drawn as a vertical line.
        looks: looks by series; the project's table where not given.
    """
    looks = looks or named(list(series))
    figure = panels(x_title=LAYER, y_title=y_title)
    for name, values in series.items():
        entries = [value for value in values if isinstance(value, Estimate)]
        if entries:
            figure.add_traces(estimates_line(name, entries, looks[name], x=layers))
        else:
            plain = [value for value in values if not isinstance(value, Estimate)]
            figure.add_traces(line(name, plain, looks[name], x=layers))
    if reference is not None:
        reference_line(figure, y=reference, name=reference_name)
    if marked is not None:
        mark(figure, *marked)
    if y_range is not None:
        figure.update_yaxes(range=list(y_range))
    return finish(figure, title=title, note=note)


def head_map(
    values: Sequence[Sequence[float]],
    *,
    title: str,
    label: str,
    note: str = "",
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
    figure = panels(
        x_title="layer", y_title="head" if rows is None else "token role", height=80 + 30 * max(len(heads), 4)
    )
    figure.add_heatmap(
        z=[list(row) for row in across],
        x=list(layers) if layers is not None else list(range(len(values))),
        y=heads,
        colorscale="RdBu_r",
        zmid=0,
        colorbar={"title": {"text": label, "side": "right"}},
        hovertemplate=f"layer %{{x}}, {'head ' if rows is None else ''}%{{y}}: %{{z:.3g}}<extra></extra>",
    )
    figure.update_yaxes(autorange="reversed", showgrid=False)
    return finish(figure, title=title, note=note, right=120)


def distributions(
    samples: Mapping[str, Sequence[float]], *, title: str, x_title: str, note: str = ""
) -> go.Figure:
    """One row per group: every value as a point, the density above, quartiles in a box."""
    figure = panels(x_title=x_title, height=50 + 95 * len(samples))
    looks = named(list(samples))
    for name, values in samples.items():
        look = looks[name]
        figure.add_violin(
            name=f"{name}<br>(n = {len(values)})",
            x=list(values),
            orientation="h",
            side="positive",
            width=1.4,
            points="all",
            pointpos=-0.25,
            jitter=0.25,
            box={"visible": True, "width": 0.12},
            marker={"color": look.colour, "size": 5, "opacity": 0.6, "symbol": look.symbol},
            line={"color": look.colour, "width": 1.6},
            spanmode="hard",
            showlegend=False,
            hovertemplate=f"{name}: %{{x:.3g}}<extra></extra>",
        )
    return finish(figure, title=title, note=note, legend=False)


def highlight(figure: go.Figure, chosen: str, *, others: str, look: Style, label: str = "") -> None:
    """Draw one group of lines strongly and the others thin and grey, with a menu that changes which.

    The groups are the legend groups of the lines that the figure has so far.

    Args:
        chosen: the group that is drawn strongly at first.
        others: what the legend calls the grey lines.
        label: prefix of the choices.
    """
    traces = traces_of(figure)
    indices = [i for i, trace in enumerate(traces) if trace.mode and trace.legendgroup]
    groups = [traces[i].legendgroup for i in indices]
    first = {group: groups.index(group) for group in groups}

    def drawn(strong: str) -> dict[str, list[Any]]:
        return {
            "line.color": [look.colour if g == strong else "#BDBDBD" for g in groups],
            "line.width": [2.6 if g == strong else 1 for g in groups],
            "line.dash": ["solid" if g == strong else look.dash for g in groups],
            "showlegend": [g == strong and first[g] == i for i, g in enumerate(groups)],
        }

    for name, values in drawn(chosen).items():
        for i, value in zip(indices, values, strict=True):
            traces[i].update({name.replace(".", "_"): value})
    grey = {"color": "#BDBDBD", "width": 1, "dash": look.dash}
    place: dict[str, Any] = {"row": 1, "col": 1} if layout_of(figure).annotations else {}
    figure.add_scatter(x=[None], y=[None], mode="lines", line=grey, name=others, showlegend=True, **place)
    selector(
        figure, {label + group: drawn(group) for group in first}, indices, active=list(first).index(chosen)
    )
