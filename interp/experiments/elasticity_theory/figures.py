"""The elasticity theory's figures, drawn from a stored result alone."""

import plotly.graph_objects as go

from interp.display.charts import COLOURS, CONTROL_COLOUR, DASHES, THEME, intervals
from interp.experiments.elasticity_theory import Result
from interp.experiments.elasticity_theory.analysis import (
    all_exponents,
    transformer_curves,
    transformer_ratios,
)
from interp.experiments.elasticity_theory.results import MixtureRow
from interp.stats import Estimate
from interp.tracking.decay_figures import (
    SYMBOLS,
    DecayPanel,
    SlopeRatio,
    decay_panels,
    hookes_law,
    slope_ratios,
    with_ends,
)

PREDICTIONS = {
    "n_p": {"theorem": 1.0, "curvature": 0.0},
    "n_a": {"theorem": -1.0, "curvature": -1.0},
}
"""Size → account → exponent of |R| in it."""


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
            title="Decline under negative examples, log-linear model (E5; form of figure 4)",
            y_title="share of aligned behaviour",
        ),
    }
    if curves := transformer_curves(result.transformer):
        charts["rebound_transformer"] = decay_panels(
            {
                f"pre-trained on {n_p:,} sequences": DecayPanel(doses=c.doses, curves=c.scores, base=c.base)
                for n_p, c in curves.items()
            },
            title="Decline under negative examples, tiny transformer (E6; form of figure 6)",
            y_title="P(positive continuation)",
        )
        charts["transformer_slope_ratio"] = slope_ratios(
            [
                SlopeRatio(series=f"N- = {row.n_minus}", k=row.k, ratio=row.ratio)
                for row in transformer_ratios(result.transformer)
            ],
            title="Slope ratio against size ratio, tiny transformer (E6)",
            x_title="k = N_p / N+",
        )
    return charts


def _pole(result: Result) -> go.Figure:
    rows = result.mixture.rows
    smallest, largest = min(r.k for r in rows), max(r.k for r in rows)
    figure = go.Figure()
    series = [(share, k) for share in sorted({r.share for r in rows}) for k in (smallest, largest)]
    for number, (share, k) in enumerate(series):
        here = [r for r in rows if r.share == share and r.k == k]
        for trace in _pole_traces(here, f"k = {k:g}, s = {share:g}", number):
            figure.add_trace(trace)
    figure.add_vline(x=1, line={"color": "#666", "width": 1}, annotation={"text": "pole l* = s / (1 - s)"})
    figure.update_layout(
        template=THEME,
        title="Slope ratio of the mixture up to its pole and beyond (E1)",
        height=600,
        margin={"b": 190},
        legend={"y": -0.2},
        xaxis={"title": "l / l*"},
        yaxis={"title": "|R| / k", "type": "log", "dtick": "D2"},
    )
    return figure


def _pole_traces(rows: list[MixtureRow], name: str, number: int) -> list[go.Scatter]:
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
        name=f"{name}, closed form",
        line={"color": COLOURS[number], "dash": DASHES[number], "width": 1.5},
    )
    measured = go.Scatter(
        x=[r.l_over_pole for r in rows],
        y=[abs(r.ratio) / r.k for r in rows],
        mode="markers",
        name=f"{name}, measured",
        marker={"color": COLOURS[number], "size": 6 + 3 * number, "symbol": f"{SYMBOLS[number]}-open"},
    )
    return [closed, measured]


def _slope_ratio(result: Result) -> go.Figure:
    def row(series: str, k: float | int, ratio: float) -> SlopeRatio:
        return SlopeRatio(series=series, k=k, ratio=Estimate(value=ratio, n=1))

    tree = sorted(result.token_tree.rows, key=lambda r: r.depth)
    rows = [
        *(
            row("E1 mixture, l = 0.001 l*", r.k, r.ratio)
            for r in result.mixture.rows
            if r.l_over_pole == 1e-3
        ),
        *(row(f"E2 token tree, depth {r.depth}, sampled", r.k, r.ratio) for r in tree),
        *(row("E3 log-linear, l = 0.0001", r.k, r.ratio) for r in result.log_linear.rows if r.l == 1e-4),
        *(row("E4 log-linear in stages", r.n_p / r.n_a, r.ratio) for r in result.sequential.staged),
    ]
    return slope_ratios(rows, title="Slope ratio against size ratio: joint optima (E1-E3) and stages (E4)")


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
        title="Hooke's law: |D_a| and |D_p| times their change of rate",
        unit="per |D_a|, nats or bits",
    )


def _exponents(result: Result) -> go.Figure:
    figure = go.Figure()
    labels = {"n_p": "pre-training size N_p", "n_a": "alignment size N_a"}
    for number, (name, sizes) in enumerate(all_exponents(result).items()):
        estimates = [with_ends(sizes.n_p), with_ends(sizes.n_a)]
        figure.add_scatter(
            x=[i + 0.08 * (number - 1) for i in range(2)],
            y=[estimate.value for estimate in estimates],
            error_y=intervals(estimates),
            mode="markers",
            name=name,
            marker={
                "size": 11,
                "color": CONTROL_COLOUR if "control" in name else COLOURS[number % len(COLOURS)],
                "symbol": ("circle", "square", "diamond")[number % 3],
            },
        )
    for account, dash in (("theorem", "dash"), ("curvature", "dot")):
        for i, size in enumerate(labels):
            level = PREDICTIONS[size][account]
            figure.add_scatter(
                x=[i - 0.3, i + 0.3],
                y=[level, level],
                mode="lines",
                line={"color": "#444", "dash": dash, "width": 1.5},
                name=f"{account} predicts",
                showlegend=i == 0,
                legendgroup=account,
            )
    figure.update_layout(
        template=THEME,
        title="What the slope ratio depends on (E4, E6)",
        xaxis={"tickvals": [0, 1], "ticktext": list(labels.values()), "range": [-0.5, 1.5]},
        yaxis={"title": "exponent: d log|R| / d log N"},
        legend={"y": -0.15},
    )
    return figure
