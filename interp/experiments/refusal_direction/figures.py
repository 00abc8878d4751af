"""The refusal-direction experiment's figures, drawn from a stored result alone.

Figure numbers are those of the final arXiv version of Arditi et al. 2024 (2406.11717).
"""

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.display.charts import (
    COLOURS,
    CONTROL_COLOUR,
    DASHES,
    PATTERNS,
    SYMBOLS,
    THEME,
    band,
    bar_marker,
    intervals,
    rate_bars,
)
from interp.experiments.refusal_direction import Result
from interp.experiments.refusal_direction.results import BaseCheck

ARM_LABELS = {
    "baseline": "no intervention",
    "ablation": "directional ablation",
    "orthogonalized": "orthogonalised weights",
    "addition_minus": "addition, -1",
    "addition_plus": "addition, +1",
    "random_ablation": "random ablation",
    "random_addition": "random addition",
}
"""Interventions in words."""
CONTROLS = ("random ablation", "random addition")
"""Labels of the interventions that should change nothing."""
SCORES = {
    "bypass": "bypass: metric on harmful, ablated",
    "induce": "induce: metric on harmless, added",
    "kl": "KL on harmless, ablated",
}
"""Scores of a candidate, as its fields are called."""


def figures(result: Result) -> dict[str, go.Figure]:
    """Every figure of the paper that plots data, by name."""
    charts = {
        "fig01_bypass": _bars(
            result, "harmful", ("baseline", "ablation", "orthogonalized", "random_ablation")
        ),
        "fig03_induce": _bars(result, "harmless", ("baseline", "addition_plus", "random_addition")),
        "fig05_cosine": _conditions(result),
        "fig09_first_tokens": _first_tokens(result),
        "fig10_refusal_metric": _metric_histogram(result),
        "fig11_selection": _selection(result),
        "fig22_scatter": _scatter(result),
        "fig23_subtract": _bars(result, "harmful", ("baseline", "addition_minus", "random_ablation")),
    }
    if result.mechanism.heads:
        charts["fig06a_heads"] = _heads(result)
        charts["fig06b_attention"] = _attention(result)
    if result.base_check is not None:
        charts["fig24_base_model"] = _base_check(result, result.base_check)
    return dict(sorted(charts.items()))


def _note(result: Result) -> str:
    """Model, and the rule where it is not the published one: goes into every title."""
    name = result.provenance.model_name
    if result.rule.published:
        return name
    return f"{name}<br><sub>relaxed rule: {result.rule.text}</sub>"


def _bars(result: Result, kind: str, arms: Sequence[str]) -> go.Figure:
    """Refusal rates of one kind of prompts in those of the arms that were run."""
    rates = result.refusal_rate[kind]
    return rate_bars(
        {
            ARM_LABELS[arm]: {"12 substrings": rates[arm].arditi, "24 substrings": rates[arm].zhao}
            for arm in arms
            if arm in rates
        },
        title=f"Refusal of {rates['baseline'].arditi.n} {kind} test prompts, {_note(result)}",
        y_title="refusal rate",
        controls=CONTROLS,
    )


def _conditions(result: Result) -> go.Figure:
    mechanism = result.mechanism
    figure = go.Figure()
    for number, (name, profile) in enumerate(mechanism.cosine.items()):
        colour = CONTROL_COLOUR if name == "harmless" else COLOURS[number % len(COLOURS)]
        figure.add_traces(
            band(
                name,
                profile.mean,
                profile.sd,
                colour=colour,
                dash=DASHES[number % len(DASHES)],
                symbol="x" if name == "harmless" else None,
            )
        )
    _mark_layer(figure, result)
    figure.update_layout(
        template=THEME,
        title=f"Last token against the direction, mean and SD, n = {mechanism.n_refused}, {_note(result)}",
        xaxis={"title": "layer (input of the block)"},
        yaxis={"title": "cosine with the refusal direction"},
    )
    return figure


def _mark_layer(figure: go.Figure, result: Result) -> None:
    layer = result.selected.layer
    figure.add_vline(
        x=layer,
        line={"color": "#666", "width": 1},
        annotation={"text": f"layer {layer}", "font": {"size": 13}},
    )


def _heads(result: Result) -> go.Figure:
    heads = result.mechanism.heads
    figure = go.Figure()
    for number, name in enumerate(heads[0].projection):
        entries = [head.projection[name] for head in heads]
        colour = CONTROL_COLOUR if name == "harmless" else COLOURS[number % len(COLOURS)]
        figure.add_bar(
            name=name,
            x=[f"L{h.layer}H{h.head}" for h in heads],
            y=[e.value for e in entries],
            error_y=intervals(entries),
            marker=bar_marker(colour, number),
            hovertemplate=f"{name}, %{{x}}: %{{y:.3f}}<extra></extra>",
        )
    figure.update_layout(
        template=THEME,
        barmode="group",
        title=f"What the top heads write along the direction, last token, {_note(result)}",
        xaxis={"title": "head"},
        yaxis={"title": "projection on the unit direction"},
    )
    return figure


