"""Figures of the harmfulness experiment, drawn from a stored result alone; those of steering are beside it.

Figure numbers are those of Zhao et al. 2025 (2507.11878). Columns are prompt endings wherever something is read or
steered at `t_inst`.
"""

import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.display.charts import COLOURS, DASHES, THEME, band, intervals
from interp.evaluation.records import Group
from interp.experiments.harmfulness import Result
from interp.experiments.harmfulness.panels import ENDING_TITLES, by_ending
from interp.experiments.harmfulness.results import Clusters
from interp.experiments.harmfulness.steering_figures import steering_figures
from interp.stats import Estimate

GROUP_STYLE: dict[Group, tuple[str, str, str]] = {
    "accepted harmful": (COLOURS[1], "solid", "cross"),
    "refused harmless": (COLOURS[2], "dashdot", "x"),
    "refused harmful": (COLOURS[0], "dot", "circle"),
    "accepted harmless": (COLOURS[4], "dash", "square"),
}
_MISBEHAVING: tuple[Group, ...] = ("accepted harmful", "refused harmless")


def figures(result: Result) -> dict[str, go.Figure]:
    """Every figure of the paper that plots data, and those of the ending confound, by name."""
    charts = {
        "fig02_clusters": _clusters(result),
        "fig03_beliefs": _beliefs(result),
        "geometry_cosine": _cosine(result),
        "geometry_yardstick": _yardstick(result),
        "confound_endings": _confound(result),
        "fig14_positions": _positions(result),
        "fig15_position_layers": _position_layers(result),
    }
    return dict(sorted({**charts, **steering_figures(result)}.items()))


def _add(figure: go.Figure, traces: Sequence[Any], row: int, column: int, *, legend: bool) -> None:
    for trace in traces:
        trace.showlegend = legend and trace.showlegend is not False
        figure.add_trace(trace, row=row, col=column)


def _clusters(result: Result) -> go.Figure:
    figure = by_ending(result, ("t_inst", "t_post_inst"))
    named: set[str] = set()
    for column, one in enumerate(result.by_ending.values(), start=1):
        for row, found in enumerate((one.clusters.t_inst, one.clusters.t_post_inst), start=1):
            _cluster_panel(figure, found, row, column, named)
        figure.update_yaxes(title="margin s<sup>l</sup>", col=1)
    sizes = {
        name: {
            "t_inst": [one.clusters.t_inst.curves[name].n for one in result.by_ending.values()],
            "t_post_inst": [one.clusters.t_post_inst.curves[name].n for one in result.by_ending.values()],
        }
        for name in _MISBEHAVING
    }
    shown = "; ".join(
        f"{name} n = " + ", ".join("/".join(map(str, counts)) + f" at {role}" for role, counts in by.items())
        for name, by in sizes.items()
    )
    figure.update_layout(
        title="Nearer refused harmful (above 0) or accepted harmless, mean and SD, "
        f"{result.provenance.model_name}<br><sub>{shown}</sub>",
        legend={"y": -0.12},
    )
    return figure


def _cluster_panel(figure: go.Figure, found: Clusters, row: int, column: int, named: set[str]) -> None:
    """The curves of one role and ending; `named` are the names that the legend has already."""
    values = [abs(v) for curve in found.curves.values() for v in curve.mean if math.isfinite(v)]
    top = max(values, default=0.1)
    for name, (colour, dash, _) in GROUP_STYLE.items():
        curve = found.curves[name]
        if not curve.n:
            continue
        traces = band(name, curve.mean, curve.sd, colour=colour, dash=dash)
        desired = name in ("refused harmful", "accepted harmless")
        _add(figure, traces[1:] if desired else traces, row, column, legend=name not in named)
        named.add(name)
    ranges = [found.shuffled[n] for n in _MISBEHAVING if n in found.shuffled]
    if ranges:
        low = [min(v) for v in zip(*(r.low for r in ranges), strict=True)]
        high = [max(v) for v in zip(*(r.high for r in ranges), strict=True)]
        area = _area("shuffled labels, 95%", low, high)
        _add(figure, [area], row, column, legend="shuffled" not in named)
        named.add("shuffled")
    figure.add_hline(y=0, line={"color": "#666", "dash": "dash", "width": 1}, row=row, col=column)  # pyright: ignore[reportArgumentType]
    figure.update_yaxes(range=[-1.3 * top, 1.3 * top], row=row, col=column, matches=None)
    figure.update_yaxes(showticklabels=True, row=row, col=column)
    figure.update_xaxes(title="layer" if row == 2 else None, row=row, col=column)


