"""Figures of the adversarial fine-tuning experiment, drawn from a stored result alone."""

import plotly.graph_objects as go

from interp.data.prompt_sets import COMPARED_ENDINGS
from interp.display.charts import (
    CONTROL_COLOUR,
    ENDING_LABELS,
    LAYER,
    Style,
    bars,
    counted,
    finish,
    line,
    ordered,
    panels,
    rate_axis,
    rate_bars,
    reference_line,
    style,
)
from interp.experiments.adversarial_finetune import Result
from interp.stats import Estimate

LABELS = ENDING_LABELS
"""Labels of the endings in figures and report."""
BEFORE = "before"
_AXES = {"harm": "belief that the prompt is harmful (t_inst)", "refusal": "belief in refusing (t_post_inst)"}


def figures(result: Result) -> dict[str, go.Figure]:
    """Every figure, from the stored result."""
    return {
        "fig07_harm_belief": _curves(result, "harm"),
        "fig07_refusal_belief": _curves(result, "refusal"),
        "refusal_rates": _rates(result),
        "guard": _guard(result),
    }


def condition_label(label: str) -> str:
    """What the model was fine-tuned on, in words."""
    if label == BEFORE:
        return "before fine-tuning"
    return label.replace(" harmless with stubs", " harmless prompts with stubs")


def _is_control(label: str) -> bool:
    return label.endswith("(control)")


def _looks(result: Result) -> dict[str, Style]:
    """The model before in black, sizes from dark to light, controls in grey."""
    sizes = [label for label in result.conditions if label != BEFORE and not _is_control(label)]
    looks = {BEFORE: style("baseline"), **dict(zip(sizes, ordered(len(sizes) + 1)[1:], strict=True))}
    controls = [label for label in result.conditions if _is_control(label)]
    for number, label in enumerate(controls):
        looks[label] = Style(CONTROL_COLOUR, ("dot", "dashdot")[number % 2], ("x", "cross")[number % 2])
    return looks


def _curves(result: Result, belief: str) -> go.Figure:
    """Figure 7: mean belief of held-out harmful prompts per layer; sizes in the first row, controls in the second."""
    looks = _looks(result)
    sizes = [label for label in looks if not _is_control(label)]
    rows = (sizes, [BEFORE, sizes[-1], *(label for label in looks if _is_control(label))])
    figure = panels(
        [f"{what}, {LABELS[e]}" for what in ("by size", "controls") for e in COMPARED_ENDINGS],
        columns=2,
        width=440,
        height=250,
        x_title=LAYER,
        y_title="belief",
    )
    shown = set[str]()
    for row, labels in enumerate(rows, start=1):
        for column, ending in enumerate(COMPARED_ENDINGS, start=1):
            for label in labels:
                values = result.conditions[label].beliefs[ending][belief]["harmful"].mean
                name = f"harmful, {condition_label(label)}"
                traces = line(name, values, looks[label], markers=False, in_legend=name not in shown)
                figure.add_traces(traces, rows=row, cols=column)
                shown.add(name)
            values = result.conditions[BEFORE].beliefs[ending][belief]["harmless"].mean
            name = "harmless, before fine-tuning"
            look = style("harmless")
            traces = line(name, values, look, markers=False, in_legend=name not in shown)
            figure.add_traces(traces, rows=row, cols=column)
            shown.add(name)
    reference_line(figure, y=0)
    return finish(
        figure,
        title=f"Mean {_AXES[belief]} of held-out prompts, before and after fine-tuning",
        note=f"{result.provenance.model_name}; "
        f"n = {result.n_test['harmful']} harmful; stubs: empty affirmative replies to "
        "harmful requests; a belief is the cosine to the centre of refused harmful training prompts minus that of "
        "accepted harmless ones, centres fitted before fine-tuning",
    )


def _short(label: str) -> str:
    """A condition on up to four short lines, for an axis."""
    words = (
        condition_label(label).replace(" with stubs", "<br>with stubs").replace(" (control)", "<br>(control)")
    )
    return words.replace("before ", "before<br>").replace("harmless prompts", "<br>harmless")


def _rates(result: Result) -> go.Figure:
    conditions = result.conditions
    kinds = list(conditions[BEFORE].refusal_rate)
    return rate_bars(
        {kind: {_short(name): c.refusal_rate[kind] for name, c in conditions.items()} for kind in kinds},
        title="Refusal of held-out prompts, before and after fine-tuning",
        note=f"{result.provenance.model_name}; "
        "examples trained on below each pair of bars; stubs: empty affirmative replies "
        "to harmful requests; substring match on 24 refusals; 95% intervals",
        y_title="refusal rate",
        looks={kind: style(kind) for kind in kinds},
    )


def _guard(result: Result) -> go.Figure:
    """Shares flagged: guard fitted before fine-tuning and refitted, by ending."""
    conditions = result.conditions
    fits = ("fitted before fine-tuning", "fitted again afterwards")
    figure = panels(
        [f"{fit},<br>{LABELS[ending]}" for fit in fits for ending in COMPARED_ENDINGS],
        columns=2,
        width=470,
        height=220,
        y_title="share flagged",
    )
    for row in (1, 2):
        for column, ending in enumerate(COMPARED_ENDINGS, start=1):
            guards = [condition.guard[ending] for condition in conditions.values()]
            flagged = [g.fitted_before if row == 1 else g.refitted for g in guards]
            shares: dict[str, list[Estimate]] = {
                "harmful": [share.harmful for share in flagged],
                "harmless": [share.harmless for share in flagged],
            }
            for kind, entries in shares.items():
                label = counted(kind, [e.n for e in entries])
                names = [_short(name) for name in conditions]
                trace = bars(label, names, entries, style(kind), in_legend=row == column == 1)
                figure.add_trace(trace, row=row, col=column)
    figure.update_xaxes(showticklabels=False, row=1)
    figure.update_layout(barmode="group")
    rate_axis(figure)
    return finish(
        figure,
        title="Held-out prompts that Latent Guard flags, before and after fine-tuning",
        note=f"{result.provenance.model_name}; threshold 0; stubs: empty affirmative replies to harmful requests; 95% "
        "intervals",
    )
