"""Scorers count what they say."""

from pathlib import Path

import pytest
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from interp.data.replies import AFFIRMATION
from interp.evaluation.scorers import scorer


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
