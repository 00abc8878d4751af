"""The refusal-direction experiment's figures, drawn from a stored result alone.

Figure numbers are those of the final arXiv version of Arditi et al. 2024 (2406.11717). The selection and the mechanism
have files of their own.
"""

from collections.abc import Sequence

import plotly.graph_objects as go

from interp.display.charts import (
    LAYER,
    Style,
    band,
    bar_marker,
    counted,
    finish,
    mark,
    panels,
    rate_bars,
    reference_line,
    style,
)
from interp.experiments.refusal_direction import Result
from interp.experiments.refusal_direction.mechanism_figures import attention, conditions, heads
from interp.experiments.refusal_direction.results import BaseCheck
from interp.experiments.refusal_direction.selection_figures import selection

ARM_LABELS = {
    "baseline": "no intervention",
    "ablation": "directional ablation",
    "orthogonalized": "orthogonalised weights",
    "addition_minus": "direction subtracted",
    "addition_plus": "direction added",
    "random_ablation": "random direction ablated (control)",
    "random_addition": "random direction added (control)",
}
"""Interventions in words."""
_ARM_STYLES = {
    "baseline": "baseline",
    "ablation": "ablation",
    "orthogonalized": "orthogonalized",
    "addition_minus": "addition",
    "addition_plus": "addition",
    "random_ablation": "random ablation",
    "random_addition": "random addition",
}


def figures(result: Result) -> dict[str, go.Figure]:
    """Every figure of the paper that plots data, by name."""
    note = _note(result)
    drawn = {
        "fig01_bypass": _rates(
            result, "harmful", ("baseline", "ablation", "orthogonalized", "random_ablation")
        ),
        "fig03_induce": _rates(result, "harmless", ("baseline", "addition_plus", "random_addition")),
        "fig05_cosine": conditions(result, note),
        "fig09_first_tokens": _first_tokens(result),
        "fig10_refusal_metric": _metric_histogram(result),
        "fig11_selection": selection(result, note),
        "fig22_scatter": _scatter(result),
        "fig23_subtract": _rates(result, "harmful", ("baseline", "addition_minus", "random_ablation")),
    }
    if result.mechanism.heads:
        drawn["fig06a_heads"] = heads(result, note)
        drawn["fig06b_attention"] = attention(result, note)
    if result.base_check is not None:
        drawn["fig24_base_model"] = _base_check(result, result.base_check)
    return dict(sorted(drawn.items()))


def _note(result: Result) -> str:
    """Model, and the rule where it is not the published one: goes under every title."""
    name = result.provenance.model_name
    rule = result.rule.text.replace("<=", "≤").replace(">=", "≥")
    return name if result.rule.published else f"{name}; relaxed rule: {rule}"


def _rates(result: Result, kind: str, arms: Sequence[str]) -> go.Figure:
    """Refusal rates of one kind of prompts in those of the arms that were run."""
    rates = result.refusal_rate[kind]
    return rate_bars(
        {
            ARM_LABELS[arm]: {"12 refusal substrings": rates[arm].arditi, "24 substrings": rates[arm].zhao}
            for arm in arms
            if arm in rates
        },
        title=f"Refusal of {kind} test prompts",
        note=f"{_note(result)}; 95% intervals",
        y_title="refusal rate",
        looks={ARM_LABELS[arm]: style(_ARM_STYLES[arm]) for arm in arms},
    )


