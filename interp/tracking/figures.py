"""A trajectory's figures, drawn from its stored numbers alone.

The one that is this project's: behaviour, beliefs and directions along the same checkpoint axis, synchronised, so that
it can be seen which of them moves first.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.display.charts import COLOURS, CONTROL_COLOUR, DASHES, THEME, intervals

_KIND_COLOURS = {"harmful": COLOURS[1], "harmless": COLOURS[0], "borderline": COLOURS[2]}
_KIND_SYMBOLS = {"harmful": "circle", "harmless": "square-open", "borderline": "diamond"}
_KIND_DASHES = {"harmful": "solid", "harmless": "dash", "borderline": "dot"}
_AXES = ("harmfulness", "refusal", "control_harmfulness", "control_refusal")
_AXIS_LABELS = {
    "harmfulness": "harmfulness",
    "refusal": "refusal",
    "control_harmfulness": "control of harmfulness",
    "control_refusal": "control of refusal",
}
Numbers = Mapping[str, Any]


class Rows:
    """Rows of a trajectory by measure and prompts, in checkpoint order."""

    def __init__(self, numbers: Numbers) -> None:
        self.checkpoints = numbers["checkpoints"]
        self._by: dict[tuple[str, str | None, int | None], dict[int, Mapping[str, Any]]] = {}
        for row in numbers["rows"]:
            if row["status"] == "ok":
                layer = row["layer"] if row["measure"] == "weight_change" else None
                self._by.setdefault((row["measure"], row["prompts"], layer), {})[row["index"]] = row
        steps = [c["step"] for c in self.checkpoints]
        self.by_step = None not in steps and all(a < b for a, b in pairwise(steps))
        self.x = [c["step"] if self.by_step else c["index"] for c in self.checkpoints]

    def of(self, measure: str, prompts: str | None, layer: int | None = None) -> dict[int, Mapping[str, Any]]:
        return self._by.get((measure, prompts, layer), {})

    def prompts(self, measure: str) -> list[str]:
        return list(dict.fromkeys(str(p) for m, p, _ in self._by if m == measure))

    def layers(self, measure: str) -> list[int]:
        return sorted(layer for m, _, layer in self._by if m == measure and layer is not None)


def figures(numbers: Numbers) -> dict[str, go.Figure]:
    """Every figure that these rows allow."""
    rows = Rows(numbers)
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


def _trajectory(numbers: Numbers, rows: Rows) -> go.Figure:
    """Behaviour, beliefs and directions along one checkpoint axis."""
    figure = make_subplots(rows=3, cols=1, shared_xaxes=True, vertical_spacing=0.05)
    panels = (
        [
            ("refusal_rate", kind, f"refuses {kind}", _KIND_COLOURS[kind], _KIND_DASHES[kind])
            for kind in _KIND_COLOURS
        ],
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
        figure.update_yaxes(title={"text": title, "standoff": 12}, row=number, col=1)
    figure.update_yaxes(range=[-0.03, 1.05], row=1, col=1)
    figure.add_hline(y=0, line={"color": "#666", "dash": "dash", "width": 1}, row=2, col=1)  # pyright: ignore[reportArgumentType]
    figure.update_layout(
        template=THEME,
        title=f"Behaviour, beliefs and directions, {model_name(numbers)}",
        height=960,
        width=1060,
        margin={"l": 95, "r": 290, "b": 80},
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
    rows: Rows,
    series: Sequence[tuple[str, str, str, str, str]],
    *,
    title: str,
    y_title: str,
    zero: bool = False,
) -> go.Figure:
    figure = go.Figure(_traces(rows, series))
    if zero and figure.data:
        figure.add_hline(y=0, line={"color": "#666", "dash": "dash", "width": 1})
    figure.update_layout(template=THEME, title=f"{title}, {model_name(numbers)}", yaxis={"title": y_title})
    _axis(figure, numbers, rows)
    return figure


def _traces(
    rows: Rows, series: Sequence[tuple[str, str, str, str, str]], legend: str = "legend"
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
                marker={"size": 7, "symbol": _KIND_SYMBOLS.get(prompts, "circle")},
                error_y=bars,
                customdata=[[e["checkpoint"], e["n"], e["low"], e["high"]] for e in entries],
                hovertemplate=f"{label}, %{{customdata[0]}}: %{{y:.3f}} [%{{customdata[2]:.3f}}, "
                "%{customdata[3]:.3f}], n = %{customdata[1]}<extra></extra>",
            )
        )
    return traces


def _weights(numbers: Numbers, rows: Rows) -> go.Figure:
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
        title=f"Relative change of each block's weights, {model_name(numbers)}",
        xaxis={"title": _x_title(numbers, rows), "type": "category"},
        yaxis={"title": "block"},
    )
    return figure


def _axis(figure: go.Figure, numbers: Numbers, rows: Rows, row: int | None = None) -> None:
    """The checkpoint axis, with a grey line where a checkpoint was skipped."""
    where: dict[str, Any] = {"row": row, "col": 1} if row else {}
    figure.update_xaxes(title={"text": _x_title(numbers, rows)}, **where)
    if not rows.by_step:
        labels = [c["label"].replace("/checkpoint-", " ") for c in numbers["checkpoints"]]
        figure.update_xaxes(tickvals=rows.x, ticktext=labels, tickangle=-30)
    for x, checkpoint in zip(rows.x, numbers["checkpoints"], strict=True):
        if checkpoint["status"] != "ok":
            figure.add_vline(
                x=x, line={"color": "#999", "dash": "dot", "width": 1}, annotation={"text": "skipped"}
            )


def _x_title(numbers: Numbers, rows: Rows) -> str:
    return f"{numbers['step_unit']} of the checkpoint" if rows.by_step else "checkpoint"


def model_name(numbers: Numbers) -> str:
    return str(numbers["provenance"]["model"])
