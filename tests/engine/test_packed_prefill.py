"""Packed prefill against padded batches, and against one prompt at a time without a cache."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from interp.engine import packed_prefill
from interp.engine.applying import apply
from interp.engine.budgets import PassBudget
from interp.engine.decoding import Decoding
from interp.engine.generation import generate
from interp.engine.interventions import Ablate, Add, Intervention
from interp.engine.joint_generation import generate_each
from interp.engine.prefill import prompt_passes
from interp.models.chat_model import ChatModel
from interp.models.tokens import tokenize
from tests.conftest import PROMPTS
from tests.engine.test_generation import TOKENS, VECTOR, uncached

TEXTS = (*PROMPTS, PROMPTS[0], f"{PROMPTS[0]} And cakes?", PROMPTS[4])
"""Prompts of different lengths, two of them twice, one that goes on where another ends."""
ROLES = Add(direction=VECTOR, layers=[1], coefficient=4.0, positions="t_inst", new_tokens=2)
ACTING: list[Sequence[Intervention]] = [(), (Ablate(direction=VECTOR),), (ROLES,)]


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Two prompts are many; the list gets the nodes of every packed pass."""
    nodes: list[int] = []
    own = packed_prefill._take_over

    def counting(cache: DynamicCache, part: Any, *others: Any) -> None:
        nodes.append(len(part.tree.ids))
        own(cache, part, *others)

    monkeypatch.setattr(packed_prefill, "PACKED_PROMPTS", 2)
    monkeypatch.setattr(packed_prefill, "_take_over", counting)
    return nodes


@pytest.mark.parametrize("interventions", ACTING)
def test_every_family_completes_as_each_prompt_alone(
    family: ChatModel, packed: list[int], interventions: Sequence[Intervention]
) -> None:
    tokens = tokenize(family.tokenizer, TEXTS)
    found = generate(family, tokens, interventions=interventions, max_new_tokens=TOKENS)
    alone = [
        generate(family, tokens.take([row]), interventions=interventions, max_new_tokens=TOKENS, fast=False)
        for row in range(len(tokens))
    ]
    assert list(found.ids) == [each.ids[0] for each in alone]
    full = all(type(layer) is DynamicLayer for layer in DynamicCache(config=family.hf.config).layers)
    assert bool(packed) == (full and packed_prefill.packing_pays(family, tokens))


def states(
    model: ChatModel, interventions: Sequence[Intervention], packs: bool
) -> tuple[torch.Tensor, Decoding]:
    tokens = tokenize(model.tokenizer, TEXTS)
    with torch.no_grad(), apply(model, interventions) as applied:
        ((rows, result),) = prompt_passes(
            model, tokens, applied, True, beyond=TOKENS, decodes=True, packs=packs
        )
    assert sorted(rows) == list(range(len(tokens)))
    return result


@pytest.mark.parametrize("nodes", [None, 20])
@pytest.mark.parametrize("interventions", ACTING)
def test_logits_keys_and_values_are_those_of_padded_batches(
    tiny: ChatModel,
    packed: list[int],
    monkeypatch: pytest.MonkeyPatch,
    interventions: Sequence[Intervention],
    nodes: int | None,
) -> None:
    """Also where prompts that decode together need several passes."""
    if nodes is not None:
        small = replace(PassBudget.for_(tiny), packed_tokens=nodes)
        monkeypatch.setattr(PassBudget, "for_", lambda _model: small)
    logits, state = states(tiny, interventions, packs=True)
    assert (len(packed) > 1) == (nodes is not None)
    expected, padded = states(tiny, interventions, packs=False)
    assert torch.allclose(logits, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(state.mask.sum(1), padded.mask.sum(1)) and torch.equal(state.position, padded.position)
    for ours, theirs in zip(state.cache.layers, padded.cache.layers, strict=True):
        for name in ("keys", "values"):  # padding may stand before or after the shared prefix
            a = getattr(ours, name).transpose(1, 2)[state.mask.bool()]
            b = getattr(theirs, name).transpose(1, 2)[padded.mask.bool()]
            assert a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def test_what_prompts_begin_with_runs_once(tiny: ChatModel, packed: list[int]) -> None:
    tokens = tokenize(tiny.tokenizer, [PROMPTS[0]] * 5 + [PROMPTS[1]])
    found = generate(tiny, tokens, max_new_tokens=TOKENS)
    assert len(set(found.ids[:5])) == 1
    lengths, shared = [len(tokens.ids[row]) for row in (0, 5)], tokens.n_shared
    assert packed == [sum(lengths) - shared]


def test_sets_of_interventions_prefill_packed_as_they_do_apart(tiny: ChatModel, packed: list[int]) -> None:
    tokens = tokenize(tiny.tokenizer, TEXTS)
    arms: list[Sequence[Intervention]] = [(), (replace(ROLES, new_tokens="none"),)]
    each = generate_each(tiny, tokens, arms, max_new_tokens=TOKENS)
    assert len(packed) == 2
    assert [list(ids) for ids in each[0].ids] == [uncached(tiny, ids, TOKENS) for ids in tokens.ids]
    for interventions, found in zip(arms, each, strict=True):
        assert found.ids == generate(tiny, tokens, interventions=interventions, max_new_tokens=TOKENS).ids
    assert each[0].ids != each[1].ids


def test_few_prompts_and_packing_that_disagrees_run_padded(
    tiny: ChatModel, packed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = tokenize(tiny.tokenizer, TEXTS)
    expected = generate(tiny, tokens, max_new_tokens=TOKENS)
    assert packed  # control
    packed.clear()
    monkeypatch.setattr(packed_prefill, "PACKED_PROMPTS", len(TEXTS) + 1)
    assert generate(tiny, tokens, max_new_tokens=TOKENS).ids == expected.ids
    monkeypatch.setattr(packed_prefill, "PACKED_PROMPTS", 2)
    monkeypatch.setattr(packed_prefill, "fast_path_agrees", lambda *_: False)
    assert generate(tiny, tokens, max_new_tokens=TOKENS).ids == expected.ids
    assert not packed
