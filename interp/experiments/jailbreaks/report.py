"""Figures, table and page of the jailbreak experiment, drawn from its stored numbers alone."""

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.display.charts import COLOURS, CONTROL_COLOUR, THEME, bar_marker, intervals
from interp.display.page import Section, Table, html_report, notes_on, shown_rate

ENDINGS = ("as-is", "period")
"""How messages end, side by side."""
_LABELS = {"as-is": "messages as they are", "period": "all ended by a full stop"}
_LEAST = 5
"""Requests that a family must have got answered before it is judged."""
_SYMBOLS = ("triangle-up", "diamond", "square", "star", "pentagon", "hexagon")
_BELIEFS = {"harm": "harm belief (t_inst)", "refusal": "refusal belief (t_post_inst)"}


def figures(numbers: Mapping[str, Any]) -> dict[str, go.Figure]:
    """Every figure, from the stored numbers."""
    return {"fig06_beliefs": _scatter(numbers), "success": _success(numbers), "shifts": _shifts(numbers)}


def _scatter(numbers: Mapping[str, Any]) -> go.Figure:
    """Figure 6: both beliefs of prompts that succeed, by family, beside plain refused harmful requests."""
    figure = make_subplots(
        rows=1, cols=2, shared_yaxes=True, subplot_titles=[_LABELS[ending] for ending in ENDINGS]
    )
    points = numbers["points"]
    refused = {p["id"] for p in points if _is_reference(p, "harmful")}
    families = list(numbers["success"]["families"])
    clouds = [
        ("plain harmful, refused", [p for p in points if _is_reference(p, "harmful")], COLOURS[1], "circle"),
        (
            "plain harmless, answered",
            [p for p in points if _is_reference(p, "harmless")],
            CONTROL_COLOUR,
            "x-thin-open",
        ),
    ]
    palette = (COLOURS[0], COLOURS[2], COLOURS[3], COLOURS[4], COLOURS[5], COLOURS[7])
    for number, family in enumerate(families):
        won = [
            p
            for p in points
            if p["family"] == family and p["kind"] == "harmful" and not p["refused"] and p["id"] in refused
        ]
        clouds.append((f"{family}, answered", won, palette[number % 6], _SYMBOLS[number % 6]))
    for name, rows, colour, symbol in clouds:
        for column, ending in enumerate(ENDINGS, start=1):
            figure.add_scatter(
                name=f"{name} (n = {len(rows)})",
                legendgroup=name,
                showlegend=column == 1,
                x=[p[ending][0] for p in rows],
                y=[p[ending][1] for p in rows],
                customdata=[[p["id"], p["wrapper"]] for p in rows],
                mode="markers",
                marker={
                    "color": colour,
                    "symbol": symbol,
                    "size": 7,
                    "opacity": 0.65,
                    "line": {"width": 1, "color": colour},
                },
                hovertemplate=f"{name}: %{{customdata[0]}}, %{{customdata[1]}}<br>harm %{{x:.3f}}, refusal %{{y:.3f}}"
                "<extra></extra>",
                row=1,
                col=column,
            )
    figure.add_vline(x=0, line={"color": "#666", "dash": "dash", "width": 1})
    figure.add_hline(y=0, line={"color": "#666", "dash": "dash", "width": 1})
    figure.update_xaxes(title="harm belief at t_inst")
    figure.update_yaxes(title="refusal belief at t_post_inst", col=1)
    figure.update_layout(
        template=THEME,
        title=f"Beliefs of jailbreaks that succeed, {numbers['provenance']['model']}",
        width=1100,
        height=560,
        margin={"t": 100},
        legend={"y": -0.2},
    )
    return figure


def _is_reference(p: Mapping[str, Any], kind: str) -> bool:
    return p["family"] == "plain" and p["kind"] == kind and p["refused"] == (kind == "harmful")


def _success(numbers: Mapping[str, Any]) -> go.Figure:
    """Answered harmful requests by wrapper, and refused harmless ones: what the wrapper does to any request."""
    figure = go.Figure()
    by = numbers["success"]["wrappers"]
    names = [f"{name}<br><sub>{entry['family']}</sub>" for name, entry in by.items()]
    for number, (key, label, colour) in enumerate(
        (
            ("success", "harmful, refused plainly: answered when wrapped", COLOURS[1]),
            (
                "harmless refused",
                "harmless, answered plainly: refused when wrapped (control)",
                CONTROL_COLOUR,
            ),
        )
    ):
        entries = [entry[key] for entry in by.values()]
        figure.add_bar(
            name=label,
            x=names,
            y=[e["value"] for e in entries],
            error_y=intervals(entries),
            marker=bar_marker(colour, number),
            customdata=[[e["n"], e["low"], e["high"]] for e in entries],
            hovertemplate=f"{label}, %{{x}}: %{{y:.2f}} [%{{customdata[1]:.2f}}, %{{customdata[2]:.2f}}], "
            "n = %{customdata[0]}<extra></extra>",
        )
    figure.update_layout(
        template=THEME,
        barmode="group",
        title=f"What each wrapper changes, {numbers['provenance']['model']}",
        yaxis={"title": "share of requests", "range": [0, 1.05]},
        xaxis={"tickangle": -45},
        width=1100,
        height=620,
        margin={"b": 200},
        legend={"y": -0.5},
    )
    return figure


