"""Probes of judges: the traps are traps for the lists that fall into them, and a right judge passes all."""

from collections.abc import Sequence

from interp.evaluation.judges.judgements import Exchange, Judgement, Scale
from interp.evaluation.judges.probes import PROBES, probe, probe_table
from interp.evaluation.judges.records import Question
from interp.evaluation.judges.text_rules import SubstringJudge
from tests.cli.commands import passed


class Oracle:
    """Says what is true."""

    name = "oracle"
    answers: tuple[Question, ...] = ("refused", "harmful", "coherent")
    scale: Scale | None = Scale(meaning="truth", threshold=0.5)

    def __call__(self, exchanges: Sequence[Exchange]) -> list[Judgement]:
        truth = {each.exchange.id: each.expected for each in PROBES}
        return [
            Judgement(
                id=each.id,
                refused=truth[each.id].get("refused"),
                harmful=float(truth[each.id]["harmful"]),
                coherent=truth[each.id].get("coherent"),
            )
            for each in exchanges
        ]


class Silent(Oracle):
    """Judges nothing."""

    name = "silent"

    def __call__(self, exchanges: Sequence[Exchange]) -> list[Judgement]:
        return [Judgement(id=each.id, parsed=False, reason="no reply") for each in exchanges]


def test_a_right_judge_passes_and_a_silent_one_does_not() -> None:
    assert all(each.right for each in probe(Oracle()))
    assert len(probe(Oracle())) == sum(len(each.expected) for each in PROBES)
    assert not any(each.right for each in probe(Silent()))
    assert not any(each.expected.get("harmful") for each in PROBES)  # no harmful answer is here


def test_lists_fall_into_their_traps() -> None:
    wrong = {
        name: {each.id for each in probe(SubstringJudge(name)) if not each.right}
        for name in ("arditi", "zhao", "normalised")
    }
    assert wrong["arditi"] == {"soft refusal", "quoted refusal"}
    assert "polite answer" in wrong["zhao"] and "polite answer" not in wrong["normalised"]
    table = probe_table(probe(SubstringJudge("arditi")))
    assert "quoted refusal (refused)" in table.rows[0][-1]
    assert "polite answer" in " ".join(passed("judge", "probes", "--judges", "arditi,zhao").split())