def _area(name: str, low: Sequence[float], high: Sequence[float]) -> go.Scatter:
    layers = list(range(len(low)))
    return go.Scatter(
        x=[*layers, *layers[::-1]],
        y=[*high, *low[::-1]],
        fill="toself",
        mode="lines",
        line={"width": 0},
        fillcolor="rgba(127,127,127,0.4)",
        name=name,
        legendgroup=name,
        hoverinfo="skip",
    )


def _beliefs(result: Result) -> go.Figure:
    figure = by_ending(result)
    for column, one in enumerate(result.by_ending.values(), start=1):
        points = one.beliefs.points
        for name, (colour, _, symbol) in GROUP_STYLE.items():
            rows = points[name]
            figure.add_scatter(
                name=name,
                legendgroup=name,
                showlegend=column == 1,
                x=[p.beliefs.harm for p in rows],
                y=[p.beliefs.refusal for p in rows],
                customdata=[p.id for p in rows],
                mode="markers",
                marker={"color": colour, "symbol": symbol, "size": 7, "opacity": 0.75},
                hovertemplate=f"{name}, %{{customdata}}: harmfulness %{{x:.3f}}, refusal %{{y:.3f}}<extra></extra>",
                row=1,
                col=column,
            )
        for add in (figure.add_hline, figure.add_vline):
            at = {"y": 0} if add == figure.add_hline else {"x": 0}
            add(**at, line={"color": "#666", "dash": "dash", "width": 1}, row=1, col=column)  # pyright: ignore[reportArgumentType]
        figure.update_xaxes(title="belief: harmful (t_inst)", row=1, col=column)
    figure.update_yaxes(title="belief: will refuse (t_post_inst)", row=1, col=1)
    figure.update_layout(
        title=f"What the model believes of held-out prompts, {result.provenance.model_name}",
        legend={"y": -0.25},
    )
    return figure


def _cosine(result: Result) -> go.Figure:
    figure = go.Figure()
    for number, (ending, one) in enumerate(result.by_ending.items()):
        rows = one.geometry.cosine
        name = f"harmfulness and refusal, prompts {ENDING_TITLES[ending]}"
        figure.add_scatter(
            name=name,
            x=list(range(len(rows))),
            y=[r.value for r in rows],
            error_y={**intervals(rows), "thickness": 0.8},
            mode="lines+markers",
            marker={"size": 5},
            line={"color": COLOURS[number], "dash": DASHES[number]},
            hovertemplate=f"{name}, layer %{{x}}: %{{y:.3f}}<extra></extra>",
        )
    as_is = result.by_ending["as-is"].geometry
    for direction, values, dash in (
        ("harmfulness", as_is.reliability.harm, "dash"),
        ("refusal", as_is.reliability.refusal, "dot"),
    ):
        figure.add_scatter(
            name=f"{direction}, two halves of the prompts (ceiling)",
            x=list(range(len(values))),
            y=list(values),
            mode="lines",
            line={"color": "#444", "dash": dash, "width": 1.5},
        )
    sd = as_is.random_sd
    figure.add_hrect(y0=-2 * sd, y1=2 * sd, fillcolor="rgba(127,127,127,0.3)", line_width=0)
    figure.update_layout(
        template=THEME,
        height=560,
        title=f"Cosine of the two directions, 95% intervals; grey: random pair, 2 SD; {result.provenance.model_name}",
        xaxis={"title": "layer"},
        yaxis={"title": "cosine"},
        legend={"y": -0.2},
    )
    return figure


def _yardstick(result: Result) -> go.Figure:
    figure = make_subplots(
        rows=1,
        cols=2,
        shared_yaxes=True,
        subplot_titles=["t_inst and the harmfulness direction", "t_post_inst and the refusal direction"],
    )
    both = result.by_ending["as-is"].yardstick
    for column, curves in enumerate((both.harm, both.refusal), start=1):
        for name, (colour, dash, _) in GROUP_STYLE.items():
            if curves[name].n:
                traces = band(name, curves[name].mean, curves[name].sd, colour=colour, dash=dash)
                _add(figure, traces, 1, column, legend=column == 1)
        figure.update_xaxes(title="layer", row=1, col=column)
    figure.update_yaxes(title="cosine", row=1, col=1)
    figure.update_layout(
        template=THEME,
        width=1000,
        margin={"t": 110},
        title=f"Held-out prompts against the directions, mean and SD, {result.provenance.model_name}",
    )
    return figure