def _shifts(numbers: Mapping[str, Any]) -> go.Figure:
    """How far each belief moves from the plain request, with the controls."""
    figure = make_subplots(
        rows=2,
        cols=2,
        shared_xaxes=True,
        shared_yaxes="rows",  # pyright: ignore[reportArgumentType]
        subplot_titles=[f"{_BELIEFS[name]}, {_LABELS[e]}" for name in _BELIEFS for e in ENDINGS],
        vertical_spacing=0.12,
    )
    arms = (
        ("moved", "harmful, answered when wrapped", COLOURS[1]),
        ("still_refused", "harmful, still refused", COLOURS[0]),
        ("harmless", "harmless, the same wrappers (control)", CONTROL_COLOUR),
    )
    for row, name in enumerate(_BELIEFS, start=1):
        for column, ending in enumerate(ENDINGS, start=1):
            table = numbers["shifts"][ending]["families"]
            for number, (key, label, colour) in enumerate(arms):
                entries = [said[name][key] for said in table.values()]
                figure.add_bar(
                    name=label,
                    legendgroup=key,
                    showlegend=(row, column) == (1, 1),
                    x=list(table),
                    y=[e["value"] for e in entries],
                    error_y=intervals(entries),
                    marker=bar_marker(colour, number),
                    customdata=[e["n"] for e in entries],
                    hovertemplate=f"{label}, %{{x}}: %{{y:.3f}}, n = %{{customdata}} requests<extra></extra>",
                    row=row,
                    col=column,
                )
            gap = numbers["shifts"][ending]["gap"][name]
            figure.add_hline(
                y=-gap,
                line={"color": "#666", "dash": "dot", "width": 1},
                row=row,  # pyright: ignore[reportArgumentType]
                col=column,  # pyright: ignore[reportArgumentType]
                annotation={"text": "as far as plain harmless lie from plain harmful", "font": {"size": 11}},
                annotation_position="top left",
            )
    figure.update_yaxes(title="shift from the plain request", col=1)
    figure.update_layout(
        template=THEME,
        barmode="group",
        title=f"Which belief moves when a request is wrapped, {numbers['provenance']['model']}",
        width=1100,
        height=800,
        margin={"t": 100},
        legend={"y": -0.08},
    )
    return figure


def rate_table(numbers: Mapping[str, Any]) -> Table:
    """Success by family with its control, and by wrapper."""
    rows = []
    for family, entry in numbers["success"]["families"].items():
        rows.append([f"{family}, all", shown_rate(entry["success"]), shown_rate(entry["harmless refused"])])
        rows += [
            [f"{family}: {name}", shown_rate(one["success"]), shown_rate(one["harmless refused"])]
            for name, one in numbers["success"]["wrappers"].items()
            if one["family"] == family
        ]
    n = next(iter(numbers["success"]["families"].values()))
    header = [
        "wrapper",
        f"harmful, refused plainly: answered (n = {n['success']['n']})",
        f"harmless, answered plainly: refused (control, n = {n['harmless refused']['n']})",
    ]
    return Table(title="success of jailbreaks", header=header, rows=rows)


def shift_table(numbers: Mapping[str, Any]) -> Table:
    """Shifts of both beliefs by family and ending, with test, effect size and controls."""
    rows = [
        [
            family,
            ending,
            name,
            said["requests"],
            _number(said[name]["moved"]),
            _number(said[name]["share_of_gap"]),
            "" if said[name]["p"] is None else f"{said[name]['p']:.1e}",
            "" if said[name]["effect"] is None else round(said[name]["effect"], 2),
            _number(said[name]["harmless"]),
            _number(said[name]["beyond"]),
            shown_rate(said[name]["negative_side"]),
        ]
        for ending in ENDINGS
        for family, said in numbers["shifts"][ending]["families"].items()
        for name in _BELIEFS
    ]
    header = [
        "family",
        "endings",
        "belief",
        "requests",
        "shift",
        "share of the gap",
        "p (Wilcoxon)",
        "effect d_z",
        "harmless (control)",
        "beyond the control",
        "at 0 or below",
    ]
    return Table(header=header, rows=rows)


def _number(entry: Mapping[str, Any]) -> str:
    if entry["value"] is None or entry["n"] == 0:
        return "not measured"
    return f"{entry['value']:.3f} [{entry['low']:.3f}, {entry['high']:.3f}]"


