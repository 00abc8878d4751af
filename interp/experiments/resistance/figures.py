"""Resistance's figures, drawn from a stored result alone."""

from itertools import product
from typing import Any

import plotly.graph_objects as go

from interp.display.charts import CONTROL_COLOUR, THEME, bar_marker, intervals
from interp.experiments.resistance import Arm, Result
from interp.experiments.resistance.gaps import LOSSES, Measure, gap, overall_gap, pairs, values
from interp.stats import over_seeds

_GAP_COLOURS = {"final": "#0072B2", "excess": "#D55E00", "change": "#000000"}
_ARM_COLOURS: dict[Arm, str] = {"inverse": "#0072B2", "forward": "#D55E00"}
_SHOWN: tuple[Measure, ...] = ("final", "excess")


def figures(result: Result) -> dict[str, go.Figure]:
    """Losses by pair and arm, gaps with intervals, and the KL change."""
    return {"losses": _losses(result), "gaps": _gaps(result), "kl_change": _kl_change(result)}


def _losses(result: Result) -> go.Figure:
    figure = go.Figure()
    for number, (loss, arm) in enumerate(product(_SHOWN, _ARM_COLOURS)):
        marker = {**bar_marker(_ARM_COLOURS[arm], number), "opacity": 1.0 if loss == "final" else 0.6}
        figure.add_trace(_bars(result, arm, loss, name=f"{arm}, {loss}", marker=marker))
    figure.update_layout(
        template=THEME,
        barmode="group",
        title="Loss after training, t intervals over seeds (form of table 1)",
        xaxis={"title": "pair of checkpoints"},
        yaxis={"title": "nats per token"},
    )
    return figure


def _kl_change(result: Result) -> go.Figure:
    figure = go.Figure()
    for number, (arm, colour) in enumerate(_ARM_COLOURS.items()):
        figure.add_trace(_bars(result, arm, "kl_change", name=arm, marker=bar_marker(colour, number)))
    figure.update_layout(
        template=THEME,
        barmode="group",
        title="How far training moved the model, t intervals over seeds (form of table 2)",
        xaxis={"title": "pair of checkpoints"},
        yaxis={"title": "KL(start || trained), nats per token"},
    )
    return figure


def _bars(result: Result, arm: Arm, measure: Measure, *, name: str, marker: dict[str, Any]) -> go.Bar:
    """A bar per pair, with its interval over seeds."""
    means = [over_seeds(values(result, pair, arm, measure)) for pair in pairs(result)]
    return go.Bar(
        name=name,
        x=[f"theta {pair}" for pair in pairs(result)],
        y=[mean.value for mean in means],
        error_y=intervals(means),
        marker=marker,
    )


def _gaps(result: Result) -> go.Figure:
    figure = go.Figure()
    for number, (loss, label) in enumerate(LOSSES.items()):
        tests = [*(gap(result, pair, loss) for pair in pairs(result)), overall_gap(result, loss)]
        differences = [test.difference for test in tests]
        figure.add_scatter(
            name=label,
            x=[i + 0.12 * (number - 2) for i in range(len(tests))],
            y=[difference.value for difference in differences],
            error_y=intervals(differences),
            mode="markers",
            marker={
                "size": 10,
                "symbol": ("circle", "square", "circle-open", "square-open", "diamond")[number],
                "color": _GAP_COLOURS.get(loss, CONTROL_COLOUR),
            },
            customdata=[test.p_value for test in tests],
            hovertemplate=f"{label}: %{{y:.3f}}, p = %{{customdata:.3g}}<extra></extra>",
        )
    labels = [*(f"theta {pair}" for pair in pairs(result)), "mean of pairs"]
    figure.add_hline(y=0, line={"color": "#666", "dash": "dash", "width": 1})
    figure.update_layout(
        template=THEME,
        title="Forward minus inverse, paired over seeds; above 0 the inverse direction is easier",
        xaxis={"tickvals": list(range(len(labels))), "ticktext": labels},
        yaxis={"title": "gap, nats per token"},
    )
    return figure
