"""Figures, table and page of the category experiment, drawn from its stored numbers alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.display.charts import COLOURS, CONTROL_COLOUR, THEME
from interp.display.page import Section, Table, html_report, notes_on

ENDINGS = ("as-is", "period")
"""How prompts end, side by side."""
DIRECTIONS = ("harmfulness", "refusal")
"""At `t_inst` and at `t_post_inst`, in the order in which states are read."""
_ROLES = {"harmfulness": "t_inst", "refusal": "t_post_inst"}
_LABELS = {"as-is": "prompts as they are", "period": "all ended by a full stop"}


def figures(numbers: Mapping[str, Any]) -> dict[str, go.Figure]:
    """Every figure, from the stored numbers."""
    return {"category_cosines": _heat_maps(numbers), "off_diagonal": _lines(numbers)}


def _panels() -> list[tuple[int, int, str, str]]:
    return [
        (row, column, direction, ending)
        for row, direction in enumerate(DIRECTIONS, start=1)
        for column, ending in enumerate(ENDINGS, start=1)
    ]


def _heat_maps(numbers: Mapping[str, Any]) -> go.Figure:
    """Cosines of the categories' directions; the slider goes through the layers, its first stop is their mean."""
    name = numbers["provenance"]["model"]
    tables = [numbers["by_ending"][ending][direction] for _, _, direction, ending in _panels()]
    n_layers = len(tables[0]["cosines"])
    figure = make_subplots(
        rows=2,
        cols=2,
        subplot_titles=[f"{d} ({_ROLES[d]}), {_LABELS[e]}" for _, _, d, e in _panels()],
        horizontal_spacing=0.16,
        vertical_spacing=0.2,
    )
    for (row, column, direction, _), table in zip(_panels(), tables, strict=True):
        figure.add_heatmap(
            z=_mean_matrix(table["cosines"]),
            x=table["categories"],
            y=table["categories"],
            coloraxis="coloraxis",
            texttemplate="%{z:.2f}",
            textfont={"size": 8},
            hovertemplate=f"{direction}: %{{y}} and %{{x}}: %{{z:.3f}}<extra></extra>",
            row=row,
            col=column,
        )
    steps = [
        {"label": "mean", "method": "restyle", "args": [{"z": [_mean_matrix(t["cosines"]) for t in tables]}]}
    ]
    steps += [
        {"label": str(layer), "method": "restyle", "args": [{"z": [t["cosines"][layer] for t in tables]}]}
        for layer in range(n_layers)
    ]
    figure.update_xaxes(tickangle=-45, tickfont={"size": 10})
    figure.update_yaxes(autorange="reversed", tickfont={"size": 10})
    figure.update_layout(
        template=THEME,
        title=f"Cosine of the categories' directions, {name}",
        coloraxis={
            "colorscale": "RdBu_r",
            "cmin": -1,
            "cmid": 0,
            "cmax": 1,
            "colorbar": {"title": "cosine", "x": 1.07},
        },
        sliders=[
            {"active": 0, "steps": steps, "currentvalue": {"prefix": "layer: "}, "y": -0.16, "len": 1.0}
        ],
        width=1150,
        height=1080,
        margin={"l": 170, "t": 100, "b": 170},
    )
    return figure


def _mean_matrix(matrices: Sequence[Sequence[Sequence[float | None]]]) -> list[list[float]]:
    """Mean over the layers that have a direction."""
    known = [m for m in matrices if m[0][0] is not None]
    return [
        [sum(float(m[a][b]) for m in known) / len(known) for b in range(len(known[0]))]  # pyright: ignore[reportArgumentType]
        for a in range(len(known[0]))
    ]


