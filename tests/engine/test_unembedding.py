"""Logits in chunks of positions are the model's own, and reduced distributions those of whole passes."""

from collections.abc import Sequence

import pytest
import torch
from transformers import AutoModelForCausalLM

from interp.engine import log_probs
from interp.engine.activations import collect
from interp.engine.applying import apply
from interp.engine.interventions import Ablate
from interp.engine.log_probs import map_completions, map_positions, token_count
from interp.engine.unembedding import completion_states, read_out
from interp.models.chat_model import ChatModel
from interp.models.tokens import ChatTokens
from tests.conftest import tiny_config
from tests.engine.vectors import vector

COMPLETIONS = [[5, 6, 7, 8], [9], [], [30, 31, 32, 33, 34, 35]]


def starts(model: ChatModel, ids: Sequence[Sequence[int]]) -> ChatTokens:
    return ChatTokens(
        ids=tuple(map(tuple, ids)),
        starts=(0,) * len(ids),
        ends=tuple(len(row) for row in ids),
        tokenizer=model.tokenizer,
    )


PROMPTS = [[1, 2, 3], [4], [5], [10, 11, 12]]


def test_chunks_of_logits_are_those_of_the_whole_forward_of_every_family(family: ChatModel) -> None:
    tokens = starts(family, PROMPTS)
    with torch.no_grad(), apply(family, []) as applied:
        states = completion_states(family, tokens, COMPLETIONS, [0, 1, 3], applied)
        assert states.lengths == (4, 1, 6)
        chunks = [states.logits(family, chunk) for chunk in states.chunks(2)]
        plain = []
        for row in (0, 1, 3):
            whole = [*PROMPTS[row], *COMPLETIONS[row]]
            plain.append(family.hf(torch.tensor([whole])).logits[0, len(PROMPTS[row]) - 1 : -1])
    # The same arithmetic in batches of other sizes, float32, logits of a few units.
    torch.testing.assert_close(torch.cat(chunks), torch.cat(plain), rtol=1e-4, atol=1e-4)
    after = family.hf(torch.tensor([PROMPTS[0]])).logits  # the decoder is in its place again
    assert after.shape == (1, 3, 300)


def log_softmax(logits: Sequence[torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    return torch.cat([logits[0].log_softmax(-1), ids[:, None]], dim=1)


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_reduced_distributions_are_those_of_map_completions_without_padding_rows(
    tiny: ChatModel, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited = log_probs.PassBudget.for_

    def budget(model: ChatModel) -> object:
        from dataclasses import replace

        return replace(limited(model), unembedded_positions=2 * chunk, reduced_positions=chunk)

    monkeypatch.setattr(log_probs.PassBudget, "for_", budget)
    size = token_count(tiny)
    assert size == 259 < tiny.d_vocab  # the tokenizer has 256 bytes and three special tokens
    tokens, ablated = starts(tiny, PROMPTS), [Ablate(vector())]
    sizes = list[int]()

    def counted(logits: Sequence[torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
        sizes.append(len(ids))
        return log_softmax(logits, ids)

    rows = {r.row: r for r in map_positions([tiny], [tokens], COMPLETIONS, counted)}
    assert max(sizes) <= chunk and sum(sizes) == 11  # no more logits exist at a time
    whole = map_completions(tiny, tokens, COMPLETIONS, lambda logs, _: logs)
    assert sorted(rows) == [0, 1, 3]
    for row, reduced in rows.items():
        expected = whole[row][:, :size].log_softmax(-1)
        torch.testing.assert_close(reduced.values[:, :-1], expected, rtol=1e-4, atol=1e-4)
        assert reduced.values[:, -1].tolist() == COMPLETIONS[row]
        assert reduced.states.shape == (len(COMPLETIONS[row]), tiny.d_model)
    changed = {
        r.row: r for r in map_positions([tiny], [tokens], COMPLETIONS, log_softmax, interventions=ablated)
    }
    expected = map_completions(tiny, tokens, COMPLETIONS, lambda logs, _: logs, interventions=ablated)
    torch.testing.assert_close(
        changed[0].values[:, :-1], expected[0][:, :size].log_softmax(-1), rtol=1e-4, atol=1e-4
    )
    assert (changed[0].values - rows[0].values).abs().max() > 0.1  # control


def test_two_models_are_read_side_by_side_and_interventions_act_on_the_first(tiny: ChatModel) -> None:
    torch.manual_seed(7)
    hf = AutoModelForCausalLM.from_config(tiny_config(vocab_size=320)).float()
    other = ChatModel(hf, tiny.tokenizer, name="other")
    tokens = starts(tiny, PROMPTS)

    def second(logits: Sequence[torch.Tensor], _: torch.Tensor) -> torch.Tensor:
        assert [part.shape[1] for part in logits] == [259, 259]
        return logits[1].log_softmax(-1)

    plain = map_completions(other, tokens, COMPLETIONS, lambda logs, _: logs)
    for reduced in map_positions(
        [tiny, other], [tokens, tokens], COMPLETIONS, second, interventions=[Ablate(vector())]
    ):
        expected = plain[reduced.row][:, :259].log_softmax(-1)
        torch.testing.assert_close(reduced.values, expected, rtol=1e-4, atol=1e-4)


def test_gradients_and_hooks_are_the_callers_own_between_passes(tiny: ChatModel) -> None:
    tokens = starts(tiny, PROMPTS)
    plain = tiny.hf(torch.tensor([[1, 2, 3]])).logits
    for _ in map_positions([tiny], [tokens], COMPLETIONS, log_softmax, interventions=[Ablate(vector())]):
        assert torch.is_grad_enabled()
        assert torch.equal(tiny.hf(torch.tensor([[1, 2, 3]])).logits, plain)


def test_completions_and_prompts_must_match(tiny: ChatModel) -> None:
    with pytest.raises(ValueError, match="got 4 completions for 2 prompts; give one each"):
        list(map_positions([tiny], [starts(tiny, PROMPTS[:2])], COMPLETIONS, log_softmax))
    with pytest.raises(
        ValueError, match="completion 1 holds token 280, which is none of the tokenizer's 259"
    ):
        list(map_positions([tiny], [starts(tiny, PROMPTS[:2])], [[1], [280]], log_softmax))


@torch.no_grad()
def test_the_lens_of_every_family_reads_the_stream_after_the_last_block_as_the_model(
    family: ChatModel,
) -> None:
    ids = list(family.tokenizer("The river rose in the night.")["input_ids"])
    acts = collect(
        family,
        starts(family, [ids]),
        sites=("resid_pre", "resid_post"),
        positions=list(range(-len(ids), 0)),
        fast=False,
    )
    own = family.hf(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(read_out(family, acts["resid_post"][0, -1]), own, rtol=1e-4, atol=1e-4)
    assert (read_out(family, acts["resid_pre"][0, -1]) - own).abs().max() > 1e-2  # control: one block less
    torch.testing.assert_close(family.hf(torch.tensor([ids])).logits[0], own)  # the model is as it was
