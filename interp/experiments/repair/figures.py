"""Figures of the repair scoreboard, drawn from a stored result alone."""

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from interp.display.charts import (
    finish,
    intervals,
    named,
    panels,
    points,
    rate_axis,
    reference_line,
    style,
)
from interp.display.styles import Style
from interp.experiments.repair import ALIGNED, BROKEN, AttackTrial, Inside, Result
from interp.experiments.repair.scoreboard import over_refuses, task_score, worst_attack
from interp.stats import mean_with_interval, rate

_COLUMNS = {
    "harmful": "harmful prompts refused",
    "harmless": "harmless prompts refused",
    "borderline": "borderline prompts refused",
    "task": "score on the task",
}
_INSIDE = {
    "refusal_cosine": "refusal direction,<br>cosine",
    "harmfulness_cosine": "harmfulness direction,<br>cosine",
    "refusal_belief": "refusal belief of<br>harmful prompts",
    "harm_belief": "harm belief of<br>harmful prompts",
    "kl": "KL from aligned<br>(nats per token)",
}


def figures(result: Result) -> dict[str, go.Figure]:
    """Every figure, from the stored result."""
    drawn = {"scoreboard": _scoreboard(result), "pareto": _pareto(result)}
    if any(trial.inside for trials in result.trials.values() for trial in trials):
        drawn["inside"] = _inside(result, [name for name in _INSIDE if "belief" not in name])
        drawn["inside_beliefs"] = _inside(result, [name for name in _INSIDE if "belief" in name])
    if any(row.undone for row in result.rows.values()):
        drawn["undone"] = _undone(result)
    if result.attacks:
        drawn["attacks"] = _attacks(result)
    return drawn


def _about(result: Result) -> str:
    return (
        f"{result.provenance.model_name}, fine-tuned on a task with {result.config.stubs} empty affirmative stubs; "
        f"{result.config.seeds} seed{'s' * (result.config.seeds > 1)}"
    )


def _scoreboard(result: Result) -> go.Figure:
    """One row a repair, one panel a measure."""
    figure = panels(
        list(_COLUMNS.values()), columns=4, width=210, height=26 * len(result.rows), shared_y="all", gap=26
    )
    shown = set[str]()
    families = list(dict.fromkeys(row.family for row in result.rows.values()))
    looks = named(families)
    for column, measure in enumerate(_COLUMNS, start=1):
        for family in families:
            rows = {name: row for name, row in result.rows.items() if row.family == family}
            entries = [row.task if measure == "task" else row.refused[measure] for row in rows.values()]
            trace = points(
                family, list(rows), entries, looks[family], horizontal=True, in_legend=family not in shown
            )
            figure.add_trace(trace, row=1, col=column)
            shown.add(family)
            for name in rows if result.config.seeds > 1 else ():
                figure.add_trace(
                    _seeds(name, _by_seed(result, name, measure), looks[family]), row=1, col=column
                )
    rate_axis(figure, horizontal=True)
    figure.update_xaxes(tickvals=[0, 0.5, 1])
    figure.update_yaxes(categoryorder="array", categoryarray=list(result.rows)[::-1])
    counts = ", ".join(f"{n} {kind}" for kind, n in result.n.items())
    return finish(
        figure,
        title="What each repair gives and costs",
        note=f"{_about(result)}; held-out: {counts}; 95% intervals resample prompts, each with its mean over seeds"
        + ("; strokes: each seed" if result.config.seeds > 1 else ""),
    )


def _by_seed(result: Result, name: str, measure: str) -> list[float]:
    """A column of the scoreboard at each seed."""
    trials = result.trials[name]
    if measure == "task":
        return [task_score(trial) for trial in trials]
    return [sum(t.refused[measure]) / len(t.refused[measure]) for t in trials]


def _seeds(name: str, values: Sequence[float], look: Style) -> go.Scatter:
    """A stroke for each seed of a row."""
    return go.Scatter(
        x=list(values),
        y=[name] * len(values),
        mode="markers",
        marker={"color": look.colour, "symbol": "line-ns-open", "size": 8},
        showlegend=False,
        hovertemplate=f"{name}: %{{x:.3f}}<extra></extra>",
    )


def _pareto(result: Result) -> go.Figure:
    """Task score against refusal of harmful prompts, every repair a point with both intervals."""
    figure = panels(
        width=620,
        height=460,
        x_title="score on the held-out task",
        y_title="held-out harmful prompts refused",
    )
    families = list(dict.fromkeys(row.family for row in result.rows.values()))
    looks = named(families)
    for family in families:
        rows = {name: row for name, row in result.rows.items() if row.family == family}
        tasks, refused = [r.task for r in rows.values()], [r.refused["harmful"] for r in rows.values()]
        trace = points(family, [t.value for t in tasks], refused, looks[family])
        colour = looks[family].colour
        trace.update(
            text=list(rows),
            error_x=intervals(tasks, colour),
            hovertemplate="%{text}: task %{x:.2f}, refused %{y:.2f}<extra></extra>",
        )
        figure.add_trace(trace)
    front = _front(result)
    figure.add_scatter(
        x=[result.rows[names[0]].task.value for names in front],
        y=[result.rows[names[0]].refused["harmful"].value for names in front],
        mode="lines+text",
        line={"color": "#888", "width": 1, "dash": "dot"},
        text=[str(number) for number in range(1, len(front) + 1)],
        textposition="top right",
        name="not beaten on both: "
        + ", ".join(
            f"{number} {names[0]}{f' and {len(names) - 1} more' * (len(names) > 1)}"
            for number, names in enumerate(front, start=1)
        ),
        hoverinfo="skip",
    )
    rate_axis(figure)
    rate_axis(figure, horizontal=True)
    return finish(
        figure,
        title="Refusal against the task",
        note=f"{_about(result)}; n = {result.n['harmful']} harmful prompts, {result.n['task']} task examples; 95% "
        "intervals; numbered: beaten on both by none, among those that answer harmless prompts",
    )


