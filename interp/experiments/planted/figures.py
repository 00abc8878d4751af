"""Figures of the planted experiment, drawn from a stored result alone."""

import plotly.graph_objects as go

from interp.display.charts import finish, layer_lines, panels, points, rate_bars, reference_line
from interp.display.styles import ordered
from interp.experiments.planted import Result

LABELS = {"harm": "harm", "planted": "the rule"}
"""Labels as readers see them."""


def figures(result: Result) -> dict[str, go.Figure]:
    """Every figure, from the stored result."""
    drawn = {"contrasts": _contrasts(result), "refused": _refused(result)}
    for role in ("t_inst", "t_post_inst"):
        drawn[f"found_{role}"] = _found(result, role)
    return drawn


def about(result: Result) -> str:
    """Model, rule and numbers of prompts."""
    config = result.config
    numbers = f"n = {config.n_train} to fit on, {config.n_test} to test"
    return f"{result.provenance.model_name}, rule {config.plant}; {numbers}"


def _contrasts(result: Result) -> go.Figure:
    return layer_lines(
        {
            **{f"both at {role}": list(values) for role, values in result.contrast_cosine.items()},
            "harm at t_inst, rule at t_post_inst": list(result.dissociation),
        },
        title="Cosine of the harm contrast with the planted contrast, test prompts",
        y_title="cosine",
        note=about(result),
        reference=0.0,
        y_range=(-1.05, 1.05),
    )


def _refused(result: Result) -> go.Figure:
    return rate_bars(
        {"refused": result.refused},
        title="What the organism refuses, by harm and rule",
        y_title="share of replies",
        note=f"{about(result)}; rule obeyed on {result.obeyed.percent}",
        looks={"refused": ordered(3)[1]},  # light enough for the lower half of an interval
    )


def _found(result: Result, role: str) -> go.Figure:
    """AUROC of every method that was asked, in the order of the table from the top."""
    rows = [each for each in result.found if each.role == role and each.own.measurable]
    names = [f"{each.method}, for {LABELS[each.label]}" for each in rows]
    series = {"its own label": [each.own for each in rows]}
    if result.config.plant != "word":
        series["the other label"] = [each.other for each in rows]
    figure = panels(x_title="AUROC", width=600, height=30 + 30 * len(rows))
    for (name, entries), look in zip(series.items(), ordered(len(series)), strict=True):
        figure.add_trace(points(name, names, entries, look, horizontal=True))
    figure.update_yaxes(categoryorder="array", categoryarray=names[::-1])
    figure.update_xaxes(range=[-0.03, 1.03], tickvals=[0, 0.25, 0.5, 0.75, 1])
    reference_line(figure, x=0.5, name="chance")
    return finish(figure, title=f"What every method at {role} tells", note=f"{about(result)}; 95% intervals")
