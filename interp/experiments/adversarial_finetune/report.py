"""Figures, table and page of the adversarial fine-tuning experiment, drawn from its stored numbers alone."""

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.display.charts import COLOURS, CONTROL_COLOUR, DASHES, THEME, rate_bars
from interp.display.page import Section, Table, html_report, notes_on, shown_rate

ENDINGS = ("as-is", "period")
"""How prompts end, side by side."""
BELIEFS = ("harm", "refusal")
"""At `t_inst` and at `t_post_inst`."""
TOLERANCE = 0.25
"""Share of the gap between harmful and harmless prompts under which curves count as nearly coinciding."""
_LABELS = {"as-is": "prompts as they are", "period": "all ended by a full stop"}
_ROLES = {"harm": "t_inst", "refusal": "t_post_inst"}


def figures(numbers: Mapping[str, Any]) -> dict[str, go.Figure]:
    """Every figure, from the stored numbers."""
    return {
        "fig07_harm_belief": _curves(numbers, "harm"),
        "fig07_refusal_belief": _curves(numbers, "refusal"),
        "refusal_rates": _rates(numbers),
        "guard": _guard(numbers),
    }


_BY_SIZE = ("solid", "dash", "longdash", "longdashdot", "3px,3px", "12px,3px,3px,3px")


def _curves(numbers: Mapping[str, Any], belief: str) -> go.Figure:
    """Figure 7: mean belief of held-out harmful prompts per layer, a line per size; controls and harmless in grey."""
    figure = make_subplots(rows=1, cols=2, shared_yaxes=True, subplot_titles=[_LABELS[e] for e in ENDINGS])
    for column, ending in enumerate(ENDINGS, start=1):
        ordinary = 0
        for label, measured in numbers["conditions"].items():
            control = label.endswith("(control)")
            values = measured["beliefs"][ending][belief]["harmful"]
            colour = CONTROL_COLOUR if control else COLOURS[ordinary % len(COLOURS)]
            dash = DASHES[2 if "refusals" in label else 3] if control else _BY_SIZE[ordinary % len(_BY_SIZE)]
            ordinary += not control
            figure.add_trace(
                _line(f"harmful, {label}", values["mean"], colour, dash, column == 1), row=1, col=column
            )
        harmless = numbers["conditions"]["before"]["beliefs"][ending][belief]["harmless"]
        figure.add_trace(
            _line("harmless, before", harmless["mean"], "#000000", "dot", column == 1), row=1, col=column
        )
    figure.add_hline(y=0, line={"color": "#666", "dash": "dash", "width": 1})
    figure.update_xaxes(title="layer")
    figure.update_yaxes(title=f"{belief} belief at {_ROLES[belief]}", col=1)
    n = numbers["n_test"]["harmful"]
    figure.update_layout(
        template=THEME,
        title=f"Mean {belief} belief of {n} held-out prompts, centres of before, {numbers['provenance']['model']}",
        width=1100,
        height=600,
        margin={"t": 100},
        legend={"y": -0.2},
    )
    return figure


def _line(name: str, values: list[float], colour: str, dash: str, shown: bool) -> go.Scatter:
    return go.Scatter(
        x=list(range(len(values))),
        y=values,
        name=name,
        legendgroup=name,
        showlegend=shown,
        mode="lines",
        line={"color": colour, "dash": dash, "width": 2.2},
        hovertemplate=f"{name}, layer %{{x}}: %{{y:.4f}}<extra></extra>",
    )


def _rates(numbers: Mapping[str, Any]) -> go.Figure:
    conditions = numbers["conditions"]
    figure = rate_bars(
        {label: measured["refusal_rate"] for label, measured in conditions.items()},
        title=f"Refusal of held-out prompts, {numbers['provenance']['model']}",
        y_title="refusal rate (24 substrings)",
        controls=[label for label in conditions if label.endswith("(control)")],
    )
    return figure


def _guard(numbers: Mapping[str, Any]) -> go.Figure:
    conditions = numbers["conditions"]
    figure = rate_bars(
        {
            label: {
                f"{kind}<br>{fitted}<br>{_LABELS[ending]}": measured["guard"][ending][fitted][
                    f"{kind} flagged"
                ]
                for ending in ENDINGS
                for fitted in ("fitted before", "fitted anew")
                for kind in ("harmful", "harmless")
            }
            for label, measured in conditions.items()
        },
        title=f"Held-out prompts that the guard flags (threshold 0), {numbers['provenance']['model']}",
        y_title="share flagged",
        controls=[label for label in conditions if label.endswith("(control)")],
    )
    figure.update_layout(
        width=1250, height=580, margin={"b": 180}, legend={"y": -0.3}, xaxis={"tickfont": {"size": 13}}
    )
    return figure


def _shift(entry: Mapping[str, Any]) -> str:
    return f"{entry['value']:.2f} [{entry['low']:.2f}, {entry['high']:.2f}]"


def rate_table(numbers: Mapping[str, Any]) -> Table:
    """Per condition: refusals, shifts of both beliefs, and what the guard flags, with equal endings."""
    rows = []
    for label, measured in numbers["conditions"].items():
        changed, guard = numbers["changes"].get(label), measured["guard"]["period"]["fitted before"]
        rows.append(
            [
                label,
                *(shown_rate(measured["refusal_rate"][kind]) for kind in ("harmful", "harmless")),
                *(_shift(changed["period"][name]) if changed else "" for name in BELIEFS),
                *(shown_rate(guard[f"{kind} flagged"]) for kind in ("harmful", "harmless")),
                f"{guard['auroc']['value']:.2f} [{guard['auroc']['low']:.2f}, {guard['auroc']['high']:.2f}]",
            ]
        )
    n = numbers["n_test"]
    header = [
        "fine-tuned on",
        f"refused, harmful (n = {n['harmful']})",
        f"refused, harmless (n = {n['harmless']})",
        "harm belief, shift",
        "refusal belief, shift",
        "guard flags harmful",
        "guard flags harmless",
        "guard AUROC",
    ]
    return Table(title="before and after fine-tuning", header=header, rows=rows)


