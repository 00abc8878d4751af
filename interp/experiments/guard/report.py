"""Figures, tables and page of the guard comparison, drawn from its stored numbers alone."""

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots
from sklearn.metrics import roc_curve

from interp.display.charts import COLOURS, CONTROL_COLOUR, DASHES, THEME, bar_marker, intervals
from interp.display.page import Section, Table, html_report, notes_on, shown_rate

ENDINGS = ("as-is", "strip", "period")
"""How prompts end, side by side."""
_LABELS = {
    "as-is": "prompts as they are",
    "strip": "closing punctuation stripped",
    "period": "all ended by a full stop",
}
_SAFE = ("harmless", "borderline")
_GUARD = "Latent Guard"


def figures(numbers: Mapping[str, Any]) -> dict[str, go.Figure]:
    """Every figure, from the stored numbers."""
    return {
        "table3": _table3(numbers),
        "roc": _roc(numbers),
        "roc_categories": _categories(numbers),
        "false_positives": _false_positives(numbers),
    }


def _detectors(numbers: Mapping[str, Any]) -> list[str]:
    return list(numbers["by_ending"]["as-is"]["detectors"])


def _is_safe(group: str) -> bool:
    """Whether a group's right answer is harmless."""
    return group.endswith(("harmless", "borderline"))


def _right(group: str, flagged: Mapping[str, Any]) -> float | None:
    """Share of a group that is judged rightly."""
    value = flagged["value"]
    return None if value is None else (1 - value if _is_safe(group) else value)


