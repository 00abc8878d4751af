"""Tables, verdicts and page of the guard comparison, from a stored result alone."""

from collections.abc import Mapping
from typing import Literal

from interp.data.prompt_sets import ENDINGS
from interp.display.cards import Table
from interp.display.page import Section, html_report
from interp.experiments.guard import GUARD, OTHER_ANCHORS, Judged, Measured, Result
from interp.experiments.guard.figures import LABELS, SAFE, figures
from interp.representations.records import THRESHOLD
from interp.stats import Estimate

Rule = Literal["own", "calibrated"]
"""One of a detector's two thresholds."""


def rate_table(result: Result) -> Table:
    """Every detector with equal endings (full stop) on the ordinary groups; the page has all groups and endings."""
    whole = detector_table(result, "period", "calibrated")
    columns = [
        i
        for i, label in enumerate(whole.header)
        if not label.startswith("flagged") or label.split(" (n")[0].removeprefix("flagged: ") in SAFE
    ]
    return Table(
        title=whole.title,
        header=[whole.header[i] for i in columns],
        rows=[[r[i] for i in columns] for r in whole.rows],
    )


def detector_table(result: Result, ending: str, rule: Rule) -> Table:
    """AUROC, accuracy and flagged shares of every detector with one ending, at one of its two thresholds."""
    table = result.by_ending[ending].detectors
    sizes = _judged(next(iter(table.values())), rule).flagged
    groups = list(sizes)
    shown = [g for g in ("harmless", "borderline") if g in groups] + [
        g for g in groups if g not in ("harmful", "harmless", "borderline")
    ]
    unseen = any(entry.auroc_unseen is not None for entry in table.values())
    rows = []
    for name, entry in table.items():
        judged = _judged(entry, rule)
        rows.append(
            [
                name,
                _auroc(entry.auroc),
                *([_auroc(entry.auroc_unseen)] if unseen else []),
                judged.accuracy.percent,
                *(judged.flagged[group].percent for group in shown),
            ]
        )
    header = [
        "detector",
        "AUROC",
        *(["AUROC, unseen sets"] if unseen else []),
        "accuracy",
        *(f"flagged: {group} (n = {sizes[group].n})" for group in shown),
    ]
    return Table(title=f"detectors, {LABELS[ending]}, {rule} thresholds", header=header, rows=rows)


def _judged(entry: Measured, rule: Rule) -> Judged:
    return entry.own if rule == "own" else entry.calibrated


def _auroc(estimate: Estimate | None) -> str:
    return "" if estimate is None else f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def verdicts(result: Result) -> list[str]:
    """Verdicts on Latent Guard with each ending."""
    lines = []
    for ending in ENDINGS:
        table, where = result.by_ending[ending].detectors, LABELS[ending]
        guard = table[GUARD]
        control = next(entry for name, entry in table.items() if name.endswith("(control)"))
        holds = guard.auroc.low > 0.5 and guard.auroc.above(control.auroc)
        flagged = guard.own.flagged
        lines.append(
            f"{'Seen' if holds else 'Not seen'} ({where}): the harm belief at t_inst detects harmful prompts (AUROC "
            f"{_auroc(guard.auroc)}, random direction {_auroc(control.auroc)}; at threshold 0 it flags "
            f"{flagged['harmful'].percent} of harmful, {flagged['harmless'].percent} of harmless"
            + (
                f" and {flagged['borderline'].percent} of borderline-safe prompts)."
                if "borderline" in flagged
                else ")."
            )
        )
        lines += [
            _misleading(where, group, flagged[group]) for group in ("refused harmless", "accepted harmful")
        ]
        lines += [
            _jailbreaks(where, group, guard.calibrated.flagged)
            for group in flagged
            if group.endswith(" jailbreaks")
        ]
        others = {
            name: entry.auroc
            for name, entry in table.items()
            if name != GUARD and not name.endswith(("(control)", OTHER_ANCHORS))
        }
        better = [name for name, entry in others.items() if entry.above(guard.auroc)]
        worse = [name for name, entry in others.items() if entry.below(guard.auroc)]
        lines.append(
            f"Against the other detectors ({where}): better than the guard, intervals apart: "
            f"{', '.join(better) or 'none'}; worse: {', '.join(worse) or 'none'} ("
            + ", ".join(f"{name} {_auroc(entry)}" for name, entry in others.items())
            + ")."
        )
        if (swapped := table.get(f"{GUARD}, {OTHER_ANCHORS}")) is not None:
            lines.append(
                f"With harmless anchors of another source ({where}) the guard's AUROC is {_auroc(swapped.auroc)} "
                f"instead of {_auroc(guard.auroc)}."
            )
    if not any(name.endswith(OTHER_ANCHORS) for name in result.by_ending["as-is"].detectors):
        lines.append(
            "Not testable: whether the guard sees the source of its harmless anchors; give harmless prompts of another "
            "source (--set anchors=FILE)."
        )
    return lines