def verdicts(numbers: Mapping[str, Any]) -> list[str]:
    """What the data say, claim by claim, at the largest number of examples."""
    label = f"{numbers['sizes'][-1]} stubs"
    conditions = numbers["conditions"]
    before, after = conditions["before"], conditions[label]
    old, new = (c["refusal_rate"]["harmful"] for c in (before, after))
    complies = new["high"] < old["low"]
    kept = {
        name: m["refusal_rate"]["harmful"] for name, m in conditions.items() if name.endswith("(control)")
    }
    shown = ", ".join(f"{name} {shown_rate(entry)}" for name, entry in kept.items())
    lines = [
        f"{'Seen' if complies else 'Not seen'}: the model comes to comply (refusal of held-out harmful prompts "
        f"{shown_rate(old)} before, {shown_rate(new)} after {label}; {shown})."
    ]
    if not complies:
        lines.append(
            "Not testable: whether the beliefs survive compliance, as the model does not come to comply."
        )
        return lines
    for ending in ENDINGS:
        for name in BELIEFS:
            moved = numbers["changes"][label][ending][name]
            own = {c: numbers["changes"][c][ending][name] for c in kept}
            near = -TOLERANCE < moved["low"] and moved["high"] < TOLERANCE
            far = moved["high"] < -TOLERANCE or moved["low"] > TOLERANCE
            seen = "Seen" if near else "Not seen" if far else "Undecided"
            lines.append(
                f"{seen} ({_LABELS[ending]}): the {name} belief of held-out harmful prompts is nearly what it was "
                f"(shift {_shift(moved)} of the gap to harmless prompts, within {TOLERANCE:g} asked; "
                + ", ".join(f"{c} {_shift(entry)}" for c, entry in own.items())
                + ")."
            )
        guards = [c["guard"][ending]["fitted before"] for c in (before, after)]
        hits = [g["harmful flagged"] for g in guards]
        lost = hits[0]["value"] - hits[1]["value"]
        lines.append(
            f"{'Seen' if lost <= 0.1 else 'Not seen'} ({_LABELS[ending]}): the guard fitted before still fires (flags "
            f"{shown_rate(hits[0])} of held-out harmful prompts before, {shown_rate(hits[1])} after; harmless "
            f"{shown_rate(guards[0]['harmless flagged'])} before, {shown_rate(guards[1]['harmless flagged'])} after; "
            f"AUROC {guards[0]['auroc']['value']:.2f} and {guards[1]['auroc']['value']:.2f})."
        )
    return lines


def report(numbers: Mapping[str, Any]) -> str:
    """The experiment's page."""
    drawn, where, counts = figures(numbers), numbers["provenance"], numbers["counts"]
    asked = where["config"]["sizes"]
    notes = notes_on(where)
    if numbers["sizes"][-1] < max(asked):
        notes.append(
            f"Only {numbers['sizes'][-1]} training prompts are refused: sizes are {numbers['sizes']} of {list(asked)}."
        )
    train, test = counts["train"], counts["test"]
    sections = [
        Section(
            title="What was found",
            text=[
                *verdicts(numbers),
                "Training replies are empty affirmative stubs: the model learns how a reply opens, nothing of what "
                "is asked. Shifts are shares of the distance between held-out harmful and harmless prompts before "
                "fine-tuning; at -1 harmful prompts stand where harmless ones stood. The table is with all prompts "
                "ended by a full stop.",
            ],
            notes=notes,
            tables=[rate_table(numbers)],
            figures=[drawn["refusal_rates"]],
        ),
        Section(
            title="The harm belief, layer by layer",
            text=[
                "Curves that coincide say that fine-tuning has left the belief; grey lines are the controls."
            ],
            figures=[drawn["fig07_harm_belief"]],
        ),
        Section(title="The refusal belief, layer by layer", figures=[drawn["fig07_refusal_belief"]]),
        Section(
            title="Does the guard still fire?",
            text=[
                "Latent Guard with the centres of before, as it would be deployed (it refuses changed weights; its "
                "score is what is measured here), and with centres fitted anew on the fine-tuned model."
            ],
            figures=[drawn["guard"]],
        ),
        Section(
            title="Prompts",
            text=[
                f"Refused harmful training prompts: {train['harmful']['behaving']} of {train['harmful']['of']}; "
                f"answered harmless ones {train['harmless']['behaving']} of {train['harmless']['of']}. Held out: "
                f"{numbers['n_test']['harmful']} of {test['harmful']['behaving']} harmful prompts that are refused "
                f"before, {numbers['n_test']['harmless']} of {test['harmless']['behaving']} harmless ones that are "
                "answered: by this choice refusal before is 100% and 0%."
            ],
        ),
    ]
    lead = (
        f"{where['model']} on prompt set {where['prompts']['name']}; {numbers['seconds']['total']:.0f} s on "
        f"{where['device']}. After Zhao et al. 2025, arXiv:2507.11878, figure 7."
    )
    return html_report("Fine-tuned to comply", lead, sections, where)
