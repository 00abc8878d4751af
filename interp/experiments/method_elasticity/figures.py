"""The figures of the method-elasticity experiment, drawn from a stored result alone."""

import math
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from interp.display.charts import (
    COLOURS,
    CONTROL_COLOUR,
    DASHES,
    SYMBOLS,
    Style,
    finish,
    line,
    panels,
    points,
    rate_axis,
    reference_line,
)
from interp.experiments.method_elasticity import Result
from interp.experiments.method_elasticity.analysis import ArmNumbers, curve, numbers, start_rates
from interp.experiments.method_elasticity.results import CONTROLS, LABELS, Arm, Leg, Matching
from interp.stats import Estimate, over_seeds

GROUPS: Mapping[str, tuple[Arm, ...]] = {
    "from written answers": ("sft", "dpo", "kto", "orpo"),
    "from the model's own answers": ("ppo", "dr-po", "grpo", "tree"),
}
"""Panels of the arms, with the controls in each; five strong lines are the most that a panel can hold."""
ABOUT: Mapping[Matching, str] = {
    "refusal": "aligned to the same refusal rate",
    "kl": "moved equally far from the base, by KL",
}
LOOKS: Mapping[Arm, Style] = {
    **{
        arm: Style(COLOURS[i], DASHES[i], SYMBOLS[i])
        for group in GROUPS.values()
        for i, arm in enumerate(group)
    },
    "shuffled": Style(CONTROL_COLOUR, "dot", "x"),
    "none": Style("#BDBDBD", "dashdot", "cross"),
}


def figures(result: Result) -> dict[str, go.Figure]:
    """Every figure, from the stored result."""
    drawn = {"declines": _curves(result, "refusal", "refusal", "refusal rate of harmful prompts", share=True)}
    if "kl" in result.config.matchings and _legs(result, "kl"):
        drawn["declines_by_kl"] = _curves(
            result, "refusal", "kl", "refusal rate of harmful prompts", share=True
        )
    drawn["half_lives"] = _half_lives(result)
    first = result.config.matchings[0]
    drawn["kl"] = _curves(result, "kl", first, "KL(base ‖ checkpoint), nats per token")
    drawn["refusals"] = _curves(result, "refusals", first, "bits per byte of refusals")
    drawn["inside"] = _curves(result, "shift_refusal", first, "shift (lengths of the direction)")
    if any(row.exponent.measurable for row in numbers(result, first).values()):
        drawn["exponents"] = _exponents(result)
    if result.aligned_again:
        drawn["both_times"] = _both_times(result)
    return drawn


def _legs(result: Result, matching: Matching) -> list[Leg]:
    """Legs of a matching, with the controls, which are matched by refusal or not at all."""
    return [
        leg
        for leg in result.unlearned
        if leg.matching == matching or (leg.arm in CONTROLS and matching != "refusal")
    ]


_EXAMPLES = (0.0, 2.2)
"""Range of axes that count examples, as powers of ten; a t interval of two or three seeds may go on beyond it."""
TITLES = {
    "refusal": "What is left of alignment under the same stubs",
    "kl": "Distance from the base while alignment is unlearned",
    "refusals": "Code length of refusals while alignment is unlearned",
    "shift_refusal": "Activations of harmful prompts along the refusal direction",
}


def _curves(result: Result, name: str, matching: Matching, y_title: str, *, share: bool = False) -> go.Figure:
    figure = panels(list(GROUPS), columns=2, width=390, x_title="stubs learned", y_title=y_title)
    seeds = result.config.seeds
    for column, group in enumerate(GROUPS.values(), start=1):
        for arm in (*group, *CONTROLS):
            legs = [leg for leg in _legs(result, matching) if leg.arm == arm]
            x, entries = _over_legs(legs, name)
            if not entries:
                continue
            traces = line(
                LABELS[arm],
                [entry.value for entry in entries],
                LOOKS[arm],
                x=x,
                in_legend=arm in group or column == 1,
                width=1 if arm in CONTROLS else 2.2,
            )
            # Three seeds have t intervals as wide as the panel: the seeds themselves say more.
            for leg in legs if len(legs) > 1 else ():
                at, values = curve(leg.moments, name)
                traces += line(
                    LABELS[arm], values, LOOKS[arm], x=at, in_legend=False, width=0.6, markers=False
                )
            for trace in traces:
                figure.add_trace(trace, row=1, col=column)
    if share:
        rate_axis(figure)
    if name.startswith("shift"):
        reference_line(figure, y=0)
    spread = f"thick: mean of {seeds} seeds, thin: each" if seeds > 1 else "one seed"
    return finish(
        figure,
        title=TITLES[name],
        note=f"{result.provenance.model_name}; methods {ABOUT[matching]}; n = {result.config.n_test} harmful test "
        f"prompts; {spread}",
        legend=True,
    )


