"""Rebound's figures, drawn from a stored result alone."""

from collections.abc import Mapping

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.display.charts import COLOURS, CONTROL_COLOUR, DASHES, THEME, intervals
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
from interp.tracking.decay_figures import DecayPanel, decay_panels, heat_map, with_ends


def reverse_stage(result: Result) -> str:
    """Algorithm of the reverse stage, as in "reverse stage by SFT"."""
    return f"reverse stage by {result.config.reverse.upper()}"


def direction_label(name: str) -> str:
    """A direction's name as readers see it."""
    return name.replace("control_", "control of ")


def figures(result: Result) -> dict[str, go.Figure]:
    """Every figure, from the stored result."""
    models, doses = result.models, result.config.negatives
    label = _score_label(result)
    charts = {
        "decay_curves": decay_panels(
            {
                name: DecayPanel(doses=doses, curves=score_curves(m.points), base=base_scores(m.points))
                for name, m in models.items()
            },
            title=f"Behaviour under negatives (form of figures 4 to 6), {reverse_stage(result)}; shaded: SD over "
            "seeds",
            y_title=label,
        ),
        "kl": decay_panels(
            {name: DecayPanel(doses=doses, curves=kl_curves(m.points)) for name, m in models.items()},
            title="Distance to the model before alignment; shaded: SD over seeds",
            y_title="KL(checkpoint || base), nats per token",
            y_range=None,
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
            title="The same against positive examples, a line per N-",
            y_title=label,
            x_title="positive examples N+",
            series_title="N-",
            controls=(),
        ),
        "time_constants": _time_constants(models),
    }
    for number, (name, model) in enumerate(models.items()):
        suffix = f"_{number}" if len(models) > 1 else ""
        charts[f"heat_map{suffix}"] = heat_map(
            doses,
            score_curves(model.points),
            title=f"Score by N+ and N- (form of figure 7), {name}, {reverse_stage(result)}",
            score=label,
        )
        charts[f"rates{suffix}"] = decay_panels(
            {
                f"held-out {corpus}": DecayPanel(doses=doses, curves=compression_curves(model.points, corpus))
                for corpus in CORPORA
            },
            title=f"Compression rates, lower is a better fit, {name}; shaded: SD over seeds",
            y_title="gamma, bits per byte",
            y_range=None,
        )
        if directions(model.points):
            charts[f"representation{suffix}"] = _representation(model, name)
    return charts


def _score_label(result: Result) -> str:
    spec = result.config.scorer
    return "refusal rate" if spec == "refusal" else f"share of replies, {spec}"


def _time_constants(models: Mapping[str, ModelResult]) -> go.Figure:
    figure = go.Figure()
    for number, (name, model) in enumerate(models.items()):
        at_base = model.statistics.tau_floor == "base"
        taus = {n: g.tau if at_base else g.tau_fitted_floor for n, g in model.statistics.aligned.items()}
        measurable = {n: with_ends(tau) for n, tau in taus.items() if tau.measurable}
        floor = "floor at base" if at_base else "fitted floor"
        figure.add_scatter(
            x=[str(n_plus) for n_plus in measurable],
            y=[tau.value for tau in measurable.values()],
            error_y=intervals(list(measurable.values())),
            mode="markers+lines",
            name=f"{name} ({floor}; {sum(tau.missing for tau in taus.values())} curves without)",
            line={"color": COLOURS[number % len(COLOURS)], "dash": DASHES[number % len(DASHES)]},
            marker={"size": 9},
        )
    figure.update_layout(
        template=THEME,
        title="Time constant of the decline, t intervals over seeds; rebound would let it fall",
        xaxis={"title": "positive examples N+", "type": "category"},
        yaxis={"title": "tau (negative examples)", "type": "log"},
        showlegend=True,
    )
    return figure


def _representation(model: ModelResult, name: str) -> go.Figure:
    table = shifts_left(model.points)
    sizes = [n_plus for n_plus in positives(model.points) if n_plus]
    figure = make_subplots(
        cols=len(sizes),
        shared_yaxes=True,
        horizontal_spacing=0.05,
        subplot_titles=[f"N+ = {n_plus}" for n_plus in sizes],
    )
    for number, (direction, by) in enumerate(table.items()):
        control = direction.startswith("control")
        colour = CONTROL_COLOUR if control else COLOURS[number % len(COLOURS)]
        for column, n_plus in enumerate(sizes, start=1):
            shifts = [with_ends(entry.shift) for entry in by[n_plus]]
            figure.add_scatter(
                x=[entry.n_minus for entry in by[n_plus]],
                y=[shift.value for shift in shifts],
                error_y={**intervals(shifts), "color": colour},
                name=direction_label(direction),
                legendgroup=direction,
                showlegend=column == 1,
                mode="lines+markers",
                line={"color": colour, "dash": DASHES[number % len(DASHES)], "width": 2},
                hovertemplate=f"{direction}, N- %{{x}}: %{{y:.3f}}<extra></extra>",
                row=1,
                col=column,
            )
    figure.add_hline(y=0, line={"color": "#666", "dash": "dash", "width": 1})
    figure.update_xaxes(title="negative examples N-")
    figure.update_yaxes(title="shift since base (lengths of the direction)", row=1, col=1)
    figure.update_layout(
        template=THEME,
        title=f"What alignment moved inside, and what is lost, {name}",
        width=max(860, 420 * len(sizes)),
        margin={"t": 90},
    )
    return figure
