"""Figures of the plane: the two rows of the paper's figure 3, and its figure 5 after training."""

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from interp.data.prompt_sets import PAIRED_KINDS, Ending
from interp.display.charts import CONTROL, ENDING_LABELS, Style, finish, named, panels, style, traces_of
from interp.experiments.safety_prompts import DRO, NEUTRAL, NONE, RANDOM, SAFETY, TUNED, Plane, Result

_ARROW = {"symbol": "arrow", "angleref": "previous"}


def looks(result: Result) -> dict[str, Style]:
    """One look for each system prompt; the text that training starts from has that of its name."""
    others = [DRO, TUNED, *(name for name in result.training if name not in (DRO, TUNED))]
    table = named([*SAFETY, *others])
    start = result.config.start
    own = table[start] if start in SAFETY else Style("#B8860B", "longdash", "square", "/")
    return table | {
        NONE: style("baseline"),
        NEUTRAL: CONTROL,
        RANDOM: CONTROL._replace(symbol="cross", pattern="+"),
        result.config.text: own,
    }


def plane_figure(result: Result, ending: Ending) -> go.Figure:
    """Figure 3: the plane of the training queries, coloured by system prompt, and by refusal probability."""
    plane, colours = result.geometry[ending].plane, looks(result)
    box = _box([xy for by in plane.points.values() for side in by.values() for xy in side])
    figure = panels(
        ["colour: system prompt", "colour: refusal probability"],
        columns=2,
        width=420,
        height=380,
        x_title=_component(plane, 1),
        y_title=_component(plane, 2),
    )
    for name, by_kind in plane.points.items():
        for kind, at in by_kind.items():
            marker = {"symbol": style(kind).symbol, "size": 7}
            named_trace = {
                "name": f"{kind}, {name}",
                "hovertemplate": f"{kind}, {name}: %{{x:.1f}}, %{{y:.1f}}<extra></extra>",
            }
            _add(figure, at, 1, marker={**marker, "color": colours[name].colour}, **named_trace)
            values = plane.refusal[name][kind]
            shade = {"color": values, "coloraxis": "coloraxis"}
            _add(
                figure,
                at,
                2,
                marker={**marker, **shade},
                customdata=values,
                name=f"{kind}, {name}",
                showlegend=False,
                hovertemplate=f"{kind}, {name}: refused with %{{customdata:.2f}}<extra></extra>",
            )
    for kind in PAIRED_KINDS:
        before = _mean(plane.points[NONE][kind])
        after = _mean([xy for name in SAFETY for xy in plane.points[name][kind]])
        _arrow(figure, before, after, 1, style(kind).colour, f"mean shift of {kind} queries")
    harm = boundary(plane.harm_weights, plane.harm_bias, box)
    _line(figure, harm, 1, {"color": "black", "dash": "dashdot", "width": 1.6}, "harmfulness boundary")
    refusal = boundary(plane.refusal_weights, plane.refusal_bias, box)
    _line(figure, refusal, 2, {"color": "#555", "dash": "dash", "width": 1.6}, "refusal boundary")
    _arrow(figure, *_normal(plane, refusal, box), 2, "#555", "towards more refusal")
    figure.update_xaxes(range=list(box[0]))
    figure.update_yaxes(range=list(box[1]))
    figure.update_layout(
        coloraxis={
            "colorscale": "Viridis",
            "cmin": 0,
            "cmax": 1,
            "colorbar": {"title": {"text": "refusal probability", "side": "right"}},
        }
    )
    n = len(plane.points[NONE]["harmful"])
    return finish(
        figure,
        title="Queries in the safety plane",
        note=f"{result.provenance.model_name}; {n} harmful and {n} harmless training queries under each system prompt, "
        f"{ENDING_LABELS[ending]}; boundaries with the other components at 0; refusal probability: "
        f"{_probability(result)}",
        right=110,
    )


def _probability(result: Result) -> str:
    return "that of the first token" if result.config.refusal == "first-token" else "share of sampled answers"


def _component(plane: Plane, number: int) -> str:
    return f"component {number} ({plane.explained[number - 1]:.0%} of the variance)"