def _over_legs(legs: Sequence[Leg], name: str) -> tuple[list[int], list[Estimate]]:
    """A measure over seeds at every number of stubs; one seed's own estimates."""
    if len(legs) == 1:
        known = [m for m in legs[0].moments if name in m.values and m.values[name].measurable]
        return [m.examples for m in known], [m.values[name] for m in known]
    by: dict[int, list[float]] = {}
    for leg in legs:
        for x, y in zip(*curve(leg.moments, name), strict=True):
            by.setdefault(x, []).append(y)
    return sorted(by), [over_seeds(by[x]) for x in sorted(by)]


def _half_lives(result: Result) -> go.Figure:
    """Half-lives of both matchings, and time constants, by arm."""
    figure = panels(
        ["half-life", "time constant"],
        columns=2,
        width=330,
        height=340,
        x_title="stubs",
        shared_y="all",
        gap=40,
    )
    looks = {"refusal": Style(COLOURS[0], "solid", "circle"), "kl": Style(COLOURS[1], "dash", "square-open")}
    for matching in result.config.matchings:
        table = numbers(result, matching)
        for column, field in enumerate(("half_life", "tau"), start=1):
            known: dict[Arm, Estimate] = {
                arm: getattr(row, field) for arm, row in table.items() if getattr(row, field).measurable
            }
            trace = points(
                ABOUT[matching],
                [LABELS[arm] for arm in known],
                list(known.values()),
                looks[matching],
                horizontal=True,
                in_legend=column == 1,
            )
            figure.add_trace(trace, row=1, col=column)
    order = [LABELS[arm] for arm in result.config.arms]
    figure.update_yaxes(categoryorder="array", categoryarray=order[::-1], type="category")
    figure.update_xaxes(type="log", range=_EXAMPLES)
    return finish(
        figure,
        title="How long each alignment lasts",
        note=f"towards the refusal rate before alignment ({_floor_text(result)}); arms without a number never came "
        f"half of the way back, or never refused more; {_intervals(result)}",
        legend=True,
    )


def _floor_text(result: Result) -> str:
    rates = list(start_rates(result).values())
    return ", ".join(f"{rate:.0%}" for rate in rates)


def _intervals(result: Result) -> str:
    seeds = result.config.seeds
    return (
        f"95% t intervals over the seeds with a number, of {seeds}"
        if seeds > 1
        else "one seed, so no intervals over seeds"
    )


def _exponents(result: Result) -> go.Figure:
    figure = panels(x_title="exponent p of the growth of the refusals' code length, t^p", height=340)
    table = numbers(result, result.config.matchings[0])
    known: dict[Arm, Estimate] = {arm: row.exponent for arm, row in table.items() if row.exponent.measurable}
    figure.add_trace(
        points(
            "exponent",
            [LABELS[arm] for arm in known],
            list(known.values()),
            Style(COLOURS[0]),
            horizontal=True,
            in_legend=False,
        )
    )
    order = [LABELS[arm] for arm in result.config.arms]
    figure.update_yaxes(categoryorder="array", categoryarray=order[::-1], type="category")
    reference_line(figure, x=4)
    reference_line(figure, x=1)
    how = "t interval of the fit, one seed" if result.config.seeds == 1 else _intervals(result)
    return finish(
        figure,
        title="Does loss of alignment grow as the fourth power of training time?",
        note=f"dashed: 1 (linear) and 4 (arXiv:2602.15799); {how}",
        legend=False,
    )


def _both_times(result: Result) -> go.Figure:
    figure = panels(x_title="examples to half of the way up", height=340)
    looks = {
        "first": Style(COLOURS[0], "solid", "circle"),
        "second": Style(COLOURS[1], "dash", "square-open"),
    }
    table = numbers(result, "refusal") if "refusal" in result.config.matchings else {}
    for number, look in looks.items():
        known: dict[Arm, Estimate] = {
            arm: found for arm, row in table.items() if (found := _time(row, number)).measurable
        }
        name = f"{number} alignment"
        labels = [LABELS[arm] for arm in known]
        figure.add_trace(points(name, labels, list(known.values()), look, horizontal=True))
    order = [LABELS[arm] for arm in result.config.methods]
    figure.update_yaxes(categoryorder="array", categoryarray=order[::-1], type="category")
    figure.update_xaxes(type="log", range=_EXAMPLES)
    return finish(
        figure,
        title="Is a model aligned faster the second time?",
        note="examples (pairs, or rollouts) until the same refusal rate on the prompts of matching; further left the "
        f"second time is what rehearsal priming predicts; {_intervals(result)}",
        legend=True,
    )


def _time(row: ArmNumbers, number: str) -> Estimate:
    if number == "first":
        return row.first
    return row.second if math.isfinite(row.second.value) else Estimate.unmeasured(missing=row.seeds)