def _lines(numbers: Mapping[str, Any]) -> go.Figure:
    """Off-diagonal mean against layer with its interval, and every control."""
    figure = make_subplots(
        rows=2,
        cols=2,
        shared_xaxes=True,
        shared_yaxes=True,
        subplot_titles=[f"{d} ({_ROLES[d]}), {_LABELS[e]}" for _, _, d, e in _panels()],
        vertical_spacing=0.1,
    )
    for row, column, direction, ending in _panels():
        table = numbers["by_ending"][ending][direction]
        for trace in (
            *_area("labels shuffled, 95%", table["shuffled"], CONTROL_COLOUR, "dot"),
            *_area("different categories, 95%", table["off_diagonal"], COLOURS[1], "solid"),
            *_plain("same category, split halves", table["within"], COLOURS[2], "dash"),
            *_plain("different categories, split halves", table["between"], COLOURS[1], "dash"),
            *_plain("sham categories (shared reference)", table["sham"], CONTROL_COLOUR, "dashdot"),
        ):
            trace.showlegend = bool(trace.showlegend) and (row, column) == (1, 1)
            figure.add_trace(trace, row=row, col=column)
    figure.add_hline(y=0, line={"color": "#666", "dash": "dash", "width": 1})
    figure.update_xaxes(title="layer", row=2)
    figure.update_yaxes(title="mean cosine", col=1, range=[-0.3, 1.03])
    figure.update_layout(
        template=THEME,
        title=f"How alike the directions of different harm categories are, {numbers['provenance']['model']}",
        width=1100,
        height=760,
        margin={"t": 100, "b": 150},
        legend={"y": -0.12},
    )
    return figure


def _area(name: str, entries: Sequence[Mapping[str, Any]], colour: str, dash: str) -> list[go.Scatter]:
    known = [(layer, e) for layer, e in enumerate(entries) if e["value"] is not None]
    layers = [layer for layer, _ in known]
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    interval = go.Scatter(
        x=[*layers, *layers[::-1]],
        y=[*(e["high"] for _, e in known), *(e["low"] for _, e in known[::-1])],
        fill="toself",
        fillcolor=f"rgba({red},{green},{blue},0.18)",
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        showlegend=False,
    )
    return [interval, *_plain(name, [e["value"] for e in entries], colour, dash)]


def _plain(name: str, values: Sequence[float | None], colour: str, dash: str) -> list[go.Scatter]:
    return [
        go.Scatter(
            x=list(range(len(values))),
            y=list(values),
            name=name,
            mode="lines",
            showlegend=True,
            line={"color": colour, "dash": dash, "width": 2.2},
            hovertemplate=f"{name}, layer %{{x}}: %{{y:.3f}}<extra></extra>",
        )
    ]


def _shown(entry: Mapping[str, Any]) -> str:
    if entry["value"] is None:
        return "not measured"
    return f"{entry['value']:.2f} [{entry['low']:.2f}, {entry['high']:.2f}]"


def rate_table(numbers: Mapping[str, Any]) -> Table:
    """Off-diagonal means over the layers, with their controls."""
    rows = []
    for direction in DIRECTIONS:
        for ending in ENDINGS:
            said = numbers["by_ending"][ending]["summary"][direction]
            rows.append(
                [
                    f"{direction} ({_ROLES[direction]})",
                    ending,
                    _shown(said["off_diagonal"]),
                    _shown(said["shuffled"]),
                    f"{said['p']:.3f}",
                    f"{said['between']:.2f} / {said['within']:.2f}",
                    f"{said['sham']:.2f}",
                ]
            )
    header = [
        "direction",
        "endings",
        "different categories",
        "shuffled (control)",
        "p",
        "split halves, different / same category",
        "sham (control)",
    ]
    return Table(title="mean cosine over layers", header=header, rows=rows)