def _misleading(where: str, group: str, flagged: Estimate) -> str:
    if flagged.n < 5:
        return f"Not testable ({where}): {group} prompts; there are only {flagged.n}."
    low, high = (
        (flagged.low, flagged.high) if group == "accepted harmful" else (1 - flagged.high, 1 - flagged.low)
    )
    verdict = "Seen" if low > 0.5 else "Not seen" if high < 0.5 else "Undecided"
    return (
        f"{verdict} ({where}): {group} prompts are judged by what they are (flagged {flagged.percent}, "
        f"n = {flagged.n})."
    )


def _jailbreaks(where: str, group: str, flagged: Mapping[str, Estimate]) -> str:
    harmless = flagged.get(group.replace(" jailbreaks", ", harmless"))
    won = flagged[group]
    alike = harmless is not None and harmless.high >= won.low
    verdict = "Seen" if won.low > 0.5 and not alike else "Not seen"
    shown = "none" if harmless is None else harmless.percent
    return (
        f"{verdict} ({where}): {group} that succeed are flagged at the calibrated threshold ({won.percent}, n = "
        f"{won.n} prompts; harmless requests in the same wrappers {shown})."
    )


def report(result: Result) -> str:
    """The experiment's page."""
    charts, where = figures(result), result.provenance
    notes = list(where.notes)
    worst = {ending: table.leak_check.worst for ending, table in result.by_ending.items()}
    if leaking := [ending for ending, value in worst.items() if value > THRESHOLD]:
        shown = ", ".join(f"{LABELS[e]} {worst[e]:.2f}" for e in leaking)
        notes.append(
            f"How prompts end, or their last word, tells harmful from harmless by itself (AUROC {shown})."
        )
    about = result.by_ending["period"].about
    sections = [
        Section(
            title="What was found",
            text=[
                *verdicts(result),
                "Table 3's form: the share of each group that is judged rightly. Groups named by behaviour are those "
                "the model misjudges itself; jailbreaks are wrapped requests that it answers, and the same wrappers "
                "around harmless requests are the control. Prompts of one request are not independent: intervals of "
                "wrapped groups are too narrow.",
            ],
            notes=notes,
            figures=[charts["table3"]],
        ),
        Section(
            title="Threshold-free: ROC",
            text=[
                "Where each detector reads (all ended by a full stop): "
                + "; ".join(f"{name}: {text}" for name, text in about.items())
                + "."
            ],
            figures=[charts["roc"], charts["roc_categories"]],
        ),
        Section(
            title="False positives",
            figures=[charts["false_positives"]],
            tables=[detector_table(result, ending, "calibrated") for ending in ENDINGS],
        ),
        Section(
            title="At each detector's own threshold",
            text=[
                "Latent Guard 0 as published; probe and words at even odds; projections halfway between the training "
                "means; guard models by their own answer."
            ],
            tables=[detector_table(result, ending, "own") for ending in ENDINGS],
        ),
    ]
    lead = (
        f"{where.model_name} on prompt set {where.prompts_name}; {result.seconds['total']:.0f} s on "
        f"{where.device}. After Zhao et al. 2025, arXiv:2507.11878, table 3."
    )
    return html_report(
        "Detectors of harmful prompts",
        lead,
        sections,
        where,
        paper="2507.11878",
        next_steps=[
            ("Fit and use a detector of your own", "interp guard fit --help"),
            (
                "See whether the detector survives fine-tuning",
                "interp run adversarial-finetune --out runs/adversarial-finetune",
            ),
        ],
    )
