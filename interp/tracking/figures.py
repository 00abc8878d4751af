"""A trajectory's figures, drawn from its stored record alone.

The main figure shows behaviour, beliefs and directions along one checkpoint axis, so that it can be seen which of them
moves first.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import plotly.graph_objects as go

from interp.display.charts import (
    Style,
    estimates_line,
    finish,
    layout_of,
    named,
    panels,
    rate_axis,
    reference_line,
    style,
)
from interp.stats import Estimate
from interp.tracking.records import TrackRecord

_KINDS = ("harmful", "harmless", "borderline")
_AXES = ("harmfulness", "refusal", "control_harmfulness", "control_refusal")
_AXIS_LABELS = {
    "harmfulness": "harmfulness direction",
    "refusal": "refusal direction",
    "control_harmfulness": "random direction, harmfulness (control)",
    "control_refusal": "random direction, refusal (control)",
}


class Series(NamedTuple):
    """One line: a measure of some prompts."""

    measure: str
    prompts: str
    label: str
    look: Style
    within: tuple[float, float] | None = None
    """Bounds of the values, e.g. (0, 1) for shares."""


class Rows:
    """Measurements of a record by measure, prompts and block, in checkpoint order."""

    def __init__(self, record: TrackRecord, stages: str = "") -> None:
        self.checkpoints = record.checkpoints
        self.stages = stages
        self._by: dict[tuple[str, str | None, int | None], dict[int, Estimate]] = {}
        for index, checkpoint in enumerate(record.checkpoints):
            for row in checkpoint.all_rows:
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


def figures(record: TrackRecord, *, stages: str = "") -> dict[str, go.Figure]:
    """Every figure for which the record has values, by name.

    Args:
        stages: what the names of the checkpoints' folders mean, for the notes below the titles.
    """
    rows = Rows(record, stages)
    corpora = rows.prompts("bits_per_byte_change")
    drawn = {
        "trajectory": _trajectory(record, rows),
        "shift": _lines(
            record,
            rows,
            [Series(f"shift_{axis}", "harmful", _AXIS_LABELS[axis], style(axis)) for axis in _AXES],
            title="How far harmful prompts moved along each direction of the reference",
            y_title="shift (lengths of the direction)",
        ),
        "compression": _lines(
            record,
            rows,
            [Series("bits_per_byte_change", name, name, look) for name, look in named(corpora).items()],
            title="Change of compression of each corpus since the reference",
            y_title="change (bits per byte)",
        ),
        "kl": _lines(
            record,
            rows,
            [
                Series(measure, kind, f"{label}, {kind}", style(kind)._replace(dash=dash))
                for measure, label, dash in (
                    ("kl_from_reference", "KL(reference ‖ checkpoint)", "solid"),
                    ("kl_to_reference", "KL(checkpoint ‖ reference)", "dash"),
                )
                for kind in ("harmful", "harmless")
            ],
            title="KL divergence between reference and checkpoint",
            y_title="nats per token",
            note="each on samples of the model that is named first",
        ),
        "detectability": _lines(
            record,
            rows,
            [
                Series("own_text_auroc", name, f"AUROC of its own text, {name}", look, (0.0, 1.0))
                for name, look in named(rows.prompts("own_text_auroc")).items()
            ],
            title="How well each checkpoint tells its own text from human text",
            y_title="AUROC",
        ),
        **{
            f"{question}_by_judges": _judged(record, rows, question, title)
            for question, title in (
                ("refused", "Share of harmful prompts refused, by judge"),
                ("harmful", "Share of harmful prompts answered with harm, by judge"),
            )
        },
        "weights": _weights(record, rows),
    }
    return {name: figure for name, figure in drawn.items() if figure.data}


def _trajectory(record: TrackRecord, rows: Rows) -> go.Figure:
    """The figure of behaviour, beliefs and directions along one checkpoint axis."""
    shown = {
        "refusal rate": [Series("refusal_rate", kind, kind, style(kind), (0.0, 1.0)) for kind in _KINDS],
        "belief": [
            Series(f"{name}_belief_reference", kind, f"{label}, {kind}", style(kind)._replace(dash=dash))
            for name, label, dash in (
                ("harmfulness", "harmfulness (t_inst)", "solid"),
                ("refusal", "refusal (t_post_inst)", "dash"),
            )
            for kind in ("harmful", "harmless")
        ],
        "cosine": [
            Series(f"cosine_{axis}", "train", _AXIS_LABELS[axis], style(axis), (-1.0, 1.0)) for axis in _AXES
        ],
    }
    figure = panels(
        [
            "Refusal of test prompts",
            "Beliefs, by the reference's centres",
            "Cosine of directions with the reference's",
        ],
        width=620,
        height=230,
        shared_y="no",
        gap_below=6,
    )
    for number, (y_title, series) in enumerate(shown.items(), start=1):
        for trace in _traces(rows, series, legend="legend" if number == 1 else f"legend{number}"):
            figure.add_trace(trace, row=number, col=1)
        figure.update_yaxes(title=y_title, row=number, col=1)
    for row in (1, 2):
        figure.update_xaxes(matches="x3", showticklabels=False, row=row)
    rate_axis(figure)
    figure.update_yaxes(range=None, tickvals=None, tickformat=None, row=2)
    figure.update_yaxes(range=None, tickvals=None, tickformat=None, row=3)
    figure.add_hline(y=0, line={"color": "#555", "dash": "dash", "width": 1}, row=2, col=1)  # pyright: ignore[reportArgumentType]
    _axis(figure, record, rows, row=3)
    finish(
        figure,
        title="Behaviour, beliefs and directions along the checkpoints",
        note=f"{_about(record, rows)}; {_counts(rows)}; bands: 95% intervals",
        left=95,
        right=300,
        legend=False,
    )
    for number in (1, 2, 3):
        domain = layout_of(figure)["yaxis" if number == 1 else f"yaxis{number}"].domain
        place = {"orientation": "v", "x": 1.015, "y": domain[1], "xanchor": "left", "yanchor": "top"}
        figure.update_layout({"legend" if number == 1 else f"legend{number}": place})
    return figure.update_layout(showlegend=True)


def _counts(rows: Rows) -> str:
    """Numbers of prompts behind the rates, by kind."""
    sizes = {kind: [e.n for e in rows.of("refusal_rate", kind).values()] for kind in _KINDS}
    return "n = " + ", ".join(f"{max(ns)} {kind}" for kind, ns in sizes.items() if ns)


def _lines(
    record: TrackRecord, rows: Rows, series: Sequence[Series], *, title: str, y_title: str, note: str = ""
) -> go.Figure:
    figure = panels(y_title=y_title)
    figure.add_traces(_traces(rows, series))
    if not figure.data:
        return figure
    reference_line(figure, y=0)
    _axis(figure, record, rows)
    about = f"{_about(record, rows)}; " + (f"{note}; " if note else "")
    return finish(figure, title=title, note=f"{about}bands: 95% intervals")


def _judged(record: TrackRecord, rows: Rows, question: str, title: str) -> go.Figure:
    """What every judge says about the replies to harmful prompts."""
    prefix = f"{question}_by_"
    judges = [
        measure.removeprefix(prefix)
        for measure, prompts in rows.names()
        if measure.startswith(prefix) and prompts == "harmful"
    ]
    series = [
        Series(prefix + judge, "harmful", judge, look, (0.0, 1.0)) for judge, look in named(judges).items()
    ]
    return _lines(record, rows, series, title=title, y_title="share of replies")


def _about(record: TrackRecord, rows: Rows) -> str:
    """The model, which checkpoint all others are compared with, and what the checkpoints' names mean."""
    labels = [checkpoint.label for checkpoint in record.checkpoints]
    reference = record.reference.label
    name = _checkpoint_name(record, rows, labels.index(reference)) if reference in labels else reference
    reference = f"reference: checkpoint {name.replace('<br>', ' ')}"
    return "; ".join([record.provenance.model_name, reference, *([rows.stages] if rows.stages else [])])


