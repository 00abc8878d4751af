"""Figures of the endings experiment, drawn from a stored result alone."""

from typing import Any

import plotly.graph_objects as go

from interp.display.charts import finish, named, panels, points, reference_line
from interp.display.styles import CONTROL_COLOUR
from interp.experiments.endings import TREATMENT_LABELS, TREATMENTS, Cell, Result
from interp.stats import Estimate

_MEASURES = (
    ("leak", "leak: AUROC of the last token alone", 0.5),
    ("cosine", "cosine of directions at t_inst and t_post_inst", 0.0),
    ("guard", "guard: AUROC of the harm belief", 0.5),
)


def figures(result: Result) -> dict[str, go.Figure]:
    """Every figure, from the stored result."""
    by_set = {
        f"endings_{name.split(' (')[0].replace(' ', '_')}": _endings(result, name) for name in result.endings
    }
    return {**by_set, "cosine_layers": _layers(result), "transfer": _transfer(result)}


def _endings(result: Result, name: str) -> go.Figure:
    """Every treatment and measure of one set: a panel a measure, a colour a model."""
    titles = [title for _, title, _ in _MEASURES]
    figure = panels(titles, columns=3, width=300, height=170, gap=26, shared_y="rows")
    looks = named(list(result.models))
    step = 0.8 / max(1, len(result.models))
    for column, (measure, _, chance) in enumerate(_MEASURES, start=1):
        for number, (model, found) in enumerate(result.models.items()):
            cells = [found.cells[name][treatment] for treatment in TREATMENTS]
            places = [i + step * (number - (len(result.models) - 1) / 2) for i in range(len(TREATMENTS))]
            entries = [getattr(cell, measure) for cell in cells]
            trace = points(model, places, entries, looks[model], horizontal=True, in_legend=column == 1)
            figure.add_trace(trace, row=1, col=column)
            if measure != "leak":
                figure.add_trace(
                    _control(cells, measure, places, in_legend=column == 2 and number == 0),
                    row=1,
                    col=column,
                )
        look = {"color": "#555", "dash": "dash", "width": 1.2}
        place: dict[str, Any] = {"row": 1, "col": column}
        figure.add_vline(x=chance, line=look, layer="below", **place)
        span = [-1.05, 1.05] if measure == "cosine" else [-0.03, 1.03]
        figure.update_xaxes(range=span, row=1, col=column)
    figure.update_yaxes(
        tickvals=list(range(len(TREATMENTS))),
        ticktext=[TREATMENT_LABELS[treatment] for treatment in TREATMENTS],
        range=[len(TREATMENTS) - 0.5, -0.5],
        row=1,
    )
    sizes = f"{result.endings[name].n_train} + {result.endings[name].n_test}"
    return finish(
        figure,
        title="What prompts' endings do to what is read at the last instruction token",
        note=f"{name}; training + test prompts of each kind: {sizes}; 95% intervals; dashed: chance, or no relation",
    )


def _control(cells: list[Cell], measure: str, places: list[float], *, in_legend: bool) -> go.Scatter:
    """Ranges under shuffled labels as grey bars."""
    x: list[float | None] = []
    y: list[float | None] = []
    for cell, place in zip(cells, places, strict=True):
        low, high = getattr(cell, f"{measure}_shuffled")
        x += [low, high, None]
        y += [place, place, None]
    return go.Scatter(
        x=x,
        y=y,
        mode="lines",
        name="shuffled labels, range (control)",
        legendgroup="shuffled",
        showlegend=in_legend,
        line={"color": CONTROL_COLOUR, "width": 7},
        opacity=0.45,
        hoverinfo="skip",
    )


def _layers(result: Result) -> go.Figure:
    """The cosine at every layer, by treatment: a row a model, a column a set."""
    sets, models = list(result.endings), list(result.models)
    figure = panels(
        [f"{model}, {name}" for model in models for name in sets],
        columns=len(sets),
        width=300,
        height=220,
        x_title="layer (input of the block)",
        y_title="cosine",
    )
    looks = named([TREATMENT_LABELS[treatment] for treatment in TREATMENTS])
    for row, model in enumerate(models, start=1):
        for column, name in enumerate(sets, start=1):
            for treatment in TREATMENTS:
                label = TREATMENT_LABELS[treatment]
                values = result.models[model].cells[name][treatment].cosines
                figure.add_scatter(
                    x=list(range(len(values))),
                    y=list(values),
                    name=label,
                    legendgroup=label,
                    showlegend=row == column == 1,
                    mode="lines",
                    line={"color": looks[label].colour, "dash": looks[label].dash, "width": 2},
                    row=row,
                    col=column,
                )
    figure.update_yaxes(range=[-1.05, 1.05])
    reference_line(figure, y=0, name="no relation")
    return finish(
        figure,
        title="Directions at t_inst and t_post_inst at every layer",
        note="differences in means of harmful and harmless training prompts; at layer 0 a template token is a constant",
    )


def _transfer(result: Result) -> go.Figure:
    """A guard fitted on one set, on test prompts of every set: as they are, and with a full stop."""
    sets, models = list(result.endings), list(result.models)
    shown = ("as-is", "period")
    figure = panels(
        [f"{model}, {TREATMENT_LABELS[treatment]}" for model in models for treatment in shown],
        columns=2,
        width=90 * len(sets) + 60,
        height=44 * len(sets) + 20,
        x_title="tested on",
        y_title="fitted on",
    )
    for row, model in enumerate(models, start=1):
        for column, treatment in enumerate(shown, start=1):
            cells = {name: result.models[model].cells[name][treatment] for name in sets}
            figure.add_heatmap(
                z=[[_tested(cells[fit], fit, test).value for test in sets] for fit in sets],
                x=sets,
                y=sets,
                texttemplate="%{z:.2f}",
                coloraxis="coloraxis",
                hovertemplate="fitted on %{y}, tested on %{x}: AUROC %{z:.2f}<extra></extra>",
                row=row,
                col=column,
            )
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_layout(
        coloraxis={
            "colorscale": "RdBu",
            "cmin": 0,
            "cmax": 1,
            "cmid": 0.5,
            "colorbar": {"title": {"text": "AUROC"}},
        }
    )
    return finish(
        figure,
        title="The guard on test prompts of other sets",
        note="AUROC of the harm belief at t_inst; below 0.5 harmless prompts look more harmful than harmful ones",
        right=110,
    )


def _tested(cell: Cell, fit: str, test: str) -> Estimate:
    return cell.guard if fit == test else cell.transfer[test]
