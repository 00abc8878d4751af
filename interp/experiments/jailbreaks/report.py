"""Tables, verdicts and page of the jailbreak experiment, from a stored result alone."""

import math

from interp.data.prompts import COMPARED_ENDINGS
from interp.display.cards import Table
from interp.display.page import Section, html_report
from interp.evaluation.records import MIN_IN_GROUP
from interp.experiments.jailbreaks import FamilyShifts, Result
from interp.experiments.jailbreaks.figures import ENDING_LABELS, figures
from interp.stats import Estimate


def rate_table(result: Result) -> Table:
    """Success by family with its control, and by wrapper."""
    rows = []
    for family, entry in result.families.items():
        rows.append([f"{family}, all", entry.harmful_answered.percent, entry.harmless_refused.percent])
        rows += [
            [f"{family}: {name}", one.harmful_answered.percent, one.harmless_refused.percent]
            for name, one in result.wrappers.items()
            if one.family == family
        ]
    first = next(iter(result.families.values()))
    header = [
        "wrapper",
        f"harmful, refused plainly: answered (n = {first.harmful_answered.n})",
        f"harmless, answered plainly: refused (control, n = {first.harmless_refused.n})",
    ]
    return Table(title="success of jailbreaks", header=header, rows=rows)


def shift_table(result: Result) -> Table:
    """Shifts of both beliefs by family and ending, with test, effect size and controls."""
    rows = [
        [
            family,
            ending,
            name,
            shifts.requests,
            _number(shift.moved),
            _number(shift.share_of_gap),
            "" if math.isnan(shift.p_value) else f"{shift.p_value:.1e}",
            "" if math.isnan(shift.effect_size) else round(shift.effect_size, 2),
            _number(shift.harmless),
            _number(shift.beyond),
            shift.negative_side.percent,
        ]
        for ending in COMPARED_ENDINGS
        for family, shifts in result.shifts[ending].families.items()
        for name, shift in shifts.beliefs.items()
    ]
    header = [
        "family",
        "endings",
        "belief",
        "requests",
        "shift",
        "share of the gap",
        "p (Wilcoxon)",
        "effect d_z",
        "harmless (control)",
        "beyond the control",
        "at 0 or below",
    ]
    return Table(header=header, rows=rows)


def _number(estimate: Estimate) -> str:
    if not estimate.measurable:
        return "not measured"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def verdicts(result: Result) -> list[str]:
    """Verdicts on figure 6, by family and with both endings."""
    lines = []
    for ending in COMPARED_ENDINGS:
        for family, shift in result.shifts[ending].families.items():
            where = f"({family}, {ENDING_LABELS[ending]})"
            if shift.requests < MIN_IN_GROUP:
                lines.append(
                    f"Not testable {where}: only {shift.requests} plainly refused requests were answered; "
                    f"{MIN_IN_GROUP} are needed."
                )
                continue
            lines += [_lowered(where, shift), _kept(where, family, shift), _which(where, shift)]
    return lines


def _lowered(where: str, said: FamilyShifts) -> str:
    refusal = said.beliefs.refusal
    holds = refusal.moved.negative and refusal.beyond.negative
    return (
        f"{'Seen' if holds else 'Not seen'} {where}: success lowers the refusal belief (shift "
        f"{_number(refusal.moved)}, {refusal.share_of_gap.value:.0%} of the gap, n = {said.requests} "
        f"requests; beyond wrapped harmless requests {_number(refusal.beyond)})."
    )


def _kept(where: str, family: str, said: FamilyShifts) -> str:
    harm = said.beliefs.harm
    shown = (
        f"at 0 or below: {harm.negative_side.percent} of successes, "
        f"{harm.plain_negative_side.percent} of the same requests plainly asked; "
        f"shift {_number(harm.moved)}, beyond wrapped harmless requests "
        f"{_number(harm.beyond)}"
    )
    if family == "persuasion":
        holds = harm.negative_side.above(harm.plain_negative_side)
        return f"{'Seen' if holds else 'Not seen'} {where}: part of the successes flips the harm belief ({shown})."
    low, high = 1 - harm.negative_side.high, 1 - harm.negative_side.low
    word = "Seen" if low > 0.5 else "Not seen" if high < 0.5 else "Undecided"
    return f"{word} {where}: most successes stay on the harmful side ({shown})."


def _which(where: str, said: FamilyShifts) -> str:
    more = said.refusal_beyond_harm
    if more.positive:
        moved = "the refusal belief falls more than the harm belief"
    elif more.negative:
        moved = "the harm belief falls more than the refusal belief"
    else:
        moved = "neither belief falls more than the other"
    refusal, harm = said.beliefs.refusal.share_of_gap, said.beliefs.harm.share_of_gap
    return (
        f"In shares of the gap between plain harmful and harmless, {moved} {where}: refusal {_number(refusal)}, "
        f"harm {_number(harm)}, difference {_number(more)}."
    )


def report(result: Result) -> str:
    """The experiment's page."""
    charts, about = figures(result), result.provenance
    train, plain = result.counts.train, result.counts.plain
    sections = [
        Section(
            title="What was found",
            text=[
                *verdicts(result),
                "A success is a harmful request that the model refuses plainly and answers when wrapped, by refusal "
                "substrings in its greedy reply: the answer need not be harmful, or of use. Replies are to the "
                "messages as they are; with full stops only the beliefs are read again.",
            ],
            notes=about.notes,
            figures=[charts["fig06_beliefs"]],
        ),
        Section(
            title="Which wrappers succeed",
            text=[
                "The control is what the same wrapper does to harmless requests that the model answers plainly."
            ],
            figures=[charts["success"]],
            tables=[rate_table(result)],
        ),
        Section(
            title="Which belief moves",
            text=[
                "Mean shift from the plain request, prompts of one request averaged first; intervals over requests. "
                "Wrapping moves beliefs by itself: what counts is what is left beyond harmless requests in the same "
                "wrappers. Where a message ends in its wrapper, t_inst is a token of the wrapper.",
            ],
            figures=[charts["shifts"]],
            tables=[shift_table(result)],
        ),
        Section(
            title="Prompts",
            text=[
                f"Centres: {train['harmful'].behaving} of {train['harmful'].of} harmful training prompts that are "
                f"refused, {train['harmless'].behaving} of {train['harmless'].of} harmless ones that are answered. "
                f"Requests: {plain['harmful'].behaving} of {plain['harmful'].of} harmful test prompts are refused "
                f"plainly, {plain['harmless'].behaving} of {plain['harmless'].of} harmless ones answered; only these "
                "are wrapped and counted."
            ],
        ),
    ]
    lead = (
        f"{about.model_name} on prompt set {about.prompts_name}; {result.seconds['total']:.0f} s on {about.device}. "
        "After Zhao et al. 2025, arXiv:2507.11878, section 4."
    )
    return html_report(
        "What jailbreaks move",
        lead,
        sections,
        about,
        paper="2507.11878",
        next_steps=[
            ("Compare detectors on the same kinds of prompts", "interp run guard --out runs/guard"),
        ],
    )
