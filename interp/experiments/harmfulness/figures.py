"""Figures of the harmfulness experiment, drawn from a stored result alone; those of steering are beside it.

Figure numbers are those of Zhao et al. 2025 (2507.11878). Columns are prompt endings wherever something is read or
steered at `t_inst`.
"""

import plotly.graph_objects as go

from interp.display.charts import (
    ENDING_LABELS,
    LAYER,
    Style,
    band,
    bars,
    counted,
    estimates_line,
    finish,
    line,
    named,
    panels,
    rate_axis,
    reference_line,
    style,
    translucent,
)
from interp.display.styles import CONTROL_COLOUR
from interp.evaluation.records import GROUPS, Group
from interp.experiments.harmfulness import Result
from interp.experiments.harmfulness.cluster_figures import clusters
from interp.experiments.harmfulness.panels import T_INST, T_POST_INST, by_ending
from interp.experiments.harmfulness.position_figures import position_layers, positions
from interp.experiments.harmfulness.steering_figures import steering_figures
from interp.stats import Estimate


def figures(result: Result) -> dict[str, go.Figure]:
    """Every figure of the paper that plots data, and those of the ending confound, by name."""
    drawn = {
        "fig02_clusters": clusters(result),
        "fig03_beliefs": _beliefs(result),
        "geometry_cosine": _cosine(result),
        "geometry_yardstick": _along_directions(result),
        "confound_endings": _confound(result),
        "fig14_positions": positions(result),
        "fig15_position_layers": position_layers(result),
    }
    return dict(sorted({**drawn, **steering_figures(result)}.items()))


def _beliefs(result: Result) -> go.Figure:
    figure = by_ending(
        result,
        x_title="belief that the prompt is harmful (t_inst)",
        y_title="belief in refusing (t_post_inst)",
    )
    named_groups: dict[Group, str] = {
        name: counted(name, [len(one.beliefs.points[name]) for one in result.by_ending.values()])
        for name in GROUPS
    }
    for column, one in enumerate(result.by_ending.values(), start=1):
        for name, label in named_groups.items():
            rows, look = one.beliefs.points[name], style(name)
            figure.add_scatter(
                name=label,
                legendgroup=name,
                showlegend=column == 1,
                x=[p.beliefs.harm for p in rows],
                y=[p.beliefs.refusal for p in rows],
                customdata=[p.id for p in rows],
                mode="markers",
                marker={"color": look.colour, "symbol": look.symbol, "size": 7, "opacity": 0.75},
                hovertemplate=f"{name}, %{{customdata}}: harmfulness %{{x:.3f}}, refusal %{{y:.3f}}<extra></extra>",
                row=1,
                col=column,
            )
    reference_line(figure, x=0, y=0)
    figure.update_xaxes(matches="x", nticks=5)
    return finish(
        figure,
        title="Beliefs of held-out prompts",
        note=f"{result.provenance.model_name}; "
        "a belief is the cosine to the centre of refused harmful training prompts "
        "minus that of accepted harmless ones, mean over layers; 0: undecided",
    )


def _cosine(result: Result) -> go.Figure:
    figure = panels(x_title=LAYER, y_title="cosine", height=380)
    for ending, one in result.by_ending.items():
        rows = one.geometry.cosine
        figure.add_traces(
            estimates_line(
                f"harmfulness and refusal, {ENDING_LABELS[ending]}",
                rows,
                style(ending),
                within=(-1.0, 1.0),
            )
        )
    as_is = result.by_ending["as-is"].geometry
    for direction, values in (
        ("harmfulness", as_is.reliability.harm),
        ("refusal", as_is.reliability.refusal),
    ):
        name = f"{direction}, fitted on two halves of the prompts"
        figure.add_traces(line(name, values, style(direction), markers=False, width=1.6))
    sd = as_is.random_sd
    figure.add_hrect(
        y0=-2 * sd, y1=2 * sd, fillcolor=translucent(CONTROL_COLOUR, 0.35), line_width=0, layer="below"
    )
    figure.update_yaxes(range=[-1.03, 1.03])
    return finish(
        figure,
        title="Cosine of the harmfulness and the refusal direction",
        note=f"{result.provenance.model_name}; n = {as_is.mean_cosine.n} training prompts; bands: 95% intervals; "
        "grey: 2 SD of random pairs of directions; a direction whose two halves disagree is not determined by these "
        "prompts",
    )


def _along_directions(result: Result) -> go.Figure:
    figure = panels(
        [f"{T_INST},<br>along the harmfulness direction", f"{T_POST_INST},<br>along the refusal direction"],
        columns=2,
        width=440,
        x_title=LAYER,
        y_title="cosine with the direction",
    )
    both = result.by_ending["as-is"].yardstick
    for column, curves in enumerate((both.harm, both.refusal), start=1):
        for name in GROUPS:
            curve = curves[name]
            if curve.n:
                label = counted(name, curve.n)
                traces = band(label, curve.mean, curve.sd, style(name), markers=False, in_legend=column == 1)
                figure.add_traces(traces, rows=1, cols=column)
    return finish(
        figure,
        title="Held-out prompts along the two directions",
        note=f"{result.provenance.model_name}; prompts as they are; mean, bands: one SD over prompts",
    )


def _confound(result: Result) -> go.Figure:
    """Separation at `t_inst` under each ending, beside separation by the ending alone."""
    by = list(result.by_ending.values())
    shown: dict[str, list[Estimate]] = {
        "AUROC of harmful against harmless, from the last token's identity alone": [
            one.leak.last_token for one in by
        ],
        "cosine of the two directions, mean over layers": [one.geometry.mean_cosine for one in by],
    }
    checks = [one.anchors for one in by if one.anchors is not None]
    if len(checks) == len(by):
        shown |= {
            "AUROC of the harmfulness belief, harmful against harmless": [
                c.same_source.harmless for c in checks
            ],
            "AUROC of the harmfulness belief, harmful against borderline": [
                c.same_source.borderline for c in checks
            ],
        }
    figure = panels(list(shown), columns=len(shown), width=230, height=280, y_title="AUROC or cosine")
    looks: dict[str, Style] = {**named(list(result.endings))}
    for column, entries in enumerate(shown.values(), start=1):
        for ending, entry in zip(result.endings, entries, strict=True):
            trace = bars(ENDING_LABELS[ending], [""], [entry], looks[ending], in_legend=column == 1)
            figure.add_trace(trace, row=1, col=column)
    figure.update_layout(barmode="group", bargap=0.15)
    rate_axis(figure)
    low = min((e.low for entries in shown.values() for e in entries if e.measurable), default=0.0)
    figure.update_yaxes(range=[min(-0.015, low - 0.03), 1.04], tickformat=".2f")
    reference_line(figure, y=0.5, name="0.5: chance, for AUROC")
    sizes = "n of each panel = " + ", ".join(str(max(e.n for e in entries)) for entries in shown.values())
    return finish(
        figure,
        title="How prompts end, and what is read at the last instruction token",
        note=f"{result.provenance.model_name}; {sizes}; 95% intervals",
    )
