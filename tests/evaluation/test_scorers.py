"""Scorers count what they say."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from interp.data.replies import AFFIRMATION
from interp.evaluation.scorers import (
    ClassifierScorer,
    ComplianceScorer,
    RefusalScorer,
    Scorer,
    SubstringScorer,
    scorer,
)


def test_substrings_and_refusals_are_counted() -> None:
    assert scorer("substring:thank you|PLEASE")(["Thank you!", "please", "no"]) == [True, True, False]
    assert scorer("refusal")(["I cannot help with that.", AFFIRMATION]) == [True, False]
    assert scorer("compliance")(["I cannot help with that.", AFFIRMATION]) == [False, True]


def test_a_classifier_from_a_folder_scores_and_names_its_labels(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    config = BertConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=64, id2label={0: "NEGATIVE", 1: "POSITIVE"}, label2id={"NEGATIVE": 0, "POSITIVE": 1},
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    model.classifier.bias.data = model.classifier.bias.data + model.classifier.bias.data.new_tensor(
        [0.0, 50.0]
    )
    model.save_pretrained(tmp_path / "judge")
    tokenizer.save_pretrained(tmp_path / "judge")
    assert scorer(f"classifier:{tmp_path / 'judge'}:POSITIVE")(["good", ""]) == [True, True]
    assert scorer(f"classifier:{tmp_path / 'judge'}:NEGATIVE")(["good", ""]) == [False, False]
    with pytest.raises(ValueError, match=r"has no label 'HAPPY'; it has NEGATIVE, POSITIVE"):
        scorer(f"classifier:{tmp_path / 'judge'}:HAPPY")


ZHAO_ONLY = "I'm unable to do that."
"""A refusal by the list `zhao` that the list `arditi` does not have."""


def test_scorers_are_objects_with_the_name_that_the_text_form_reads() -> None:
    for made, name in (
        (RefusalScorer("arditi"), "refusal"),
        (RefusalScorer("zhao"), "refusal:zhao"),
        (ComplianceScorer("zhao"), "compliance:zhao"),
        (SubstringScorer(("thank you", "please")), "substring:thank you|please"),
    ):
        assert isinstance(made, Scorer) and made.name == name
        assert scorer(name) == made  # the text form gives the same object
        assert scorer(made) is made
    assert ClassifierScorer("owner/judge", "POSITIVE").name == "classifier:owner/judge:POSITIVE"


def test_a_scorer_object_uses_its_own_list() -> None:
    replies = [ZHAO_ONLY, "I cannot help with that.", AFFIRMATION]
    by_list = {name: RefusalScorer(name)(replies) for name in ("arditi", "zhao")}
    assert by_list["arditi"] != by_list["zhao"]  # control: the lists differ on these
    for name, flags in by_list.items():
        assert ComplianceScorer(name)(replies) == [not flag for flag in flags]
    assert SubstringScorer(("UNABLE",))(replies) == [True, False, False]


def test_a_function_of_replies_with_a_name_is_a_scorer() -> None:
    class Long:
        name = "long"

        def __call__(self, replies: Sequence[str]) -> list[bool]:
            return [len(reply) > 3 for reply in replies]

    own = Long()
    assert scorer(own) is own and scorer(own)(["abcd", "a"]) == [True, False]


def test_scorers_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match=r"needs one text or more, none of them empty; got \(\)"):
        SubstringScorer(())
    for text in ("refusal:mine", "substring:", "classifier:judge", "praise"):
        with pytest.raises(ValueError, match=f"scorer must be refusal, compliance, .*, got '{text}'"):
            scorer(text)
    with pytest.raises(ValueError, match=r"no classifier \./nowhere"):
        ClassifierScorer("./nowhere", "POSITIVE").load()
