"""The figures of the reward-topology experiment, drawn from a stored result alone."""

import plotly.graph_objects as go

from interp.display.charts import estimates_line, finish, line, log_ticks, named, panels, points
from interp.experiments.reward_topology import ARMS, Generated, Result

_DESIGNS = ("chains", "trees")


def figures(result: Result) -> dict[str, go.Figure]:
    """Every figure, from the stored result."""
    charts = {
        "hops": _hops(result),
        "distances": _distances(result),
        "regimes": _regimes(result),
        "fitted": _fitted(result),
    }
    if result.generated is not None:
        charts["accuracy"] = _accuracy(result.generated)
        charts["variance"] = _variance(result.generated)
        charts["best_of"] = _best_of(result.generated)
    return charts


def _hops(result: Result) -> go.Figure:
    looks = named(["measured", "log M / log(2 log n)"])
    figure = panels(x_title="log n / log log n", y_title="comparisons on a route")
    x = [row.log_ratio for row in result.hops]
    figure.add_traces(estimates_line("measured", [row.hops for row in result.hops], looks["measured"], x=x))
    name = "log M / log(2 log n)"
    figure.add_traces(line(name, [row.predicted for row in result.hops], looks[name], x=x))
    return finish(
        figure,
        title="S1: how many comparisons lie between two clusters of answers",
        note="n comparisons over M = n / log n clusters; 95% intervals over seeds",
    )


def _distances(result: Result) -> go.Figure:
    alphas = sorted({row.alpha for row in result.distances})
    looks = named(_DESIGNS)
    figure = panels(
        [f"alpha = {alpha:g}" for alpha in alphas],
        columns=len(alphas),
        width=380,
        x_title="comparisons n",
        y_title="best-path distance",
        shared_y="no",
        gap=70,
    )
    for column, alpha in enumerate(alphas, start=1):
        rows = [row for row in result.distances if row.alpha == alpha]
        for name, entries in (("chains", [r.chain for r in rows]), ("trees", [r.tree for r in rows])):
            for trace in estimates_line(
                name, entries, looks[name], x=[r.n for r in rows], in_legend=column == 1
            ):
                figure.add_trace(trace, row=1, col=column)
    figure.update_xaxes(log_ticks([row.n for row in result.distances]))
    figure.update_yaxes(log_ticks([0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1]))
    return finish(
        figure,
        title="S2: distance along the best path, the paper's proxy of uncertainty",
        note=f"variance of a comparison {result.config.noise:g}; lower is better; 95% intervals over seeds",
    )


def _regimes(result: Result) -> go.Figure:
    looks = named(["best path", "posterior variance"])
    figure = panels(x_title="variance of a comparison", y_title="chains / trees")
    x = [row.noise for row in result.regimes]
    for name, entries in (
        ("best path", [row.best_ratio for row in result.regimes]),
        ("posterior variance", [row.posterior_ratio for row in result.regimes]),
    ):
        figure.add_trace(points(name, x, entries, looks[name], lines=True))
    figure.add_hline(y=1, line={"color": "#777", "dash": "dot"})
    figure.update_xaxes(log_ticks(x))
    return finish(
        figure,
        title="S3: the lead of trees by the best path, and with all paths combined",
        note=f"n = {result.config.regime_size}, alpha = {result.config.regime_alpha:g}; above 1 trees are ahead; "
        "95% intervals over seeds",
    )


def _fitted(result: Result) -> go.Figure:
    looks = named(_DESIGNS)
    figure = panels(x_title="comparisons n", y_title="Kendall's tau on unseen answers")
    x = [row.n for row in result.fitted]
    figure.add_trace(points("chains", x, [r.tau_chain for r in result.fitted], looks["chains"], lines=True))
    figure.add_trace(points("trees", x, [r.tau_tree for r in result.fitted], looks["trees"], lines=True))
    figure.update_xaxes(log_ticks(x))
    return finish(
        figure,
        title="S4: rewards fitted on synthetic comparisons",
        note="one true reward of the tree's prior; 95% intervals over seeds of the comparisons",
    )


def _accuracy(generated: Generated) -> go.Figure:
    looks = named(ARMS)
    kinds = {"pairs of held-out prompts": "accuracy", "leaves with a common first segment": "near_accuracy"}
    figure = panels(
        list(kinds),
        columns=2,
        width=380,
        x_title="labels",
        y_title="accuracy of the reward model",
    )
    for column, field in enumerate(kinds.values(), start=1):
        for arm in ARMS:
            rows = [row for row in generated.rows if row.arm == arm]
            trace = points(
                arm,
                [row.labels for row in rows],
                [getattr(row, field) for row in rows],
                looks[arm],
                lines=True,
                in_legend=column == 1,
            )
            figure.add_trace(trace, row=1, col=column)
    figure.update_xaxes(log_ticks([row.labels for row in generated.rows]))
    figure.update_yaxes(tickformat=".0%")
    return finish(
        figure,
        title="Reward models from generated trees and chains",
        note="programmatic oracle; 95% intervals over seeds",
    )


def _variance(generated: Generated) -> go.Figure:
    looks = named(ARMS)
    figure = panels(x_title="labels", y_title="variance over seeds")
    for arm in ARMS:
        rows = [row for row in generated.rows if row.arm == arm]
        figure.add_traces(
            line(arm, [row.variance for row in rows], looks[arm], x=[row.labels for row in rows])
        )
    figure.update_xaxes(log_ticks([row.labels for row in generated.rows]))
    return finish(
        figure,
        title="How much a reward model depends on its data",
        note="variance over seeds of the reward difference of held-out pairs, in units of its mean square",
    )


def _best_of(generated: Generated) -> go.Figure:
    looks = named([*ARMS, "the oracle's own pick"])
    figure = panels(x_title="answers to pick from", y_title="oracle's score of the pick")
    for arm in ARMS:
        rows = [row for row in generated.best_of if row.arm == arm]
        figure.add_trace(points(arm, [r.n for r in rows], [r.score for r in rows], looks[arm], lines=True))
    rows = [row for row in generated.best_of if row.arm == ARMS[0]]
    name = "the oracle's own pick"
    figure.add_traces(line(name, [row.oracle for row in rows], looks[name], x=[row.n for row in rows]))
    figure.update_xaxes(log_ticks([row.n for row in generated.best_of]))
    return finish(
        figure, title="Best of N by the reward models", note="most labels; 95% intervals over seeds"
    )
