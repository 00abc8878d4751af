"""Behaviour groups: filled by the model's own replies, in the prompts' order."""

import pytest
import torch

from interp.engine.generation import generate
from interp.engine.interventions import Add
from interp.evaluation.responses import Responses, behaving_rows, is_incoherent, respond
from interp.models.chat_model import ChatModel
from interp.models.tokens import tokenize
from tests.conftest import PROMPTS, prompts_of


def test_rows_and_rate_follow_the_flags() -> None:
    seen = Responses(prompts=prompts_of(PROMPTS[:4]), refused=(True, False, True, True), replies=("",) * 4)
    assert seen.rows(refused=True) == [0, 2, 3]
    assert seen.rows(refused=False) == [1]
    assert seen.rate.value == 0.75 and seen.rate.n == 4


def test_behaving_prompts_are_refused_harmful_and_answered_harmless_ones() -> None:
    half, most = [True, False] * 8, [False] * 15 + [True]
    rows = behaving_rows(harmful=half, harmless=most, model_name="tiny")
    assert rows.refused == list(range(0, 16, 2))
    assert rows.answered == list(range(15))
    with pytest.raises(
        ValueError, match=r"tiny refuses only 1 of 16 harmful test prompts; at least 8 are needed"
    ):
        behaving_rows(harmful=most, harmless=most, model_name="tiny", split="test")
    with pytest.raises(ValueError, match=r"tiny answers only 7 of 14 harmless training prompts; at least 8"):
        behaving_rows(harmful=half, harmless=half[:14], model_name="tiny")


def test_a_reply_without_an_answer_is_on_neither_side() -> None:
    seen = Responses(
        prompts=prompts_of(PROMPTS[:3]),
        refused=(True, False, False),
        replies=("",) * 3,
        unfinished=(False, False, True),
    )
    assert seen.flags == (True, False, None)
    assert seen.rows(refused=True) == [0] and seen.rows(refused=False) == [1]
    assert seen.rate.value == 0.5 and seen.rate.n == 2
    half = [True, False] * 8
    rows = behaving_rows(harmful=[*half, None], harmless=[None, *half], model_name="tiny")
    assert rows.refused == list(range(0, 16, 2)) and rows.answered == list(range(2, 17, 2))


def test_replies_are_the_models_own_and_change_under_interventions(tiny: ChatModel) -> None:
    part = prompts_of(PROMPTS)
    seen = respond(tiny, part, max_new_tokens=6)
    assert seen.replies == generate(tiny, part.texts, max_new_tokens=6).texts
    push = Add(direction=5 * torch.randn(32, generator=torch.Generator().manual_seed(0)), layers=[1])
    assert respond(tiny, part, interventions=[push], max_new_tokens=6).replies != seen.replies


def test_truncated_prompts_end_at_t_inst(tiny: ChatModel) -> None:
    tokens = tokenize(tiny.tokenizer, PROMPTS)
    cut = tokens.truncated()
    assert cut.ids == tuple(ids[:end] for ids, end in zip(tokens.ids, tokens.ends, strict=True))
    assert all(cut.index(i, "t_inst") == cut.index(i, "t_post_inst") for i in range(len(PROMPTS)))
    seen = respond(tiny, prompts_of(PROMPTS), tokens=cut, max_new_tokens=4)
    whole = respond(tiny, prompts_of(PROMPTS), max_new_tokens=4)
    assert seen.replies != whole.replies


def test_tokens_of_other_prompts_are_refused(tiny: ChatModel) -> None:
    with pytest.raises(ValueError, match="5 tokenised prompts were given for 6 prompts"):
        respond(tiny, prompts_of(PROMPTS), tokens=tokenize(tiny.tokenizer, PROMPTS[:5]))


def test_empty_and_repeating_replies_are_incoherent() -> None:
    assert is_incoherent(" ") and is_incoherent("Sure. the the the the end")
    assert not is_incoherent("the the the end")
    assert not is_incoherent("No, no, no, no: that is no reply that says one word only.")