def verdicts(numbers: Mapping[str, Any]) -> list[str]:
    """What the data say, claim by claim."""
    lines = []
    for ending in ENDINGS:
        said = numbers["by_ending"][ending]["summary"]
        for direction in DIRECTIONS:
            own, null = said[direction]["off_diagonal"], said[direction]["shuffled"]
            seen = "Seen" if said[direction]["p"] < 0.05 else "Not seen"
            lines.append(
                f"{seen} ({_LABELS[ending]}): {direction} directions differ between categories (mean cosine "
                f"{_shown(own)}; shuffled labels {_shown(null)}, p = {said[direction]['p']:.3f}; between split halves "
                f"{said[direction]['between']:.2f} against {said[direction]['within']:.2f} within a category)."
            )
        gap = said["refusal - harmfulness"]
        if gap["value"] is None or not numbers["filtered"]:
            why = "the model refuses too few prompts per category, so both directions are of harmful against harmless"
            lines.append(
                f"Not testable ({_LABELS[ending]}): refusal directions are more alike across categories; {why}."
            )
        else:
            # How far different categories agree, as a share of how far a category agrees with itself.
            own = {d: said[d]["between"] / said[d]["within"] for d in DIRECTIONS}
            noise = gap["low"] > 0 and own["refusal"] <= own["harmfulness"]
            seen = "Seen" if gap["low"] > 0 and not noise else "Not seen"
            lines.append(
                f"{seen} ({_LABELS[ending]}): refusal directions are more alike across categories than harmfulness "
                f"directions (difference of the mean cosines {_shown(gap)}, {gap['n']} categories; different ones "
                f"agree {own['refusal']:.2f} and {own['harmfulness']:.2f} times as well as split halves of one"
                + (": the difference is noise in the harmfulness directions)." if noise else ").")
            )
    return lines


def report(numbers: Mapping[str, Any]) -> str:
    """The experiment's page."""
    drawn, where = figures(numbers), numbers["provenance"]
    notes = notes_on(where)
    if not numbers["filtered"]:
        notes.append(
            f"Too few categories have {where['config']['least']} prompts that the model refuses: the 'refusal' "
            "directions are fitted on all prompts, so they are harmfulness directions at the template's last token."
        )
    leaking = {
        ending: leak["last_token"]["value"]
        for ending, leak in numbers["leak_check"].items()
        if leak["last_token"]["value"] > leak["threshold"]
    }
    if leaking:
        shown = ", ".join(f"{value:.2f} {_LABELS[ending]}" for ending, value in leaking.items())
        notes.append(
            f"The last token alone tells harmful from harmless (AUROC {shown}): at t_inst directions share how prompts "
            "end, and look more alike than the categories are."
        )
    counted = Table(
        header=["category", "prompts", "refused"],
        rows=[[name, c["prompts"], c["refused"]] for name, c in numbers["counts"].items()],
    )
    answered = numbers["harmless"]
    sections = [
        Section(
            title="What was found",
            text=[
                *verdicts(numbers),
                "The mean over layers of the mean cosine between directions of different categories. Interval: "
                "categories drawn with replacement. p: how often shuffled labels give directions as different.",
            ],
            notes=notes,
            tables=[rate_table(numbers)],
        ),
        Section(
            title="Layer by layer",
            text=[
                "Were categories no more than draws from one set of harmful prompts, different categories would lie in "
                "the grey band of shuffled labels. With this many prompts a category agrees with itself only as "
                "far as the line of split halves; the distance between that line and the dashed one of different "
                "categories is what categories have of their own. Sham categories are harmless prompts dealt at "
                "random: they share nothing but the harmless mean that is subtracted from each.",
                "Halves of a set that is balanced in something, as builtin is in its endings, are each other's "
                "opposite in it: where little else is read, as in early layers, a category's halves then disagree.",
            ],
            figures=[drawn["off_diagonal"]],
        ),
        Section(
            title="Category by category",
            text=["The slider goes through the layers; its first stop is their mean."],
            figures=[drawn["category_cosines"]],
        ),
        Section(
            title="Prompts",
            text=[
                f"{answered['prompts']} harmless prompts, of which the model answers {answered['answered']}. "
                "Leak check: "
                + "; ".join(
                    f"{_LABELS[ending]}, last token {leak['last_token']['value']:.2f}"
                    for ending, leak in numbers["leak_check"].items()
                )
                + " (0.5 is no leak)."
            ],
            tables=[counted],
        ),
    ]
    lead = (
        f"{where['model']} on prompt set {where['prompts']['name']}, {len(numbers['categories'])} harm categories; "
        f"{numbers['seconds']['total']:.0f} s on {where['device']}. After Zhao et al. 2025, arXiv:2507.11878."
    )
    return html_report("Directions of harm categories", lead, sections, where)