def _confound(result: Result) -> go.Figure:
    """Separation at `t_inst` under each ending, beside separation by the ending alone."""
    by = list(result.by_ending.values())
    panels: dict[str, list[Estimate]] = {
        "leak: AUROC from<br>the last token alone": [one.leak.last_token for one in by],
        "cosine of the directions,<br>mean over layers": [one.geometry.mean_cosine for one in by],
    }
    checks = [one.anchors for one in by if one.anchors is not None]
    if len(checks) == len(by):
        panels |= {
            "belief: AUROC, harmful<br>against harmless": [c.same_source.harmless for c in checks],
            "belief: AUROC, harmful<br>against borderline": [c.same_source.borderline for c in checks],
        }
    figure = make_subplots(rows=1, cols=len(panels), subplot_titles=list(panels))
    for column, (name, entries) in enumerate(panels.items(), start=1):
        figure.add_bar(
            x=[ENDING_TITLES[e] for e in result.endings],
            y=[e.value for e in entries],
            error_y=intervals(entries),
            marker={"color": list(COLOURS[: len(entries)]), "pattern": {"shape": ["", "/", "."]}},
            hovertemplate=f"{name}, %{{x}}: %{{y:.3f}}<extra></extra>",
            showlegend=False,
            row=1,
            col=column,
        )
        if "AUROC" in name:
            figure.update_yaxes(range=[0, 1.05], row=1, col=column)
            figure.add_hline(y=0.5, line={"color": "#666", "dash": "dash", "width": 1}, row=1, col=column)  # pyright: ignore[reportArgumentType]
    figure.update_layout(
        template=THEME,
        width=1200,
        height=460,
        margin={"t": 130, "b": 60},
        title=f"How prompts end, and what is read at t_inst, {result.provenance.model_name}",
    )
    return figure


def _positions(result: Result) -> go.Figure:
    table = result.positions.margins
    figure = go.Figure()
    for name in _MISBEHAVING:
        colour, dash, symbol = GROUP_STYLE[name]
        entries = [row.groups[name].middle for row in table]
        if entries[0].n == 0:
            continue
        figure.add_scatter(
            name=f"{name} (n = {entries[0].n})",
            x=[row.position for row in table],
            y=[e.value for e in entries],
            error_y=intervals(entries),
            mode="lines+markers",
            marker={"symbol": symbol, "size": 9},
            line={"color": colour, "dash": dash},
            hovertemplate=f"{name}, position %{{x}}: %{{y:.3f}}<extra></extra>",
        )
    figure.add_hline(y=0, line={"color": "#666", "dash": "dash", "width": 1})
    low, high = table[0].middle_layers
    figure.update_layout(
        template=THEME,
        title=f"Margin by token position, mean of layers {low} to {high}, {result.provenance.model_name}",
        xaxis={"title": "position (0 = t_inst, last = t_post_inst)", "type": "category"},
        yaxis={"title": "margin s<sup>l</sup>"},
    )
    return figure


def _position_layers(result: Result) -> go.Figure:
    figure = make_subplots(rows=1, cols=2, shared_yaxes=True, subplot_titles=list(_MISBEHAVING))
    for column, name in enumerate(_MISBEHAVING, start=1):
        for number, row in enumerate(result.positions.margins):
            mean = row.groups[name].curve.mean
            figure.add_scatter(
                name=f"position {row.position}",
                legendgroup=row.position,
                showlegend=column == 1,
                x=list(range(len(mean))),
                y=list(mean),
                mode="lines",
                line={
                    "color": COLOURS[number % len(COLOURS)],
                    "dash": DASHES[number % len(DASHES)],
                    "width": 3.5 if row.position == "0" else 1.6,
                },
                hovertemplate=f"position {row.position}, layer %{{x}}: %{{y:.3f}}<extra>{name}</extra>",
                row=1,
                col=column,
            )
        figure.add_hline(y=0, line={"color": "#666", "dash": "dash", "width": 1}, row=1, col=column)  # pyright: ignore[reportArgumentType]
        figure.update_xaxes(title="layer", row=1, col=column)
    figure.update_yaxes(title="margin s<sup>l</sup>", row=1, col=1)
    figure.update_layout(
        template=THEME,
        width=1100,
        margin={"t": 110},
        title=f"Margin by layer and token position, {result.provenance.model_name}",
    )
    return figure