def _box(at: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Range of both axes, with a margin."""
    ranges = []
    for values in zip(*at, strict=True):
        room = 0.06 * (max(values) - min(values)) or 1.0
        ranges.append((min(values) - room, max(values) + room))
    return ranges[0], ranges[1]


def boundary(
    weights: Sequence[float], bias: float, box: tuple[tuple[float, float], tuple[float, float]]
) -> list[tuple[float, float]]:
    """Both ends, within the box, of the line w1 x + w2 y + b = 0; empty where it passes the box by."""
    (w1, w2), ((left, right), (low, high)) = weights[:2], box
    ends = []
    if w2:
        ends += [(x, -(bias + w1 * x) / w2) for x in (left, right)]
    if w1:
        ends += [(-(bias + w2 * y) / w1, y) for y in (low, high)]
    inside = sorted(xy for xy in ends if left <= xy[0] <= right and low <= xy[1] <= high)
    return [inside[0], inside[-1]] if len(inside) > 1 else []


def _normal(
    plane: Plane,
    boundary: list[tuple[float, float]],
    box: tuple[tuple[float, float], tuple[float, float]],
) -> tuple[tuple[float, float], tuple[float, float]]:
    """An arrow from the middle of the refusal boundary along its normal, towards more refusal."""
    (left, right), (low, high) = box
    x, y = _mean(boundary) if boundary else ((left + right) / 2, (low + high) / 2)
    w1, w2 = plane.refusal_weights[:2]
    length = 0.2 * min(right - left, high - low) / max((w1**2 + w2**2) ** 0.5, 1e-12)
    return (x, y), (x + length * w1, y + length * w2)


def _mean(at: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return sum(x for x, _ in at) / len(at), sum(y for _, y in at) / len(at)


def _add(figure: go.Figure, at: Sequence[tuple[float, float]], column: int, **options: Any) -> None:
    figure.add_scatter(
        x=[x for x, _ in at], y=[y for _, y in at], row=1, col=column, **{"mode": "markers", **options}
    )


def _line(
    figure: go.Figure, at: Sequence[tuple[float, float]], column: int, look: dict[str, Any], name: str
) -> None:
    if at:
        _add(figure, at, column, mode="lines", line=look, name=name, hoverinfo="skip")


def _arrow(
    figure: go.Figure,
    start: tuple[float, float],
    end: tuple[float, float],
    column: int,
    colour: str,
    name: str,
    dash: str = "solid",
) -> None:
    _add(
        figure,
        [start, end],
        column,
        mode="lines+markers",
        line={"color": colour, "width": 2.6, "dash": dash},
        marker={
            **_ARROW,
            "color": colour,
            "size": [0, 14],
            "opacity": 1,
            "line": {"width": 1, "color": "white"},
        },
        name=name,
        hoverinfo="skip",
    )


def training_figure(result: Result) -> go.Figure:
    """Figure 5: held-out queries under none, the text and the trained prompts, a panel each of both trainings."""
    plane, colours, start = result.geometry["as-is"].plane, looks(result), result.config.text
    every = [
        xy for name in (NONE, start, DRO, TUNED) for at in result.behaviour[name].points.values() for xy in at
    ]
    box = _box(every)
    figure = panels(
        [DRO, TUNED],
        columns=2,
        width=420,
        height=380,
        x_title=_component(plane, 1),
        y_title=_component(plane, 2),
    )
    for column, trained in enumerate((DRO, TUNED), start=1):
        for name in (NONE, start, trained):
            for kind, at in result.behaviour[name].points.items():
                _add(
                    figure,
                    at,
                    column,
                    marker={
                        "symbol": style(kind).symbol,
                        "size": 7,
                        "color": colours[name].colour,
                        "opacity": 0.75,
                    },
                    name=f"{kind}, {name}",
                    legendgroup=f"{kind}, {name}",
                    showlegend=column == 1 or name == trained,
                    hovertemplate=f"{kind}, {name}: %{{x:.1f}}, %{{y:.1f}}<extra></extra>",
                )
        for kind in PAIRED_KINDS:
            at = [_mean(result.behaviour[name].points[kind]) for name in (NONE, start, trained)]
            colour = style(kind).colour
            names = f"{kind}: none to text", f"{kind}: text to trained prompt"
            _arrow(figure, at[0], at[1], column, colour, names[0], "dot")
            _arrow(figure, at[1], at[2], column, colour, names[1])
        for weights, bias, dash, name in (
            (plane.harm_weights, plane.harm_bias, "dashdot", "harmfulness boundary"),
            (plane.refusal_weights, plane.refusal_bias, "dash", "refusal boundary"),
        ):
            look = {"color": "black" if dash == "dashdot" else "#555", "dash": dash, "width": 1}
            _line(figure, boundary(weights, bias, box), column, look, name)
    shown = set[str]()
    for trace in traces_of(figure):
        name = str(trace.name)
        trace.update(legendgroup=name, showlegend=name not in shown)
        shown.add(name)
    figure.update_xaxes(range=list(box[0]))
    figure.update_yaxes(range=list(box[1]))
    return finish(
        figure,
        title="Held-out queries before and after training",
        note=f"{result.provenance.model_name}; {result.n['harmful']} harmful and {result.n['harmless']} harmless "
        "held-out queries under each system prompt; boundaries as fitted on the training queries; arrows join means",
    )
