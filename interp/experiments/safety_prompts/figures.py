"""Figures of the safety-prompt study, drawn from a stored result alone."""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from interp.data.prompt_sets import PAIRED_KINDS, Ending
from interp.display.charts import (
    CONTROL,
    ENDING_LABELS,
    Style,
    bars,
    estimates_line,
    finish,
    line,
    panels,
    points,
    reference_line,
    style,
)
from interp.experiments.safety_prompts import (
    DRO,
    RANDOM,
    SAFETY,
    TUNED,
    Geometry,
    Result,
    ShiftParts,
)
from interp.experiments.safety_prompts.plane_figures import looks, plane_figure, training_figure
from interp.stats import Estimate, mean_with_interval, rate

_REST = Style("#999933", "dot", "diamond", ".")
"""Look of what lies outside both normals."""
_COSINES = {
    "normals": ("the two normals", CONTROL),
    "refusal_with_refusal": ("refusal normal, refusal direction", style("refusal")),
    "refusal_with_harmfulness": (
        "refusal normal, harmfulness direction",
        style("refusal")._replace(dash="dot", symbol="diamond"),
    ),
    "harmfulness_with_refusal": (
        "harmfulness normal, refusal direction",
        style("harmfulness")._replace(dash="dot", symbol="diamond"),
    ),
    "harmfulness_with_harmfulness": ("harmfulness normal, harmfulness direction", style("harmfulness")),
}
"""Cosines of the plane's normals with difference-in-means directions."""
_TERMS = {
    "refusal": "L_r: change of the refusal logit (nats)",
    "harmfulness": "L_h: change of the harmfulness logit (nats)",
    "rest": "L_U: mean square outside the plane",
    "likelihood": "prompt tuning: likelihood of desired answers (nats per token)",
    "unlikelihood": "prompt tuning: unlikelihood of undesired answers (nats per token)",
}


def figures(result: Result) -> dict[str, go.Figure]:
    """Every figure, from the stored result."""
    terms = [t for t in _TERMS if any(t in training.losses for training in result.training.values())]
    tuning = [term for term in terms if term.endswith("likelihood")]
    losses = {"losses": [t for t in terms if t not in tuning], "losses_prompt_tuning": tuning}
    return {
        "fig03_plane": plane_figure(result, "as-is"),
        "fig03_plane_equal_endings": plane_figure(result, "period"),
        "fig05_after_training": training_figure(result),
        "shifts": _shifts(result),
        "layers": _layers(result, "as-is"),
        "layers_equal_endings": _layers(result, "period"),
        **{name: _losses(result, shown) for name, shown in losses.items() if shown},
        "refusals": _refusals(result),
    }


def _all_shifts(result: Result, ending: Ending) -> dict[str, Mapping[str, ShiftParts]]:
    """Shifts by system prompt; the trained prompts were measured with prompts as they are alone."""
    shifts: dict[str, Mapping[str, ShiftParts]] = dict(result.geometry[ending].shifts)
    if ending == "as-is":
        later = [name for name in result.behaviour if name in (DRO, TUNED, RANDOM)]
        shifts |= {name: result.behaviour[name].shift for name in later}
    return shifts


def _shifts(result: Result) -> go.Figure:
    """What each system prompt moves: parts along both normals and the rest, by kind and ending."""
    endings = list(result.geometry)
    titles = [f"{kind} queries, {ENDING_LABELS[ending]}" for ending in endings for kind in PAIRED_KINDS]
    figure = panels(
        titles,
        columns=2,
        width=440,
        height=250,
        y_title="mean shift against none<br>(units of the states)",
        shared_y="all",
        gap_below=64,
    )
    for row, ending in enumerate(endings, start=1):
        shifts = _all_shifts(result, ending)
        for column, kind in enumerate(PAIRED_KINDS, start=1):
            names = [
                name.replace(" (control)", "<br>(control)").replace("soft prompt", "soft") for name in shifts
            ]
            parts = [by[kind] for by in shifts.values()]
            rest = [Estimate(value=p.rest, n=p.refusal.n) for p in parts]
            for name, entries, look in (
                ("along the refusal normal", [p.refusal for p in parts], style("refusal")),
                ("along the harmfulness normal", [p.harmfulness for p in parts], style("harmfulness")),
                ("outside both (length)", rest, _REST),
            ):
                first = row == column == 1
                trace = bars(name, names, entries, look, share=False, in_legend=first)
                figure.add_trace(trace, row=row, col=column)
    reference_line(figure, y=0)
    figure.update_layout(barmode="group")
    return finish(
        figure,
        title="What each system prompt moves",
        note=f"{result.provenance.model_name}, after the final norm; {result.n['harmful']} harmful and "
        f"{result.n['harmless']} harmless held-out queries; projections on normals of unit length, 95% intervals over "
        "queries; the normals are not orthogonal",
    )


