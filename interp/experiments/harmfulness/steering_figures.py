"""Figures of steering, drawn from a stored result alone; numbers are those of Zhao et al. 2025 (2507.11878)."""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.data.prompts import Ending, Kind
from interp.display.charts import COLOURS, CONTROL_COLOUR, DASHES, THEME, intervals
from interp.experiments.harmfulness import Result
from interp.experiments.harmfulness.panels import by_ending
from interp.experiments.harmfulness.results import InversionSweep, PositionSweep, RefusalSweep, Verdicts
from interp.stats import Estimate


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


def _lines(
    figure: go.Figure,
    layers: Sequence[int],
    arms: Mapping[str, Sequence[Estimate]],
    column: int,
    *,
    unit: str,
) -> None:
    colours = iter(COLOURS)
    for number, (arm, entries) in enumerate(arms.items()):
        control = arm.startswith("random")
        figure.add_scatter(
            name=arm,
            legendgroup=arm,
            showlegend=column == 1,
            x=list(layers),
            y=[e.value for e in entries],
            error_y={**intervals(entries), "thickness": 0.8, "color": "#999"},
            mode="lines+markers",
            marker={"size": 6, "symbol": number},
            line={
                "color": CONTROL_COLOUR if control else next(colours),
                "dash": DASHES[number % len(DASHES)],
            },
            customdata=[e.n for e in entries],
            hovertemplate=f"{arm}, layer %{{x}}: %{{y:.2f}}, n = %{{customdata}}<extra>{unit}</extra>",
            row=1,
            col=column,
        )
    figure.update_xaxes(title="steered layer", row=1, col=column)


def _refusal_steering(result: Result, steered: Mapping[Ending, RefusalSweep]) -> go.Figure:
    figure = by_ending(result)
    for column, ending in enumerate(result.endings, start=1):
        if ending in steered:
            _lines(figure, steered[ending].layers, steered[ending].rates, column, unit="refused")
    figure.update_yaxes(range=[0, 1.05])
    figure.update_yaxes(title="refusal rate", row=1, col=1)
    n = "/".join(str(sweep.n) for sweep in steered.values())
    figure.update_layout(
        title=f"Harmless prompts that the model answers, steered (n = {n}, 95% intervals), "
        f"{result.provenance.model_name}",
        legend={"y": -0.25},
    )
    return figure


def _no_rates(arms: Mapping[str, Sequence[Verdicts]]) -> dict[str, list[Estimate]]:
    return {arm: [verdicts.strict.no for verdicts in by_layer] for arm, by_layer in arms.items()}


def _inversion(result: Result, kind: Kind) -> go.Figure:
    figure = by_ending(result)
    for column, one in enumerate(result.by_ending.values(), start=1):
        if one.inversion is None:
            continue
        of_kind = one.inversion.of(kind)
        _lines(figure, one.inversion.layers, _no_rates(of_kind.arms), column, unit="No")
        base = of_kind.baseline.strict.no
        if base.measurable:
            line = {"color": "#222", "dash": "dash", "width": 1.2}
            figure.add_hline(y=base.value, line=line, row=1, col=column)  # pyright: ignore[reportArgumentType]
    figure.update_yaxes(range=[0, 1.05])
    figure.update_yaxes(title='share of "No"', row=1, col=1)
    figure.update_layout(
        title=f"Inverted question on {kind} prompts (dashed: unsteered; strict score), {result.provenance.model_name}",
        legend={"y": -0.25},
    )
    return figure


def _instruction_only(result: Result, sweep: InversionSweep) -> go.Figure:
    figure = make_subplots(
        rows=1, cols=2, shared_yaxes=True, subplot_titles=["harmless prompts", "harmful prompts"]
    )
    for column, of_kind in enumerate((sweep.harmless, sweep.harmful), start=1):
        arms = {arm: rates for arm, rates in _no_rates(of_kind.arms).items() if "refusal" in arm}
        _lines(figure, sweep.layers, arms, column, unit="No")
    figure.update_traces(showlegend=True)
    figure.update_yaxes(range=[0, 1.05])
    figure.update_layout(
        template=THEME,
        width=1100,
        margin={"t": 110},
        title=f"Refusal added at all tokens or at the instruction's only, {result.provenance.model_name}",
        yaxis={"title": 'share of "No"'},
    )
    return figure


def _position_inversion(result: Result, sweep: PositionSweep) -> go.Figure:
    figure = go.Figure()
    names = [row.position for row in result.positions.margins]
    for number, (name, by_layer) in enumerate(zip(names, sweep.verdicts, strict=True)):
        figure.add_scatter(
            name=f"position {name}",
            x=list(sweep.layers),
            y=[1 - verdicts.strict.no.value for verdicts in by_layer],
            mode="lines+markers",
            line={
                "color": COLOURS[number % len(COLOURS)],
                "dash": DASHES[number % len(DASHES)],
                "width": 3.5 if name == "0" else 1.6,
            },
            hovertemplate=f"position {name}, layer %{{x}}: %{{y:.2f}}<extra></extra>",
        )
    figure.update_layout(
        template=THEME,
        title=f"Harmless prompts called harmful, by source position of the direction, {result.provenance.model_name}",
        xaxis={"title": "steered layer"},
        yaxis={"title": 'share of "Certainly"', "range": [-0.02, 1.05]},
    )
    return figure
