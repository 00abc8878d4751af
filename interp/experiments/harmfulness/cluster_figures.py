"""Figure 2: how near the behaviour groups lie to the centres of refused harmful and of accepted harmless prompts."""

import math

import plotly.graph_objects as go

from interp.data.prompts import COMPARED_ENDINGS, Ending
from interp.display.charts import (
    ENDING_LABELS,
    LAYER,
    area,
    band,
    counted,
    finish,
    panels,
    reference_line,
    style,
)
from interp.evaluation.records import GROUPS, Group
from interp.experiments.harmfulness import Result
from interp.experiments.harmfulness.panels import T_INST, T_POST_INST
from interp.experiments.harmfulness.results import Clusters

DIFFERENCE = "difference of cosines"
"""Axis of margins: the cosine to one centre minus that to the other."""
MISBEHAVING: tuple[Group, ...] = ("accepted harmful", "refused harmless")
"""Groups whose behaviour is not what their prompts call for: those that the figure is about."""


def clusters(result: Result) -> go.Figure:
    """Figure 2: a row per token, a column per ending; misbehaving groups with bands."""
    endings: list[Ending] = [ending for ending in COMPARED_ENDINGS if ending in result.by_ending]
    figure = panels(
        [f"{role},<br>{ENDING_LABELS[ending]}" for role in (T_INST, T_POST_INST) for ending in endings],
        columns=len(endings),
        width=460,
        height=270,
        shared_y="rows",
        x_title=LAYER,
        y_title=DIFFERENCE,
    )
    sizes: dict[Group, list[int]] = {name: [] for name in GROUPS}
    for ending in endings:
        for found in (
            result.by_ending[ending].clusters.t_inst,
            result.by_ending[ending].clusters.t_post_inst,
        ):
            for name in GROUPS:
                if found.curves[name].n:
                    sizes[name].append(found.curves[name].n)
    labels: dict[Group, str] = {name: counted(name, ns) for name, ns in sizes.items()}
    shown = set[str]()
    for column, ending in enumerate(endings, start=1):
        one = result.by_ending[ending].clusters
        for row, found in enumerate((one.t_inst, one.t_post_inst), start=1):
            _cluster_panel(figure, found, row, column, labels, shown)
    for row, role in enumerate(("t_inst", "t_post_inst"), start=1):
        top = max(_top(getattr(result.by_ending[ending].clusters, role)) for ending in endings)
        figure.update_yaxes(range=[-1.1 * top, 1.1 * top], row=row)
    reference_line(figure, y=0)
    return finish(
        figure,
        title="Nearer refused harmful prompts (above 0) or accepted harmless ones (below)",
        note=f"{result.provenance.model_name}; cosine to the centre of refused harmful training prompts minus that to "
        "accepted harmless ones; bands of the groups that misbehave: one SD; grey: 95% of shuffled labels; prompts "
        "stripped of closing punctuation are left out for space (figure 3 shows them)",
    )


def _top(found: Clusters) -> float:
    """The largest absolute value that a panel draws."""
    values = [
        abs(v) + (s if name in MISBEHAVING and math.isfinite(s) else 0)
        for name, curve in found.curves.items()
        for v, s in zip(curve.mean, curve.sd, strict=True)
        if math.isfinite(v)
    ]
    return max(values, default=0.1)


def _cluster_panel(
    figure: go.Figure, found: Clusters, row: int, column: int, labels: dict[Group, str], shown: set[str]
) -> None:
    """The curves of one role and ending; `shown` are the names that the legend has already."""
    for name, label in labels.items():
        curve = found.curves[name]
        if not curve.n:
            continue
        traces = band(label, curve.mean, curve.sd, style(name), markers=False, in_legend=label not in shown)
        shown.add(label)
        figure.add_traces(traces if name in MISBEHAVING else traces[1:], rows=row, cols=column)
    ranges = [found.shuffled[n] for n in MISBEHAVING if n in found.shuffled]
    if ranges:
        low = [min(v) for v in zip(*(r.low for r in ranges), strict=True)]
        high = [max(v) for v in zip(*(r.high for r in ranges), strict=True)]
        grey = area("shuffled labels", list(range(len(low))), low, high, showlegend="shuffled" not in shown)
        figure.add_trace(grey, row=row, col=column)
        shown.add("shuffled")
