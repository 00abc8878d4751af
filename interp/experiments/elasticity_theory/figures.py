"""The elasticity theory's figures, drawn from a stored result alone."""

import plotly.graph_objects as go

from interp.display.charts import CONTROL, finish, mark, named, ordered, panels, points, with_ends
from interp.experiments.elasticity_theory import Result
from interp.experiments.elasticity_theory.analysis import (
    all_exponents,
    transformer_curves,
    transformer_ratios,
)
from interp.experiments.elasticity_theory.results import MixtureRow
from interp.stats import Estimate
from interp.tracking.decay_figures import DecayPanel, SlopeRatio, decay_panels, hookes_law, slope_ratios

PREDICTIONS = {
    "n_p": {"theorem": 1.0, "curvature": 0.0},
    "n_a": {"theorem": -1.0, "curvature": -1.0},
}
"""Size → account → exponent of |R| in it."""
_RATIO = "R: change of the compression rate of the alignment data over that of the pre-training data"
_SIZES = "D_a, D_p: alignment and pre-training data"


def figures(result: Result) -> dict[str, go.Figure]:
    """Every figure, from the stored result."""
    rebound = result.rebound
    log_linear = DecayPanel(
        doses=rebound.negatives,
        curves={n_plus: curves.scores for n_plus, curves in rebound.curves.items()},
        base=rebound.base_score,
    )
    charts = {
        "pole": _pole(result),
        "slope_ratio": _slope_ratio(result),
        "hookes_law": _hookes_law(result),
        "exponents": _exponents(result),
        "rebound_log_linear": decay_panels(
            {"log-linear": log_linear},
            title="Decline of aligned behaviour under negative examples, log-linear model",
            note="in the form of the paper's figure 4; bands: one SD over seeds",
            y_title="share of aligned behaviour",
            controls=(),
        ),
    }
    if curves := transformer_curves(result.transformer):
        charts["rebound_transformer"] = decay_panels(
            {
                f"pre-trained on {n_p:,} sequences": DecayPanel(doses=c.doses, curves=c.scores, base=c.base)
                for n_p, c in curves.items()
            },
            title="Decline of aligned behaviour under negative examples, tiny transformer",
            note="in the form of the paper's figure 6; mean over prompts; bands: one SD over seeds",
            y_title="probability of the positive continuation",
            controls=(),
        )
        charts["transformer_slope_ratio"] = slope_ratios(
            [
                SlopeRatio(series=f"{row.n_minus} negative examples", k=row.k, ratio=row.ratio)
                for row in transformer_ratios(result.transformer)
            ],
            title="Slope ratio R against the ratio k of the data sizes, tiny transformer",
            note=f"{_RATIO}; 95% intervals",
            x_title="k = pre-training sequences / positive examples",
        )
    return charts


def _pole(result: Result) -> go.Figure:
    rows = result.mixture.rows
    smallest, largest = min(r.k for r in rows), max(r.k for r in rows)
    figure = panels(x_title="l / l*", y_title="|R| / k", height=380)
    series = [(share, k) for share in sorted({r.share for r in rows}) for k in (smallest, largest)]
    for (share, k), look in zip(series, ordered(len(series)), strict=True):
        here = [r for r in rows if r.share == share and r.k == k]
        for trace in _pole_traces(here, f"k = {k:g}, s = {share:g}"):
            trace.update(line={"color": look.colour, "dash": look.dash}, legendgroup=trace.name)
            trace.update(marker={"color": look.colour, "symbol": f"{look.symbol.removesuffix('-open')}-open"})
            figure.add_trace(trace)
    mark(figure, 1, "pole: l* = s / (1 − s)")
    ticks = [1, 2, 5, 10, 20, 50, 100]
    figure.update_yaxes(type="log", tickvals=ticks, ticktext=[str(tick) for tick in ticks])
    return finish(
        figure,
        title="Slope ratio of the mixture up to its pole and beyond",
        note=f"{_RATIO}; {_SIZES}; k: |D_p| / |D_a|; l: perturbation data / |D_a|, R is infinite at l*; s: share of "
        "the mixture; lines: closed form, points: measured",
    )


