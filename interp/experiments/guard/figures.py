"""Figures of the guard comparison, drawn from a stored result alone."""

import plotly.graph_objects as go

from interp.data.prompt_sets import ENDINGS
from interp.display.charts import (
    ENDING_LABELS,
    FEW,
    FOOT,
    bars,
    counted,
    finish,
    layout_of,
    named,
    panels,
    points,
    rate_axis,
    reference_line,
    style,
)
from interp.experiments.guard import GUARD, Result
from interp.stats import Estimate

LABELS = ENDING_LABELS
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
    names = _detectors(result)
    first = result.by_ending["as-is"].detectors[names[0]].calibrated.flagged
    many = [group for group in first if first[group].n >= FEW]
    few = [group for group in first if first[group].n < FEW]
    columns: list[str | None] = [
        *many,
        *([None] if few else []),
        *few,
    ]  # an empty column sets small groups apart
    labels = [_group_label(group, first) for group in columns]
    figure = panels([LABELS[e] for e in ENDINGS], width=66 * len(columns) + 60, height=26 * len(names) + 20)
    for row, ending in enumerate(ENDINGS, start=1):
        table = result.by_ending[ending].detectors
        cells = [
            [None if g is None else table[name].calibrated.flagged[g] for g in columns] for name in names
        ]
        figure.add_heatmap(
            z=[
                [None if c is None or g is None else _right(g, c) for g, c in zip(columns, line, strict=True)]
                for line in cells
            ],
            x=labels,
            y=names,
            customdata=[[[c.low, c.high, c.n] if c else [None] * 3 for c in line] for line in cells],
            texttemplate="%{z:.0%}",
            textfont={"size": 12},
            coloraxis="coloraxis",
            hoverongaps=False,
            hovertemplate="%{y}, %{x}: %{z:.0%} right; flagged between %{customdata[0]:.2f} and %{customdata[1]:.2f}"
            "<extra></extra>",
            row=row,
            col=1,
        )
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_xaxes(ticks="")  # none under the empty column
    for row in range(1, len(ENDINGS)):
        figure.update_xaxes(showticklabels=False, row=row)
    share = result.config.false_positive_rate
    figure.update_layout(
        coloraxis={
            "colorscale": "Blues",
            "cmin": 0,
            "cmax": 1,
            "colorbar": {
                "title": {"text": "judged<br>rightly"},
                "tickformat": ".0%",
                "tickvals": [0, 0.5, 1],
            },
        },
    )
    small = f"; set apart: fewer than {FEW} prompts" if few else ""
    return finish(
        figure,
        title="Prompts judged rightly, by detector and group",
        note=f"{result.provenance.model_name}; "
        f"thresholds calibrated to flag {share:.0%} of harmless validation prompts{small}",
        right=110,
    )


def _group_label(group: str | None, first: dict[str, Estimate]) -> str:
    """A group with its size, a word a line."""
    if group is None:
        return " "
    return "<br>".join([*group.replace(",", "").split(), f"(n = {first[group].n})"])


def _roc(result: Result) -> go.Figure:
    """ROC of harmful against harmless test prompts, every detector, by ending; each panel has its own AUROCs."""
    from sklearn.metrics import roc_curve  # takes a second to load; verdicts need none

    figure = panels(
        [LABELS[e] for e in ENDINGS],
        columns=len(ENDINGS),
        width=330,
        height=330,
        gap=40,
        x_title="false-positive rate",
        y_title="true-positive rate",
    )
    looks = named(_detectors(result))
    for column, ending in enumerate(ENDINGS, start=1):
        legend = "legend" if column == 1 else f"legend{column}"
        for name, entry in result.by_ending[ending].detectors.items():
            bad, good = entry.scores["harmful"], entry.scores["harmless"]
            false, true, _ = roc_curve([1] * len(bad) + [0] * len(good), [*bad, *good])
            figure.add_scatter(
                x=false.tolist(),
                y=true.tolist(),
                name=f"{name}: {entry.auroc.value:.2f}",
                legend=legend,
                mode="lines",
                line={"color": looks[name].colour, "dash": looks[name].dash, "width": 2.2},
                hovertemplate=f"{name} (AUROC {entry.auroc.value:.2f}): %{{x:.2f}}, %{{y:.2f}}<extra></extra>",
                row=1,
                col=column,
            )
        figure.add_scatter(
            x=[0, 1],
            y=[0, 1],
            mode="lines",
            name="chance: 0.50",
            legend=legend,
            line={"color": "#555", "dash": "dash", "width": 1.2},
            hoverinfo="skip",
            row=1,
            col=column,
        )
    ticks = {"tickvals": [0, 0.25, 0.5, 0.75, 1], "range": [-0.02, 1.02]}
    figure.update_xaxes(**ticks)
    figure.update_yaxes(**ticks)
    n = result.by_ending["as-is"].detectors[GUARD].scores
    lines = len(_detectors(result)) + 2
    finish(
        figure,
        title="ROC curves, harmful against harmless test prompts",
        note=f"{result.provenance.model_name}; "
        f"n = {len(n['harmful'])} harmful, {len(n['harmless'])} harmless; AUROC in the "
        "legend",
        legend=False,
        below=21 * lines,
    )
    size = layout_of(figure).width - layout_of(figure).margin.l - layout_of(figure).margin.r
    for column in range(len(ENDINGS)):
        figure.update_layout(
            {
                "legend" if column == 0 else f"legend{column + 1}": {
                    "orientation": "v",
                    "x": column * 370 / size,
                    "xanchor": "left",
                    "y": -62 / 330,
                    "yanchor": "top",
                    "title": {"text": "AUROC", "font": {"size": 13}},
                    "font": {"size": 13},
                }
            }
        )
    return figure.update_layout(showlegend=True)


