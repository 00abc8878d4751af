"""The refusal-direction experiment's figures, tables and page, drawn from its stored numbers alone.

Figure and table numbers are those of the final arXiv version of Arditi et al. 2024 (2406.11717).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.plots import (
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
from interp.reports import Section, Table, html_report, notes_on, shown_rate

_LABELS = {
    "baseline": "no intervention",
    "ablation": "directional ablation",
    "orthogonalized": "orthogonalised weights",
    "addition_minus": "addition, -1",
    "addition_plus": "addition, +1",
    "random_ablation": "random ablation",
    "random_addition": "random addition",
}
_CONTROLS = ("random ablation", "random addition")
_SCORES = {
    "bypass": "bypass: metric on harmful, ablated",
    "induce": "induce: metric on harmless, added",
    "kl": "KL on harmless, ablated",
}


def figures(numbers: Mapping[str, Any]) -> dict[str, go.Figure]:
    """Every figure of the paper that plots data, by name."""
    found = {
        "fig01_bypass": _bars(
            numbers, "harmful", ("baseline", "ablation", "orthogonalized", "random_ablation")
        ),
        "fig03_induce": _bars(numbers, "harmless", ("baseline", "addition_plus", "random_addition")),
        "fig05_cosine": _conditions(numbers),
        "fig09_first_tokens": _first_tokens(numbers),
        "fig10_refusal_metric": _metric_histogram(numbers),
        "fig11_selection": _selection(numbers),
        "fig22_scatter": _scatter(numbers),
        "fig23_subtract": _bars(numbers, "harmful", ("baseline", "addition_minus", "random_ablation")),
    }
    if numbers["mechanism"]["heads"]:
        found["fig06a_heads"] = _heads(numbers)
        found["fig06b_attention"] = _attention(numbers)
    if "base_check" in numbers:
        found["fig24_base_model"] = _base_check(numbers)
    return dict(sorted(found.items()))


def _note(numbers: Mapping[str, Any]) -> str:
    """Model, and the rule where it is not the published one: goes into every title."""
    name = numbers["provenance"]["model"]
    if numbers["rule"]["published"]:
        return name
    return f"{name}<br><sub>relaxed rule: {numbers['rule']['text']}</sub>"


def _bars(numbers: Mapping[str, Any], kind: str, arms: Sequence[str]) -> go.Figure:
    rates = numbers["refusal_rate"][kind]
    here = [arm for arm in arms if arm in rates]
    lists = {"12": "12 substrings", "24": "24 substrings"}
    n = rates["baseline"]["12"]["n"]
    return rate_bars(
        {_LABELS[arm]: {label: rates[arm][words] for words, label in lists.items()} for arm in here},
        title=f"Refusal of {n} {kind} test prompts, {_note(numbers)}",
        y_title="refusal rate",
        controls=_CONTROLS,
    )


def _conditions(numbers: Mapping[str, Any]) -> go.Figure:
    inside = numbers["mechanism"]
    figure = go.Figure()
    for number, (name, values) in enumerate(inside["cosine"].items()):
        colour = CONTROL_COLOUR if name == "harmless" else COLOURS[number % len(COLOURS)]
        figure.add_traces(
            band(
                name,
                values["mean"],
                values["sd"],
                colour=colour,
                dash=DASHES[number % len(DASHES)],
                symbol="x" if name == "harmless" else None,
            )
        )
    _mark_layer(figure, numbers)
    n = inside["n"]
    figure.update_layout(
        template=THEME,
        title=f"Last token against the direction, mean and SD, n = {n['refused']}, {_note(numbers)}",
        xaxis={"title": "layer (input of the block)"},
        yaxis={"title": "cosine with the refusal direction"},
    )
    return figure


def _mark_layer(figure: go.Figure, numbers: Mapping[str, Any]) -> None:
    picked = numbers["selected"]
    figure.add_vline(
        x=picked["layer"],
        line={"color": "#666", "width": 1},
        annotation={"text": f"layer {picked['layer']}", "font": {"size": 13}},
    )


def _heads(numbers: Mapping[str, Any]) -> go.Figure:
    heads = numbers["mechanism"]["heads"]
    figure = go.Figure()
    for number, name in enumerate(heads[0]["projection"]):
        entries = [head["projection"][name] for head in heads]
        colour = CONTROL_COLOUR if name == "harmless" else COLOURS[number % len(COLOURS)]
        figure.add_bar(
            name=name,
            x=[f"L{h['layer']}H{h['head']}" for h in heads],
            y=[e["value"] for e in entries],
            error_y=intervals(entries),
            marker=bar_marker(colour, number),
            hovertemplate=f"{name}, %{{x}}: %{{y:.3f}}<extra></extra>",
        )
    figure.update_layout(
        template=THEME,
        barmode="group",
        title=f"What the top heads write along the direction, last token, {_note(numbers)}",
        xaxis={"title": "head"},
        yaxis={"title": "projection on the unit direction"},
    )
    return figure


def _attention(numbers: Mapping[str, Any]) -> go.Figure:
    heads = numbers["mechanism"]["heads"]
    names, regions = list(heads[0]["attention"]), list(heads[0]["attention"]["plain"])
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
                x=[f"L{h['layer']}H{h['head']}" for h in heads],
                y=[h["attention"][name][region] for h in heads],
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
        title=f"Where the top heads look from the last token (sums to 1 over regions), {_note(numbers)}",
    )
    figure.update_yaxes(title="attention", col=1)
    return figure


def _first_tokens(numbers: Mapping[str, Any]) -> go.Figure:
    kinds = numbers["first_tokens"]
    figure = make_subplots(rows=1, cols=2, shared_yaxes=True, subplot_titles=[f"{k} prompts" for k in kinds])
    ours = set(numbers["refusal_tokens"]["ids"])
    for column, (kind, rows) in enumerate(kinds.items(), start=1):
        figure.add_bar(
            name=kind,
            x=[repr(row["token"]) for row in rows],
            y=[row["probability"] for row in rows],
            marker={
                "color": [COLOURS[1] if row["id"] in ours else COLOURS[0] for row in rows],
                "pattern": {"shape": ["/" if row["id"] in ours else "" for row in rows], "fgcolor": "white"},
            },
            hovertemplate="%{x}: %{y:.3f}<extra></extra>",
            showlegend=False,
            row=1,
            col=column,
        )
    figure.update_layout(
        template=THEME,
        margin={"t": 120},
        title=f"Ten likeliest first tokens (refusal tokens hatched), {_note(numbers)}",
        yaxis={"title": "mean probability"},
    )
    return figure


def _metric_histogram(numbers: Mapping[str, Any]) -> go.Figure:
    figure = go.Figure()
    for number, (kind, values) in enumerate(numbers["refusal_metric"].items()):
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
        title=f"Refusal metric of the training prompts, {_note(numbers)}",
        xaxis={"title": "refusal metric (log-odds, nats)"},
        yaxis={"title": "prompts"},
    )
    return figure


def _selection(numbers: Mapping[str, Any]) -> go.Figure:
    """Scores against source layer, a line per source position; random directions as a grey band."""
    table, picked, random = numbers["candidates"], numbers["selected"], numbers["random_directions"]
    base = numbers["selection_baseline"]
    names = numbers["post_inst_tokens"]
    figure = make_subplots(rows=1, cols=3, subplot_titles=list(_SCORES.values()))
    positions = sorted({row["position"] for row in table})
    last = max(row["layer"] for row in table)
    for column, score in enumerate(_SCORES, start=1):
        if drawn := random["directions"]:
            xs = random["layers"] if score == "induce" else [0, last]
            values = [d[score] if score == "induce" else [d[score]] * 2 for d in drawn]
            low, high = ([f(v) for v in zip(*values, strict=True)] for f in (min, max))
            figure.add_scatter(
                x=[*xs, *xs[::-1]],
                y=[*high, *low[::-1]],
                fill="toself",
                mode="lines",
                line={"width": 0},
                fillcolor="rgba(127,127,127,0.35)",
                name=f"{len(drawn)} random directions, range",
                showlegend=column == 1,
                legendgroup="random",
                hoverinfo="skip",
                row=1,
                col=column,
            )
        for number, position in enumerate(positions):
            rows = [row for row in table if row["position"] == position]
            figure.add_scatter(
                name=f"position {position} {names[position]!r}",
                legendgroup=str(position),
                showlegend=column == 1,
                x=[row["layer"] for row in rows],
                y=[row[score] for row in rows],
                customdata=[row["reason"] or "kept" for row in rows],
                mode="lines+markers",
                line={
                    "color": COLOURS[number % len(COLOURS)],
                    "dash": DASHES[number % len(DASHES)],
                    "width": 1.8,
                },
                marker={"size": 6, "symbol": SYMBOLS[number % len(SYMBOLS)]},
                hovertemplate=f"position {position}, layer %{{x}}: %{{y:.3f}}<br>%{{customdata}}<extra></extra>",
                row=1,
                col=column,
            )
        figure.add_scatter(
            x=[picked["layer"]],
            y=[picked[score]],
            mode="markers",
            name=f"picked: layer {picked['layer']}, position {picked['position']}",
            legendgroup="picked",
            showlegend=column == 1,
            marker={
                "symbol": "star",
                "size": 15,
                "color": "#FFD400",
                "line": {"color": "black", "width": 1.2},
            },
            hovertemplate=f"picked, layer %{{x}}: %{{y:.3f}}<extra>{score}</extra>",
            row=1,
            col=column,
        )
        level = {"bypass": base["harmful"], "induce": base["harmless"], "kl": numbers["rule"]["kl_threshold"]}
        if level[score] is not None and math.isfinite(level[score]):
            figure.add_hline(
                y=level[score],
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
        title=f"Scores of the candidates; dashed: no intervention, and the KL limit; {_note(numbers)}",
        legend={"y": -0.2},
    )
    return figure


def _scatter(numbers: Mapping[str, Any]) -> go.Figure:
    scatter = numbers["scatter"]
    figure = go.Figure()
    for number, (name, points) in enumerate(scatter["points"].items()):
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
    share = scatter["explained_variance"]
    figure.update_layout(
        template=THEME,
        title=f"Last token at layer {scatter['layer']}, with and without subtracting r, {_note(numbers)}",
        xaxis={"title": f"PC 1 of the unmodified activations ({share[0]:.0%} of variance)"},
        yaxis={"title": f"PC 2 ({share[1]:.0%})"},
    )
    return figure


def _base_check(numbers: Mapping[str, Any]) -> go.Figure:
    check = numbers["base_check"]
    figure = go.Figure()
    for name, values in check["cosine"].items():
        figure.add_traces(
            band(
                name,
                values["mean"],
                values["sd"],
                colour=COLOURS[1 if "harmful" in name else 0],
                dash="dot" if name.startswith("base") else "solid",
                symbol="circle" if "harmful" in name else "x",
            )
        )
    _mark_layer(figure, numbers)
    figure.update_layout(
        template=THEME,
        title=f"A newline after the prompt against the chat model's direction: {check['model']}, {check['base']}",
        xaxis={"title": "layer (input of the block)"},
        yaxis={"title": "cosine with the refusal direction"},
    )
    return figure


# Tables and words


def rate_table(numbers: Mapping[str, Any]) -> Table:
    """Refusal rates by kind and intervention, both substring lists."""
    rows = [
        [
            kind,
            _LABELS[arm] + (" (control)" if _LABELS[arm] in _CONTROLS else ""),
            by["12"]["n"],
            shown_rate(by["12"]),
            shown_rate(by["24"]),
        ]
        for kind, arms in numbers["refusal_rate"].items()
        for arm, by in arms.items()
    ]
    return Table(header=["prompts", "intervention", "n", "12 substrings", "24 substrings"], rows=rows)


def selection_table(numbers: Mapping[str, Any]) -> Table:
    """Table 5: the picked candidate and its scores."""
    s, where = numbers["selected"], numbers["provenance"]
    row = [where["model"], s["position"], f"{s['layer']}/{where['n_layers']}"]
    return Table(
        header=["model", "i*", "l*/L", "bypass", "induce", "KL"],
        rows=[[*row, *(round(s[k], 3) for k in ("bypass", "induce", "kl"))]],
    )


def stability_table(numbers: Mapping[str, Any], most: int = 5) -> Table:
    """How often each candidate is picked over resampled validation prompts."""
    by_place = {(c["position"], c["layer"]): c for c in numbers["candidates"]}
    rows = []
    for entry in numbers["pick_stability"][:most]:
        if entry["position"] is None:
            rows.append(["nothing passes", "", entry["share"], "", "", ""])
            continue
        scored = by_place[entry["position"], entry["layer"]]
        rows.append([entry["position"], entry["layer"], entry["share"], *(scored[k] for k in _SCORES)])
    return Table(header=["position", "layer", "share of draws", "bypass", "induce", "KL"], rows=rows)


def cross_entropy_table(numbers: Mapping[str, Any]) -> Table:
    """Table 9: cross-entropy in nats per token, with 95% intervals."""
    arms = list(next(iter(numbers["cross_entropy"].values())))
    rows = [
        [
            corpus,
            by["baseline"]["n"],
            *(f"{by[a]['value']:.3f} [{by[a]['low']:.3f}, {by[a]['high']:.3f}]" for a in arms),
        ]
        for corpus, by in numbers["cross_entropy"].items()
    ]
    return Table(header=["corpus", "tokens", *(_LABELS[arm] for arm in arms)], rows=rows)


def verdicts(numbers: Mapping[str, Any]) -> list[str]:
    """What the data say, claim by claim, in words that follow from the intervals."""
    rates = numbers["refusal_rate"]

    def against(kind: str, arm: str, control: str, claim: str, lower: bool) -> str:
        if arm not in rates[kind]:
            return f"Not measured: {claim} ({numbers['skipped'][arm]})."
        a, b = rates[kind][arm]["12"], rates[kind][control]["12"]
        seen = a["high"] < b["low"] if lower else a["low"] > b["high"]
        return (
            f"{'Seen' if seen else 'Not seen'}: {claim} ({shown_rate(a)} against {shown_rate(b)} for "
            f"{_LABELS[control]}, {kind}, n = {a['n']})."
        )

    losses = numbers["cross_entropy"]
    order = all(by["ablation"]["value"] < by["addition_minus"]["value"] for by in losses.values())
    changes = "; ".join(
        f"{corpus} {by['ablation']['value'] - by['baseline']['value']:+.3f} and "
        f"{by['addition_minus']['value'] - by['baseline']['value']:+.3f}"
        for corpus, by in losses.items()
    )
    return [
        against("harmful", "ablation", "random_ablation", "ablation removes refusals (figure 1)", True),
        against(
            "harmful",
            "orthogonalized",
            "random_ablation",
            "the edited weights remove refusals (section 4)",
            True,
        ),
        against(
            "harmful", "addition_minus", "random_ablation", "subtraction removes refusals (figure 23)", True
        ),
        against(
            "harmless", "addition_plus", "random_addition", "addition induces refusals (figure 3)", False
        ),
        f"{'Seen' if order else 'Not seen'}: ablation costs less cross-entropy than subtraction (table 9; ablation and "
        f"subtraction in nats per token: {changes}).",
    ]


def report(numbers: Mapping[str, Any]) -> str:
    """The experiment's page."""
    drawn, where, picked = figures(numbers), numbers["provenance"], numbers["selected"]
    notes = notes_on(where)
    if not numbers["rule"]["published"]:
        notes.append(
            "The selection rule was relaxed by the user: "
            f"{numbers['rule']['text']}; the published one is KL <= 0.1, induce >= 0."
        )
    counts = ", ".join(
        f"{k.replace('_', ' ')} {v['kept']}/{v['of']}" for k, v in numbers["filtered_counts"].items()
    )
    tokens = numbers["refusal_tokens"]
    named = ", ".join(
        f"{text!r} ({a:.2f} on harmful, {b:.2f} on harmless)"
        for text, a, b in zip(tokens["texts"], tokens["harmful_mass"], tokens["harmless_mass"], strict=True)
    )
    inside = numbers["mechanism"]
    explained = inside["explained"]
    sections = [
        Section(
            title="What was found",
            text=verdicts(numbers),
            notes=notes,
            tables=[rate_table(numbers)],
            figures=[drawn["fig01_bypass"], drawn["fig03_induce"], drawn["fig23_subtract"]],
        ),
        Section(
            title="Prompts and refusal metric (section 2.3)",
            text=[
                f"Refusal tokens, {'found on the training prompts' if tokens['found'] else 'given'}: {named}. Kept "
                f"after filtering: {counts}."
            ],
            figures=[drawn["fig09_first_tokens"], drawn["fig10_refusal_metric"]],
        ),
        Section(
            title="Selection (section 2.3, appendix C)",
            text=[
                f"Rule: {numbers['rule']['text']}. Picked: layer {picked['layer']}, position {picked['position']} "
                f"({numbers['post_inst_tokens'][picked['position']]!r}), norm {numbers['selected_norm']:.2f}.",
                "Sweep: "
                + (
                    "every score of every candidate was measured."
                    if numbers["sweep"] == "exhaustive"
                    else "what provably cannot win was not measured, so lines have gaps."
                ),
                "The second table draws the validation prompts anew with replacement: near-ties swap.",
            ],
            tables=[selection_table(numbers), stability_table(numbers)],
            figures=[drawn["fig11_selection"]],
        ),
        Section(
            title="Cross-entropy (appendix G.3)",
            text=[
                "Nats per token, 95% bootstrap intervals; 'own replies' are the unmodified model's to harmless prompts."
            ],
            tables=[cross_entropy_table(numbers)],
        ),
        Section(
            title="Mechanism (section 5)",
            text=[
                f"{inside['n']['refused']} harmful prompts that the model refuses, under each condition; "
                f"{inside['n']['answered']} harmless ones for reference.",
                f"Projection of the final stream on the direction, plain requests: total {explained['total']:.2f} = "
                f"embedding {explained['embedding']:.2f} + heads {explained['heads']:.2f} (the top "
                f"{len(inside['heads'])} of them {explained['top_heads']:.2f}) + MLPs {explained['mlps']:.2f} + rest "
                f"{explained['rest']:.2f}."
                if explained
                else f"No attribution to heads: {inside['skipped']}.",
            ],
            tables=[
                Table(
                    header=["condition", "refusal metric (nats)", "95% interval"],
                    rows=[
                        [name, e["value"], f"[{e['low']:.2f}, {e['high']:.2f}]"]
                        for name, e in inside["refusal_metric"].items()
                    ],
                )
            ],
            figures=[
                drawn[name] for name in ("fig05_cosine", "fig06a_heads", "fig06b_attention") if name in drawn
            ],
        ),
        Section(
            title="Subtraction moves activations off their distribution (appendix I.1)",
            text=["The paper does not name its axes; here they are the first two principal components."],
            figures=[drawn["fig22_scatter"]],
        ),
    ]
    if "fig24_base_model" in drawn:
        sections.append(
            Section(
                title="The base model (appendix J)",
                text=["Solid: chat model. Dotted: base model."],
                figures=[drawn["fig24_base_model"]],
            )
        )
    lead = (
        f"Arditi et al. 2024 on {where['model']}, prompt set {where['prompts']['name']}; "
        f"{numbers['seconds']['total']:.0f} s on {where['device']}."
    )
    return html_report("Refusal is mediated by a single direction", lead, sections, where)
