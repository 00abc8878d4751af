"""Records of what judges said and how far they agree: frozen, without tensors, readable without torch or numpy."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from interp.display.tables import Table
from interp.stats import Estimate, rate

Question = Literal["refused", "harmful", "coherent"]
"""What a judge can be asked about an answer."""
QUESTIONS: tuple[Question, ...] = ("refused", "harmful", "coherent")


@dataclass(frozen=True, kw_only=True)
class PairAgreement:
    """Two judges on the answers that both judged."""

    first: str
    second: str
    agree: Estimate
    """Share of answers with the same verdict."""
    kappa: Estimate
    """Cohen's kappa."""
    only_first: tuple[str, ...]
    """Ids of answers that only the first calls refused (harmful, coherent)."""
    only_second: tuple[str, ...]
    """Ids of answers that only the second does."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far the judges of one question agree."""

    question: Question
    rates: dict[str, Estimate]
    """Share of yes by judge, of the answers that it judged; `missing` counts those that it could not judge."""
    pairs: tuple[PairAgreement, ...]
    """Every two judges."""
    fleiss: Estimate
    """Fleiss' kappa of all; not measurable with one judge."""
    disputes: tuple[str, ...]
    """Ids of answers about which two judges differ."""

    def pair(self, first: str, second: str) -> PairAgreement:
        """The agreement of two judges, in either order.

        Raises:
            KeyError: not both judged.
        """
        for pair in self.pairs:
            if {pair.first, pair.second} == {first, second}:
                return pair
        raise KeyError(f"no agreement of {first} and {second}")


@dataclass(frozen=True, kw_only=True)
class HumanAgreement:
    """One judge against human labels."""

    judge: str
    accuracy: Estimate
    """Share of labelled answers with the human verdict, of those that were judged."""
    kappa: Estimate
    """Cohen's kappa with the human labels."""
    found: Estimate
    """Share of the answers that people call refused (harmful) which the judge does, too."""
    false_alarms: Estimate
    """Share of the others that the judge calls so."""
    calibration_error: Estimate
    """Expected calibration error of `harmful` in ten bins of equal width; not measurable for yes or no alone."""


def agreement_tables(found: Agreement) -> list[Table]:
    """The rates by judge, and the agreement of every two, as tables."""
    rates = Table(
        title=f"{found.question}, by judge",
        header=["judge", found.question, "judged", "could not be judged"],
        rows=[[name, each.percent, each.n, each.missing] for name, each in found.rates.items()],
    )
    if not found.pairs:
        return [rates]
    rows: list[list[str | int]] = [
        [
            f"{pair.first} / {pair.second}",
            pair.agree.percent,
            pair.kappa.rounded(2) if pair.kappa.measurable else "not measurable",
            len(pair.only_first),
            len(pair.only_second),
        ]
        for pair in found.pairs
    ]
    fleiss = found.fleiss.rounded(2) if found.fleiss.measurable else "not measurable"
    rows.append([f"all {len(found.rates)} (Fleiss)", "", fleiss, "", ""])
    header = ["judges", "same verdict", "kappa", "only the first", "only the second"]
    return [rates, Table(title=f"{found.question}, agreement", header=header, rows=rows)]


def score_table(scores: dict[str, Estimate], scales: dict[str, str]) -> Table:
    """The mean score of every judge, on its own scale, as a table; two judges' means do not compare.

    Args:
        scales: meaning of each judge's score and its threshold.
    """
    rows = [
        [name, each.rounded(2) if each.measurable else "not measurable", each.n, scales.get(name, "")]
        for name, each in scores.items()
    ]
    return Table(title="harmful, mean score", header=["judge", "mean", "judged", "scale"], rows=rows)


def human_table(found: list[HumanAgreement], question: Question) -> Table:
    """Every judge against human labels, as a table."""
    return Table(
        title=f"{question}, against human labels",
        header=["judge", "accuracy", "kappa", "found", "false alarms", "calibration error"],
        rows=[
            [
                each.judge,
                each.accuracy.percent,
                each.kappa.rounded(2) if each.kappa.measurable else "not measurable",
                each.found.percent,
                each.false_alarms.percent,
                each.calibration_error.rounded(2) if each.calibration_error.measurable else None,
            ]
            for each in found
        ],
    )


@dataclass(frozen=True, kw_only=True)
class ArmRates:
    """What every judge says about the replies of one arm of an experiment to one kind of prompts."""

    arm: str
    """Stage of the run, with its interventions where there are any."""
    group: str
    """Kind of the prompts, such as `harmful`, or `harmful, wrapped`."""
    n: int
    """Number of replies."""
    refused: dict[str, Estimate]
    """Share of refusals by judge, of the replies that it judged."""
    harmful: dict[str, Estimate]
    """Share of harmful replies by judge, at the judge's own threshold."""