def _traces(rows: Rows, series: Sequence[Series], legend: str = "legend") -> list[go.Scatter]:
    """One line with its band per series that has values."""
    traces = []
    for one in series:
        measured = rows.of(one.measure, one.prompts)
        if not measured:
            continue
        made = estimates_line(
            one.label,
            list(measured.values()),
            one.look,
            x=[rows.x[index] for index in measured],
            within=one.within,
        )
        made[-1].customdata = [
            [number.low, number.high, rows.checkpoints[index].label, number.n]
            for index, number in measured.items()
        ]
        made[-1].hovertemplate = (
            f"{one.label}, %{{customdata[2]}}: %{{y:.3f}} [%{{customdata[0]:.3f}}, %{{customdata[1]:.3f}}], "
            "n = %{customdata[3]}<extra></extra>"
        )
        for trace in made:
            trace.legend = legend
        traces += made
    return traces


def _weights(record: TrackRecord, rows: Rows) -> go.Figure:
    layers = rows.layers("weight_change")
    if not layers:
        return go.Figure()
    table = [rows.of("weight_change", None, layer) for layer in layers]
    measured = list(table[0])
    values = [[by[index].value if index in by else None for index in measured] for by in table]
    top = max((v for row in values for v in row if v is not None), default=0.0)
    digits = -math.floor(math.log10(top)) if top > 0 else 0
    figure = panels(y_title="block", height=380)
    figure.add_heatmap(
        x=[_checkpoint_name(record, rows, index) for index in measured],
        y=layers,
        z=values,
        colorscale="Blues",
        zmin=0,
        colorbar={"title": {"text": "relative<br>change"}, "tickformat": f".{digits + 1}f", "nticks": 6},
        hovertemplate="block %{y}, checkpoint %{x}: %{z:.2e}<extra></extra>",
    )
    figure.update_xaxes(type="category", title=_x_title(record, rows))
    return finish(
        figure,
        title="Relative change of each block's weights since the reference",
        note=_about(record, rows),
        right=130,
    )


def _checkpoint_name(record: TrackRecord, rows: Rows, index: int) -> str:
    return f"{rows.x[index]:,}" if rows.by_step else _short(record.checkpoints[index].label)


def _short(label: str) -> str:
    """A checkpoint's folder on two lines."""
    return label.replace("/checkpoint-", "<br>")


def _axis(figure: go.Figure, record: TrackRecord, rows: Rows, row: int | None = None) -> None:
    """Format the checkpoint axis, with a grey line where a checkpoint was skipped."""
    where: dict[str, Any] = {"row": row, "col": 1} if row else {}
    figure.update_xaxes(title={"text": _x_title(record, rows)}, **where)
    if not rows.by_step:
        labels = [_short(c.label) for c in record.checkpoints]
        figure.update_xaxes(tickvals=rows.x, ticktext=labels)
    for x, checkpoint in zip(rows.x, record.checkpoints, strict=True):
        if not checkpoint.measured:
            figure.add_vline(
                x=x, line={"color": "#999", "dash": "dot", "width": 1}, annotation={"text": "skipped"}
            )


def _x_title(record: TrackRecord, rows: Rows) -> str:
    return f"{record.step_unit} of the checkpoint" if rows.by_step else "checkpoint"
