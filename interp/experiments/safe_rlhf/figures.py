"""Figures of the PKU-SafeRLHF experiment, drawn from a stored result alone."""

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from interp.display.charts import finish, layer_lines, panels, rate_bars
from interp.display.styles import ordered
from interp.experiments.safe_rlhf import Result
from interp.stats import Estimate


def figures(result: Result) -> dict[str, go.Figure]:
    """Every figure, from the stored result."""
    return {
        "told_apart": _told_apart(result),
        "categories": _categories(result),
        "severity": _severity(result),
        "preferences": _preferences(result),
        "moderation": _moderation(result),
    }


def about(result: Result) -> str:
    """Model, data and numbers of pairs."""
    return f"{result.provenance.model_name}, {result.data}, {result.counts['pairs']} pairs"


def _told_apart(result: Result) -> go.Figure:
    return layer_lines(
        {
            "harm direction": [each.value for each in result.told_apart],
            "signs shuffled (control)": list(result.told_apart_shuffled),
            "cosine with the refusal direction of prompts": list(result.cosine_with_refusal),
        },
        title="Held-out mixed pairs whose unsafe answer lies further along the harm direction",
        y_title="share of pairs, or cosine",
        note=f"{about(result)}; last answer token; n = {result.told_apart[0].n} held-out mixed pairs",
        reference=0.5,
        reference_name="chance",
        marked=(result.layer, f"layer {result.layer}"),
    )


def _categories(result: Result) -> go.Figure:
    found = result.categories
    side = max(340, 26 * len(found.names))
    figure = panels(
        ["directions, shared part taken out", "labels"], columns=2, width=side, height=side, shared_y="all"
    )
    for column, matrix in enumerate((found.own_cosine, found.label_correlation), start=1):
        figure.add_heatmap(
            z=_plain(matrix),
            x=list(found.names),
            y=list(found.names),
            coloraxis="coloraxis",
            hovertemplate="%{y} and %{x}: %{z:.2f}<extra></extra>",
            row=1,
            col=column,
        )
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(tickangle=-60)
    axis = {
        "colorscale": "RdBu_r",
        "cmin": -1,
        "cmid": 0,
        "cmax": 1,
        "colorbar": {"title": {"text": "cosine, phi"}},
    }
    figure.update_layout(coloraxis=axis)
    return finish(
        figure,
        title="Cosines of category directions beside the correlation of their labels",
        note=f"{about(result)}; layer {result.layer}; before the shared part is taken out the mean cosine is "
        f"{found.mean_cosine:.2f}",
        right=110,
    )


def _plain(matrix: Sequence[Sequence[float]]) -> list[list[float | None]]:
    return [[None if value != value else value for value in row] for row in matrix]


def _severity(result: Result) -> go.Figure:
    readers = {**result.severity, "all directions, shuffled severities": result.severity_shuffled}
    names = list(readers)
    return rate_bars(
        {
            "quadratic kappa": dict(zip(names, (each.kappa for each in readers.values()), strict=True)),
            "macro F1": dict(zip(names, (each.macro_f1 for each in readers.values()), strict=True)),
            "accuracy": dict(zip(names, (each.accuracy for each in readers.values()), strict=True)),
        },
        title="Severity of held-out unsafe answers, by what it is read from",
        y_title="kappa, F1 or accuracy",
        note=f"{about(result)}; layer {result.layer}; categories, length and majority are baselines",
        looks=_looks(["quadratic kappa", "macro F1", "accuracy"]),
    )


def _preferences(result: Result) -> go.Figure:
    rows: dict[str, dict[str, Estimate]] = {
        label: {f"probe for {name}": getattr(each, field) for name, each in result.preferences.items()}
        for label, field in (("pairs that agree", "agreeing"), ("pairs in conflict", "conflict"))
    }
    return rate_bars(
        rows,
        title="Held-out pairs on which a probe picks the preferred answer",
        y_title="share of pairs",
        note=f"{about(result)}; cosine of both probes {result.preference_cosine:.2f}",
        looks=_looks(list(rows)),
    )


def _moderation(result: Result) -> go.Figure:
    rows = {
        name: {
            "accuracy": each.accuracy,
            "false positives": each.false_positive_rate,
            **{f"level {level}": rate for level, rate in each.level_accuracy.items()},
            "all 19 flags": each.exact_match,
        }
        for name, each in result.moderation.items()
    }
    return rate_bars(
        rows,
        title="Moderation of held-out answers",
        y_title="share of answers",
        note=f"{about(result)}; 95% Wilson intervals",
        looks=_looks(list(rows)),
    )


def _looks(names: Sequence[str]) -> dict[str, Any]:
    return dict(zip(names, ordered(len(names)), strict=True))