@dataclass(frozen=True, kw_only=True)
class RunJudgements:
    """What judges say about the replies of a run."""

    asked: tuple[str, ...]
    """Judges as they were asked for."""
    scales: dict[str, str]
    """Judge → meaning of its `harmful` and its threshold; empty where it says nothing about harm."""
    arms: tuple[ArmRates, ...]
    """Rates by arm and kind of prompts."""
    refused: Agreement | None
    """Agreement on refusals over all replies; None where no judge is asked about them."""
    harmful: Agreement | None
    """The same on harm."""
    left_out: int
    """Replies to prompts that are not of the run's prompt set, such as a task's, which are not judged."""


@dataclass(frozen=True, kw_only=True)
class ReplyVerdicts:
    """Every judge's verdict on every reply, without the replies."""

    asked: tuple[str, ...]
    """Judges as they were asked for."""
    scales: dict[str, str]
    """As in `RunJudgements`."""
    ids: tuple[str, ...]
    """Id of every reply."""
    arms: tuple[str, ...]
    """Arm of every reply."""
    groups: tuple[str, ...]
    """Kind of the prompt of every reply."""
    refused: dict[str, tuple[bool | None, ...]]
    """Verdicts on every reply by judge; None where it could not be judged."""
    harmful: dict[str, tuple[bool | None, ...]]
    """The same on harm, of the judges that say."""
    left_out: int
    """As in `RunJudgements`."""

    def rates(self, rows: Sequence[int]) -> dict[Question, dict[str, Estimate]]:
        """Shares of yes by question and judge, over some of the replies."""
        return {
            question: {name: verdict_rate([said[row] for row in rows]) for name, said in verdicts.items()}
            for question, verdicts in self.by_question.items()
        }

    @property
    def by_question(self) -> "dict[Question, dict[str, tuple[bool | None, ...]]]":
        """Verdicts by question and judge."""
        return {"refused": self.refused, "harmful": self.harmful}


def verdict_rate(verdicts: Sequence[bool | None]) -> Estimate:
    """Share of yes among the answers that were judged, with the number that could not be."""
    return replace(
        rate([bool(each) for each in verdicts if each is not None]),
        missing=sum(each is None for each in verdicts),
    )


_SHOWN_DISPUTES = 12


def arms_table(found: RunJudgements, question: Question) -> Table:
    """Rates of every arm by judge, as a table."""
    rows = [
        [each.arm, each.group, each.n, *(rate.percent for rate in rates.values())]
        for each in found.arms
        if (rates := each.refused if question == "refused" else each.harmful)
    ]
    names = list(rates) if (rates := _rates(found, question)) else []
    return Table(title=f"{question}, by arm and judge", header=["arm", "prompts", "n", *names], rows=rows)


def _rates(found: RunJudgements, question: Question) -> dict[str, Estimate]:
    agreement = found.refused if question == "refused" else found.harmful
    return {} if agreement is None else agreement.rates


def judgement_tables(found: RunJudgements) -> list[Table]:
    """Rates by arm, rates by judge, and agreement, for each question that a judge answers."""
    tables: list[Table] = []
    if found.refused is not None:
        tables += [arms_table(found, "refused"), *agreement_tables(found.refused)]
    if found.harmful is not None:
        tables += [arms_table(found, "harmful"), *agreement_tables(found.harmful)]
    return tables


def judgement_lines(found: RunJudgements) -> list[str]:
    """Where judges disagree, and what could not be judged, in sentences."""
    lines = list[str]()
    if not found.arms:
        lines.append("The run made no reply that judges could judge.")
    if found.left_out:
        lines.append(
            f"Judges did not see {found.left_out} replies to prompts that are not of the run's set, such as a task's."
        )
    for question, each in (("refused", found.refused), ("harmful", found.harmful)):
        if each is None:
            continue
        lines += [
            f"Judge {name} could not judge {rate.missing} of {rate.n + rate.missing} replies ({question})."
            for name, rate in each.rates.items()
            if rate.missing
        ]
        if len(each.rates) < 2:
            continue
        if not each.disputes:
            lines.append(f"The judges agree on every reply ({question}).")
            continue
        shown = ", ".join(each.disputes[:_SHOWN_DISPUTES])
        more = len(each.disputes) - _SHOWN_DISPUTES
        lines.append(
            f"The judges disagree on {len(each.disputes)} replies ({question}): {shown}"
            + (f" and {more} more." if more > 0 else ".")
        )
    return lines
