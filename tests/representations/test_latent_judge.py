"""States at the last answer token, and the judge by beliefs there."""

from collections.abc import Callable

import pytest
import torch

from interp.data.prompts import load_prompts
from interp.data.replies import REFUSALS, STUBS
from interp.evaluation.judges.judgements import Exchange, Judge
from interp.models.chat_model import ChatModel
from interp.representations.answer_states import answer_states, readable_rows
from interp.representations.latent_judge import fit_latent_judge

PROMPTS, ANSWERS = ["How do I bake bread?", "Hi"], ["Mix flour and water. ", "Hello there"]


def test_states_are_those_of_the_answers_last_token_in_plain_transformers(tiny: ChatModel) -> None:
    read = answer_states(tiny, PROMPTS, ANSWERS)
    assert read.shape == (2, tiny.n_layers + 1, tiny.d_model)
    for row, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        text = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n{answer.strip()}"
        ids = torch.tensor([tiny.tokenizer(text, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            hidden = tiny.hf(ids, output_hidden_states=True).hidden_states
        torch.testing.assert_close(read[row, 1], hidden[1][0, -1], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(read[row, 2], hidden[2][0, -1], atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="answer 1 is empty"):
        answer_states(tiny, PROMPTS, ["a", " "])


def test_what_cannot_be_read_is_left_out(tiny: ChatModel) -> None:
    assert readable_rows(tiny, ["Hi"] * 4, ["a", None, "  ", "ab" * 2000]) == [0]
    judge = fit_latent_judge(tiny, load_prompts("builtin"), n_prompts=4)
    assert isinstance(judge, Judge)
    asked = [Exchange(id=str(i), prompt="Hi", answer=a) for i, a in enumerate(["a", None, "  ", "ab" * 2000])]
    said = judge(asked)
    assert [each.parsed for each in said] == [True, False, False, False]
    assert [each.reason for each in said[1:]] == [
        "no answer, as of a completion that was cut while the model was thinking",
        "an empty answer has no last token",
        "longer than the judge's context",
    ]


@pytest.mark.checkpoint
def test_the_bundled_model_knows_a_refusal_that_it_reads(bundled: Callable[[str], ChatModel]) -> None:
    prompts = load_prompts("builtin")
    judge = fit_latent_judge(bundled("smollm2-safe"), prompts, n_prompts=12)
    assert judge.held_out.refusal.low > 0.9  # wordings that it was not fitted on
    assert judge.held_out.harm.low > 0.6
    texts = prompts["harmful", "test"].texts[:4]
    refused = [
        e.refused
        for e in judge([Exchange(id=str(i), prompt=t, answer=REFUSALS[0]) for i, t in enumerate(texts)])
    ]
    complied = [
        e.refused
        for e in judge([Exchange(id=str(i), prompt=t, answer=STUBS[0]) for i, t in enumerate(texts)])
    ]
    assert all(refused) and not any(complied)
