"""Resistance's figures, drawn from a stored result alone."""

from itertools import product

import plotly.graph_objects as go

from interp.display.charts import CONTROL_COLOUR, Style, bars, finish, panels, points, reference_line, style
from interp.experiments.resistance import ARMS, Arm, Result
from interp.experiments.resistance.gaps import LOSSES, Measure, gap, overall_gap, pairs, values
from interp.stats import over_seeds

_GAP_STYLES: dict[Measure, Style] = {
    "final": Style("#332288", symbol="circle"),
    "excess": Style("#B8860B", symbol="square"),
    "before": Style(CONTROL_COLOUR, symbol="circle-open"),
    "before_excess": Style(CONTROL_COLOUR, symbol="square-open"),
    "change": Style("#000000", symbol="diamond"),
}
_SHOWN: dict[Measure, str] = {
    "final": "final loss",
    "excess": "excess loss (final minus the target's self-entropy)",
}
_ARMS: dict[Arm, str] = {
    "inverse": "inverse: to the earlier checkpoint",
    "forward": "forward: to the later checkpoint",
}


def figures(result: Result) -> dict[str, go.Figure]:
    """Losses by pair and arm, gaps with intervals, and the KL change."""
    return {"losses": _losses(result), "gaps": _gaps(result), "kl_change": _kl_change(result)}


def pair_label(pair: str) -> str:
    """A pair of checkpoints in words."""
    return f"checkpoints {pair.replace('-', ' and ')}"


def _losses(result: Result) -> go.Figure:
    figure = panels(list(_SHOWN.values()), columns=2, width=400, y_title="nats per token")
    for (column, loss), arm in product(enumerate(_SHOWN, start=1), ARMS[::-1]):
        figure.add_trace(_bars(result, arm, loss, in_legend=column == 1), row=1, col=column)
    figure.update_layout(barmode="group")
    return finish(
        figure,
        title="Loss after training towards the earlier and towards the later checkpoint",
        note=f"{_about(result)}; in the form of the paper's table 1",
    )


def _kl_change(result: Result) -> go.Figure:
    figure = panels(y_title="KL(start ‖ trained), nats per token")
    for arm in ARMS[::-1]:
        figure.add_trace(_bars(result, arm, "kl_change"))
    figure.update_layout(barmode="group")
    return finish(
        figure,
        title="How far training moved the model",
        note=f"{_about(result)}; in the form of the paper's table 2",
    )


def _bars(result: Result, arm: Arm, measure: Measure, *, in_legend: bool = True) -> go.Bar:
    """A bar per pair, with its interval over seeds."""
    means = [over_seeds(values(result, pair, arm, measure)) for pair in pairs(result)]
    labels = [pair_label(pair).replace(" ", "<br>", 1) for pair in pairs(result)]
    return bars(_ARMS[arm], labels, means, style(arm), share=False, in_legend=in_legend)


def _gaps(result: Result) -> go.Figure:
    figure = panels(y_title="gap, nats per token")
    for number, (loss, label) in enumerate(LOSSES.items()):
        tests = [*(gap(result, pair, loss) for pair in pairs(result)), overall_gap(result, loss)]
        places = [i + 0.12 * (number - 2) for i in range(len(tests))]
        trace = points(label, places, [test.difference for test in tests], _GAP_STYLES[loss])
        trace.customdata = [test.p_value for test in tests]
        trace.hovertemplate = f"{label}: %{{y:.3f}}, p = %{{customdata:.3g}}<extra></extra>"
        figure.add_trace(trace)
    labels = [*(pair_label(pair).replace(" ", "<br>", 1) for pair in pairs(result)), "mean of<br>the pairs"]
    reference_line(figure, y=0)
    figure.update_xaxes(tickvals=list(range(len(labels))), ticktext=labels)
    return finish(
        figure,
        title="Loss forward minus loss inverse: above 0 the inverse direction is easier",
        note=f"{_about(result)}; paired over seeds",
    )


def _about(result: Result) -> str:
    return f"{result.provenance.model_name}; n = {result.config.seeds} seeds; 95% t intervals"
