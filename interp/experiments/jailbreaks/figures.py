"""Figures of the jailbreak experiment, drawn from a stored result alone."""

import plotly.graph_objects as go

from interp.data.prompts import COMPARED_ENDINGS
from interp.display.charts import (
    CONTROL_COLOUR,
    ENDING_LABELS,
    Style,
    bars,
    counted,
    finish,
    named,
    panels,
    rate_axis,
    reference_line,
    style,
)
from interp.experiments.jailbreaks import Point, Result
from interp.representations.records import BELIEFS
from interp.stats import Estimate

_BELIEF_LABELS = {
    "harm": "belief that the prompt is harmful (t_inst)",
    "refusal": "belief in refusing (t_post_inst)",
}
_BELIEF_NOTE = (
    "a belief is the cosine to the centre of refused harmful training prompts minus that of accepted "
    "harmless ones"
)


def figures(result: Result) -> dict[str, go.Figure]:
    """Every figure, from the stored result."""
    return {"fig06_beliefs": _scatter(result), "success": _success(result), "shifts": _shifts(result)}


def _scatter(result: Result) -> go.Figure:
    """Figure 6: both beliefs of prompts that succeed, by family, beside plain refused harmful requests."""
    figure = panels(
        [ENDING_LABELS[ending] for ending in COMPARED_ENDINGS],
        columns=2,
        width=460,
        height=380,
        x_title=_BELIEF_LABELS["harm"],
        y_title=_BELIEF_LABELS["refusal"],
    )
    for name, shown, look in _clouds(result):
        for column, ending in enumerate(COMPARED_ENDINGS, start=1):
            figure.add_scatter(
                name=counted(name, len(shown)),
                legendgroup=name,
                showlegend=column == 1,
                x=[p.beliefs[ending].harm for p in shown],
                y=[p.beliefs[ending].refusal for p in shown],
                customdata=[[p.id, p.wrapper] for p in shown],
                mode="markers",
                marker={"color": look.colour, "symbol": look.symbol, "size": 8, "opacity": 0.75},
                hovertemplate=f"{name}: %{{customdata[0]}}, %{{customdata[1]}}<br>harm %{{x:.3f}}, refusal %{{y:.3f}}"
                "<extra></extra>",
                row=1,
                col=column,
            )
    reference_line(figure, x=0, y=0)
    figure.update_xaxes(matches="x")
    return finish(
        figure,
        title="Beliefs about requests that a jailbreak gets answered",
        note=f"{result.provenance.model_name}; {_BELIEF_NOTE}; 0: undecided",
    )


def _clouds(result: Result) -> list[tuple[str, list[Point], Style]]:
    """Name, points and look of what figure 6 shows: plain requests, then successes by family."""
    plain = [p for p in result.points if p.family == "plain"]
    refused = [p for p in plain if p.kind == "harmful" and p.refused]
    answered = [p for p in plain if p.kind == "harmless" and not p.refused]
    ids = {p.id for p in refused}
    clouds = [
        ("harmful as it is, refused", refused, style("harmful")),
        ("harmless as it is, answered", answered, style("harmless")),
    ]
    looks = named(list(result.families))
    for family in result.families:
        successes = [
            p
            for p in result.points
            if p.family == family and p.kind == "harmful" and not p.refused and p.id in ids
        ]
        clouds.append((f"harmful with a {family} jailbreak, answered", successes, looks[family]))
    return clouds


def _success(result: Result) -> go.Figure:
    """Answered harmful requests by wrapper, and refused harmless ones: what the wrapper does to any request."""
    by = result.wrappers
    order = sorted(by, key=lambda name: list(result.families).index(by[name].family))
    labels = [f"{name} ({by[name].family})" for name in order]
    series: tuple[tuple[str, list[Estimate], Style], ...] = (
        (
            "harmful, refused as it is: answered with the jailbreak",
            [by[name].harmful_answered for name in order],
            style("harmful"),
        ),
        (
            "harmless, answered as it is: refused with the jailbreak (control)",
            [by[name].harmless_refused for name in order],
            Style(CONTROL_COLOUR, pattern="x"),
        ),
    )
    figure = panels(x_title="share of requests", width=600, height=30 * len(order) + 30)
    for label, entries, look in series:
        name = counted(label, [e.n for e in entries if e.measurable])
        figure.add_trace(bars(name, labels, entries, look, horizontal=True))
    figure.update_layout(barmode="group", bargap=0.25)
    figure.update_yaxes(autorange="reversed")
    rate_axis(figure, horizontal=True)
    return finish(
        figure, title="What each jailbreak changes", note=f"{result.provenance.model_name}; 95% intervals"
    )


def _shifts(result: Result) -> go.Figure:
    """How far each belief moves from the plain request, with the controls."""
    figure = panels(
        [f"{_BELIEF_LABELS[name]},<br>{ENDING_LABELS[e]}" for name in BELIEFS for e in COMPARED_ENDINGS],
        columns=2,
        width=460,
        height=260,
        shared_y="rows",
        y_title="change of the belief",
    )
    for row, name in enumerate(BELIEFS, start=1):
        for column, ending in enumerate(COMPARED_ENDINGS, start=1):
            families = result.shifts[ending].families
            shifts = {family: said.beliefs.of(name) for family, said in families.items()}
            arms = (
                (
                    "harmful, answered with the jailbreak",
                    [s.moved for s in shifts.values()],
                    style("harmful"),
                ),
                (
                    "harmful, still refused",
                    [s.still_refused for s in shifts.values()],
                    style("harmful")._replace(colour="#F2B48A", pattern="/"),
                ),
                (
                    "harmless, the same jailbreaks (control)",
                    [s.harmless for s in shifts.values()],
                    style("harmless")._replace(pattern="x"),
                ),
            )
            for label, entries, look in arms:
                trace = bars(
                    label, list(families), entries, look, share=False, in_legend=(row, column) == (1, 1)
                )
                figure.add_trace(trace, row=row, col=column)
            figure.add_hline(
                y=-result.shifts[ending].gap.of(name),
                line={"color": "#555", "dash": "dot", "width": 1.4},
                name="distance of plain harmless from plain harmful requests",
                showlegend=(row, column) == (1, 1),
                row=row,  # pyright: ignore[reportArgumentType]
                col=column,  # pyright: ignore[reportArgumentType]
            )
    figure.update_layout(barmode="group")
    return finish(
        figure,
        title="How a jailbreak changes the beliefs about a request",
        note=f"{result.provenance.model_name}; "
        f"difference from the same request as it is; {_BELIEF_NOTE}; 95% intervals",
    )