def _pole_traces(rows: list[MixtureRow], name: str) -> list[go.Scatter]:
    """The closed form as a line that is broken at the pole, and what was measured as points."""
    below = [r for r in rows if r.l_over_pole < 1]
    beyond = [r for r in rows if r.l_over_pole >= 1]
    closed = go.Scatter(
        x=[*(r.l_over_pole for r in below), None, *(r.l_over_pole for r in beyond)],
        y=[
            *(abs(r.closed_ratio) / r.k for r in below),
            None,
            *(abs(r.closed_ratio) / r.k for r in beyond),
        ],
        mode="lines",
        name=name,
        showlegend=False,
        line={"width": 1.6},
    )
    measured = go.Scatter(
        x=[r.l_over_pole for r in rows],
        y=[abs(r.ratio) / r.k for r in rows],
        mode="markers",
        name=name,
        marker={"size": 10, "line": {"width": 1.5}},
    )
    return [closed, measured]


def _slope_ratio(result: Result) -> go.Figure:
    def row(series: str, k: float | int, ratio: float, panel: str) -> SlopeRatio:
        return SlopeRatio(series=series, k=k, ratio=Estimate(value=ratio, n=1), panel=panel)

    tree = sorted(result.token_tree.rows, key=lambda r: r.depth)
    rows = [
        *(
            row("mixture, l = 0.001 l*", r.k, r.ratio, "E1: mixture of counts")
            for r in result.mixture.rows
            if r.l_over_pole == 1e-3
        ),
        *(row(f"tree of depth {r.depth}", r.k, r.ratio, "E2: token tree, sampled") for r in tree),
        *(
            row("log-linear, l = 0.0001", r.k, r.ratio, "E3: log-linear model, joint optimum")
            for r in result.log_linear.rows
            if r.l == 1e-4
        ),
        *(
            row("log-linear in stages", r.n_p / r.n_a, r.ratio, "E4: log-linear model, trained in stages")
            for r in result.sequential.staged
        ),
    ]
    return slope_ratios(
        rows,
        title="Slope ratio R against the ratio k of the data sizes",
        note=f"{_RATIO}; {_SIZES}; l: perturbation data / |D_a|, R is infinite at l*",
    )


def _hookes_law(result: Result) -> go.Figure:
    series = {
        "E1 mixture, per unit of l": [
            (-r.k * r.slope_p, r.slope_a) for r in result.mixture.rows if r.l_over_pole <= 0.01
        ],
        "E2 token tree, sampled": [(-r.k * r.change_p, r.change_a) for r in result.token_tree.rows],
        "E3 log-linear, l up to 0.1": [
            (-r.k * r.change_p, r.change_a) for r in result.log_linear.rows if r.l <= 0.1
        ],
    }
    if rows := [r for r in result.transformer if r.n_minus]:
        series["E6 transformer in stages"] = [
            (-r.n_p / r.n_plus * r.change_p.mean, r.change_a.mean) for r in rows
        ]
    return hookes_law(
        series,
        title="Hooke's law: data size times change of compression rate, for both sets",
        unit="per |D_a|, nats or bits",
        note=f"γ: compression rate; {_SIZES}; l: perturbation data / |D_a|",
    )


def _exponents(result: Result) -> go.Figure:
    figure = panels(y_title="exponent: d log|R| / d log N")
    labels = {"n_p": "pre-training size N_p", "n_a": "alignment size N_a"}
    exponents = all_exponents(result)
    looks = named([name for name in exponents if "control" not in name])
    for number, (name, sizes) in enumerate(exponents.items()):
        estimates = [with_ends(sizes.n_p), with_ends(sizes.n_a)]
        places = [i + 0.08 * (number - 1) for i in range(2)]
        label = name.replace("N- = 25", "25 negative examples")
        figure.add_trace(points(label, places, estimates, looks.get(name, CONTROL)))
    for account, dash in (("theorem", "dash"), ("curvature", "dot")):
        for i, size in enumerate(labels):
            level = PREDICTIONS[size][account]
            figure.add_scatter(
                x=[i - 0.3, i + 0.3],
                y=[level, level],
                mode="lines",
                line={"color": "#444", "dash": dash, "width": 1.5},
                name=f"the {account}'s prediction"
                if account == "theorem"
                else "predicted from the curvature",
                showlegend=i == 0,
                legendgroup=account,
            )
    figure.update_xaxes(tickvals=[0, 1], ticktext=list(labels.values()), range=[-0.5, 1.5])
    return finish(
        figure,
        title="What the slope ratio depends on when training goes in stages",
        note=f"{_RATIO}; 95% intervals; at -1 the two predictions are one",
    )
