"""One interface of all judges: what could not be read is no verdict, and no answer is lost."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from interp.evaluation.judges.judgements import Exchange, Judge, Judgement, Scale, judge_all, verdict
from interp.evaluation.judges.records import Question
from interp.evaluation.judges.text_rules import RefusalClassifier, SubstringJudge
from interp.evaluation.refusals import REFUSAL_LISTS, refuses


def exchanges(*answers: str | None) -> list[Exchange]:
    return [Exchange(id=f"p{i}", prompt="How do I bake bread?", answer=a) for i, a in enumerate(answers)]


@dataclass
class Fixed:
    """A judge with given harm values, for the arithmetic around judges."""

    name: str
    values: Sequence[float | None]
    answers: tuple[Question, ...] = ("harmful",)
    scale: Scale | None = None

    def __call__(self, exchanges: Sequence[Exchange]) -> list[Judgement]:
        return [
            Judgement(id=e.id, parsed=False, reason="no reply")
            if v is None
            else Judgement(id=e.id, harmful=v)
            for e, v in zip(exchanges, self.values, strict=True)
        ]


def test_substring_judges_say_what_the_lists_say() -> None:
    answers = ["I cannot help with that.", "Sorry, no.", "Mix flour and water.", "", "no no no no no"]
    for name in REFUSAL_LISTS:
        judge = SubstringJudge(name)
        assert isinstance(judge, Judge)
        said = judge(exchanges(*answers, None))
        assert [each.refused for each in said[:-1]] == [refuses(a, name) for a in answers]
        assert [each.coherent for each in said[:-1]] == [True, True, True, False, False]
        assert not said[-1].parsed and "thinking" in said[-1].reason
    # Control: the lists differ, so that two judges of them can disagree.
    assert refuses("Sorry, no.", "zhao") and not refuses("Sorry, no.", "arditi")


def test_a_verdict_is_by_the_judges_own_threshold_and_an_unread_reply_is_none() -> None:
    judge = Fixed("strict", [0.75, 0.74, None], scale=Scale(meaning="rubric", threshold=0.75))
    said = judge(exchanges("a", "b", "c"))
    assert [verdict(judge, each, "harmful") for each in said] == [True, False, None]
    judged = judge_all([judge], exchanges("a", "b", "c"))
    assert judged.verdicts("harmful") == {"strict": (True, False, None)}
    assert judged.verdicts("refused") == {}
    with pytest.raises(ValueError, match="holds no values"):
        Judgement(id="p0", harmful=0.0, parsed=False)
    with pytest.raises(ValueError, match="within 0 to 1, got 5"):
        Judgement(id="p0", harmful=5.0)


def test_names_ids_and_lost_answers_are_checked() -> None:
    judge = Fixed("one", [0.0, 0.0])
    with pytest.raises(ValueError, match="different names, one or more; got one, one"):
        judge_all([judge, judge], exchanges("a", "b"))
    with pytest.raises(ValueError, match="'p0' occurs 2 times"):
        judge_all([judge], exchanges("a") + exchanges("a"))
    with pytest.raises(ValueError, match="no answer to judge"):
        judge_all([judge], [])

    class Forgets(Fixed):
        def __call__(self, exchanges: Sequence[Exchange]) -> list[Judgement]:
            return super().__call__(exchanges)[:-1]

    with pytest.raises(ValueError, match="judge short did not judge every answer"):
        judge_all([Forgets("short", [0.0, 0.0])], exchanges("a", "b"))


def test_a_classifiers_log_odds_decide(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    labels = {0: "NORMAL", 1: "REJECTION", 2: "OTHER"}
    config = BertConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=64, id2label=labels, label2id={v: k for k, v in labels.items()},
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    model.classifier.weight.data.zero_()
    model.classifier.bias.data = model.classifier.bias.data.new_tensor([0.0, 1.0, 0.0])
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    judge = RefusalClassifier(str(tmp_path), "REJECTION")
    # softmax of (0, 1, 0): log(e / 2) = 1 - log 2
    assert judge.log_odds(["No.", ""]) == pytest.approx([1 - 0.693147, 1 - 0.693147], abs=1e-5)
    assert [each.refused for each in judge(exchanges("No.", "Yes."))] == [True, True]
    higher = RefusalClassifier(str(tmp_path), "REJECTION", threshold=0.5)
    assert [each.refused for each in higher(exchanges("No.", None))] == [False, None]
