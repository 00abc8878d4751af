"""Figures of the recovery experiment, drawn from a stored result alone."""

import math

import plotly.graph_objects as go

from interp.display.charts import (
    Style,
    estimates_line,
    finish,
    intervals,
    line,
    named,
    ordered,
    panels,
    points,
    rate_axis,
    reference_line,
    style,
)
from interp.experiments.recovery import (
    ALIGNED,
    ALL_STEPS,
    FINE_TUNED,
    MODELS,
    PAPER,
    RECOVERED,
    Behaviour,
    Result,
)

TASK = Style("#44AA99", "dash", "square", "/")
"""Look of the task."""
_LOOKS = {
    ALIGNED: Style("#333333", "solid", "circle", ""),
    FINE_TUNED: Style("#CC6677", "dash", "square", "/"),
    RECOVERED: Style("#117733", "dot", "diamond", "."),
}


def figures(result: Result) -> dict[str, go.Figure]:
    """Every figure, from the stored result."""
    drawn = {"fig01_steps": _steps(result), "fig02_restored_weights": _restored(result)}
    drawn |= {"fig03_cosines": _cosines(result), "fig04_pareto": _pareto(result)}
    if result.cuts or result.rates:
        drawn["fig05_sweeps"] = _sweeps(result)
    return drawn | {"fig06_states": _states(result), "cases": _cases(result)}


def _about(result: Result) -> str:
    return f"{result.provenance.model_name}, fine-tuned on {result.config.task}"


def _steps(result: Result) -> go.Figure:
    """Figure 1: refusal of held-out prompts and task score by step, with the floor and the picked step."""
    cases = dict(list(result.cases.items())[-4:])
    figure = panels(
        list(cases),
        columns=min(len(cases), 4),
        width=250 if len(cases) > 1 else 620,
        height=300,
        x_title="recovery step",
        y_title="share",
    )
    shown = set[str]()
    for column, case in enumerate(cases.values(), start=1):
        recovery = case.recovery
        saved = {**recovery.saved}
        at = sorted(saved)
        for name, look, entries in (
            ("harmful prompts refused", style("harmful"), [saved[s].refusal_rate["harmful"] for s in at]),
            ("harmless prompts refused", style("harmless"), [saved[s].refusal_rate["harmless"] for s in at]),
            ("task score", TASK, [saved[s].task for s in at]),
        ):
            traces = estimates_line(name, entries, look, x=at, in_legend=name not in shown, within=(0.0, 1.0))
            figure.add_traces(traces, rows=1, cols=column)
            shown.add(name)
        floor = recovery.floor
        scored = [s for s in recovery.steps if math.isfinite(s.validation)]
        name = "task score on the validation split, which picks"
        figure.add_scatter(
            x=[s.number for s in scored],
            y=[s.validation for s in scored],
            mode="markers",
            marker={"color": TASK.colour, "symbol": "square-open", "size": 9},
            name=name,
            legendgroup=name,
            showlegend=name not in shown,
            row=1,
            col=column,
        )
        for label, x, y, dash in (
            ("floor of the validation score", [0, max(at)], [floor, floor], "dot"),
            ("picked step", [recovery.picked] * 2, [0, 1], "dash"),
        ):
            figure.add_scatter(
                x=x,
                y=y,
                mode="lines",
                line={"color": "#777", "dash": dash, "width": 1.3},
                name=label,
                legendgroup=label,
                showlegend=label not in shown,
                hoverinfo="skip",
                row=1,
                col=column,
            )
        shown |= {name, "floor of the validation score", "picked step"}
    rate_axis(figure)
    return finish(
        figure,
        title="Refusal and task during recovery",
        note=f"{_about(result)}; n = {result.n['harmful']} harmful, {result.n['harmless']} harmless prompts, "
        f"{result.n['task']} task examples, all held out; bands: 95% intervals",
    )


