"""Figures of steering, drawn from a stored result alone; numbers are those of Zhao et al. 2025 (2507.11878)."""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from interp.data.prompts import Ending, Kind
from interp.display.charts import (
    CONTROL_COLOUR,
    Style,
    counted,
    estimates_line,
    finish,
    highlight,
    line,
    panels,
    rate_axis,
    reference_line,
    style,
)
from interp.experiments.harmfulness import Result
from interp.experiments.harmfulness.panels import by_ending
from interp.experiments.harmfulness.position_figures import token_label
from interp.experiments.harmfulness.results import InversionSweep, PositionSweep, RefusalSweep, Verdicts
from interp.stats import Estimate

STEERED = "layer that is steered"


def steering_figures(result: Result) -> dict[str, go.Figure]:
    """Figures of what was steered: nothing where the model answers too little, or no inverted question."""
    charts: dict[str, go.Figure] = {}
    by = result.by_ending
    steered: dict[Ending, RefusalSweep] = {
        ending: one.steering for ending, one in by.items() if one.steering is not None
    }
    if steered:
        charts["fig04_refusal_steering"] = _refusal_steering(result, steered)
    if (sweep := by["as-is"].inversion) is not None:
        charts["fig05a_inversion_harmless"] = _inversion(result, "harmless")
        charts["fig05b_inversion_harmful"] = _inversion(result, "harmful")
        charts["fig10_instruction_tokens_only"] = _instruction_only(result, sweep)
    if result.positions.inversion is not None:
        charts["fig16_position_inversion"] = _position_inversion(result, result.positions.inversion)
    return charts


def _looks(arms: Sequence[str]) -> dict[str, Style]:
    """Directions in their colours, one at instruction tokens only with another dash, random ones in grey."""
    looks, dashes = dict[str, Style](), iter(("dot", "dashdot", "longdash"))
    for arm in arms:
        if arm.startswith("random"):
            looks[arm] = Style(CONTROL_COLOUR, next(dashes), "x" if "harmfulness" in arm else "cross")
        else:
            look = style("refusal" if arm.startswith("refusal") else "harmfulness")
            looks[arm] = look._replace(dash="dot", symbol="square-open") if "only" in arm else look
    return looks


def _arms(
    figure: go.Figure, layers: Sequence[int], arms: Mapping[str, Sequence[Estimate]], column: int
) -> None:
    looks = _looks(list(arms))
    for arm, entries in arms.items():
        name = f"{arm} (control)" if arm.startswith("random") else arm
        traces = estimates_line(
            name, entries, looks[arm], x=list(layers), within=(0.0, 1.0), in_legend=column == 1
        )
        figure.add_traces(traces, rows=1, cols=column)


def _refusal_steering(result: Result, steered: Mapping[Ending, RefusalSweep]) -> go.Figure:
    figure = by_ending(result, x_title=STEERED, y_title="refusal rate")
    for column, ending in enumerate(result.endings, start=1):
        if ending in steered:
            _arms(figure, steered[ending].layers, steered[ending].rates, column)
    rate_axis(figure)
    return finish(
        figure,
        title="Refusal of harmless prompts when a direction is added",
        note=f"{result.provenance.model_name}; "
        f"{counted('prompts that it answers', [s.n for s in steered.values()])}; bands: "
        "95% intervals",
    )


def _no_rates(arms: Mapping[str, Sequence[Verdicts]]) -> dict[str, list[Estimate]]:
    return {arm: [verdicts.strict.no for verdicts in by_layer] for arm, by_layer in arms.items()}


def _inversion(result: Result, kind: Kind) -> go.Figure:
    figure = by_ending(result, x_title=STEERED, y_title='share of "No"')
    for column, one in enumerate(result.by_ending.values(), start=1):
        if one.inversion is None:
            continue
        of_kind = one.inversion.of(kind)
        _arms(figure, one.inversion.layers, _no_rates(of_kind.arms), column)
        base = of_kind.baseline.strict.no
        if base.measurable:
            line_style = {"color": "#222", "dash": "dash", "width": 1.2}
            figure.add_hline(y=base.value, line=line_style, row=1, col=column)  # pyright: ignore[reportArgumentType]
    rate_axis(figure)
    return finish(
        figure,
        title=f"Answers to the inverted question on {kind} prompts when a direction is added",
        note=f"{result.provenance.model_name}; "
        "dashed: unsteered; only answers that begin with the word count; bands: 95% "
        "intervals",
    )


def _instruction_only(result: Result, sweep: InversionSweep) -> go.Figure:
    figure = panels(
        ["harmless prompts", "harmful prompts"],
        columns=2,
        width=440,
        x_title=STEERED,
        y_title='share of "No"',
    )
    for column, of_kind in enumerate((sweep.harmless, sweep.harmful), start=1):
        arms = {arm: rates for arm, rates in _no_rates(of_kind.arms).items() if "refusal" in arm}
        _arms(figure, sweep.layers, arms, column)
    rate_axis(figure)
    return finish(
        figure,
        title="The refusal direction added at all tokens, or at the instruction's only",
        note=f"{result.provenance.model_name}; bands: 95% intervals",
    )


def _position_inversion(result: Result, sweep: PositionSweep) -> go.Figure:
    figure = panels(x_title=STEERED, y_title='share of "Certainly"')
    names = [row.position for row in result.positions.margins]
    for name, by_layer in zip(names, sweep.verdicts, strict=True):
        values = [1 - verdicts.strict.no.value for verdicts in by_layer]
        figure.add_traces(
            line(token_label(name, names[-1]), values, style("baseline"), x=list(sweep.layers), markers=False)
        )
    highlight(figure, "t_inst", others="directions of the other tokens", look=style("harmfulness"))
    rate_axis(figure)
    reference_line(figure, y=0)
    return finish(
        figure,
        title="Harmless prompts called harmful, by the token that the direction is taken from",
        note=f"{result.provenance.model_name}; the menu changes which token is drawn strongly",
    )
