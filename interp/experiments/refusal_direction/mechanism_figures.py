"""Figures 5 and 6: what is read along the direction, which heads write it, and where they attend."""

from collections.abc import Sequence

import plotly.graph_objects as go

from interp.display.charts import LAYER, Style, band, bars, finish, named, panels, style
from interp.experiments.refusal_direction import Result

PLAIN, HARMLESS = "plain", "harmless"
REGION_LABELS = {
    "before": "template before the request",
    "request": "the request",
    "added": "text that the jailbreak adds",
    "after": "template after the request",
}
"""Regions of a prompt in words."""


def _label(condition: str) -> str:
    words = {PLAIN: "harmful request as it is", HARMLESS: "harmless request"}
    return words.get(condition, f"with {condition!r}")


def _looks(conditions: Sequence[str]) -> dict[str, Style]:
    """Plain harmful and harmless requests in their colours, jailbreaks in others."""
    jailbreaks = [name for name in conditions if name not in (PLAIN, HARMLESS)]
    looks = {PLAIN: style("harmful"), HARMLESS: style("harmless"), **named(jailbreaks)}
    return {name: looks[name] for name in conditions}


def _by_panel(conditions: Sequence[str]) -> list[list[str]]:
    """Two jailbreaks a panel, each panel with the plain and the harmless requests beside them."""
    jailbreaks = [name for name in conditions if name not in (PLAIN, HARMLESS)]
    pairs = [jailbreaks[i : i + 2] for i in range(0, len(jailbreaks), 2)] or [[]]
    return [[PLAIN, *pair, HARMLESS] for pair in pairs]


def _titles(groups: Sequence[Sequence[str]]) -> list[str]:
    """The jailbreaks of each panel."""
    return [", ".join(name for name in group if name not in (PLAIN, HARMLESS)) for group in groups]


def conditions(result: Result, note: str) -> go.Figure:
    """Figure 5: cosine of the last token with the direction, plain, under jailbreaks, and harmless."""
    mechanism = result.mechanism
    looks, shown = _looks(list(mechanism.cosine)), set[str]()
    groups = _by_panel(list(mechanism.cosine))
    figure = panels(
        _titles(groups),
        columns=len(groups),
        width=330,
        height=330,
        x_title=LAYER,
        y_title="cosine with the refusal direction",
    )
    for column, group in enumerate(groups, start=1):
        for name in group:
            profile = mechanism.cosine[name]
            figure.add_traces(
                band(
                    _label(name),
                    profile.mean,
                    profile.sd,
                    looks[name],
                    in_legend=name not in shown,
                    markers=False,
                ),
                rows=1,
                cols=column,
            )
            shown.add(name)
    return finish(
        figure,
        title="Last token along the refusal direction, with and without jailbreaks",
        note=f"{note}; n = {mechanism.n_refused} harmful requests that the model refuses, {mechanism.n_answered} "
        f"harmless; bands: one SD over prompts; direction of layer {result.selected.layer}",
    )


def heads(result: Result, note: str) -> go.Figure:
    """Figure 6a: what the heads that write most along the direction write there."""
    rows = result.mechanism.heads
    looks, shown = _looks(list(rows[0].projection)), set[str]()
    groups = _by_panel(list(rows[0].projection))
    figure = panels(
        _titles(groups),
        width=760,
        height=170,
        x_title="head (layer.head)",
        y_title="projection",
    )
    for row, group in enumerate(groups, start=1):
        for name in group:
            trace = bars(
                _label(name),
                [f"{head.layer}.{head.head}" for head in rows],
                [head.projection[name] for head in rows],
                looks[name],
                share=False,
                in_legend=name not in shown,
            )
            figure.add_trace(trace, row=row, col=1)
            shown.add(name)
    figure.update_xaxes(type="category")
    figure.update_layout(barmode="group")
    return finish(
        figure,
        title="What the top heads write along the refusal direction",
        note=f"{note}; at the last token, in activation units; n = {result.mechanism.n_refused} harmful, "
        f"{result.mechanism.n_answered} harmless; 95% intervals",
    )


def attention(result: Result, note: str) -> go.Figure:
    """Figure 6b: attention of the same heads from the last token, by region of the prompt."""
    rows = result.mechanism.heads
    names, regions = list(rows[0].attention), list(rows[0].attention[PLAIN])
    figure = panels(
        [f"to {REGION_LABELS.get(region, region)}" for region in regions],
        columns=2,
        width=400,
        height=230,
        x_title="head (layer.head)",
    )
    for place, region in enumerate(regions):
        figure.add_heatmap(
            x=[f"{head.layer}.{head.head}" for head in rows],
            y=[_label(name) for name in names],
            z=[[head.attention[name][region] for head in rows] for name in names],
            coloraxis="coloraxis",
            texttemplate="%{z:.2f}",
            textfont={"size": 12},
            hovertemplate=f"%{{y}}, head %{{x}}, to {region}: %{{z:.3f}}<extra></extra>",
            row=place // 2 + 1,
            col=place % 2 + 1,
        )
    figure.update_xaxes(type="category")
    figure.update_yaxes(autorange="reversed")
    figure.update_layout(
        coloraxis={
            "colorscale": "Blues",
            "cmin": 0,
            "cmax": 1,
            "colorbar": {"title": {"text": "attention"}, "tickvals": [0, 0.5, 1]},
        }
    )
    return finish(
        figure,
        title="Where the top heads attend from the last token",
        note=f"{note}; mean attention over n = {result.mechanism.n_refused} harmful and {result.mechanism.n_answered} "
        "harmless requests; the four regions sum to 1",
        right=110,
    )