def _restored(result: Result) -> go.Figure:
    """Figure 2: share of restored weights by layer and tensor after all steps; beside it the picked model's, before and
    after rollbacks, where a step was picked."""
    recovery = result.cases[result.compared].recovery
    both = {"all steps": result.all_steps.shares}
    if recovery.picked and recovery.used_rollback:
        both["picked, before rollback"] = recovery.shares_before_rollback
    if recovery.picked:
        both["picked"] = recovery.shares
    names = list(result.all_steps.shares)
    top = max((v for shares in both.values() for row in shares.values() for v in row), default=0.0)
    figure = panels(
        list(both) if len(both) > 1 else ("",),
        columns=len(both),
        width=(700, 420, 330)[len(both) - 1],
        height=70 + 30 * len(names),
        x_title="layer",
    )
    for column, shares in enumerate(both.values(), start=1):
        place = {"row": 1, "col": column} if len(both) > 1 else {}
        figure.add_heatmap(
            z=[list(shares[name]) for name in names],
            x=list(range(len(shares[names[0]]))) if names else [],
            y=names,
            zmin=0,
            zmax=max(top, 1e-6),
            colorscale="Viridis",
            colorbar={"title": {"text": "share restored", "side": "right"}, "tickformat": ".1%"},
            showscale=column == len(both),
            hovertemplate="layer %{x}, %{y}: %{z:.2%}<extra></extra>",
            **place,
        )
    figure.update_yaxes(autorange="reversed", showgrid=False)
    return finish(
        figure,
        title="Where weights were restored",
        note=f"{_about(result)}, {result.compared}; picked step: {recovery.picked}; blocks above the cut "
        f"({result.cut_layer}) are never changed",
        right=130,
    )


