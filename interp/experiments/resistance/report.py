"""Resistance's tables, verdicts and page, from a stored result alone."""

from typing import Any

import plotly.graph_objects as go

from interp.display.cards import Table
from interp.display.page import Section, html_report
from interp.experiments.resistance import ARMS, Result
from interp.experiments.resistance.figures import figures
from interp.experiments.resistance.gaps import LOSSES, Measure, gap, overall_gap, pairs, values
from interp.stats import Estimate, PairedTest, over_seeds

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
WORDING = (
    "An asymmetry of optimisation, not a disposition, and not alignment faking. The two arms fit different "
    "targets: only the excess loss compares them, and a gap that is there before any training was not made by "
    "training."
)


def rate_table(result: Result) -> Table:
    """Losses by arm and their gap, by pair (form of table 1)."""
    rows: list[list[Any]] = []
    for loss, label in LOSSES.items():
        rows += [
            [label, pair, *_by_arm(result, pair, loss), *_test(gap(result, pair, loss))]
            for pair in pairs(result)
        ]
        rows.append([label, "mean of pairs", "", "", *_test(overall_gap(result, loss))])
    header = ["loss (nats per token)", "pair", "inverse", "forward", "gap", "p (paired t)"]
    return Table(header=header, rows=rows, title="loss after training, forward and inverse")


def kl_table(result: Result) -> Table:
    """KL change by arm and its gap, by pair (form of table 2); a published pair below."""
    name = result.provenance.model_name
    rows: list[list[Any]] = [
        [name, pair, *_by_arm(result, pair, "kl_change"), *_test(gap(result, pair, "kl_change"))]
        for pair in pairs(result)
    ]
    rows.append(["", "mean of pairs", "", "", *_test(overall_gap(result, "kl_change"))])
    rows += [[where, p, f"{i}", f"{f}", f"{f - i:.4f}", "one run"] for where, p, i, f in PUBLISHED_KL]
    header = ["model", "pair", "inverse", "forward", "gap", "p (paired t)"]
    return Table(header=header, rows=rows, title="KL(start || trained), nats per token, forward and inverse")


def _by_arm(result: Result, pair: str, measure: Measure) -> list[str]:
    """Cells of the inverse and the forward arm."""
    return [over_seeds(values(result, pair, arm, measure)).rounded(3) for arm in reversed(ARMS)]


def _test(test: PairedTest) -> list[str]:
    """Cells of a gap and its p-value."""
    return [test.difference.rounded(3), f"{test.p_value:.3g}"]


def verdicts(result: Result) -> list[str]:
    """Verdicts on the claims, in words that follow from the intervals."""
    made = overall_gap(result, "change").difference
    word = "widened" if made.positive else "narrowed" if made.negative else "did not resolvably change"
    sentences = [
        _loss_verdict(result, "final", "before", made),
        _loss_verdict(result, "excess", "before_excess", made),
        f"Training {word} the gap between the arms: by {made.rounded(3)} nats per token.",
    ]
    raw, excess = overall_gap(result, "final").difference, overall_gap(result, "excess").difference
    if raw.positive and not excess.positive:
        sentences.append(
            "The gap in final loss is not there in excess loss: the targets' entropy can account for it."
        )
    return [*sentences, _kl_verdict(result)]


def _loss_verdict(result: Result, loss: Measure, control: Measure, made: Estimate) -> str:
    """Whether a loss goes as resistance says, beside its gap before any training."""
    test, before = overall_gap(result, loss), overall_gap(result, control).difference
    difference = test.difference
    reading = (
        "consistent with resistance"
        if difference.positive and made.positive
        else "inverse ends lower, but training did not make the gap"
        if difference.positive
        else "not consistent with resistance: forward is easier"
        if difference.negative
        else "not resolved"
    )
    return (
        f"{LOSSES[loss].capitalize()}: {reading}; forward minus inverse {difference.rounded(3)} nats per token over "
        f"{difference.n} seeds (p = {test.p_value:.2g}); before any training the gap was {before.rounded(3)}."
    )


def _kl_verdict(result: Result) -> str:
    test = overall_gap(result, "kl_change")
    difference = test.difference
    reading = (
        "training moved the model further forward than inverse"
        if difference.positive
        else "training moved the model further inverse than forward"
        if difference.negative
        else "not resolved"
    )
    ((where, pair, inverse, forward),) = PUBLISHED_KL
    return (
        f"KL change: {reading}; forward minus inverse {difference.rounded(3)} nats per token over {difference.n} seeds "
        f"(p = {test.p_value:.2g}). {where}, theta {pair}: {forward} forward, {inverse} inverse."
    )


def report(result: Result) -> str:
    """The page."""
    charts, about, config = figures(result), result.provenance, result.config
    sections = [
        Section(
            title="What was found",
            text=verdicts(result),
            notes=[*about.notes, WORDING],
            tables=[rate_table(result)],
            figures=[charts["gaps"], charts["losses"]],
        ),
        _kl_section(result, charts["kl_change"]),
        Section(
            title="The targets",
            text=["Self-entropy: loss of the checkpoint that wrote the answers, on these answers."],
            tables=[
                Table(
                    header=["pair", "inverse target", "forward target"],
                    rows=[[pair, *_by_arm(result, pair, "self_entropy")] for pair in pairs(result)],
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
        f"{about.model_name}; {config.slices} slices of {config.slice_size} examples, {config.n_targets} "
        f"targets, {config.seeds} seeds; {result.seconds['total']:.0f} s on {about.device}."
    )
    return html_report(
        "Resistance between checkpoints",
        lead,
        sections,
        about,
        paper="2406.06144",
        next_steps=[
            ("Follow one path of fine-tuning from inside", "interp run trajectory --out runs/trajectory"),
        ],
    )


def _kl_section(result: Result, figure: go.Figure) -> Section:
    return Section(
        title="How far training moved the model",
        text=[
            "KL change is here KL(start || trained): from the checkpoint that an arm started at to the same after "
            "training, mean over the tokens of the answers of both checkpoints of the pair, so that both arms are "
            "measured on the same tokens. Table 2 of the paper does not define its KL change; the sizes do not "
            "compare, only which arm's is larger."
        ],
        tables=[kl_table(result)],
        figures=[figure],
    )
