"""A trajectory's figures, statements and page, drawn from its stored numbers alone.

Wording: a series shows what changed between checkpoints. Whether that is rebound or resistance takes a grid of example
counts and seeds; resistance is an asymmetry of optimisation, not a disposition; and a checkpoint has returned to another
only where KL or the compression rate say so, not where a score crosses its old value (after Ji et al. 2025,
arXiv:2406.06144, and its critics).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.plots import COLOURS, CONTROL_COLOUR, DASHES, THEME, intervals
from interp.reports import Section, Table, html_report, notes_on

NAME = "track"
_KIND_COLOURS = {"harmful": COLOURS[1], "harmless": COLOURS[0], "borderline": COLOURS[2]}
_AXES = ("harmfulness", "refusal", "control_harmfulness", "control_refusal")
_AXIS_LABELS = {
    "harmfulness": "harmfulness",
    "refusal": "refusal",
    "control_harmfulness": "control of harmfulness",
    "control_refusal": "control of refusal",
}
RETURNED_KL = 0.01
"""Nats per token below which a checkpoint counts as returned to the reference (Ji et al. 2025, table 3)."""

Numbers = Mapping[str, Any]


class _Rows:
    """Rows of a trajectory by measure and prompts, in checkpoint order."""

    def __init__(self, numbers: Numbers) -> None:
        self.checkpoints = numbers["checkpoints"]
        self._by: dict[tuple[str, str | None, int | None], dict[int, Mapping[str, Any]]] = {}
        for row in numbers["rows"]:
            if row["status"] == "ok":
                layer = row["layer"] if row["measure"] == "weight_change" else None
                self._by.setdefault((row["measure"], row["prompts"], layer), {})[row["index"]] = row
        steps = [c["step"] for c in self.checkpoints]
        self.by_step = None not in steps and all(a < b for a, b in zip(steps, steps[1:], strict=False))
        self.x = [c["step"] if self.by_step else c["index"] for c in self.checkpoints]

    def of(self, measure: str, prompts: str | None, layer: int | None = None) -> dict[int, Mapping[str, Any]]:
        return self._by.get((measure, prompts, layer), {})

    def prompts(self, measure: str) -> list[str]:
        return list(dict.fromkeys(str(p) for m, p, _ in self._by if m == measure))

    def layers(self, measure: str) -> list[int]:
        return sorted(layer for m, _, layer in self._by if m == measure and layer is not None)


def figures(numbers: Numbers) -> dict[str, go.Figure]:
    """Every figure that these rows allow."""
    rows = _Rows(numbers)
    drawn = {
        "trajectory": _trajectory(numbers, rows),
        "shift": _lines(
            numbers,
            rows,
            [("shift_" + axis, "harmful", _AXIS_LABELS[axis], *_axis_style(axis)) for axis in _AXES],
            title="How far harmful prompts moved along the reference's directions",
            y_title="shift (lengths of the direction)",
            zero=True,
        ),
        "compression": _lines(
            numbers,
            rows,
            [
                ("bits_per_byte_change", name, name, COLOURS[i % 8], DASHES[i % 6])
                for i, name in enumerate(rows.prompts("bits_per_byte_change"))
            ],
            title="Compression of each corpus against the reference",
            y_title="change (bits per byte)",
            zero=True,
        ),
        "kl": _lines(
            numbers,
            rows,
            [
                (measure, kind, f"{label}, {kind}", _KIND_COLOURS[kind], dash)
                for measure, label, dash in (
                    ("kl_from_reference", "KL(reference || here)", "solid"),
                    ("kl_to_reference", "KL(here || reference)", "dash"),
                )
                for kind in ("harmful", "harmless")
            ],
            title="KL divergence, each on its first model's own samples",
            y_title="nats per token",
            zero=True,
        ),
        "weights": _weights(numbers, rows),
    }
    return {name: figure for name, figure in drawn.items() if figure.data}


def _trajectory(numbers: Numbers, rows: _Rows) -> go.Figure:
    """Behaviour, beliefs and directions along one checkpoint axis."""
    figure = make_subplots(rows=3, cols=1, shared_xaxes=True, vertical_spacing=0.05)
    panels = (
        [("refusal_rate", kind, f"refuses {kind}", _KIND_COLOURS[kind], "solid") for kind in _KIND_COLOURS],
        [
            (f"{name}_belief_reference", kind, f"{name} belief, {kind}", _KIND_COLOURS[kind], dash)
            for name, dash in (("harmfulness", "solid"), ("refusal", "dash"))
            for kind in ("harmful", "harmless")
        ],
        [(f"cosine_{axis}", "train", f"cosine, {_AXIS_LABELS[axis]}", *_axis_style(axis)) for axis in _AXES],
    )
    for number, (panel, title) in enumerate(
        zip(panels, ("refusal rate", "belief", "cosine with reference"), strict=True), start=1
    ):
        for trace in _traces(rows, panel, legend="legend" if number == 1 else f"legend{number}"):
            figure.add_trace(trace, row=number, col=1)
        figure.update_yaxes(title={"text": title}, row=number, col=1)
    figure.update_yaxes(range=[-0.03, 1.05], row=1, col=1)
    figure.add_hline(y=0, line={"color": "#666", "dash": "dash", "width": 1}, row=2, col=1)  # pyright: ignore[reportArgumentType]
    figure.update_layout(
        template=THEME,
        title=f"Behaviour, beliefs and directions along {_name(numbers)}",
        height=960,
        width=1060,
        margin={"r": 290, "b": 80},
    )
    for number, y in enumerate((1.0, 0.64, 0.29), start=1):
        key = "legend" if number == 1 else f"legend{number}"
        place = {
            "orientation": "v",
            "x": 1.01,
            "y": y,
            "xanchor": "left",
            "yanchor": "top",
            "font": {"size": 13},
        }
        figure.update_layout({key: place})
    _axis(figure, numbers, rows, row=3)
    return figure


def _axis_style(axis: str) -> tuple[str, str]:
    if axis.startswith("control_"):
        return CONTROL_COLOUR, "dot" if axis.endswith("harmfulness") else "dashdot"
    return (COLOURS[1], "solid") if axis == "harmfulness" else (COLOURS[0], "dash")


def _lines(
    numbers: Numbers,
    rows: _Rows,
    series: Sequence[tuple[str, str, str, str, str]],
    *,
    title: str,
    y_title: str,
    zero: bool = False,
) -> go.Figure:
    figure = go.Figure(_traces(rows, series))
    if zero and figure.data:
        figure.add_hline(y=0, line={"color": "#666", "dash": "dash", "width": 1})
    figure.update_layout(template=THEME, title=f"{title}, {_name(numbers)}", yaxis={"title": y_title})
    _axis(figure, numbers, rows)
    return figure


def _traces(
    rows: _Rows, series: Sequence[tuple[str, str, str, str, str]], legend: str = "legend"
) -> list[go.Scatter]:
    """One line with intervals per (measure, prompts, label, colour, dash) that has rows."""
    traces = []
    for measure, prompts, label, colour, dash in series:
        found = rows.of(measure, prompts)
        if not found:
            continue
        at = sorted(found)
        entries = [found[index] for index in at]
        bars = {**intervals(entries), "color": colour, "thickness": 1, "width": 3}
        traces.append(
            go.Scatter(
                name=label,
                legend=legend,
                x=[rows.x[index] for index in at],
                y=[entry["value"] for entry in entries],
                mode="lines+markers",
                line={"color": colour, "dash": dash, "width": 2.2},
                marker={"size": 6},
                error_y=bars,
                customdata=[[e["checkpoint"], e["n"], e["low"], e["high"]] for e in entries],
                hovertemplate=f"{label}, %{{customdata[0]}}: %{{y:.3f}} [%{{customdata[2]:.3f}}, "
                "%{customdata[3]:.3f}], n = %{customdata[1]}<extra></extra>",
            )
        )
    return traces


def _weights(numbers: Numbers, rows: _Rows) -> go.Figure:
    layers = rows.layers("weight_change")
    if not layers:
        return go.Figure()
    table = [rows.of("weight_change", None, layer) for layer in layers]
    measured = sorted(table[0])
    figure = go.Figure(
        go.Heatmap(
            x=[str(rows.x[index]) for index in measured],
            y=layers,
            z=[[by.get(index, {}).get("value") for index in measured] for by in table],
            colorscale="Viridis",
            colorbar={"title": {"text": "relative<br>change"}},
            hovertemplate="block %{y}, checkpoint %{x}: %{z:.2e}<extra></extra>",
        )
    )
    figure.update_layout(
        template=THEME,
        title=f"Relative change of each block's weights, {_name(numbers)}",
        xaxis={"title": _x_title(numbers, rows), "type": "category"},
        yaxis={"title": "block"},
    )
    return figure


def _axis(figure: go.Figure, numbers: Numbers, rows: _Rows, row: int | None = None) -> None:
    """The checkpoint axis, with a grey line where a checkpoint was skipped."""
    where = {"row": row, "col": 1} if row else {}
    figure.update_xaxes(title={"text": _x_title(numbers, rows)}, **where)
    if not rows.by_step:
        labels = [c["label"] for c in numbers["checkpoints"]]
        figure.update_xaxes(tickvals=rows.x, ticktext=labels, tickangle=-30)
    for x, checkpoint in zip(rows.x, numbers["checkpoints"], strict=True):
        if checkpoint["status"] != "ok":
            figure.add_vline(
                x=x, line={"color": "#999", "dash": "dot", "width": 1}, annotation={"text": "skipped"}
            )


def _x_title(numbers: Numbers, rows: _Rows) -> str:
    return f"{numbers['step_unit']} of the checkpoint" if rows.by_step else "checkpoint"


def _name(numbers: Numbers) -> str:
    return str(numbers["provenance"]["model"])


def change_table(numbers: Numbers) -> Table:
    """Each measure at the reference and at the last measured checkpoint."""
    rows = _Rows(numbers)
    first, last = _ends(numbers)
    body = []
    for measure, prompts in dict.fromkeys(
        (r["measure"], r["prompts"])
        for r in numbers["rows"]
        if r["status"] == "ok" and r["measure"] != "weight_change"
    ):
        found = rows.of(measure, prompts)
        if last in found:
            body.append(
                [measure, prompts or "", _shown(found.get(first)), _shown(found[last]), found[last]["n"]]
            )
    labels = [numbers["checkpoints"][index]["label"] for index in (first, last)]
    return Table(
        header=["measure", "prompts", f"{labels[0]} (reference)", f"{labels[1]} (last)", "n"], rows=body
    )


def checkpoint_table(numbers: Numbers) -> Table:
    """The series: step, what became of it, seconds."""
    return Table(
        header=["checkpoint", numbers["step_unit"], "status", "seconds"],
        rows=[
            [c["label"], "" if c["step"] is None else c["step"], c["status"], round(c["seconds"], 1)]
            for c in numbers["checkpoints"]
        ],
    )


def _ends(numbers: Numbers) -> tuple[int, int]:
    measured = [c["index"] for c in numbers["checkpoints"] if c["status"] == "ok"]
    first = next(
        (c["index"] for c in numbers["checkpoints"] if c["label"] == numbers["reference"]["label"]),
        measured[0],
    )
    return first, measured[-1]


def _shown(row: Mapping[str, Any] | None) -> str:
    return "" if row is None else f"{row['value']:.3g} [{row['low']:.3g}, {row['high']:.3g}]"


def verdicts(numbers: Numbers) -> list[str]:
    """What changed from the reference to the last checkpoint, in words that follow from the intervals."""
    rows = _Rows(numbers)
    first, last = _ends(numbers)
    said = []
    rates = rows.of("refusal_rate", "harmful")
    if first in rates and last in rates and first != last:
        a, b = rates[first], rates[last]
        word = (
            "fell"
            if b["high"] < a["low"]
            else "rose"
            if b["low"] > a["high"]
            else "did not change resolvably"
        )
        said.append(
            f"The refusal rate on harmful prompts {word}: {_shown(a)} to {_shown(b)}, n = {b['n']} each."
        )
    for axis in ("harmfulness", "refusal"):
        moved, control = (rows.of(f"shift_{name}", "harmful").get(last) for name in (axis, f"control_{axis}"))
        if moved is None or control is None:
            continue
        further = min(abs(moved["low"]), abs(moved["high"])) > max(abs(control["low"]), abs(control["high"]))
        apart = further and moved["low"] * moved["high"] > 0
        said.append(
            f"Harmful prompts moved {_shown(moved)} lengths along {axis}, {_shown(control)} along its control"
            f"{'' if apart else ': not resolvably further than along the control'}."
        )
    kl = {kind: rows.of("kl_from_reference", kind).get(last) for kind in ("harmful", "harmless")}
    if first != last and all(kl.values()):
        within = all(row["high"] < RETURNED_KL for row in kl.values() if row)
        values = ", ".join(f"{_shown(row)} on {kind}" for kind, row in kl.items())
        said.append(
            f"KL(reference || last) is {values} prompts, nats per token: the last checkpoint "
            f"{'is within' if within else 'is not within'} {RETURNED_KL} of the reference."
        )
    skipped = [c for c in numbers["checkpoints"] if c["status"] != "ok"]
    said += [f"{c['label']} was skipped: {c['status']}." for c in skipped]
    return said


def report(numbers: Numbers) -> str:
    """The trajectory's page."""
    drawn, where, reference = figures(numbers), numbers["provenance"], numbers["reference"]
    notes = notes_on(where)
    leak = max(
        reference["leak"]["last_token"]["value"],
        *(r["value"] for r in reference["leak"]["embedding"].values()),
    )
    if leak > reference["leak"]["threshold"]:
        notes.append(
            f"How prompts end tells harmful from harmless with AUROC {leak:.2f}: what is read at t_inst encodes endings. "
            "Track again with prompts ended alike (--ending period)."
        )
    if not reference["filtered"]:
        notes.append(
            f"The reference refuses {reference['refused']} harmful and answers {reference['answered']} harmless training "
            "prompts: too few, so 'refusal' stands for harmful minus harmless at the last template token."
        )
    notes.append(
        "A series shows what changed between its checkpoints. Whether that is consistent with rebound takes a grid of "
        "example counts and seeds; a lower refusal rate is no return to an earlier model unless KL or the compression "
        "rate say so; resistance is an asymmetry of optimisation, not a disposition of the model."
    )
    sections = [
        Section(
            title="What changed",
            text=verdicts(numbers),
            notes=notes,
            figures=[drawn["trajectory"]] if "trajectory" in drawn else [],
        ),
        Section(title="Representations", text=_about_axes(reference), figures=_some(drawn, "shift")),
        Section(
            title="Compression, KL and weights",
            text=[
                "Bits per byte of held-out text, responses alone where a corpus has prompts; lower is a better fit. KL is "
                "averaged over the tokens of replies sampled at temperature 1 from its first model.",
            ],
            figures=_some(drawn, "compression", "kl", "weights"),
        ),
        Section(title="Numbers", tables=[change_table(numbers), checkpoint_table(numbers)]),
    ]
    if cost := numbers["cost"]:
        sections[0] = Section(
            title=sections[0].title,
            text=[
                *sections[0].text,
                f"A measurement took {cost['seconds_per_measurement']:.2f} s, as long as "
                f"{cost['steps_per_measurement']:.1f} training steps of {cost['seconds_per_step']:.2f} s.",
            ],
            notes=notes,
            figures=sections[0].figures,
        )
    lead = f"{len(numbers['checkpoints'])} checkpoints against {reference['label']}; every value with n and a 95% interval."
    return html_report(f"Trajectory of {_name(numbers)}", lead, sections, where)


def _some(drawn: Mapping[str, go.Figure], *names: str) -> list[go.Figure]:
    return [drawn[name] for name in names if name in drawn]


def _about_axes(reference: Mapping[str, Any]) -> list[str]:
    """Where each direction is read and what its control is."""
    said = []
    for name in ("harmfulness", "refusal"):
        axis, control = reference["axes"].get(name), reference["axes"].get(f"control_{name}")
        if axis is None:
            continue
        place = f"{name.capitalize()} is read at layer {axis['layer']}, {('t_inst', 't_post_inst')[axis['role']]} "
        place += f"(AUROC {axis['auroc']['value']:.2f} on validation prompts)"
        about = (
            "; no contrast was fit for a control"
            if control is None
            else (
                f"; its control tells {control['about']} apart with AUROC {control['auroc']['value']:.2f}, the nearest of "
                f"{len(control['tried'])} contrasts, without its component along {name}"
            )
        )
        said.append(place + about + ".")
    return said
