"""A trajectory's figures, drawn from its stored record alone.

The main figure shows behaviour, beliefs and directions along one checkpoint axis, so that it can be seen which of them
moves first.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.display.charts import COLOURS, CONTROL_COLOUR, DASHES, THEME, intervals
from interp.stats import Estimate
from interp.tracking.records import TrackRecord

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


class Rows:
    """Measurements of a record by measure, prompts and block, in checkpoint order."""

    def __init__(self, record: TrackRecord) -> None:
        self.checkpoints = record.checkpoints
        self._by: dict[tuple[str, str | None, int | None], dict[int, Estimate]] = {}
        for index, checkpoint in enumerate(record.checkpoints):
            for row in checkpoint.rows:
                if row.estimate.measurable:
                    layer = row.layer if row.measure == "weight_change" else None
                    self._by.setdefault((row.measure, row.prompts, layer), {})[index] = row.estimate
        steps = [checkpoint.step for checkpoint in record.checkpoints]
        known = [step for step in steps if step is not None]
        self.by_step = len(known) == len(steps) and all(a < b for a, b in pairwise(known))
        self.x = known if self.by_step else list(range(len(steps)))

    def of(self, measure: str, prompts: str | None, layer: int | None = None) -> dict[int, Estimate]:
        """Values by index of the checkpoint, where there are any."""
        return self._by.get((measure, prompts, layer), {})

    def names(self) -> list[tuple[str, str | None]]:
        """Every (measure, prompts) with a value, in the order of measurement."""
        return list(dict.fromkeys((measure, prompts) for measure, prompts, _ in self._by))

    def prompts(self, measure: str) -> list[str]:
        """Kinds of prompts or corpora of a measure."""
        return [str(prompts) for name, prompts in self.names() if name == measure]

    def layers(self, measure: str) -> list[int]:
        """Block indices of a measure."""
        return sorted(layer for m, _, layer in self._by if m == measure and layer is not None)


def figures(record: TrackRecord) -> dict[str, go.Figure]:
    """Every figure for which the record has values, by name."""
    rows = Rows(record)
    charts = {
        "trajectory": _trajectory(record, rows),
        "shift": _lines(
            record,
            rows,
            [("shift_" + axis, "harmful", _AXIS_LABELS[axis], *_axis_style(axis)) for axis in _AXES],
            title="How far harmful prompts moved along the reference's directions",
            y_title="shift (lengths of the direction)",
            zero=True,
        ),
        "compression": _lines(
            record,
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
            record,
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
        "weights": _weights(record, rows),
    }
    return {name: figure for name, figure in charts.items() if figure.data}


def _trajectory(record: TrackRecord, rows: Rows) -> go.Figure:
    """The figure of behaviour, beliefs and directions along one checkpoint axis."""
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
        title=f"Behaviour, beliefs and directions, {record.provenance.model_name}",
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
    _axis(figure, record, rows, row=3)
    return figure


def _axis_style(axis: str) -> tuple[str, str]:
    if axis.startswith("control_"):
        return CONTROL_COLOUR, "dot" if axis.endswith("harmfulness") else "dashdot"
    return (COLOURS[1], "solid") if axis == "harmfulness" else (COLOURS[0], "dash")


def _lines(
    record: TrackRecord,
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
    figure.update_layout(
        template=THEME, title=f"{title}, {record.provenance.model_name}", yaxis={"title": y_title}
    )
    _axis(figure, record, rows)
    return figure


def _traces(
    rows: Rows, series: Sequence[tuple[str, str, str, str, str]], legend: str = "legend"
) -> list[go.Scatter]:
    """One line with intervals per (measure, prompts, label, colour, dash) that has values."""
    traces = []
    for measure, prompts, label, colour, dash in series:
        measured = rows.of(measure, prompts)
        if not measured:
            continue
        bars = {**intervals(list(measured.values())), "color": colour, "thickness": 1, "width": 3}
        traces.append(
            go.Scatter(
                name=label,
                legend=legend,
                x=[rows.x[index] for index in measured],
                y=[number.value for number in measured.values()],
                mode="lines+markers",
                line={"color": colour, "dash": dash, "width": 2.2},
                marker={"size": 7, "symbol": _KIND_SYMBOLS.get(prompts, "circle")},
                error_y=bars,
                customdata=[
                    [rows.checkpoints[index].label, number.n, number.low, number.high]
                    for index, number in measured.items()
                ],
                hovertemplate=f"{label}, %{{customdata[0]}}: %{{y:.3f}} [%{{customdata[2]:.3f}}, "
                "%{customdata[3]:.3f}], n = %{customdata[1]}<extra></extra>",
            )
        )
    return traces


def _weights(record: TrackRecord, rows: Rows) -> go.Figure:
    layers = rows.layers("weight_change")
    if not layers:
        return go.Figure()
    table = [rows.of("weight_change", None, layer) for layer in layers]
    measured = list(table[0])
    figure = go.Figure(
        go.Heatmap(
            x=[str(rows.x[index]) for index in measured],
            y=layers,
            z=[[by[index].value if index in by else None for index in measured] for by in table],
            colorscale="Viridis",
            colorbar={"title": {"text": "relative<br>change"}},
            hovertemplate="block %{y}, checkpoint %{x}: %{z:.2e}<extra></extra>",
        )
    )
    figure.update_layout(
        template=THEME,
        title=f"Relative change of each block's weights, {record.provenance.model_name}",
        xaxis={"title": _x_title(record, rows), "type": "category"},
        yaxis={"title": "block"},
    )
    return figure


def _axis(figure: go.Figure, record: TrackRecord, rows: Rows, row: int | None = None) -> None:
    """Format the checkpoint axis, with a grey line where a checkpoint was skipped."""
    where: dict[str, Any] = {"row": row, "col": 1} if row else {}
    figure.update_xaxes(title={"text": _x_title(record, rows)}, **where)
    if not rows.by_step:
        labels = [c.label.replace("/checkpoint-", " ") for c in record.checkpoints]
        figure.update_xaxes(tickvals=rows.x, ticktext=labels, tickangle=-30)
    for x, checkpoint in zip(rows.x, record.checkpoints, strict=True):
        if not checkpoint.measured:
            figure.add_vline(
                x=x, line={"color": "#999", "dash": "dot", "width": 1}, annotation={"text": "skipped"}
            )


def _x_title(record: TrackRecord, rows: Rows) -> str:
    return f"{record.step_unit} of the checkpoint" if rows.by_step else "checkpoint"
