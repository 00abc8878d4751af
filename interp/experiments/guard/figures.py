"""Figures of the guard comparison, drawn from a stored result alone."""

import plotly.graph_objects as go
from plotly.subplots import make_subplots
from sklearn.metrics import roc_curve

from interp.data.prompt_sets import ENDINGS
from interp.display.charts import COLOURS, CONTROL_COLOUR, DASHES, THEME, bar_marker, intervals
from interp.experiments.guard import GUARD, Result
from interp.stats import Estimate

LABELS = {
    "as-is": "prompts as they are",
    "strip": "closing punctuation stripped",
    "period": "all ended by a full stop",
}
"""Labels of the endings in figures and report."""
SAFE = ("harmless", "borderline")
"""Groups whose right answer is harmless."""


def figures(result: Result) -> dict[str, go.Figure]:
    """Every figure, from the stored result."""
    return {
        "table3": _table3(result),
        "roc": _roc(result),
        "roc_categories": _categories(result),
        "false_positives": _false_positives(result),
    }


def _detectors(result: Result) -> list[str]:
    return list(result.by_ending["as-is"].detectors)


def _is_safe(group: str) -> bool:
    """Whether a group's right answer is harmless."""
    return group.endswith(("harmless", "borderline"))


def _right(group: str, flagged: Estimate) -> float | None:
    """Share of a group that is judged rightly."""
    if not flagged.measurable:
        return None
    return 1 - flagged.value if _is_safe(group) else flagged.value


def _table3(result: Result) -> go.Figure:
    """Table 3's form: share judged rightly, detectors by groups, at one calibrated false-positive rate."""
    figure = make_subplots(
        rows=len(ENDINGS),
        cols=1,
        subplot_titles=[LABELS[e] for e in ENDINGS],
        vertical_spacing=0.07,
        shared_xaxes=True,
    )
    names = _detectors(result)
    first = result.by_ending["as-is"].detectors[names[0]].calibrated.flagged
    groups = list(first)
    for row, ending in enumerate(ENDINGS, start=1):
        table = result.by_ending[ending].detectors
        cells = [[table[name].calibrated.flagged[group] for group in groups] for name in names]
        figure.add_heatmap(
            z=[[_right(g, c) for g, c in zip(groups, line, strict=True)] for line in cells],
            x=[f"{group}<br><sub>n = {first[group].n}</sub>" for group in groups],
            y=names,
            customdata=[[[c.low, c.high, c.n] for c in line] for line in cells],
            texttemplate="%{z:.0%}",
            textfont={"size": 11},
            coloraxis="coloraxis",
            hovertemplate="%{y}, %{x}: %{z:.0%} right; flagged between %{customdata[0]:.2f} and %{customdata[1]:.2f}"
            "<extra></extra>",
            row=row,
            col=1,
        )
    figure.update_yaxes(autorange="reversed", tickfont={"size": 12})
    figure.update_xaxes(tickangle=-35, tickfont={"size": 12}, row=len(ENDINGS))
    share = result.config.false_positive_rate
    figure.update_layout(
        template=THEME,
        title=f"Judged rightly, thresholds calibrated to {share:.0%} of harmless validation prompts, "
        f"{result.provenance.model_name}",
        coloraxis={
            "colorscale": "Cividis",
            "cmin": 0,
            "cmid": 0.5,
            "cmax": 1,
            "colorbar": {"title": "right"},
        },
        width=1150,
        height=260 * len(ENDINGS) + 260,
        margin={"l": 220, "t": 90, "b": 170},
    )
    return figure


def _colours(result: Result) -> dict[str, str]:
    ordinary = [name for name in _detectors(result) if not name.endswith("(control)")]
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(ordinary)}
    return {name: colours.get(name, CONTROL_COLOUR) for name in _detectors(result)}