def _attention(result: Result) -> go.Figure:
    heads = result.mechanism.heads
    names, regions = list(heads[0].attention), list(heads[0].attention["plain"])
    columns = 2
    figure = make_subplots(
        rows=-(-len(regions) // columns),
        cols=columns,
        shared_yaxes=True,
        subplot_titles=[f"on: {region}" for region in regions],
        vertical_spacing=0.17,
        horizontal_spacing=0.06,
    )
    for place, region in enumerate(regions):
        row, column = divmod(place, columns)
        for number, name in enumerate(names):
            figure.add_bar(
                name=name,
                legendgroup=name,
                showlegend=place == 0,
                x=[f"L{h.layer}H{h.head}" for h in heads],
                y=[h.attention[name][region] for h in heads],
                marker=bar_marker(
                    CONTROL_COLOUR if name == "harmless" else COLOURS[number % len(COLOURS)], number
                ),
                hovertemplate=f"{name}, %{{x}} on {region}: %{{y:.3f}}<extra></extra>",
                row=row + 1,
                col=column + 1,
            )
    figure.update_layout(
        template=THEME,
        barmode="group",
        height=820,
        margin={"t": 120},
        legend={"y": -0.12},
        title=f"Where the top heads look from the last token (sums to 1 over regions), {_note(result)}",
    )
    figure.update_yaxes(title="attention", col=1)
    return figure


def _first_tokens(result: Result) -> go.Figure:
    kinds = result.first_tokens
    figure = make_subplots(rows=1, cols=2, shared_yaxes=True, subplot_titles=[f"{k} prompts" for k in kinds])
    refusing = set(result.refusal_tokens.ids)
    for column, (kind, rows) in enumerate(kinds.items(), start=1):
        figure.add_bar(
            name=kind,
            x=[repr(row.token) for row in rows],
            y=[row.probability for row in rows],
            marker={
                "color": [COLOURS[1] if row.id in refusing else COLOURS[0] for row in rows],
                "pattern": {"shape": ["/" if row.id in refusing else "" for row in rows], "fgcolor": "white"},
            },
            hovertemplate="%{x}: %{y:.3f}<extra></extra>",
            showlegend=False,
            row=1,
            col=column,
        )
    figure.update_layout(
        template=THEME,
        margin={"t": 120},
        title=f"Ten likeliest first tokens (refusal tokens hatched), {_note(result)}",
        yaxis={"title": "mean probability"},
    )
    return figure


def _metric_histogram(result: Result) -> go.Figure:
    figure = go.Figure()
    for number, (kind, values) in enumerate(result.refusal_metric.items()):
        figure.add_histogram(
            name=f"{kind} (n = {len(values)})",
            x=values,
            xbins={"size": 1.0},
            opacity=0.65,
            marker={"color": COLOURS[1 - number], "pattern": {"shape": PATTERNS[number]}},
            hovertemplate=f"{kind}, metric %{{x}}: %{{y}} prompts<extra></extra>",
        )
    figure.add_vline(x=0, line={"color": "#666", "dash": "dash", "width": 1})
    figure.update_layout(
        template=THEME,
        barmode="overlay",
        title=f"Refusal metric of the training prompts, {_note(result)}",
        xaxis={"title": "refusal metric (log-odds, nats)"},
        yaxis={"title": "prompts"},
    )
    return figure


def _selection(result: Result) -> go.Figure:
    """Scores against source layer, a line per source position; random directions as a grey band."""
    baseline = result.selection_baseline
    levels = {"bypass": baseline.harmful, "induce": baseline.harmless, "kl": result.rule.kl_threshold}
    figure = make_subplots(rows=1, cols=3, subplot_titles=list(SCORES.values()))
    for column, score in enumerate(SCORES, start=1):
        place = {"row": 1, "col": column, "showlegend": column == 1}
        if result.random_directions.directions:
            figure.add_scatter(**_random_range(result, score), **place)
        for line in _score_lines(result, score):
            figure.add_scatter(**line, **place)
        figure.add_scatter(**_picked_score(result, score), **place)
        if (level := levels[score]) is not None:
            figure.add_hline(
                y=level,
                line={"color": "#444", "dash": "dash", "width": 1},
                row=1,  # pyright: ignore[reportArgumentType]
                col=column,  # pyright: ignore[reportArgumentType]
            )
        figure.update_xaxes(title="source layer", row=1, col=column)
    figure.update_yaxes(title="mean refusal metric (nats)", row=1, col=1)
    ticks = [0.0001, 0.001, 0.01, 0.03, 0.1, 0.3, 1, 3, 10]
    figure.update_yaxes(title="nats", type="log", tickvals=ticks, row=1, col=3)
    figure.update_layout(
        template=THEME,
        width=1250,
        height=640,
        font={"size": 18},
        margin={"t": 120},
        title=f"Scores of the candidates; dashed: no intervention, and the KL limit; {_note(result)}",
        legend={"y": -0.2},
    )
    return figure


def _random_range(result: Result, score: str) -> dict[str, Any]:
    """What random directions score, from the lowest to the highest, as an area over the layers."""
    random, last = result.random_directions, max(row.layer for row in result.candidates)
    xs = random.layers if score == "induce" else [0, last]
    values = [d.induce if score == "induce" else [getattr(d, score)] * 2 for d in random.directions]
    low, high = ([f(v) for v in zip(*values, strict=True)] for f in (min, max))
    return dict(
        x=[*xs, *xs[::-1]],
        y=[*high, *low[::-1]],
        fill="toself",
        mode="lines",
        line={"width": 0},
        fillcolor="rgba(127,127,127,0.35)",
        name=f"{len(random.directions)} random directions, range",
        legendgroup="random",
        hoverinfo="skip",
    )


def _score_lines(result: Result, score: str) -> list[dict[str, Any]]:
    """A line of scores over the source layers for each source position."""
    table, names = result.candidates, result.post_inst_tokens
    lines = []
    for number, position in enumerate(sorted({row.position for row in table})):
        rows = [row for row in table if row.position == position]
        lines.append(
            dict(
                name=f"position {position} {names[position]!r}",
                legendgroup=str(position),
                x=[row.layer for row in rows],
                y=[getattr(row, score) for row in rows],
                customdata=[row.reason or "kept" for row in rows],
                mode="lines+markers",
                line={
                    "color": COLOURS[number % len(COLOURS)],
                    "dash": DASHES[number % len(DASHES)],
                    "width": 1.8,
                },
                marker={"size": 6, "symbol": SYMBOLS[number % len(SYMBOLS)]},
                hovertemplate=f"position {position}, layer %{{x}}: %{{y:.3f}}<br>%{{customdata}}<extra></extra>",
            )
        )
    return lines


def _picked_score(result: Result, score: str) -> dict[str, Any]:
    """The picked candidate as a star."""
    picked = result.selected
    return dict(
        x=[picked.layer],
        y=[getattr(picked, score)],
        mode="markers",
        name=f"picked: layer {picked.layer}, position {picked.position}",
        legendgroup="picked",
        marker={
            "symbol": "star",
            "size": 15,
            "color": "#FFD400",
            "line": {"color": "black", "width": 1.2},
        },
        hovertemplate=f"picked, layer %{{x}}: %{{y:.3f}}<extra>{score}</extra>",
    )


def _scatter(result: Result) -> go.Figure:
    scatter = result.scatter
    figure = go.Figure()
    for number, (name, points) in enumerate(scatter.points.items()):
        figure.add_scatter(
            name=name,
            x=[p[0] for p in points],
            y=[p[1] for p in points],
            mode="markers",
            marker={
                "color": COLOURS[1 if name.startswith("harmful") else 0],
                "symbol": ("circle" if name.startswith("harmful") else "square")
                + ("-open" if name.endswith("- r") else ""),
                "size": 8,
                "opacity": 0.75,
            },
            hovertemplate=f"{name} {number}: %{{x:.2f}}, %{{y:.2f}}<extra></extra>",
        )
    share = scatter.explained_variance
    figure.update_layout(
        template=THEME,
        title=f"Last token at layer {scatter.layer}, with and without subtracting r, {_note(result)}",
        xaxis={"title": f"PC 1 of the unmodified activations ({share[0]:.0%} of variance)"},
        yaxis={"title": f"PC 2 ({share[1]:.0%})"},
    )
    return figure


def _base_check(result: Result, check: BaseCheck) -> go.Figure:
    figure = go.Figure()
    for name, profile in check.cosine.items():
        figure.add_traces(
            band(
                name,
                profile.mean,
                profile.sd,
                colour=COLOURS[1 if "harmful" in name else 0],
                dash="dot" if name.startswith("base") else "solid",
                symbol="circle" if "harmful" in name else "x",
            )
        )
    _mark_layer(figure, result)
    figure.update_layout(
        template=THEME,
        title=f"A newline after the prompt against the chat model's direction: {check.model}, {check.base}",
        xaxis={"title": "layer (input of the block)"},
        yaxis={"title": "cosine with the refusal direction"},
    )
    return figure
