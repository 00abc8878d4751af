"""Soft tokens: a prompt that holds them computes what `inputs_embeds` compute, on every path of the engine."""

import threading

import pytest
import torch
from torch import Tensor

from interp.engine.activations import collect
from interp.engine.generation import generate
from interp.engine.log_probs import (
    completion_log_probs,
    final_states,
    next_token_log_probs,
    next_token_of_states,
)
from interp.engine.soft_tokens import soft_tokens
from interp.models.chat_model import ChatModel
from interp.models.system_slots import system_slot
from interp.models.tokens import ChatTokens
from tests.conftest import PROMPTS

TEXT = "Be kind."


def vectors(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 32, generator=torch.Generator().manual_seed(seed))


def embedded(model: ChatModel, tokens: ChatTokens, row: int, soft: Tensor) -> Tensor:
    """One prompt's embeddings, by hand."""
    rows = [
        soft[i - model.d_vocab] if i >= model.d_vocab else model.embedding(torch.tensor(i))
        for i in tokens.ids[row]
    ]
    return torch.stack(rows)[None]


def test_the_engine_computes_what_inputs_embeds_compute(family: ChatModel) -> None:
    check_against_hugging_face(family, fast=True)


def test_so_does_the_plain_path(tiny: ChatModel) -> None:
    check_against_hugging_face(tiny, fast=False)


@torch.no_grad()
def check_against_hugging_face(family: ChatModel, *, fast: bool) -> None:
    slot = system_slot(family.tokenizer, PROMPTS, TEXT)
    soft = vectors(len(slot))
    with soft_tokens(family, soft) as ids:
        tokens = slot.filled(ids)
        states = collect(family, tokens, sites="resid_post", positions="t_inst", fast=fast)["resid_post"]
        log_probs = next_token_log_probs(family, tokens, fast=fast)
        final = final_states(family, tokens, fast=fast)
        of_states = next_token_of_states(family, final)
        replies = completion_log_probs(family, tokens, [[70, 80]] * len(PROMPTS))
    for row in (0, 3, 4):
        out = family.hf(inputs_embeds=embedded(family, tokens, row, soft), output_hidden_states=True)
        expected = out.logits[0, -1].log_softmax(-1)
        assert (log_probs[row] - expected).norm() < 1e-4 * expected.norm()
        assert (of_states[row] - expected).norm() < 1e-4 * expected.norm()
        assert (final[row] - out.hidden_states[-1][0, -1]).norm() < 1e-4 * final[row].norm()
        at_inst = out.hidden_states[1][0, tokens.ends[row] - 1]
        assert (states[row, 0, 0] - at_inst).norm() < 1e-4 * at_inst.norm()
        assert (replies[row][0] - expected[70]).abs() < 1e-3
    plain = next_token_log_probs(family, slot.tokens, fast=fast)
    assert (plain - log_probs).abs().max() > 1e-2  # control: the embeddings matter


@torch.no_grad()
@pytest.mark.parametrize("fast", [True, False])
def test_completions_equal_hugging_face_generate_with_inputs_embeds(tiny: ChatModel, fast: bool) -> None:
    """Under left padding, a shared prefix, the KV cache, and rows that leave the batch."""
    slot = system_slot(tiny.tokenizer, PROMPTS, TEXT)
    soft = 3 * vectors(len(slot), seed=1)
    with soft_tokens(tiny, soft) as ids:
        tokens = slot.filled(ids)
        found = generate(tiny, tokens, max_new_tokens=12, fast=fast)
    for row in range(len(PROMPTS)):
        embeds = embedded(tiny, tokens, row, soft)
        mask = torch.ones(embeds.shape[:2], dtype=torch.long)
        whole = tiny.hf.generate(
            inputs_embeds=embeds, attention_mask=mask, max_new_tokens=12, do_sample=False
        )  # pyright: ignore[reportCallIssue]
        assert whole[0].tolist()[: len(found.ids[row])] == list(found.ids[row])
    assert generate(tiny, slot.tokens, max_new_tokens=12).ids != found.ids


@torch.no_grad()
def test_soft_tokens_are_gone_after_the_context_and_unknown_to_other_threads(tiny: ChatModel) -> None:
    slot = system_slot(tiny.tokenizer, PROMPTS, TEXT)
    before = next_token_log_probs(tiny, slot.tokens)
    errors: list[BaseException] = []

    def elsewhere(tokens: ChatTokens) -> None:
        try:
            next_token_log_probs(tiny, tokens, fast=False)
        except IndexError as error:
            errors.append(error)

    with pytest.raises(KeyError), soft_tokens(tiny, vectors(len(slot))) as ids:
        tokens = slot.filled(ids)
        thread = threading.Thread(target=elsewhere, args=(tokens,))
        thread.start()
        thread.join()
        raise KeyError("stop")
    assert len(errors) == 1
    with pytest.raises(IndexError):
        next_token_log_probs(tiny, tokens, fast=False)
    assert torch.equal(next_token_log_probs(tiny, slot.tokens), before)
    assert not tiny.embedding._forward_hooks and not tiny.embedding._forward_pre_hooks


def test_embeddings_of_another_width_are_refused(tiny: ChatModel) -> None:
    with (
        pytest.raises(ValueError, match=r"d_model 16, but tiny has 32"),
        soft_tokens(tiny, torch.ones(2, 16)),
    ):
        pass
