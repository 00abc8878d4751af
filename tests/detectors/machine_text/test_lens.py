"""Scores through the logit lens: at full depth those of the model, below those of the stream as plain code reads it."""

import pytest
import torch

from interp.detectors.machine_text.lens import lens_scores
from interp.detectors.machine_text.reading import score_texts
from interp.detectors.machine_text.scores import TokenScores, text_scores
from interp.models.chat_model import ChatModel

TEXTS = ("The river rose in the night, and by morning the road was gone.", "ab")


def test_at_full_depth_they_are_the_models_own(tiny: ChatModel) -> None:
    for by_depth, own in zip(lens_scores(tiny, TEXTS), score_texts(tiny, TEXTS), strict=True):
        assert list(by_depth) == [0, 1, 2, 3]
        for name, value in by_depth[3].values.items():
            assert value == pytest.approx(own[name], rel=2e-4, abs=1e-5, nan_ok=True), name
        assert by_depth[1]["likelihood"] != pytest.approx(own["likelihood"], abs=1e-3)  # control


@torch.no_grad()
def test_below_they_are_the_plain_lens(tiny: ChatModel) -> None:
    ids = torch.tensor(tiny.tokenizer(TEXTS[0])["input_ids"])
    hidden = tiny.hf(ids[None], output_hidden_states=True).hidden_states
    (by_depth,) = lens_scores(tiny, TEXTS[:1], depths=(0, 2))
    for depth in (0, 2):
        logits = tiny.hf.lm_head(tiny.hf.model.norm(hidden[depth]))[0, :-1, : len(tiny.tokenizer)]
        plain = text_scores(TokenScores.of_logits(logits, ids[1:]))
        assert by_depth[depth]["fast_detect_gpt"] == pytest.approx(plain["fast_detect_gpt"], rel=1e-4)
        assert by_depth[depth]["log_rank"] == pytest.approx(plain["log_rank"], rel=1e-4)


def test_a_depth_must_be_one_of_the_models(tiny: ChatModel) -> None:
    with pytest.raises(ValueError, match="depths must be within 0 and 3, got 4"):
        lens_scores(tiny, TEXTS, depths=(0, 4))
