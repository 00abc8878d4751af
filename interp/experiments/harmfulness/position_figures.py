"""Figures 14 and 15: the same margins at every token around the end of the instruction."""

import plotly.graph_objects as go

from interp.display.charts import (
    LAYER,
    counted,
    finish,
    highlight,
    line,
    panels,
    points,
    reference_line,
    style,
)
from interp.experiments.harmfulness import Result
from interp.experiments.harmfulness.cluster_figures import DIFFERENCE, MISBEHAVING


def token_label(position: str, last: str) -> str:
    """A position relative to the end of the instruction in words."""
    if position == "0":
        return "t_inst"
    if position == last:
        return "t_post_inst"
    return f"t_inst {position.replace('-', '− ')}" if position.startswith("-") else f"t_inst + {position}"


def positions(result: Result) -> go.Figure:
    """Figure 14: margins of the misbehaving groups by token, mean over the middle layers."""
    table = result.positions.margins
    labels = [token_label(row.position, table[-1].position) for row in table]
    figure = panels(x_title="token", y_title=DIFFERENCE)
    for name in MISBEHAVING:
        entries = [row.groups[name].middle for row in table]
        if entries[0].n:
            figure.add_trace(points(counted(name, entries[0].n), labels, entries, style(name), lines=True))
    reference_line(figure, y=0)
    figure.update_layout(scattermode="group", scattergap=0.75)
    low, high = table[0].middle_layers
    return finish(
        figure,
        title="Nearer refused harmful (above 0) or accepted harmless prompts, by token",
        note=f"{result.provenance.model_name}; "
        f"mean over layers {low} to {high}; tokens counted from the last instruction "
        "token (t_inst); 95% intervals",
        legend=True,
    )


def position_layers(result: Result) -> go.Figure:
    """Figure 15: the same by layer; the menu changes which token is drawn strongly."""
    table = result.positions.margins
    figure = panels(
        [counted(name, table[0].groups[name].middle.n) for name in MISBEHAVING],
        columns=2,
        width=450,
        x_title=LAYER,
        y_title=DIFFERENCE,
    )
    for row in table:
        label = token_label(row.position, table[-1].position)
        for column, name in enumerate(MISBEHAVING, start=1):
            mean = row.groups[name].curve.mean
            figure.add_traces(line(label, mean, style("baseline"), markers=False), rows=1, cols=column)
    highlight(
        figure, "t_inst", others="other tokens around the end of the instruction", look=style("harmfulness")
    )
    reference_line(figure, y=0)
    return finish(
        figure,
        title="Nearer refused harmful (above 0) or accepted harmless prompts, by layer and token",
        note=f"{result.provenance.model_name}; cosine to the centre of refused harmful training prompts minus that to "
        "accepted harmless ones; mean over prompts",
    )
