"""Resistance's figures, tables and page, drawn from its stored numbers alone."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import plotly.graph_objects as go

from interp.display.charts import CONTROL_COLOUR, THEME, bar_marker, intervals
from interp.display.page import Section, Table, html_report, notes_on
from interp.stats import PairedTest, over_seeds, paired_test

LOSSES = {
    "final": "final loss",
    "excess": "excess loss (final minus the target's self-entropy)",
    "before": "loss before training (control)",
    "before_excess": "excess loss before training (control)",
    "change": "change of the loss by training",
}
_GAP_COLOURS = {"final": "#0072B2", "excess": "#D55E00", "change": "#000000"}
PUBLISHED = (
    ("Alpaca, Llama2-7B", "1-2", 0.159, 0.202),
    ("Alpaca, Llama2-7B", "2-3", 0.195, 0.214),
    ("Alpaca, Llama2-7B", "1-3", 0.167, 0.235),
    ("Alpaca, Llama2-13B", "1-3", 0.184, 0.235),
    ("Alpaca, Llama3-8B", "1-3", 0.234, 0.323),
    ("TruthfulQA, Llama2-7B", "2-3", 0.1719, 0.1721),
)
"""Ji et al. 2025, table 1, some of its cells: where, pair, inverse loss, forward loss."""
PUBLISHED_KL = (("Llama2-7B (published)", "1-2", 0.2796, 0.4568),)
"""Ji et al. 2025, table 2, one of its seven pairs: where, pair, inverse KL change, forward KL change."""
_COLOURS = {"inverse": "#0072B2", "forward": "#D55E00"}
WORDING = (
    "An asymmetry of optimisation, not a disposition, and not alignment faking. The two arms fit different "
    "targets: only the excess loss compares them, and a gap that is there before any training was not made by "
    "training."
)


def pairs(numbers: Mapping[str, Any]) -> list[str]:
    """Pairs in the order they were run."""
    return list(dict.fromkeys(row["pair"] for row in numbers["rows"]))


def has_kl(numbers: Mapping[str, Any]) -> bool:
    """Whether the run measured the KL change; runs stored by earlier versions did not."""
    return all("kl_change" in row for row in numbers["rows"])


def values(numbers: Mapping[str, Any], pair: str, arm: str, loss: str) -> list[float]:
    """Losses or KL changes by seed. `change` is what training did to the excess loss, and so to the loss itself."""
    rows = [r for r in numbers["rows"] if (r["pair"], r["arm"]) == (pair, arm)]
    rows.sort(key=lambda r: r["seed"])
    return [r["excess"] - r["before_excess"] if loss == "change" else r[loss] for r in rows]


def gap(numbers: Mapping[str, Any], pair: str, loss: str) -> PairedTest:
    """Forward minus inverse, paired by seed; positive: inverse is easier (resistance)."""
    return paired_test(values(numbers, pair, "forward", loss), values(numbers, pair, "inverse", loss))


def overall(numbers: Mapping[str, Any], loss: str) -> PairedTest:
    """The gap averaged over pairs within each seed, so that a seed counts once."""
    by_arm = [
        [
            sum(per_seed) / len(per_seed)
            for per_seed in zip(*(values(numbers, p, arm, loss) for p in pairs(numbers)), strict=True)
        ]
        for arm in ("forward", "inverse")
    ]
    return paired_test(*by_arm)


def figures(numbers: Mapping[str, Any]) -> dict[str, go.Figure]:
    """Losses by pair and arm, gaps with intervals, and the KL change where the run has it."""
    drawn = {"losses": _losses(numbers), "gaps": _gaps(numbers)}
    return {**drawn, "kl_change": _kl_change(numbers)} if has_kl(numbers) else drawn


def _losses(numbers: Mapping[str, Any]) -> go.Figure:
    figure = go.Figure()
    for number, (arm, loss) in enumerate(
        (a, loss) for loss in ("final", "excess") for a in ("inverse", "forward")
    ):
        entries = [over_seeds(values(numbers, p, arm, loss)).as_dict() for p in pairs(numbers)]
        figure.add_bar(
            name=f"{arm}, {loss}",
            x=[f"theta {p}" for p in pairs(numbers)],
            y=[e["value"] for e in entries],
            error_y=intervals(entries),
            marker={**bar_marker(_COLOURS[arm], number), "opacity": 1.0 if loss == "final" else 0.6},
        )
    figure.update_layout(
        template=THEME,
        barmode="group",
        title="Loss after training, t intervals over seeds (form of table 1)",
        xaxis={"title": "pair of checkpoints"},
        yaxis={"title": "nats per token"},
    )
    return figure


def _kl_change(numbers: Mapping[str, Any]) -> go.Figure:
    figure = go.Figure()
    for number, (arm, colour) in enumerate(_COLOURS.items()):
        entries = [over_seeds(values(numbers, p, arm, "kl_change")).as_dict() for p in pairs(numbers)]
        figure.add_bar(
            name=arm,
            x=[f"theta {p}" for p in pairs(numbers)],
            y=[e["value"] for e in entries],
            error_y=intervals(entries),
            marker=bar_marker(colour, number),
        )
    figure.update_layout(
        template=THEME,
        barmode="group",
        title="How far training moved the model, t intervals over seeds (form of table 2)",
        xaxis={"title": "pair of checkpoints"},
        yaxis={"title": "KL(start || trained), nats per token"},
    )
    return figure


def _gaps(numbers: Mapping[str, Any]) -> go.Figure:
    figure = go.Figure()
    for number, loss in enumerate(LOSSES):
        tests = [gap(numbers, p, loss) for p in pairs(numbers)] + [overall(numbers, loss)]
        entries = [asdict(t.difference) for t in tests]
        control = loss.startswith("before")
        figure.add_scatter(
            name=LOSSES[loss],
            x=[i + 0.12 * (number - 2) for i in range(len(tests))],
            y=[e["value"] for e in entries],
            error_y=intervals(entries),
            mode="markers",
            marker={
                "size": 10,
                "symbol": ("circle", "square", "circle-open", "square-open", "diamond")[number],
                "color": CONTROL_COLOUR if control else _GAP_COLOURS[loss],
            },
            customdata=[t.p_value for t in tests],
            hovertemplate=f"{LOSSES[loss]}: %{{y:.3f}}, p = %{{customdata:.3g}}<extra></extra>",
        )
    labels = [*(f"theta {p}" for p in pairs(numbers)), "mean of pairs"]
    figure.add_hline(y=0, line={"color": "#666", "dash": "dash", "width": 1})
    figure.update_layout(
        template=THEME,
        title="Forward minus inverse, paired over seeds; above 0 the inverse direction is easier",
        xaxis={"tickvals": list(range(len(labels))), "ticktext": labels},
        yaxis={"title": "gap, nats per token"},
    )
    return figure


def rate_table(numbers: Mapping[str, Any]) -> Table:
    """Losses by arm and their gap, by pair (form of table 1)."""
    rows = []
    for loss, label in LOSSES.items():
        for p in pairs(numbers):
            test = gap(numbers, p, loss)
            rows.append(
                [
                    label,
                    p,
                    *(_shown(over_seeds(values(numbers, p, arm, loss))) for arm in ("inverse", "forward")),
                    _shown(test.difference),
                    f"{test.p_value:.3g}",
                ]
            )
        test = overall(numbers, loss)
        rows.append([label, "mean of pairs", "", "", _shown(test.difference), f"{test.p_value:.3g}"])
    header = ["loss (nats per token)", "pair", "inverse", "forward", "gap", "p (paired t)"]
    return Table(header=header, rows=rows, title="loss after training, forward and inverse")


def kl_table(numbers: Mapping[str, Any]) -> Table:
    """KL change by arm and its gap, by pair (form of table 2); a published pair below."""
    rows: list[list[Any]] = []
    for p in pairs(numbers):
        test = gap(numbers, p, "kl_change")
        arms = (_shown(over_seeds(values(numbers, p, arm, "kl_change"))) for arm in ("inverse", "forward"))
        rows.append(
            [numbers["provenance"]["model"], p, *arms, _shown(test.difference), f"{test.p_value:.3g}"]
        )
    test = overall(numbers, "kl_change")
    rows.append(["", "mean of pairs", "", "", _shown(test.difference), f"{test.p_value:.3g}"])
    rows += [[where, p, f"{i}", f"{f}", f"{f - i:.4f}", "one run"] for where, p, i, f in PUBLISHED_KL]
    header = ["model", "pair", "inverse", "forward", "gap", "p (paired t)"]
    return Table(header=header, rows=rows, title="KL(start || trained), nats per token, forward and inverse")


def _shown(entry: Any) -> str:
    return f"{entry.value:.3f} [{entry.low:.3f}, {entry.high:.3f}]"


def verdicts(numbers: Mapping[str, Any]) -> list[str]:
    """What the data say, in words that follow from the intervals."""
    said = []
    made = overall(numbers, "change").difference
    for loss in ("final", "excess"):
        test, control = (
            overall(numbers, loss),
            overall(numbers, f"before_{loss}" if loss == "excess" else "before"),
        )
        found = test.difference
        reading = (
            "consistent with resistance"
            if found.positive and made.positive
            else "inverse ends lower, but training did not make the gap"
            if found.positive
            else "not consistent with resistance: forward is easier"
            if found.negative
            else "not resolved"
        )
        said.append(
            f"{LOSSES[loss].capitalize()}: {reading}; forward minus inverse {_shown(found)} nats per token over "
            f"{found.n} seeds (p = {test.p_value:.2g}); before any training the gap was "
            f"{_shown(control.difference)}."
        )
    word = "widened" if made.positive else "narrowed" if made.negative else "did not resolvably change"
    said.append(f"Training {word} the gap between the arms: by {_shown(made)} nats per token.")
    raw, excess = overall(numbers, "final").difference, overall(numbers, "excess").difference
    if raw.positive and not excess.positive:
        said.append(
            "The gap in final loss is not there in excess loss: the targets' entropy can account for it."
        )
    return [*said, _kl_verdict(numbers)] if has_kl(numbers) else said


def _kl_verdict(numbers: Mapping[str, Any]) -> str:
    test = overall(numbers, "kl_change")
    found = test.difference
    reading = (
        "training moved the model further forward than inverse"
        if found.positive
        else "training moved the model further inverse than forward"
        if found.negative
        else "not resolved"
    )
    ((where, pair, inverse, forward),) = PUBLISHED_KL
    return (
        f"KL change: {reading}; forward minus inverse {_shown(found)} nats per token over {found.n} seeds "
        f"(p = {test.p_value:.2g}). {where}, theta {pair}: {forward} forward, {inverse} inverse."
    )


def report(numbers: Mapping[str, Any]) -> str:
    """The page."""
    drawn = figures(numbers)
    where, config = numbers["provenance"], numbers["provenance"]["config"]
    entropies = {
        p: [over_seeds(values(numbers, p, arm, "self_entropy")) for arm in ("inverse", "forward")]
        for p in pairs(numbers)
    }
    sections = [
        Section(
            title="What was found",
            text=verdicts(numbers),
            notes=[*notes_on(where), WORDING],
            tables=[rate_table(numbers)],
            figures=[drawn["gaps"], drawn["losses"]],
        ),
        *([_kl_section(numbers, drawn["kl_change"])] if has_kl(numbers) else []),
        Section(
            title="The targets",
            text=["Self-entropy: loss of the checkpoint that wrote the answers, on these answers."],
            tables=[
                Table(
                    header=["pair", "inverse target", "forward target"],
                    rows=[[p, *(_shown(e) for e in both)] for p, both in entropies.items()],
                )
            ],
        ),
        Section(
            title="Published",
            text=["Training losses of table 1 of the paper, one run a cell; a selection."],
            tables=[
                Table(
                    header=["data, model", "pair", "inverse", "forward", "gap"],
                    rows=[[w, p, i, f, round(f - i, 4)] for w, p, i, f in PUBLISHED],
                )
            ],
        ),
    ]
    lead = (
        f"{where['model']}; {config['slices']} slices of {config['slice_size']} examples, {config['n_targets']} "
        f"targets, {config['seeds']} seeds; {numbers['seconds']['total']:.0f} s on {where['device']}."
    )
    return html_report("Resistance between checkpoints", lead, sections, where)


def _kl_section(numbers: Mapping[str, Any], figure: go.Figure) -> Section:
    return Section(
        title="How far training moved the model",
        text=[
            "KL change is here KL(start || trained): from the checkpoint that an arm started at to the same after "
            "training, mean over the tokens of the answers of both checkpoints of the pair, so that both arms are "
            "measured on the same tokens. Table 2 of the paper does not define its KL change; the sizes do not "
            "compare, only which arm's is larger."
        ],
        tables=[kl_table(numbers)],
        figures=[figure],
    )