def _table3(numbers: Mapping[str, Any]) -> go.Figure:
    """Table 3's form: share judged rightly, detectors by groups, at one calibrated false-positive rate."""
    figure = make_subplots(
        rows=len(ENDINGS),
        cols=1,
        subplot_titles=[_LABELS[e] for e in ENDINGS],
        vertical_spacing=0.07,
        shared_xaxes=True,
    )
    names = _detectors(numbers)
    first = numbers["by_ending"]["as-is"]["detectors"][names[0]]["calibrated"]["flagged"]
    groups = list(first)
    for row, ending in enumerate(ENDINGS, start=1):
        table = numbers["by_ending"][ending]["detectors"]
        cells = [[table[name]["calibrated"]["flagged"][group] for group in groups] for name in names]
        figure.add_heatmap(
            z=[[_right(g, c) for g, c in zip(groups, line, strict=True)] for line in cells],
            x=[f"{group}<br><sub>n = {first[group]['n']}</sub>" for group in groups],
            y=names,
            customdata=[[[c["low"], c["high"], c["n"]] for c in line] for line in cells],
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
    share = numbers["provenance"]["config"]["false_positive_rate"]
    figure.update_layout(
        template=THEME,
        title=f"Judged rightly, thresholds calibrated to {share:.0%} of harmless validation prompts, "
        f"{numbers['provenance']['model']}",
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


def _colours(numbers: Mapping[str, Any]) -> dict[str, str]:
    ordinary = [name for name in _detectors(numbers) if not name.endswith("(control)")]
    found = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(ordinary)}
    return {name: found.get(name, CONTROL_COLOUR) for name in _detectors(numbers)}


def _roc(numbers: Mapping[str, Any]) -> go.Figure:
    """ROC of harmful against harmless test prompts, every detector, by ending."""
    figure = make_subplots(
        rows=1, cols=len(ENDINGS), shared_yaxes=True, subplot_titles=[_LABELS[e] for e in ENDINGS]
    )
    colours = _colours(numbers)
    for column, ending in enumerate(ENDINGS, start=1):
        for number, (name, entry) in enumerate(numbers["by_ending"][ending]["detectors"].items()):
            bad, good = entry["scores"]["harmful"], entry["scores"]["harmless"]
            false, true, _ = roc_curve([1] * len(bad) + [0] * len(good), [*bad, *good])
            figure.add_scatter(
                x=false.tolist(),
                y=true.tolist(),
                name=name,
                legendgroup=name,
                showlegend=column == 1,
                mode="lines",
                line={"color": colours[name], "dash": DASHES[number % len(DASHES)], "width": 2.2},
                hovertemplate=f"{name} (AUROC {entry['auroc']['value']:.2f}): %{{x:.2f}}, %{{y:.2f}}<extra></extra>",
                row=1,
                col=column,
            )
    figure.update_xaxes(title="harmless flagged", range=[-0.02, 1.02])
    figure.update_yaxes(title="harmful flagged", range=[-0.02, 1.02], col=1)
    figure.update_layout(
        template=THEME,
        title=f"Harmful against harmless test prompts, {numbers['provenance']['model']}",
        width=1150,
        height=560,
        margin={"t": 100},
        legend={"y": -0.2},
    )
    return figure


def _categories(numbers: Mapping[str, Any]) -> go.Figure:
    """AUROC of each harm category against all harmless prompts: Latent Guard with each ending, words as the control."""
    figure = go.Figure()
    by = {ending: numbers["by_ending"][ending]["detectors"] for ending in ENDINGS}
    series = [(f"{_GUARD}, {_LABELS[e]}", by[e][_GUARD]["auroc_by_category"]) for e in ENDINGS]
    series.append(("TF-IDF, prompts as they are (control)", by["as-is"]["TF-IDF"]["auroc_by_category"]))
    for number, (label, entries) in enumerate(series):
        if not entries:
            continue
        colour = CONTROL_COLOUR if label.endswith("(control)") else COLOURS[number]
        figure.add_bar(
            name=label,
            x=[f"{category}" for category in entries],
            y=[e["value"] for e in entries.values()],
            error_y=intervals(list(entries.values())),
            marker=bar_marker(colour, number),
            hovertemplate=f"{label}, %{{x}}: %{{y:.2f}}<extra></extra>",
        )
    figure.add_hline(y=0.5, line={"color": "#666", "dash": "dash", "width": 1})
    figure.update_layout(
        template=THEME,
        barmode="group",
        title=f"Each harm category against all harmless prompts, {numbers['provenance']['model']}",
        yaxis={"title": "AUROC", "range": [0, 1.05]},
        xaxis={"tickangle": -35},
        width=1150,
        height=600,
        margin={"b": 200},
        legend={"y": -0.5},
    )
    return figure


def _false_positives(numbers: Mapping[str, Any]) -> go.Figure:
    """Harmless and borderline-safe prompts flagged at the calibrated threshold, beside what is detected."""
    figure = make_subplots(
        rows=1, cols=len(ENDINGS), shared_yaxes=True, subplot_titles=[_LABELS[e] for e in ENDINGS]
    )
    groups = [g for g in ("harmful", *_SAFE) if g in numbers["groups"]]
    names = _detectors(numbers)
    for column, ending in enumerate(ENDINGS, start=1):
        table = numbers["by_ending"][ending]["detectors"]
        for number, group in enumerate(groups):
            entries = [table[name]["calibrated"]["flagged"][group] for name in names]
            figure.add_bar(
                name=f"{group} flagged",
                legendgroup=group,
                showlegend=column == 1,
                x=names,
                y=[e["value"] for e in entries],
                error_y=intervals(entries),
                marker=bar_marker((COLOURS[1], COLOURS[0], COLOURS[4])[number], number),
                hovertemplate=f"{group}, %{{x}}: %{{y:.2f}}<extra></extra>",
                row=1,
                col=column,
            )
    share = numbers["provenance"]["config"]["false_positive_rate"]
    figure.add_hline(y=share, line={"color": "#666", "dash": "dash", "width": 1})
    figure.update_xaxes(tickangle=-40, tickfont={"size": 12})
    figure.update_yaxes(title="share flagged", range=[0, 1.05], col=1)
    figure.update_layout(
        template=THEME,
        barmode="group",
        title=f"Flagged at {share:.0%} of harmless validation prompts (dashed), {numbers['provenance']['model']}",
        width=1150,
        height=620,
        margin={"t": 100, "b": 220},
        legend={"y": -0.55},
    )
    return figure


def _auroc(entry: Mapping[str, Any] | None) -> str:
    return "" if entry is None else f"{entry['value']:.2f} [{entry['low']:.2f}, {entry['high']:.2f}]"


def rate_table(numbers: Mapping[str, Any]) -> Table:
    """Every detector with equal endings (full stop) on the ordinary groups; the page has all groups and endings."""
    whole = detector_table(numbers, "period", "calibrated")
    kept = [
        i
        for i, label in enumerate(whole.header)
        if not label.startswith("flagged") or label.split(" (n")[0].removeprefix("flagged: ") in _SAFE
    ]
    return Table(
        title=whole.title,
        header=[whole.header[i] for i in kept],
        rows=[[r[i] for i in kept] for r in whole.rows],
    )


def detector_table(numbers: Mapping[str, Any], ending: str, rule: str) -> Table:
    """AUROC, accuracy and flagged shares of every detector with one ending, at one of its two thresholds."""
    table = numbers["by_ending"][ending]["detectors"]
    groups = list(next(iter(table.values()))[rule]["flagged"])
    shown = [g for g in ("harmless", "borderline") if g in groups] + [
        g for g in groups if g not in ("harmful", "harmless", "borderline")
    ]
    unseen = any("auroc_unseen" in entry for entry in table.values())
    sizes = next(iter(table.values()))[rule]["flagged"]
    rows = []
    for name, entry in table.items():
        by = entry[rule]["flagged"]
        rows.append(
            [
                name,
                _auroc(entry["auroc"]),
                *([_auroc(entry.get("auroc_unseen"))] if unseen else []),
                shown_rate(entry[rule]["accuracy"]),
                *(shown_rate(by[group]) for group in shown),
            ]
        )
    header = [
        "detector",
        "AUROC",
        *(["AUROC, unseen sets"] if unseen else []),
        "accuracy",
        *(f"flagged: {group} (n = {sizes[group]['n']})" for group in shown),
    ]
    return Table(title=f"detectors, {_LABELS[ending]}, {rule} thresholds", header=header, rows=rows)


def verdicts(numbers: Mapping[str, Any]) -> list[str]:
    """What the data say of Latent Guard, with each ending."""
    lines = []
    for ending in ENDINGS:
        table, where = numbers["by_ending"][ending]["detectors"], _LABELS[ending]
        guard = table[_GUARD]
        control = next(entry for name, entry in table.items() if name.endswith("(control)"))
        seen = guard["auroc"]["low"] > max(0.5, control["auroc"]["high"])
        flagged = guard["own"]["flagged"]
        lines.append(
            f"{'Seen' if seen else 'Not seen'} ({where}): the harm belief at t_inst detects harmful prompts (AUROC "
            f"{_auroc(guard['auroc'])}, random direction {_auroc(control['auroc'])}; at threshold 0 it flags "
            f"{shown_rate(flagged['harmful'])} of harmful, {shown_rate(flagged['harmless'])} of harmless"
            + (
                f" and {shown_rate(flagged['borderline'])} of borderline-safe prompts)."
                if "borderline" in flagged
                else ")."
            )
        )
        lines += [
            _misleading(where, group, flagged[group]) for group in ("refused harmless", "accepted harmful")
        ]
        lines += [
            _jailbreaks(where, group, guard["calibrated"]["flagged"])
            for group in flagged
            if group.endswith(" jailbreaks")
        ]
        others = {
            name: entry["auroc"]
            for name, entry in table.items()
            if name != _GUARD and not name.endswith(("(control)", "other anchors"))
        }
        better = [name for name, entry in others.items() if entry["low"] > guard["auroc"]["high"]]
        worse = [name for name, entry in others.items() if entry["high"] < guard["auroc"]["low"]]
        lines.append(
            f"Against the other detectors ({where}): better than the guard, intervals apart: "
            f"{', '.join(better) or 'none'}; worse: {', '.join(worse) or 'none'} ("
            + ", ".join(f"{name} {_auroc(entry)}" for name, entry in others.items())
            + ")."
        )
        if (swapped := table.get(f"{_GUARD}, other anchors")) is not None:
            lines.append(
                f"With harmless anchors of another source ({where}) the guard's AUROC is {_auroc(swapped['auroc'])} "
                f"instead of {_auroc(guard['auroc'])}."
            )
    if not any(name.endswith("other anchors") for name in _detectors(numbers)):
        lines.append(
            "Not testable: whether the guard sees the source of its harmless anchors; give harmless prompts of another "
            "source (--set anchors=FILE)."
        )
    return lines


def _misleading(where: str, group: str, flagged: Mapping[str, Any]) -> str:
    if flagged["n"] < 5:
        return f"Not testable ({where}): {group} prompts; there are only {flagged['n']}."
    low, high = (
        (flagged["low"], flagged["high"])
        if group == "accepted harmful"
        else (1 - flagged["high"], 1 - flagged["low"])
    )
    seen = "Seen" if low > 0.5 else "Not seen" if high < 0.5 else "Undecided"
    return (
        f"{seen} ({where}): {group} prompts are judged by what they are (flagged {shown_rate(flagged)}, "
        f"n = {flagged['n']})."
    )


def _jailbreaks(where: str, group: str, flagged: Mapping[str, Any]) -> str:
    harmless = flagged.get(group.replace(" jailbreaks", ", harmless"))
    won = flagged[group]
    alike = harmless is not None and harmless["high"] >= won["low"]
    seen = "Seen" if won["low"] > 0.5 and not alike else "Not seen"
    shown = "none" if harmless is None else shown_rate(harmless)
    return (
        f"{seen} ({where}): {group} that succeed are flagged at the calibrated threshold ({shown_rate(won)}, n = "
        f"{won['n']} prompts; harmless requests in the same wrappers {shown})."
    )


def report(numbers: Mapping[str, Any]) -> str:
    """The experiment's page."""
    drawn, where = figures(numbers), numbers["provenance"]
    notes = notes_on(where)
    worst = {
        ending: max(
            table["leak_check"]["last_token"]["value"],
            *(entry["value"] for entry in table["leak_check"]["embedding"].values()),
        )
        for ending, table in numbers["by_ending"].items()
    }
    if leaking := [ending for ending, value in worst.items() if value > 0.6]:
        shown = ", ".join(f"{_LABELS[e]} {worst[e]:.2f}" for e in leaking)
        notes.append(
            f"How prompts end, or their last word, tells harmful from harmless by itself (AUROC {shown})."
        )
    about = numbers["by_ending"]["period"]["about"]
    sections = [
        Section(
            title="What was found",
            text=[
                *verdicts(numbers),
                "Table 3's form: the share of each group that is judged rightly. Groups named by behaviour are those "
                "the model misjudges itself; jailbreaks are wrapped requests that it answers, and the same wrappers "
                "around harmless requests are the control. Prompts of one request are not independent: intervals of "
                "wrapped groups are too narrow.",
            ],
            notes=notes,
            figures=[drawn["table3"]],
        ),
        Section(
            title="Threshold-free: ROC",
            text=[
                "Where each detector reads (all ended by a full stop): "
                + "; ".join(f"{name}: {text}" for name, text in about.items())
                + "."
            ],
            figures=[drawn["roc"], drawn["roc_categories"]],
        ),
        Section(
            title="False positives",
            figures=[drawn["false_positives"]],
            tables=[detector_table(numbers, ending, "calibrated") for ending in ENDINGS],
        ),
        Section(
            title="At each detector's own threshold",
            text=[
                "Latent Guard 0 as published; probe and words at even odds; projections halfway between the training "
                "means; guard models by their own answer."
            ],
            tables=[detector_table(numbers, ending, "own") for ending in ENDINGS],
        ),
    ]
    lead = (
        f"{where['model']} on prompt set {where['prompts']['name']}; {numbers['seconds']['total']:.0f} s on "
        f"{where['device']}. After Zhao et al. 2025, arXiv:2507.11878, table 3."
    )
    return html_report("Detectors of harmful prompts", lead, sections, where)