def _layers(result: Result, ending: Ending) -> go.Figure:
    """The plane at several layers: accuracies, cosines of its normals, share of the shift towards refusal."""
    titles = [
        "held-out accuracy",
        "cosine of normal and direction",
        "shift towards refusal,<br>share of its length",
    ]
    figure = panels(
        titles, columns=3, width=300, height=230, x_title="layer (input of the block)", shared_y="no", gap=60
    )
    _layer_row(figure, result.geometry[ending], 1)
    return finish(
        figure,
        title="The plane by layer",
        note=f"{result.provenance.model_name}, {ENDING_LABELS[ending]}; fitted on training queries, "
        "accuracy (95% bands) and shifts (mean over "
        f"{len(SAFETY)} safety texts) on held-out ones; directions: differences in means at t_post_inst (refusal) and "
        f"t_inst (harmfulness)",
    )


def _layer_row(figure: go.Figure, geometry: Geometry, row: int) -> None:
    planes, first = geometry.layers, row == 1
    at = [plane.layer for plane in planes]
    for name, entries, look in (
        ("harmfulness boundary", [p.harm_accuracy for p in planes], style("harmfulness")),
        ("refusal boundary", [p.refusal_accuracy for p in planes], style("refusal")),
    ):
        traces = estimates_line(name, entries, look, x=at, in_legend=first, within=(0.0, 1.0))
        figure.add_traces(traces, rows=row, cols=1)
    for field, (name, look) in _COSINES.items():
        values = [getattr(plane, field) for plane in planes]
        figure.add_traces(line(name, values, look, x=at, in_legend=first), rows=row, cols=2)
    for kind in PAIRED_KINDS:
        values = [plane.towards_refusal[kind] for plane in planes]
        traces = line(f"{kind} queries", values, style(kind), x=at, in_legend=first)
        figure.add_traces(traces, rows=row, cols=3)
    figure.update_yaxes(range=[0.25, 1.03], tickformat=".0%", row=row, col=1)
    for column in (2, 3):
        figure.update_yaxes(range=[-1.05, 1.05], row=row, col=column)
    reference_line(figure, y=0)


def _losses(result: Result, terms: Sequence[str]) -> go.Figure:
    """Terms of every training that has them, by epoch."""
    figure = panels(
        [_TERMS[term] for term in terms],
        columns=len(terms),
        width=300,
        height=230,
        x_title="epoch",
        shared_y="no",
        gap=60,
    )
    colours, shown = looks(result), set[str]()
    for place, term in enumerate(terms):
        for name, training in result.training.items():
            if term not in training.losses:
                continue
            values = _by_epoch(training.losses[term], result.config.epochs)
            traces = line(
                name,
                values,
                colours[name],
                markers=False,
                in_legend=name not in shown,
            )
            figure.add_traces(traces, rows=1, cols=place + 1)
            shown.add(name)
    config = result.config
    return finish(
        figure,
        title="Losses while the prompt is trained",
        note=f"{result.provenance.model_name}, from {result.config.text}; {config.n_train} harmful and "
        f"{config.n_train} harmless queries, {config.batch_size} a step, {config.epochs} epochs; before weights; at 0 "
        "the first step before any change, then means over the steps of each epoch",
        legend=True,
    )


def _by_epoch(values: Sequence[float], epochs: int) -> list[float]:
    """The first step's value, then the mean over the steps of every epoch."""
    each = len(values) // epochs
    return [values[0], *(sum(values[i : i + each]) / each for i in range(0, len(values), each))]


def _refusals(result: Result) -> go.Figure:
    """Held-out queries under every system prompt: refused, first-token probability, KL."""
    names = list(result.behaviour)
    figure = panels(
        [
            "greedy reply refuses",
            "first-token refusal probability",
            "KL from none, own harmless replies<br>(nats per token)",
        ],
        columns=3,
        width=270,
        height=40 + 34 * len(names),
        shared_y="all",
        gap=34,
    )
    for kind in result.n:
        look = style(kind)
        label = f"{kind} (n = {result.n[kind]})"
        refused = [rate(list(result.behaviour[name].refused[kind])) for name in names]
        mean = [mean_with_interval(result.behaviour[name].probability[kind]) for name in names]
        for column, entries in ((1, refused), (2, mean)):
            trace = points(label, names, entries, look, horizontal=True, in_legend=column == 1)
            figure.add_trace(trace, row=1, col=column)
    kl = [result.behaviour[name].kl for name in names]
    trace = points("KL", names, kl, style("baseline"), horizontal=True, in_legend=False)
    figure.add_trace(trace, row=1, col=3)
    for column in (1, 2):
        figure.update_xaxes(range=[-0.03, 1.03], tickformat=".0%", tickvals=[0, 0.5, 1], row=1, col=column)
    figure.update_yaxes(categoryorder="array", categoryarray=names[::-1])
    return finish(
        figure,
        title="Refusals of held-out queries under each system prompt",
        note=f"{result.provenance.model_name}; training starts from {result.config.text}; 95% intervals: Wilson for "
        "shares, bootstrap over queries for means; the random soft prompt has the norms of DRO's embeddings",
    )
