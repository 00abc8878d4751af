"""Rebound's figures, drawn from a stored result alone."""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from interp.display.charts import (
    CONTROL_COLOUR,
    Style,
    estimates_line,
    finish,
    named,
    panels,
    points,
    reference_line,
    with_ends,
)
from interp.experiments.rebound import CORPORA, ModelResult, Result
from interp.experiments.rebound.analysis import directions, shifts_left
from interp.experiments.rebound.curves import (
    base_scores,
    compression_curves,
    kl_curves,
    positives,
    score_curves,
    scores_by_negatives,
)
from interp.tracking.decay_figures import DecayPanel, decay_panels, heat_map

_CORPUS_LABELS = {
    "positive": "positive examples (refusals)",
    "negative": "negative examples",
    "prose": "prose",
}


def reverse_stage(result: Result) -> str:
    """Algorithm of the reverse stage, as in "reverse stage by SFT"."""
    return f"reverse stage by {result.config.reverse.upper()}"


def direction_label(name: str) -> str:
    """A direction's name as readers see it."""
    return f"random direction for {name.removeprefix('control_')} (control)" if "control_" in name else name


def figures(result: Result) -> dict[str, go.Figure]:
    """Every figure, from the stored result."""
    models, doses = result.models, result.config.negatives
    label = _score_label(result)
    how = f"{reverse_stage(result)}; n = {result.config.seeds} seeds"
    bands = f"{how}; bands: one SD over seeds"
    about = f"{', '.join(models)}; {bands}"
    drawn = {
        "decay_curves": decay_panels(
            {
                name: DecayPanel(doses=doses, curves=score_curves(m.points), base=base_scores(m.points))
                for name, m in models.items()
            },
            title="Behaviour under negative examples",
            note=f"{about}; in the form of the paper's figures 4 to 6",
            y_title=label,
        ),
        "kl": decay_panels(
            {name: DecayPanel(doses=doses, curves=kl_curves(m.points)) for name, m in models.items()},
            title="KL divergence from the model before alignment",
            note=about,
            y_title="KL(checkpoint ‖ base), nats per token",
            share=False,
        ),
        "by_positives": decay_panels(
            {
                name: DecayPanel(
                    doses=positives(m.points),
                    curves=scores_by_negatives(m.points),
                    base=base_scores(m.points),
                )
                for name, m in models.items()
            },
            title="Behaviour by positive examples",
            note=about,
            y_title=label,
            x_title="positive examples",
            series_title="{} negative examples",
            controls=(),
        ),
        "time_constants": _time_constants(models, result.config.seeds),
    }
    for number, (name, model) in enumerate(models.items()):
        suffix = f"_{number}" if len(models) > 1 else ""
        drawn[f"heat_map{suffix}"] = heat_map(
            doses,
            score_curves(model.points),
            title="Behaviour by positive and negative examples",
            note=f"{name}; {how}; mean over seeds; in the form of the paper's figure 7",
            score=label,
        )
        drawn[f"rates{suffix}"] = decay_panels(
            {
                _CORPUS_LABELS[corpus]: DecayPanel(
                    doses=doses, curves=compression_curves(model.points, corpus)
                )
                for corpus in CORPORA
            },
            title="Compression of each held-out corpus",
            note=f"{name}; lower is a better fit; {bands}",
            y_title="bits per byte",
            share=False,
        )
        if directions(model.points):
            drawn[f"representation{suffix}"] = _representation(model, name)
    return drawn


def _score_label(result: Result) -> str:
    spec = result.config.scorer
    return "refusal rate" if spec == "refusal" else f"share of replies, {spec}"


def _time_constants(models: Mapping[str, ModelResult], seeds: int) -> go.Figure:
    figure = panels(x_title="positive examples", y_title="time constant (negative examples)")
    looks = named(list(models))
    for name, model in models.items():
        at_base = model.statistics.tau_floor == "base"
        taus = {n: g.tau if at_base else g.tau_fitted_floor for n, g in model.statistics.aligned.items()}
        measurable = {n: tau for n, tau in taus.items() if tau.measurable}
        floor = "decline towards the score before alignment" if at_base else "decline towards a fitted score"
        missing = sum(tau.missing for tau in taus.values())
        label = f"{name}, {floor}" + (f" ({missing} curves without a time constant)" if missing else "")
        sizes = [f"{n_plus:,}" for n_plus in measurable]
        figure.add_trace(points(label, sizes, list(measurable.values()), looks[name], lines=True))
    figure.update_xaxes(type="category")
    figure.update_yaxes(rangemode="tozero")
    return finish(
        figure,
        title="Time constant of the decline under negative examples",
        note="negative examples until the distance from where the decline ends is 1/e of what it was; rebound would "
        f"let it fall with more positive examples; 95% t intervals over n = {seeds} seeds",
        legend=True,
    )


def _direction_looks(names: Sequence[str]) -> dict[str, Style]:
    """Harmfulness and refusal in their colours, other directions in colours of their own, controls in grey."""
    looks = named([name for name in names if not name.startswith("control")])
    dashes = ("dot", "dashdot", "longdash", "longdashdot")
    controls = [name for name in names if name.startswith("control")]
    return looks | {
        name: Style(CONTROL_COLOUR, dashes[i % 4], ("circle-open", "square-open", "x", "cross")[i % 4])
        for i, name in enumerate(controls)
    }


def _representation(model: ModelResult, name: str) -> go.Figure:
    table = shifts_left(model.points)
    sizes = [n_plus for n_plus in positives(model.points) if n_plus]
    figure = panels(
        [f"{n_plus:,} positive examples" for n_plus in sizes],
        columns=len(sizes),
        width=max(330, 880 // len(sizes)),
        x_title="negative examples",
        y_title="shift (lengths of the direction)",
    )
    looks = _direction_looks(list(table))
    for direction, by in table.items():
        for column, n_plus in enumerate(sizes, start=1):
            shifts = [with_ends(entry.shift) for entry in by[n_plus]]
            traces = estimates_line(
                direction_label(direction),
                shifts,
                looks[direction],
                x=[entry.n_minus for entry in by[n_plus]],
                in_legend=column == 1,
            )
            figure.add_traces(traces, rows=1, cols=column)
    reference_line(figure, y=0)
    return finish(
        figure,
        title="How far alignment moved the model along each direction, and what negative examples leave of it",
        note=f"{name}; shift since the base model; bands: 95% intervals",
    )