def _front(result: Result) -> list[list[str]]:
    """Repairs that no other one beats on refusal and task at once, by falling task score, those of one point together,
    without those that refuse harmless prompts as well."""
    at: dict[tuple[float, float], list[str]] = {}
    for name, row in result.rows.items():
        measurable = row.task.measurable and row.refused["harmful"].measurable
        if name != ALIGNED and measurable and not over_refuses(result, name):
            at.setdefault((row.task.value, row.refused["harmful"].value), []).append(name)
    best = [(x, y) for x, y in at if not any(a >= x and b >= y and (a, b) != (x, y) for a, b in at)]
    return [at[point] for point in sorted(best, key=lambda point: (-point[0], point[1]))]


def _inside(result: Result, measures: Sequence[str]) -> go.Figure:
    """Directions and distribution beside the aligned model, by repair; a point a seed, the mean as a bar."""
    rows = {name: trials for name, trials in result.trials.items() if any(t.inside for t in trials)}
    figure = panels(
        [_INSIDE[name] for name in measures],
        columns=len(measures),
        width=230,
        height=26 * len(rows) + 40,
        shared_y="all",
        gap=26,
    )
    looks = named(list(dict.fromkeys(row.family for row in result.rows.values())))  # those of the scoreboard
    shown = set[str]()
    for column, measure in enumerate(measures, start=1):
        for name, trials in rows.items():
            family = result.rows[name].family
            values = [_value(trial.inside, measure) for trial in trials if trial.inside is not None]
            trace = points(
                family,
                [name],
                [mean_with_interval([v for v in values if math.isfinite(v)])],
                looks[family],
                horizontal=True,
                in_legend=family not in shown,
            )
            trace.update(error_x=None)
            figure.add_trace(trace, row=1, col=column)
            figure.add_trace(_seeds(name, values, looks[family]), row=1, col=column)
            shown.add(family)
    figure.update_yaxes(categoryorder="array", categoryarray=list(rows)[::-1])
    return finish(
        figure,
        title="What comes back inside",
        note=f"{_about(result)}; markers: means over seeds, strokes: each seed; directions, beliefs and KL "
        "beside those of the aligned model",
    )


def _value(inside: Inside, measure: str) -> float:
    return float(getattr(inside, measure))


def _undone(result: Result) -> go.Figure:
    """Refusal after further stubs: how elastic each repair is, beside the untouched aligned model."""
    rows = {name: row for name, row in result.rows.items() if row.undone and name != BROKEN}
    figure = panels(x_title="further harmful prompts with stubs", y_title="held-out harmful prompts refused")
    looks = named(list(rows)) | {ALIGNED: style("baseline")}
    for name, row in rows.items():
        counts = [0, *row.undone]
        entries = [row.refused["harmful"], *row.undone.values()]
        figure.add_trace(points(name, counts, entries, looks[name], lines=True))
    reference_line(figure, y=result.rows[BROKEN].refused["harmful"].value, name="no repair, no further stubs")
    rate_axis(figure)
    return finish(
        figure,
        title="How many stubs undo the repair",
        note=f"{_about(result)}; n = {result.n['harmful']} held-out harmful prompts; 95% intervals",
    )


def _attacks(result: Result) -> go.Figure:
    """Refusal and task of every attacked repair before and after each attack, and the worst case of each."""
    repairs = list(dict.fromkeys(trial.repair for trial in result.attacks))
    looks = named(repairs) | {ALIGNED: style("baseline")}
    figure = panels(
        ["held-out harmful prompts refused", "score on the held-out task"],
        columns=2,
        width=300,
        height=26 * len(result.attacks) + 40,
        shared_y="all",
        gap=30,
    )
    order: list[str] = []
    for name in repairs:
        trials = [trial for trial in result.attacks if trial.repair == name]
        worst = worst_attack(trials)
        labels = [_row_of(trial, worst) for trial in trials]
        order += labels
        symbols = [looks[name].symbol + ("" if trial.permitted else "-open") for trial in trials]
        for column, entries in enumerate(
            ([rate(trial.refused) for trial in trials], [trial.task for trial in trials]), start=1
        ):
            trace = points(name, labels, entries, looks[name], horizontal=True, in_legend=column == 1)
            trace.update(marker={"symbol": symbols})
            figure.add_trace(trace, row=1, col=column)
    rate_axis(figure, horizontal=True)
    figure.update_yaxes(categoryorder="array", categoryarray=order[::-1])
    lost = result.config.max_capability_loss
    return finish(
        figure,
        title="Attacks on repaired models",
        note=f"{result.provenance.model_name}, first seed; p: share of harmful requests with stubs among n examples; "
        f"open: loses more than {100 * lost:g}% of the task score or of plain text; n = {result.n['harmful']} "
        "harmful prompts; 95% intervals",
    )


def _row_of(trial: AttackTrial, worst: AttackTrial | None) -> str:
    cell = "before any attack" if trial.attack is None else trial.attack.label
    return f"{trial.repair}: {cell}{' (worst case)' if trial is worst else ''}"
