"""Records of what judges said and how far they agree: frozen, without tensors, readable without torch or numpy."""

from dataclasses import dataclass
from typing import Literal

from interp.display.tables import Table
from interp.stats import Estimate

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
