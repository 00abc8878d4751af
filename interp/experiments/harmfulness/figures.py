"""Figures of the harmfulness experiment, drawn from its stored numbers alone.

Figure numbers are those of Zhao et al. 2025 (2507.11878). Columns are prompt endings wherever something is read or
steered at `t_inst`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.display.charts import COLOURS, CONTROL_COLOUR, DASHES, THEME, band, intervals

GROUP_STYLE = {
    "accepted harmful": (COLOURS[1], "solid", "cross"),
    "refused harmless": (COLOURS[2], "dashdot", "x"),
    "refused harmful": (COLOURS[0], "dot", "circle"),
    "accepted harmless": (COLOURS[4], "dash", "square"),
}
ENDING_TITLES = {"as-is": "as they are", "strip": "stripped", "period": "full stop"}


def figures(numbers: Mapping[str, Any]) -> dict[str, go.Figure]:
    """Every figure of the paper that plots data, and those of the ending confound, by name."""
    found = {
        "fig02_clusters": _clusters(numbers),
        "fig03_beliefs": _beliefs(numbers),
        "geometry_cosine": _cosine(numbers),
        "geometry_yardstick": _yardstick(numbers),
        "confound_endings": _confound(numbers),
        "fig14_positions": _positions(numbers),
        "fig15_position_layers": _position_layers(numbers),
    }
    steered = {ending: sweep for ending, sweep in numbers["steering"].items() if sweep}
    if steered:
        found["fig04_refusal_steering"] = _refusal_steering(numbers, steered)
    if numbers["inversion"]:
        found["fig05a_inversion_harmless"] = _inversion(numbers, "harmless")
        found["fig05b_inversion_harmful"] = _inversion(numbers, "harmful")
        found["fig10_instruction_tokens_only"] = _instruction_only(numbers)
    if "inversion" in numbers["positions"]:
        found["fig16_position_inversion"] = _position_inversion(numbers)
    return dict(sorted(found.items()))


def _model(numbers: Mapping[str, Any]) -> str:
    return numbers["provenance"]["model"]


def _by_ending(numbers: Mapping[str, Any], rows: Sequence[str] = ("",), **options: Any) -> go.Figure:
    """Panels: a row each, a column per ending."""
    endings = numbers["endings"]
    titles = [
        f"{row}{', ' if row else ''}prompts {ENDING_TITLES[ending]}" for row in rows for ending in endings
    ]
    figure = make_subplots(
        rows=len(rows),
        cols=len(endings),
        subplot_titles=titles,
        shared_yaxes=options.pop("shared_yaxes", True),
        horizontal_spacing=0.04,
        vertical_spacing=0.16,
    )
    figure.update_layout(
        template=THEME, width=1200, height=330 * len(rows) + 190, margin={"t": 110}, **options
    )
    return figure


def _add(figure: go.Figure, traces: Sequence[Any], row: int, column: int, *, legend: bool) -> None:
    for trace in traces:
        trace.showlegend = legend and trace.showlegend is not False
        figure.add_trace(trace, row=row, col=column)


def _clusters(numbers: Mapping[str, Any]) -> go.Figure:
    figure = _by_ending(numbers, ("t_inst", "t_post_inst"))
    seen: set[str] = set()
    for column, ending in enumerate(numbers["endings"], start=1):
        for row, role in enumerate(("t_inst", "t_post_inst"), start=1):
            found = numbers["clusters"][ending][role]
            top = max(
                (abs(v) for c in found["curves"].values() for v in c["mean"] if v is not None), default=0.1
            )
            for name, (colour, dash, _) in GROUP_STYLE.items():
                curve = found["curves"][name]
                if not curve["n"]:
                    continue
                traces = band(name, curve["mean"], curve["sd"], colour=colour, dash=dash)
                desired = name in ("refused harmful", "accepted harmless")
                _add(figure, traces[1:] if desired else traces, row, column, legend=name not in seen)
                seen.add(name)
            ranges = [
                found["shuffled"][n]
                for n in ("accepted harmful", "refused harmless")
                if n in found["shuffled"]
            ]
            if ranges:
                low = [min(v) for v in zip(*(r["low"] for r in ranges), strict=True)]
                high = [max(v) for v in zip(*(r["high"] for r in ranges), strict=True)]
                _add(
                    figure,
                    [_area("shuffled labels, 95%", low, high)],
                    row,
                    column,
                    legend="shuffled" not in seen,
                )
                seen.add("shuffled")
            figure.add_hline(y=0, line={"color": "#666", "dash": "dash", "width": 1}, row=row, col=column)  # pyright: ignore[reportArgumentType]
            figure.update_yaxes(range=[-1.3 * top, 1.3 * top], row=row, col=column, matches=None)
            figure.update_yaxes(showticklabels=True, row=row, col=column)
            figure.update_xaxes(title="layer" if row == 2 else None, row=row, col=column)
        figure.update_yaxes(title="margin s<sup>l</sup>", col=1)
    shown = "; ".join(
        f"{name} n = "
        + ", ".join(
            "/".join(str(numbers["clusters"][e][role]["curves"][name]["n"]) for e in numbers["endings"])
            + f" at {role}"
            for role in ("t_inst", "t_post_inst")
        )
        for name in ("accepted harmful", "refused harmless")
    )
    figure.update_layout(
        title="Nearer refused harmful (above 0) or accepted harmless, mean and SD, "
        f"{_model(numbers)}<br><sub>{shown}</sub>",
        legend={"y": -0.12},
    )
    return figure


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


def _beliefs(numbers: Mapping[str, Any]) -> go.Figure:
    figure = _by_ending(numbers)
    for column, ending in enumerate(numbers["endings"], start=1):
        points = numbers["beliefs"][ending]["points"]
        for name, (colour, _, symbol) in GROUP_STYLE.items():
            rows = points[name]
            figure.add_scatter(
                name=name,
                legendgroup=name,
                showlegend=column == 1,
                x=[p["harmfulness"] for p in rows],
                y=[p["refusal"] for p in rows],
                customdata=[p["id"] for p in rows],
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
        title=f"What the model believes of held-out prompts, {_model(numbers)}", legend={"y": -0.25}
    )
    return figure


def _cosine(numbers: Mapping[str, Any]) -> go.Figure:
    figure = go.Figure()
    for number, ending in enumerate(numbers["endings"]):
        found = numbers["geometry"][ending]
        rows, layers = found["cosine"], list(range(len(found["cosine"])))
        name = f"harmfulness and refusal, prompts {ENDING_TITLES[ending]}"
        figure.add_scatter(
            name=name,
            x=layers,
            y=[r["value"] for r in rows],
            error_y={**intervals(rows), "thickness": 0.8},
            mode="lines+markers",
            marker={"size": 5},
            line={"color": COLOURS[number], "dash": DASHES[number]},
            hovertemplate=f"{name}, layer %{{x}}: %{{y:.3f}}<extra></extra>",
        )
    for direction, dash in (("harmfulness", "dash"), ("refusal", "dot")):
        figure.add_scatter(
            name=f"{direction}, two halves of the prompts (ceiling)",
            x=list(range(len(numbers["geometry"]["as-is"]["reliability"][direction]))),
            y=numbers["geometry"]["as-is"]["reliability"][direction],
            mode="lines",
            line={"color": "#444", "dash": dash, "width": 1.5},
        )
    sd = numbers["geometry"]["as-is"]["random_sd"]
    figure.add_hrect(y0=-2 * sd, y1=2 * sd, fillcolor="rgba(127,127,127,0.3)", line_width=0)
    figure.update_layout(
        template=THEME,
        height=560,
        title=f"Cosine of the two directions, 95% intervals; grey: random pair, 2 SD; {_model(numbers)}",
        xaxis={"title": "layer"},
        yaxis={"title": "cosine"},
        legend={"y": -0.2},
    )
    return figure


def _yardstick(numbers: Mapping[str, Any]) -> go.Figure:
    figure = make_subplots(
        rows=1,
        cols=2,
        shared_yaxes=True,
        subplot_titles=["t_inst and the harmfulness direction", "t_post_inst and the refusal direction"],
    )
    for column, curves in enumerate(numbers["yardstick"]["as-is"].values(), start=1):
        for name, (colour, dash, _) in GROUP_STYLE.items():
            if curves[name]["n"]:
                traces = band(name, curves[name]["mean"], curves[name]["sd"], colour=colour, dash=dash)
                _add(figure, traces, 1, column, legend=column == 1)
        figure.update_xaxes(title="layer", row=1, col=column)
    figure.update_yaxes(title="cosine", row=1, col=1)
    figure.update_layout(
        template=THEME,
        width=1000,
        margin={"t": 110},
        title=f"Held-out prompts against the directions, mean and SD, {_model(numbers)}",
    )
    return figure


def _confound(numbers: Mapping[str, Any]) -> go.Figure:
    """What reading at `t_inst` gives under each ending, beside what the ending alone gives away."""
    panels: dict[str, list[Mapping[str, Any]]] = {
        "leak: AUROC from<br>the last token alone": [
            numbers["leak"][e]["last_token"] for e in numbers["endings"]
        ],
        "cosine of the directions,<br>mean over layers": [
            numbers["geometry"][e]["mean_cosine"] for e in numbers["endings"]
        ],
    }
    if all(numbers["anchors"][e] for e in numbers["endings"]):
        for key, label in (
            ("harmful against harmless", "belief: AUROC, harmful<br>against harmless"),
            ("harmful against borderline", "belief: AUROC, harmful<br>against borderline"),
        ):
            panels[label] = [numbers["anchors"][e]["same source"][key] for e in numbers["endings"]]
    figure = make_subplots(rows=1, cols=len(panels), subplot_titles=list(panels))
    for column, (name, entries) in enumerate(panels.items(), start=1):
        figure.add_bar(
            x=[ENDING_TITLES[e] for e in numbers["endings"]],
            y=[e["value"] for e in entries],
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
        title=f"How prompts end, and what is read at t_inst, {_model(numbers)}",
    )
    return figure


def _lines(
    figure: go.Figure,
    layers: Sequence[int],
    arms: Mapping[str, Sequence[Mapping[str, Any]]],
    column: int,
    *,
    unit: str,
) -> None:
    colours = iter(COLOURS)
    for number, (arm, entries) in enumerate(arms.items()):
        control = arm.startswith("random")
        shown = [
            e if e["value"] is not None else {"value": float("nan"), "low": 0, "high": 0} for e in entries
        ]
        figure.add_scatter(
            name=arm,
            legendgroup=arm,
            showlegend=column == 1,
            x=list(layers),
            y=[e["value"] for e in shown],
            error_y={**intervals(shown), "thickness": 0.8, "color": "#999"},
            mode="lines+markers",
            marker={"size": 6, "symbol": number},
            line={
                "color": CONTROL_COLOUR if control else next(colours),
                "dash": DASHES[number % len(DASHES)],
            },
            customdata=[e.get("n", 0) for e in shown],
            hovertemplate=f"{arm}, layer %{{x}}: %{{y:.2f}}, n = %{{customdata}}<extra>{unit}</extra>",
            row=1,
            col=column,
        )
    figure.update_xaxes(title="steered layer", row=1, col=column)


def _refusal_steering(numbers: Mapping[str, Any], steered: Mapping[str, Any]) -> go.Figure:
    figure = _by_ending(numbers)
    for column, ending in enumerate(numbers["endings"], start=1):
        if ending in steered:
            _lines(figure, steered[ending]["layers"], steered[ending]["rates"], column, unit="refused")
    figure.update_yaxes(range=[0, 1.05])
    figure.update_yaxes(title="refusal rate", row=1, col=1)
    n = "/".join(str(steered[e]["n"]) for e in numbers["endings"] if e in steered)
    figure.update_layout(
        title=f"Harmless prompts that the model answers, steered (n = {n}, 95% intervals), {_model(numbers)}",
        legend={"y": -0.25},
    )
    return figure


def _no_rates(entries: Sequence[Mapping[str, Any]], score: str = "strict") -> list[Mapping[str, Any]]:
    return [entry[score]["no"] for entry in entries]


def _inversion(numbers: Mapping[str, Any], kind: str) -> go.Figure:
    figure = _by_ending(numbers)
    for column, ending in enumerate(numbers["endings"], start=1):
        found = numbers["inversion"][ending]
        arms = {arm: _no_rates(entries) for arm, entries in found[kind]["arms"].items()}
        _lines(figure, found["layers"], arms, column, unit="No")
        base = found[kind]["baseline"]["strict"]["no"]["value"]
        if base is not None:
            figure.add_hline(y=base, line={"color": "#222", "dash": "dash", "width": 1.2}, row=1, col=column)  # pyright: ignore[reportArgumentType]
    figure.update_yaxes(range=[0, 1.05])
    figure.update_yaxes(title='share of "No"', row=1, col=1)
    figure.update_layout(
        title=f"Inverted question on {kind} prompts (dashed: unsteered; strict score), {_model(numbers)}",
        legend={"y": -0.25},
    )
    return figure


def _instruction_only(numbers: Mapping[str, Any]) -> go.Figure:
    figure = make_subplots(
        rows=1, cols=2, shared_yaxes=True, subplot_titles=["harmless prompts", "harmful prompts"]
    )
    found = numbers["inversion"]["as-is"]
    for column, kind in enumerate(("harmless", "harmful"), start=1):
        arms = {arm: _no_rates(e) for arm, e in found[kind]["arms"].items() if "refusal" in arm}
        _lines(figure, found["layers"], arms, column, unit="No")
    figure.update_traces(showlegend=True)
    figure.update_yaxes(range=[0, 1.05])
    figure.update_layout(
        template=THEME,
        width=1100,
        margin={"t": 110},
        title=f"Refusal added at all tokens or at the instruction's only, {_model(numbers)}",
        yaxis={"title": 'share of "No"'},
    )
    return figure


def _positions(numbers: Mapping[str, Any]) -> go.Figure:
    table = numbers["positions"]["margins"]
    figure = go.Figure()
    for name in ("accepted harmful", "refused harmless"):
        colour, dash, symbol = GROUP_STYLE[name]
        entries = [row[name]["middle"] for row in table]
        if entries[0]["n"] == 0:
            continue
        figure.add_scatter(
            name=f"{name} (n = {entries[0]['n']})",
            x=[row["position"] for row in table],
            y=[e["value"] for e in entries],
            error_y=intervals(entries),
            mode="lines+markers",
            marker={"symbol": symbol, "size": 9},
            line={"color": colour, "dash": dash},
            hovertemplate=f"{name}, position %{{x}}: %{{y:.3f}}<extra></extra>",
        )
    figure.add_hline(y=0, line={"color": "#666", "dash": "dash", "width": 1})
    low, high = table[0]["middle_layers"]
    figure.update_layout(
        template=THEME,
        title=f"Margin by token position, mean of layers {low} to {high}, {_model(numbers)}",
        xaxis={"title": "position (0 = t_inst, last = t_post_inst)", "type": "category"},
        yaxis={"title": "margin s<sup>l</sup>"},
    )
    return figure


def _position_layers(numbers: Mapping[str, Any]) -> go.Figure:
    table = numbers["positions"]["margins"]
    groups = ("accepted harmful", "refused harmless")
    figure = make_subplots(rows=1, cols=2, shared_yaxes=True, subplot_titles=list(groups))
    for column, name in enumerate(groups, start=1):
        for number, row in enumerate(table):
            figure.add_scatter(
                name=f"position {row['position']}",
                legendgroup=row["position"],
                showlegend=column == 1,
                x=list(range(len(row[name]["mean"]))),
                y=row[name]["mean"],
                mode="lines",
                line={
                    "color": COLOURS[number % len(COLOURS)],
                    "dash": DASHES[number % len(DASHES)],
                    "width": 3.5 if row["position"] == "0" else 1.6,
                },
                hovertemplate=f"position {row['position']}, layer %{{x}}: %{{y:.3f}}<extra>{name}</extra>",
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
        title=f"Margin by layer and token position, {_model(numbers)}",
    )
    return figure


def _position_inversion(numbers: Mapping[str, Any]) -> go.Figure:
    found = numbers["positions"]
    figure = go.Figure()
    for number, (name, entries) in enumerate(zip(found["names"], found["inversion"], strict=True)):
        rows = _no_rates(entries)
        figure.add_scatter(
            name=f"position {name}",
            x=found["layers"],
            y=[None if r["value"] is None else 1 - r["value"] for r in rows],
            mode="lines+markers",
            line={
                "color": COLOURS[number % len(COLOURS)],
                "dash": DASHES[number % len(DASHES)],
                "width": 3.5 if name == "0" else 1.6,
            },
            hovertemplate=f"position {name}, layer %{{x}}: %{{y:.2f}}<extra></extra>",
        )
    figure.update_layout(
        template=THEME,
        title=f"Harmless prompts called harmful, by source position of the direction, {_model(numbers)}",
        xaxis={"title": "steered layer"},
        yaxis={"title": 'share of "Certainly"', "range": [-0.02, 1.05]},
    )
    return figure