def _roc(result: Result) -> go.Figure:
    """ROC of harmful against harmless test prompts, every detector, by ending."""
    figure = make_subplots(
        rows=1, cols=len(ENDINGS), shared_yaxes=True, subplot_titles=[LABELS[e] for e in ENDINGS]
    )
    colours = _colours(result)
    for column, ending in enumerate(ENDINGS, start=1):
        for number, (name, entry) in enumerate(result.by_ending[ending].detectors.items()):
            bad, good = entry.scores["harmful"], entry.scores["harmless"]
            false, true, _ = roc_curve([1] * len(bad) + [0] * len(good), [*bad, *good])
            figure.add_scatter(
                x=false.tolist(),
                y=true.tolist(),
                name=name,
                legendgroup=name,
                showlegend=column == 1,
                mode="lines",
                line={"color": colours[name], "dash": DASHES[number % len(DASHES)], "width": 2.2},
                hovertemplate=f"{name} (AUROC {entry.auroc.value:.2f}): %{{x:.2f}}, %{{y:.2f}}<extra></extra>",
                row=1,
                col=column,
            )
    figure.update_xaxes(title="harmless flagged", range=[-0.02, 1.02])
    figure.update_yaxes(title="harmful flagged", range=[-0.02, 1.02], col=1)
    figure.update_layout(
        template=THEME,
        title=f"Harmful against harmless test prompts, {result.provenance.model_name}",
        width=1150,
        height=560,
        margin={"t": 100},
        legend={"y": -0.2},
    )
    return figure


def _categories(result: Result) -> go.Figure:
    """AUROC of each harm category against all harmless prompts: Latent Guard with each ending, words as the control."""
    figure = go.Figure()
    by = {ending: result.by_ending[ending].detectors for ending in ENDINGS}
    series = [(f"{GUARD}, {LABELS[e]}", by[e][GUARD].auroc_by_category) for e in ENDINGS]
    series.append(("TF-IDF, prompts as they are (control)", by["as-is"]["TF-IDF"].auroc_by_category))
    for number, (label, entries) in enumerate(series):
        if not entries:
            continue
        colour = CONTROL_COLOUR if label.endswith("(control)") else COLOURS[number]
        figure.add_bar(
            name=label,
            x=[f"{category}" for category in entries],
            y=[e.value for e in entries.values()],
            error_y=intervals(list(entries.values())),
            marker=bar_marker(colour, number),
            hovertemplate=f"{label}, %{{x}}: %{{y:.2f}}<extra></extra>",
        )
    figure.add_hline(y=0.5, line={"color": "#666", "dash": "dash", "width": 1})
    figure.update_layout(
        template=THEME,
        barmode="group",
        title=f"Each harm category against all harmless prompts, {result.provenance.model_name}",
        yaxis={"title": "AUROC", "range": [0, 1.05]},
        xaxis={"tickangle": -35},
        width=1150,
        height=600,
        margin={"b": 200},
        legend={"y": -0.5},
    )
    return figure


def _false_positives(result: Result) -> go.Figure:
    """Harmless and borderline-safe prompts flagged at the calibrated threshold, beside what is detected."""
    figure = make_subplots(
        rows=1, cols=len(ENDINGS), shared_yaxes=True, subplot_titles=[LABELS[e] for e in ENDINGS]
    )
    groups = [g for g in ("harmful", *SAFE) if g in result.groups]
    names = _detectors(result)
    for column, ending in enumerate(ENDINGS, start=1):
        table = result.by_ending[ending].detectors
        for number, group in enumerate(groups):
            entries = [table[name].calibrated.flagged[group] for name in names]
            figure.add_bar(
                name=f"{group} flagged",
                legendgroup=group,
                showlegend=column == 1,
                x=names,
                y=[e.value for e in entries],
                error_y=intervals(entries),
                marker=bar_marker((COLOURS[1], COLOURS[0], COLOURS[4])[number], number),
                hovertemplate=f"{group}, %{{x}}: %{{y:.2f}}<extra></extra>",
                row=1,
                col=column,
            )
    share = result.config.false_positive_rate
    figure.add_hline(y=share, line={"color": "#666", "dash": "dash", "width": 1})
    figure.update_xaxes(tickangle=-40, tickfont={"size": 12})
    figure.update_yaxes(title="share flagged", range=[0, 1.05], col=1)
    figure.update_layout(
        template=THEME,
        barmode="group",
        title=f"Flagged at {share:.0%} of harmless validation prompts (dashed), {result.provenance.model_name}",
        width=1150,
        height=620,
        margin={"t": 100, "b": 220},
        legend={"y": -0.55},
    )
    return figure
