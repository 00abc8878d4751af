"""Figures of the adversarial fine-tuning experiment, drawn from a stored result alone."""

from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.data.prompt_sets import COMPARED_ENDINGS
from interp.display.charts import COLOURS, CONTROL_COLOUR, DASHES, THEME, rate_bars
from interp.experiments.adversarial_finetune import Result

LABELS = {"as-is": "prompts as they are", "period": "all ended by a full stop"}
"""Labels of the endings in figures and report."""
_ROLES = {"harm": "t_inst", "refusal": "t_post_inst"}
_BY_SIZE = ("solid", "dash", "longdash", "longdashdot", "3px,3px", "12px,3px,3px,3px")


def figures(result: Result) -> dict[str, go.Figure]:
    """Every figure, from the stored result."""
    return {
        "fig07_harm_belief": _curves(result, "harm"),
        "fig07_refusal_belief": _curves(result, "refusal"),
        "refusal_rates": _rates(result),
        "guard": _guard(result),
    }


def _curves(result: Result, belief: str) -> go.Figure:
    """Figure 7: mean belief of held-out harmful prompts per layer, a line per size; controls and harmless in grey."""
    figure = make_subplots(
        rows=1, cols=2, shared_yaxes=True, subplot_titles=[LABELS[e] for e in COMPARED_ENDINGS]
    )
    for column, ending in enumerate(COMPARED_ENDINGS, start=1):
        ordinary = 0
        for label, condition in result.conditions.items():
            control = label.endswith("(control)")
            values = condition.beliefs[ending][belief]["harmful"]
            colour = CONTROL_COLOUR if control else COLOURS[ordinary % len(COLOURS)]
            dash = DASHES[2 if "refusals" in label else 3] if control else _BY_SIZE[ordinary % len(_BY_SIZE)]
            ordinary += not control
            figure.add_trace(
                _line(f"harmful, {label}", values.mean, colour, dash, column == 1), row=1, col=column
            )
        harmless = result.conditions["before"].beliefs[ending][belief]["harmless"]
        figure.add_trace(
            _line("harmless, before", harmless.mean, "#000000", "dot", column == 1), row=1, col=column
        )
    figure.add_hline(y=0, line={"color": "#666", "dash": "dash", "width": 1})
    figure.update_xaxes(title="layer")
    figure.update_yaxes(title=f"{belief} belief at {_ROLES[belief]}", col=1)
    n = result.n_test["harmful"]
    figure.update_layout(
        template=THEME,
        title=f"Mean {belief} belief of {n} held-out prompts, centres fitted before, {result.provenance.model_name}",
        width=1100,
        height=600,
        margin={"t": 100},
        legend={"y": -0.2},
    )
    return figure


def _line(name: str, values: Sequence[float], colour: str, dash: str, shown: bool) -> go.Scatter:
    return go.Scatter(
        x=list(range(len(values))),
        y=list(values),
        name=name,
        legendgroup=name,
        showlegend=shown,
        mode="lines",
        line={"color": colour, "dash": dash, "width": 2.2},
        hovertemplate=f"{name}, layer %{{x}}: %{{y:.4f}}<extra></extra>",
    )


def _rates(result: Result) -> go.Figure:
    conditions = result.conditions
    return rate_bars(
        {label: condition.refusal_rate for label, condition in conditions.items()},
        title=f"Refusal of held-out prompts, {result.provenance.model_name}",
        y_title="refusal rate (24 substrings)",
        controls=[label for label in conditions if label.endswith("(control)")],
    )


def _guard(result: Result) -> go.Figure:
    conditions = result.conditions
    figure = rate_bars(
        {
            label: {
                f"{kind}<br>{fitted}<br>{LABELS[ending]}": share
                for ending in COMPARED_ENDINGS
                for fitted, flagged in (
                    ("fitted before", condition.guard[ending].fitted_before),
                    ("refitted", condition.guard[ending].refitted),
                )
                for kind, share in (("harmful", flagged.harmful), ("harmless", flagged.harmless))
            }
            for label, condition in conditions.items()
        },
        title=f"Held-out prompts that the guard flags (threshold 0), {result.provenance.model_name}",
        y_title="share flagged",
        controls=[label for label in conditions if label.endswith("(control)")],
    )
    figure.update_layout(
        width=1250, height=580, margin={"b": 180}, legend={"y": -0.3}, xaxis={"tickfont": {"size": 13}}
    )
    return figure
