"""Distributions of a prefix tree are those of each text by itself, in every family."""

from collections.abc import Sequence

import pytest
import torch

from interp.engine.activations import fast_path_agrees
from interp.engine.packed_texts import map_packed_positions
from interp.models.chat_model import ChatModel
from interp.models.tokens import ChatTokens

TEXTS = (
    "The river rose in the night.",
    "The river rose by night.",
    "The river rose",
    "Four keys",
    "Four keys",
)


def rows_of(model: ChatModel, texts: Sequence[str]) -> ChatTokens:
    ids = tuple(tuple(model.tokenizer(text)["input_ids"]) for text in texts)
    return ChatTokens(ids=ids, starts=(0,) * len(ids), ends=tuple(map(len, ids)), tokenizer=model.tokenizer)


def log_prob(logits: Sequence[torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    return torch.stack([logits[0].log_softmax(-1).gather(1, ids[:, None])[:, 0], ids.float()], dim=1)


@torch.no_grad()
def test_each_text_is_as_by_itself(family: ChatModel) -> None:
    tokens = rows_of(family, TEXTS)
    assert fast_path_agrees(family, tokens)
    size = max(family.tokenizer.get_vocab().values()) + 1
    for ids, values in zip(tokens.ids, map_packed_positions(family, tokens, log_prob), strict=True):
        row = torch.tensor(ids)
        plain = family.hf(row[None]).logits[0, :-1, :size].log_softmax(-1).gather(1, row[1:, None])[:, 0]
        assert values[:, 1].tolist() == list(ids[1:])
        torch.testing.assert_close(values[:, 0], plain, rtol=1e-4, atol=1e-4)


def test_a_text_without_a_scored_token_is_named(tiny: ChatModel) -> None:
    with pytest.raises(ValueError, match="text 1 has fewer than 2 tokens"):
        map_packed_positions(tiny, rows_of(tiny, ("ab", "a")), log_prob)