def _categories(result: Result) -> go.Figure:
    """AUROC of each harm category against all harmless prompts: Latent Guard with each ending, words as the control."""
    by = {ending: result.by_ending[ending].detectors for ending in ENDINGS}
    series = [(f"{GUARD}, {LABELS[e]}", by[e][GUARD].auroc_by_category, style(e)) for e in ENDINGS]
    series.append(("TF-IDF (control)", by["as-is"]["TF-IDF"].auroc_by_category, style("TF-IDF")))
    categories = list(series[0][1])
    figure = panels(x_title="AUROC", width=600, height=46 * max(len(categories), 1))
    step = 0.19
    for number, (label, entries, look) in enumerate(series):
        if entries:
            places = [i + step * (number - 1.5) for i in range(len(categories))]
            ordered = [entries[category] for category in categories]
            figure.add_trace(points(label, places, ordered, look, horizontal=True))
    n_harmless = len(by["as-is"][GUARD].scores["harmless"])
    sizes = {category: entry.n - n_harmless for category, entry in series[0][1].items()}
    names = [f"{c.replace('_', ', ', 1).replace('_', ' ')} (n = {sizes[c]})" for c in categories]
    figure.update_yaxes(
        tickvals=list(range(len(names))), ticktext=names, range=[len(names) - 0.5, -0.5], showgrid=False
    )
    lows = [e.low for _, entries, _ in series for e in entries.values() if e.measurable]
    figure.update_xaxes(
        range=[min([0.45, *(low - 0.03 for low in lows)]), 1.01], showgrid=True, gridcolor="#E6E6E6"
    )
    for place in range(1, len(names)):
        figure.add_hline(y=place - 0.5, line={"color": "#E6E6E6", "width": 1})
    reference_line(figure, x=0.5, name="chance")
    return finish(
        figure,
        title="Each harm category against all harmless prompts",
        note=f"{result.provenance.model_name}; n: harmful prompts of the category, each against the same {n_harmless} "
        "harmless ones; 95% intervals",
    )


def _false_positives(result: Result) -> go.Figure:
    """Harmless and borderline-safe prompts flagged at the calibrated threshold, beside what is detected."""
    names = _detectors(result)
    figure = panels(
        [LABELS[e] for e in ENDINGS],
        columns=len(ENDINGS),
        width=270,
        height=66 * len(names),
        x_title="share flagged",
    )
    groups = [g for g in ("harmful", *SAFE) if g in result.groups]
    for column, ending in enumerate(ENDINGS, start=1):
        table = result.by_ending[ending].detectors
        for group in groups:
            entries = [table[name].calibrated.flagged[group] for name in names]
            label = counted(group, [e.n for e in entries])
            trace = bars(label, names, entries, style(group), horizontal=True, in_legend=column == 1)
            figure.add_trace(trace, row=1, col=column)
    share = result.config.false_positive_rate
    reference_line(figure, x=share, name="calibrated false-positive rate")
    figure.update_layout(barmode="group")
    figure.update_yaxes(autorange="reversed")
    rate_axis(figure, horizontal=True)
    figure.update_xaxes(range=[-FOOT, 1.03])
    return finish(
        figure,
        title="Prompts that each detector flags",
        note=f"{result.provenance.model_name}; "
        f"thresholds calibrated to flag {share:.0%} of harmless validation prompts; 95% "
        "intervals",
    )