def _first_tokens(result: Result) -> go.Figure:
    """Horizontal bars of the likeliest first tokens; the refusal tokens in the colour of refusal."""
    kinds, refusing = result.first_tokens, set(result.refusal_tokens.ids)
    figure = panels(
        [f"{kind} prompts" for kind in kinds],
        columns=2,
        width=330,
        height=330,
        gap=110,
        shared_y="no",
        x_title="mean probability",
    )
    looks = {"refusal token": style("refusal"), "other token": Style("#8C8C8C", pattern=".")}
    for column, rows in enumerate(kinds.values(), start=1):
        for name, look in looks.items():
            of_name = [row for row in rows if (row.id in refusing) == (name == "refusal token")]
            figure.add_bar(
                name=name,
                legendgroup=name,
                showlegend=column == 1,
                orientation="h",
                base=-0.01,
                x=[row.probability + 0.01 for row in of_name],
                y=[repr(row.token) for row in of_name],
                customdata=[row.probability for row in of_name],
                marker=bar_marker(look),
                hovertemplate="%{y}: %{customdata:.4f}<extra></extra>",
                row=1,
                col=column,
            )
        figure.update_yaxes(
            autorange="reversed",
            categoryorder="array",
            categoryarray=[repr(row.token) for row in rows],
            row=1,
            col=column,
        )
    figure.update_xaxes(range=[-0.01, 1.0])
    figure.update_layout(barmode="overlay")
    sizes = ", ".join(f"{len(values)} {kind}" for kind, values in result.refusal_metric.items())
    return finish(
        figure,
        title="Ten likeliest first tokens of the answer",
        note=f"{_note(result)}; n = {sizes} training prompts",
    )


def _metric_histogram(result: Result) -> go.Figure:
    figure = panels(x_title="refusal metric (log-odds, nats)", y_title="prompts")
    for kind, values in result.refusal_metric.items():
        look = style(kind)
        figure.add_histogram(
            name=counted(kind, len(values)),
            x=values,
            xbins={"size": 1.0},
            opacity=0.7,
            marker=bar_marker(look),
            hovertemplate=f"{kind}, metric %{{x}}: %{{y}} prompts<extra></extra>",
        )
    reference_line(figure, x=0)
    figure.update_layout(barmode="overlay")
    return finish(
        figure,
        title="Refusal metric of the training prompts",
        note=f"{_note(result)}; above 0 a refusal token is the likelier first token",
    )


def _scatter(result: Result) -> go.Figure:
    scatter = result.scatter
    share = scatter.explained_variance
    figure = panels(
        x_title=f"first principal component of the unmodified activations ({share[0]:.0%} of variance)",
        y_title=f"second ({share[1]:.0%})",
        height=400,
    )
    for name, values in scatter.points.items():
        kind, _, subtracted = name.partition(" - ")
        look = style(kind)
        symbol = look.symbol.removesuffix("-open")
        label = f"{kind}, direction subtracted" if subtracted else kind
        figure.add_scatter(
            name=counted(label, len(values)),
            x=[p[0] for p in values],
            y=[p[1] for p in values],
            mode="markers",
            marker={
                "color": look.colour,
                "symbol": symbol + ("-open" if subtracted else ""),
                "size": 8,
                "opacity": 0.8,
            },
            hovertemplate=f"{label}: %{{x:.2f}}, %{{y:.2f}}<extra></extra>",
        )
    return finish(
        figure,
        title=f"Last-token activations at layer {scatter.layer}, before and after subtracting the direction",
        note=_note(result),
    )


def _base_check(result: Result, check: BaseCheck) -> go.Figure:
    figure = panels(x_title=LAYER, y_title="cosine with the refusal direction")
    for name, profile in check.cosine.items():
        look = style("harmful" if "harmful" in name else "harmless")
        dash = "dot" if name.startswith("base") else "solid"
        symbol = look.symbol.removesuffix("-open") + ("-open" if name.startswith("base") else "")
        label = name.replace("base, ", "base model, ").replace("chat, ", "chat model, ")
        figure.add_traces(band(label, profile.mean, profile.sd, look._replace(dash=dash, symbol=symbol)))
    mark(figure, result.selected.layer, f"selected layer {result.selected.layer}")
    return finish(
        figure,
        title="The chat model's refusal direction in the base model",
        note=f"{check.model} and {check.base}; read at a newline after the prompt; n = {check.n} per kind; bands: "
        "one SD over prompts",
    )