def _cosines(result: Result) -> go.Figure:
    """Figure 3: cosines with both references by layer, raw and centred."""
    titles = {
        "harmful": "harmful prompts, raw means",
        "task": "task prompts, raw means",
        "harmful_centred": "harmful prompts, centred",
        "task_centred": "task prompts, centred",
    }
    figure = panels(
        list(titles.values()), columns=2, width=400, height=230, x_title="after block", y_title="cosine",
        shared_y="rows",
    )  # fmt: skip
    for number, field in enumerate(titles):
        for name in MODELS:
            values = getattr(result.profiles[name], field)
            traces = line(
                name,
                values,
                _LOOKS[name],
                x=list(range(1, len(values) + 1)),
                markers=False,
                in_legend=number == 0,
            )
            figure.add_traces(traces, rows=number // 2 + 1, cols=number % 2 + 1)
    figure.add_vline(
        x=result.cut_layer, line={"color": "#777", "width": 1, "dash": "dash"}, row="all", col="all"
    )  # pyright: ignore[reportArgumentType]
    return finish(
        figure,
        title="Cosine of mean states with the two references",
        note=f"{_about(result)}, {result.compared}; references: the aligned model on harmful prompts, the fine-tuned "
        "one on task prompts; centred: minus the mean over both sets; dashed: the cut",
    )


def _pareto(result: Result) -> go.Figure:
    """Figure 4: task score against refusal, for the paper's rule, ablations, and both ends."""
    case = result.cases[result.compared]
    entries: dict[str, Behaviour] = {
        "aligned model": result.aligned,
        "fine-tuned model": case.finetuned,
        PAPER: case.recovery.behaviour,
        ALL_STEPS: result.all_steps.behaviour,
        **{name: recovery.behaviour for name, recovery in result.ablations.items()},
    }
    looks = named(list(entries))
    figure = panels(
        width=640,
        height=420,
        x_title="score on the held-out task",
        y_title="held-out harmful prompts refused",
    )
    for name, behaviour in entries.items():
        trace = points(name, [behaviour.task.value], [behaviour.refusal_rate["harmful"]], looks[name])
        trace.update(error_x=intervals([behaviour.task], looks[name].colour))
        figure.add_trace(trace)
    rate_axis(figure)
    rate_axis(figure, horizontal=True)
    return finish(
        figure,
        title="What is chosen, and what it costs the task",
        note=f"{_about(result)}, {result.compared}; n = {result.n['harmful']} harmful prompts, {result.n['task']} "
        "task examples; 95% intervals",
    )


def _sweeps(result: Result) -> go.Figure:
    """Figure 5: cut and rate."""
    case = result.all_steps
    cuts = {**{float(k): v for k, v in result.cuts.items()}, result.config.cut: case}
    rates = {**{float(k): v for k, v in result.rates.items()}, result.config.rate: case}
    figure = panels(
        ["cut, share of the depth", "rate, share of weights a step"],
        columns=2,
        width=380,
        height=280,
        y_title="share",
    )
    for column, by in enumerate((cuts, rates), start=1):
        at = sorted(by)
        for name, look, entries in (
            (
                "harmful prompts refused",
                style("harmful"),
                [by[x].behaviour.refusal_rate["harmful"] for x in at],
            ),
            ("task score", TASK, [by[x].behaviour.task for x in at]),
        ):
            trace = points(name, [f"{x:.2g}" for x in at], entries, look, lines=True, in_legend=column == 1)
            figure.add_trace(trace, row=1, col=column)
    rate_axis(figure)
    reference_line(
        figure,
        y=result.cases[result.compared].finetuned.refusal_rate["harmful"].value,
        name="harmful refused, fine-tuned",
    )
    return finish(
        figure,
        title="Cut and rate",
        note=f"{_about(result)}, {result.compared}; n = {result.n['harmful']} harmful prompts, {result.n['task']} "
        "task examples; 95% intervals",
    )


def _states(result: Result) -> go.Figure:
    """Figure 6: states at the cut in one plane, a panel a model."""
    figure = panels(
        list(MODELS),
        columns=3,
        width=290,
        height=290,
        x_title=f"component 1 ({result.plane.explained[0]:.0%} of the variance)",
        y_title=f"component 2 ({result.plane.explained[1]:.0%})",
    )
    for column, name in enumerate(MODELS, start=1):
        for kind, at in result.plane.points[name].items():
            look = style(kind)
            figure.add_scatter(
                x=[x for x, _ in at],
                y=[y for _, y in at],
                mode="markers",
                marker={"color": look.colour, "symbol": look.symbol, "size": 7},
                name=f"{kind} (n = {len(at)})",
                legendgroup=kind,
                showlegend=column == 1,
                row=1,
                col=column,
            )
    figure.update_xaxes(matches="x")
    return finish(
        figure,
        title="Held-out prompts at the cut, last token",
        note=f"{_about(result)}, {result.compared}; components fitted on the three models together",
    )


def _cases(result: Result) -> go.Figure:
    """Refusal and task of every fine-tuned model, before and after recovery."""
    names = list(result.cases)
    figure = panels(
        ["held-out harmful prompts refused", "score on the held-out task"],
        columns=2,
        width=390,
        height=280,
        y_title="share",
    )
    looks = dict(zip(("fine-tuned", "recovered"), ordered(3)[:2], strict=True))
    for column, measure in enumerate(("refusal", "task"), start=1):
        for name, look in looks.items():
            behaviours = [
                case.finetuned if name == "fine-tuned" else case.recovery.behaviour
                for case in result.cases.values()
            ]
            entries = [b.refusal_rate["harmful"] if measure == "refusal" else b.task for b in behaviours]
            figure.add_trace(points(name, names, entries, look, in_legend=column == 1), row=1, col=column)
    aligned = result.aligned
    for column, value in enumerate((aligned.refusal_rate["harmful"].value, aligned.task.value), start=1):
        figure.add_hline(y=value, line={"color": "#777", "dash": "dash", "width": 1.2}, row=1, col=column)  # pyright: ignore[reportArgumentType]
    rate_axis(figure)
    return finish(
        figure,
        title="Before and after recovery",
        note=f"{_about(result)}; n = {result.n['harmful']} harmful prompts, {result.n['task']} task examples; dashed: "
        "the aligned model; 95% intervals",
    )
