"""Figures of the planted experiment, drawn from a stored result alone."""

import plotly.graph_objects as go

from interp.display.charts import layer_lines, rate_bars
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
        looks=dict(zip(["refused"], ordered(1), strict=True)),
    )


def _found(result: Result, role: str) -> go.Figure:
    rows = [each for each in result.found if each.role == role and each.own.measurable]
    names = [f"{each.method}, for {LABELS[each.label]}" for each in rows]
    series = {
        "its own label": dict(zip(names, (each.own for each in rows), strict=True)),
        "the other label": dict(zip(names, (each.other for each in rows), strict=True)),
    }
    return rate_bars(
        series,
        title=f"AUROC of every method at {role}, for its own label and for the other",
        y_title="AUROC",
        note=f"{about(result)}; 0.5 is chance",
        looks=dict(zip(series, ordered(2), strict=True)),
    )
