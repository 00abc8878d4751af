"""The figures of the dataset-reset experiment, drawn from a stored result alone."""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from interp.display.charts import CONTROL, Style, estimates_line, finish, line, ordered, panels, points
from interp.experiments.dataset_reset import Result
from interp.experiments.dataset_reset.results import ToyRow
from interp.stats import Estimate, over_seeds


def share_name(beta: float | int) -> str:
    """What a curve is called."""
    return "exact values" if beta < 0 else f"beta = {beta:g}{' (PPO)' if beta == 0 else ''}"


def arm_estimates(rows: Sequence[ToyRow], field: str) -> dict[str, Estimate]:
    """Mean over seeds by arm, in the order of the arms."""
    arms = dict.fromkeys(row.arm for row in rows)
    return {arm: over_seeds([getattr(row, field) for row in rows if row.arm == arm]) for arm in arms}


def figures(result: Result) -> dict[str, go.Figure]:
    """Every figure, from the stored result."""
    charts = {"tabular": _tabular(result), "tabular_frontier": _tabular_frontier(result)}
    if result.toy:
        charts["toy_arms"] = _toy_arms(result)
        charts["toy_frontier"] = _toy_frontier(result)
        charts["toy_learning"] = _toy_curves(result, _LEARNING, title="Toy transformer: learning curves")
        charts["toy_clipping"] = _toy_curves(result, _CLIPPING, title="Toy transformer: what PPO clips")
    if any(row.reward for row in result.alignment):
        charts["alignment"] = _alignment(result)
    return charts


def _looks(betas: Sequence[float | int]) -> dict[float | int, Style]:
    shares = sorted(beta for beta in betas if beta >= 0)
    return {**dict(zip(shares, ordered(len(shares)), strict=True)), -1.0: CONTROL}


def _some(betas: Sequence[float | int]) -> set[float | int]:
    """Exact values and at most four shares, the ends among them: more lines cannot be told apart."""
    shares = sorted(beta for beta in betas if beta >= 0)
    kept = shares if len(shares) <= 4 else [shares[0], shares[len(shares) // 2], shares[-1]]
    return {*kept, *(beta for beta in betas if beta < 0)}


def _tabular(result: Result) -> go.Figure:
    looks = _looks([curve.beta for curve in result.tabular])
    kinds = {"expected true reward": "reward", "share of the optimum's states passed": "covered"}
    drawn = _some([curve.beta for curve in result.tabular])
    figure = panels(list(kinds), columns=2, width=380, x_title="updates", shared_y="no", gap=70)
    for column, field in enumerate(kinds.values(), start=1):
        for curve in result.tabular:
            if (field == "covered" and curve.beta < 0) or curve.beta not in drawn:
                continue
            traces = estimates_line(
                share_name(curve.beta),
                getattr(curve, field),
                looks[curve.beta],
                x=list(range(len(curve.reward))),
                in_legend=column == 1,
                markers=False,
            )
            for trace in traces:
                figure.add_trace(trace, row=1, col=column)
    return finish(
        figure,
        title="Tabular: reward and coverage by share of resets",
        note="closed-form natural policy gradient on a fitted reward; 95% intervals over seeds",
    )


def _tabular_frontier(result: Result) -> go.Figure:
    looks = _looks([curve.beta for curve in result.tabular])
    figure = panels(x_title="KL to the reference, nats", y_title="expected true reward")
    drawn = _some([curve.beta for curve in result.tabular])
    for curve in [curve for curve in result.tabular if curve.beta in drawn]:
        figure.add_traces(
            line(
                share_name(curve.beta),
                [e.value for e in curve.reward],
                looks[curve.beta],
                x=[e.value for e in curve.kl],
            )
        )
    return finish(figure, title="Tabular: reward against KL", note="mean over seeds, one point an update")


def _toy_arms(result: Result) -> go.Figure:
    found = arm_estimates(result.toy, "reward")
    (look,) = ordered(1)
    figure = panels(y_title="reward of held-out answers")
    figure.add_trace(points("reward", list(found), list(found.values()), look, in_legend=False))
    return finish(
        figure,
        title="Toy transformer: every arm at equal tokens",
        note="95% intervals over seeds",
        legend=False,
    )


def _toy_frontier(result: Result) -> go.Figure:
    rewards, kls = (arm_estimates(result.toy, field) for field in ("reward", "kl"))
    figure = panels(x_title="KL to the fine-tuned model, nats an answer", y_title="reward")
    for (arm, reward), look in zip(rewards.items(), ordered(len(rewards)), strict=True):
        figure.add_trace(points(arm, [kls[arm].value], [reward], look))
    return finish(
        figure, title="Toy transformer: reward against KL", note="mean over seeds; intervals of the reward"
    )


_LEARNING = {"reward": "reward", "KL, nats": "kl", "entropy, nats": "entropy", "generated tokens": "length"}
_CLIPPING = {"clipped share": "clip_share"}
"""Titles of panels, and fields of `ToyCurve`."""


def _toy_curves(result: Result, kinds: Mapping[str, str], *, title: str) -> go.Figure:
    looks = _looks([curve.beta for curve in result.toy_curves])
    columns = min(2, len(kinds))
    figure = panels(
        list(kinds), columns=columns, width=380, height=230, x_title="updates", shared_y="no", gap=70
    )
    for place, field in enumerate(kinds.values()):
        for beta in sorted({curve.beta for curve in result.toy_curves}):
            curves = [getattr(c, field) for c in result.toy_curves if c.beta == beta]
            steps = min(map(len, curves))
            entries = [over_seeds([curve[i] for curve in curves]) for i in range(steps)]
            traces = line(
                share_name(beta),
                [entry.value for entry in entries],
                looks[beta],
                x=list(range(1, steps + 1)),
                in_legend=place == 0,
                markers=False,
            )
            for trace in traces:
                figure.add_trace(trace, row=place // columns + 1, col=place % columns + 1)
    return finish(figure, title=title, note="mean over seeds")


def _alignment(result: Result) -> go.Figure:
    rows = [row for row in result.alignment if row.beta >= 0]
    looks = _looks([row.beta for row in rows])
    kinds = {"reward": "reward", "KL to the model, nats an answer": "kl"}
    figure = panels(list(kinds), columns=2, width=380, x_title="updates", shared_y="no", gap=70)
    for column, field in enumerate(kinds.values(), start=1):
        for row in rows:
            values = getattr(row, field)
            for trace in line(
                share_name(row.beta),
                values,
                looks[row.beta],
                x=list(range(1, len(values) + 1)),
                in_legend=column == 1,
            ):
                figure.add_trace(trace, row=1, col=column)
    return finish(
        figure, title="The given model: policy optimisation towards bundled preferences", note="one seed"
    )