def verdicts(numbers: Mapping[str, Any]) -> list[str]:
    """What the data say of figure 6, family by family and with both endings."""
    lines = []
    for ending in ENDINGS:
        for family, said in numbers["shifts"][ending]["families"].items():
            where = f"({family}, {_LABELS[ending]})"
            if said["requests"] < _LEAST:
                lines.append(
                    f"Not testable {where}: only {said['requests']} plainly refused requests were answered; "
                    f"{_LEAST} are needed."
                )
                continue
            lines += [_lowered(where, said), _kept(where, family, said), _which(where, said)]
    return lines


def _lowered(where: str, said: Mapping[str, Any]) -> str:
    refusal = said["refusal"]
    seen = refusal["moved"]["high"] < 0 and refusal["beyond"]["high"] < 0
    return (
        f"{'Seen' if seen else 'Not seen'} {where}: success lowers the refusal belief (shift "
        f"{_number(refusal['moved'])}, {refusal['share_of_gap']['value']:.0%} of the gap, n = {said['requests']} "
        f"requests; beyond wrapped harmless requests {_number(refusal['beyond'])})."
    )


def _kept(where: str, family: str, said: Mapping[str, Any]) -> str:
    harm = said["harm"]
    shown = (
        f"at 0 or below: {shown_rate(harm['negative_side'])} of successes, "
        f"{shown_rate(harm['plain_negative_side'])} of the same requests plainly asked; "
        f"shift {_number(harm['moved'])}, beyond wrapped harmless requests "
        f"{_number(harm['beyond'])}"
    )
    if family == "persuasion":
        seen = harm["negative_side"]["low"] > harm["plain_negative_side"]["high"]
        return f"{'Seen' if seen else 'Not seen'} {where}: part of the successes flips the harm belief ({shown})."
    low, high = (1 - harm["negative_side"][k] for k in ("high", "low"))
    seen = "Seen" if low > 0.5 else "Not seen" if high < 0.5 else "Undecided"
    return f"{seen} {where}: most successes stay on the harmful side ({shown})."


def _which(where: str, said: Mapping[str, Any]) -> str:
    more = said["refusal_beyond_harm"]
    if more["low"] > 0:
        moved = "the refusal belief falls more than the harm belief"
    elif more["high"] < 0:
        moved = "the harm belief falls more than the refusal belief"
    else:
        moved = "neither belief falls more than the other"
    shares = [said[name]["share_of_gap"] for name in ("refusal", "harm")]
    return (
        f"In shares of the gap between plain harmful and harmless, {moved} {where}: refusal {_number(shares[0])}, "
        f"harm {_number(shares[1])}, difference {_number(more)}."
    )


def report(numbers: Mapping[str, Any]) -> str:
    """The experiment's page."""
    drawn, where, counts = figures(numbers), numbers["provenance"], numbers["counts"]
    train, plain = counts["train"], counts["plain"]
    sections = [
        Section(
            title="What was found",
            text=[
                *verdicts(numbers),
                "A success is a harmful request that the model refuses plainly and answers when wrapped, by refusal "
                "substrings in its greedy reply: the answer need not be harmful, or of use. Replies are to the "
                "messages as they are; with full stops only the beliefs are read anew.",
            ],
            notes=notes_on(where),
            figures=[drawn["fig06_beliefs"]],
        ),
        Section(
            title="Which wrappers succeed",
            text=[
                "The control is what the same wrapper does to harmless requests that the model answers plainly."
            ],
            figures=[drawn["success"]],
            tables=[rate_table(numbers)],
        ),
        Section(
            title="Which belief moves",
            text=[
                "Mean shift from the plain request, prompts of one request averaged first; intervals over requests. "
                "Wrapping moves beliefs by itself: what counts is what is left beyond harmless requests in the same "
                "wrappers. Where a message ends in its wrapper, t_inst is a token of the wrapper.",
            ],
            figures=[drawn["shifts"]],
            tables=[shift_table(numbers)],
        ),
        Section(
            title="Prompts",
            text=[
                f"Centres: {train['harmful']['kept']} of {train['harmful']['of']} harmful training prompts that are "
                f"refused, {train['harmless']['kept']} of {train['harmless']['of']} harmless ones that are answered. "
                f"Requests: {plain['harmful']['refused']} of {plain['harmful']['of']} harmful test prompts are refused "
                f"plainly, {plain['harmless']['of'] - plain['harmless']['refused']} of {plain['harmless']['of']} "
                "harmless ones answered; only these are wrapped and counted."
            ],
        ),
    ]
    lead = (
        f"{where['model']} on prompt set {where['prompts']['name']}; {numbers['seconds']['total']:.0f} s on "
        f"{where['device']}. After Zhao et al. 2025, arXiv:2507.11878, section 4."
    )
    return html_report("What jailbreaks move", lead, sections, where)
