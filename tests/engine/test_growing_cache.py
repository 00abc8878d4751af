"""Writing into room equals concatenating, also after rows were dropped, repeated or copied."""

import copy

import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from interp.engine import decoding
from interp.engine.generation import stream
from interp.engine.growing_cache import GrowingLayer, grow, rearrange
from interp.models.chat_model import ChatModel
from interp.models.tokens import ChatTokens, tokenize
from tests.conftest import PROMPTS


def tokens_of(n: int, batch: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch, 2, n, 8), torch.randn(batch, 2, n, 8)


def pair(n: int = 5) -> tuple[DynamicCache, DynamicCache]:
    """A cache of one layer that concatenates, and one that grows."""
    plain, growing = DynamicCache(), DynamicCache()
    first = tokens_of(n)
    for cache in (plain, growing):
        cache.update(*first, 0)
    grow(growing)
    assert type(growing.layers[0]) is GrowingLayer and type(plain.layers[0]) is DynamicLayer
    return plain, growing


def step(plain: DynamicCache, growing: DynamicCache, batch: int = 4) -> None:
    more = tokens_of(1, batch)
    expected, found = plain.update(*more, 0), growing.update(*more, 0)
    assert all(torch.equal(*both) for both in zip(found, expected, strict=True))
    assert growing.get_seq_length() == plain.get_seq_length()


@torch.no_grad()
def test_steps_beyond_the_first_room_equal_concatenation_and_copy_seldom() -> None:
    plain, growing = pair()
    places = set()
    for _ in range(100):
        step(plain, growing)
        places.add(growing.layers[0].keys.data_ptr())
    assert len(places) <= 4


@torch.no_grad()
def test_rows_that_are_dropped_or_repeated_start_a_buffer_of_their_own() -> None:
    plain, growing = pair()
    step(plain, growing)
    for cache in (plain, growing):
        cache.batch_select_indices(torch.tensor([2, 0]))
    step(plain, growing, 2)
    for cache in (plain, growing):
        cache.batch_repeat_interleave(3)
    step(plain, growing, 6)
    for cache in (plain, growing):
        cache.crop(-2)
    step(plain, growing, 6)


@torch.no_grad()
def test_copies_that_share_their_beginning_do_not_write_over_each_other() -> None:
    plain, growing = pair()
    step(plain, growing)
    twins = copy.copy(plain), copy.copy(growing)
    for twin, cache in zip(twins, (plain, growing), strict=True):
        twin.layers = [copy.copy(layer) for layer in cache.layers]
    before = growing.layers[0].keys.clone()
    step(*twins)
    step(plain, growing)
    step(*twins)
    assert torch.equal(growing.layers[0].keys[:, :, :6], before)


@torch.no_grad()
def test_rows_that_move_within_the_cache_equal_rows_that_are_copied() -> None:
    """Dropped, repeated, moved, more than there is room for, and after a step that used the room up."""
    plain, growing = pair()
    places = []
    for rows in ([3, 1, 2, 3, 0], [0, 1, 2], [0, 1, 2, 2, 0, 1, 1, 0], [0, 7, 2], list(range(3)) * 4):
        plain.batch_select_indices(torch.tensor(rows))
        rearrange(growing, rows, capacity=8)
        assert torch.equal(growing.layers[0].keys, plain.layers[0].keys)
        assert torch.equal(growing.layers[0].values, plain.layers[0].values)
        for _ in range(3):
            step(plain, growing, len(rows))
        places.append(growing.layers[0].keys.data_ptr())
    assert len(set(places)) == 2  # only the last one needed a larger buffer
    for _ in range(50):
        step(plain, growing, 12)
    plain.batch_select_indices(torch.tensor([11, 0]))
    rearrange(growing, [11, 0], capacity=8)
    step(plain, growing, 2)


def test_gradients_flow_through_a_pass_that_asks_for_them() -> None:
    _, growing = pair()
    keys, values = tokens_of(1)
    keys.requires_grad_()
    growing.update(keys, values, 0)[0].sum().backward()
    assert keys.grad is not None and (keys.grad == 1).all()


def test_logits_of_every_decoding_step_are_those_of_concatenation_to_the_bit(
    tiny: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens: ChatTokens = tokenize(tiny.tokenizer, PROMPTS)

    def logits() -> list[torch.Tensor]:
        return [step.logits for step in stream(tiny, tokens, max_new_tokens=40)]

    grown: list[DynamicCache] = []
    monkeypatch.setattr(decoding, "grow", lambda cache: (grown.append(cache), grow(cache))[1])
    found = logits()
    assert grown and all(type(layer) is GrowingLayer for layer in grown[-1].layers)
    monkeypatch.setattr(decoding, "grow", lambda _cache: None)
    expected = logits()
    assert len(found) == len(expected) > 1
    assert all(torch.equal(*both) for both in zip(found, expected, strict=True))
