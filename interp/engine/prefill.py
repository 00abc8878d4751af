"""Prefill: passes over prompts, whose keys and values decoding continues.

Prompts run after their shared prefix (see `interp.engine.batching`), left-padded with an explicit attention mask and
position ids or, where they are many, packed (`interp.engine.packed_prefill`), with prepacked weights (see
`interp.engine.cpu_kernels`).

    for rows, (logits, state) in decoding_passes(model, tokens, applied, weights, 24):
        steps = decode_steps(model, logits, state, likeliest, [tokens.ids[row] for row in rows], ...)
"""

from collections.abc import Iterator, Sequence
from functools import cache

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from interp.engine.applying import Applied
from interp.engine.batching import (
    SharedPrefix,
    outgrows_window,
    pad_id,
    pad_left,
    plan_batches,
    run_batches,
    shared_length,
)
from interp.engine.budgets import PassBudget
from interp.engine.decoding import Decoding, Recomputed, arithmetic
from interp.engine.layouts import PassLayout
from interp.engine.packed_prefill import packed_prefill
from interp.engine.prepacked_weights import PackedWeights
from interp.models.chat_model import ChatModel
from interp.models.tokens import ChatTokens


def decoding_passes(
    model: ChatModel,
    tokens: ChatTokens,
    applied: Applied,
    weights: PackedWeights | None,
    max_new_tokens: int,
    *,
    packs: bool = False,
) -> Iterator[tuple[list[int], tuple[Tensor, Decoding]]]:
    """`prompt_passes` in batches that will be decoded together; the plain path when `weights` is None."""
    return prompt_passes(
        model,
        tokens,
        applied,
        weights is not None,
        beyond=max_new_tokens,
        decodes=True,
        weights=weights,
        packs=packs,
    )


def prompt_passes(
    model: ChatModel,
    tokens: ChatTokens,
    applied: Applied,
    fast: bool,
    *,
    beyond: int = 0,
    decodes: bool = False,
    weights: PackedWeights | None = None,
    packs: bool = False,
) -> Iterator[tuple[list[int], tuple[Tensor, Decoding]]]:
    """Run every prompt once; yields rows, logits of the next token, and the state to continue decoding from.

    Args:
        beyond: tokens that will be generated after each prompt; with them it must fit into the model's context.
        decodes: batch for decoding together instead of for the fastest prefill.
        packs: prompts that decode together run packed, as `packing_pays` allowed.
    """
    # A prompt alone shares nothing: a prefix of its own would only be a second pass.
    shared = shared_length(model, tokens, applied, beyond=beyond) if fast and len(tokens) > 1 else 0

    @cache
    def prefix() -> SharedPrefix:
        with arithmetic(model, weights):
            return SharedPrefix(model, tokens, applied, shared)

    budget, widths = PassBudget.for_(model), [len(ids) - shared for ids in tokens.ids]
    joins = decodes and fast and not model.rotary.vary and not outgrows_window(model, tokens, beyond=beyond)
    joins = joins and all(
        type(layer) is DynamicLayer for layer in DynamicCache(config=model.hf.config).layers
    )

    def run(rows: list[int]) -> tuple[Tensor, Decoding]:
        if not joins:
            return run_padded(rows)
        if packs:
            return run_packed(rows)
        # Padding costs as much as tokens: prompts run beside those of their length, and decode beside all.
        parts = in_batches([widths[row] for row in rows])
        assert [place for part in parts for place in part] == list(range(len(rows))), "sorted by length"
        ran = [run_padded([rows[place] for place in part]) for part in parts]
        if len(ran) == 1:
            return ran[0]
        logits, states = torch.cat([logits for logits, _ in ran]), [state for _, state in ran]
        return logits, Decoding.joined(states, applied, layout_of(tokens.take(rows)))

    def run_packed(rows: list[int]) -> tuple[Tensor, Decoding]:
        batch = tokens.take(rows)
        logits, cache, mask = packed_prefill(model, batch, applied, shared=shared, weights=weights)
        last = torch.tensor([len(ids) - 1 for ids in batch.ids], device=model.device)
        return logits, Decoding(cache, mask, last, weights, applied, layout_of(batch))

    def run_padded(rows: list[int]) -> tuple[Tensor, Decoding]:
        batch = tokens.take(rows)
        padded = pad_left([ids[shared:] for ids in batch.ids], pad_id=pad_id(model), first_position=shared)
        ids, position_ids = padded.ids.to(model.device), padded.position_ids.to(model.device)
        mask = torch.cat([torch.ones(len(rows), shared, dtype=torch.long), padded.mask], dim=1).to(
            model.device
        )
        state = Decoding(
            prefix().cache(len(rows)),
            mask,
            position_ids[:, -1],
            weights,
            applied,
            layout_of(batch),
            Recomputed.of(model, batch),
        )
        return state.logits(model, ids, position_ids), state

    def layout_of(batch: ChatTokens) -> PassLayout | None:
        return PassLayout.left_padded(batch, shared=shared) if applied.tracks else None

    def in_batches(lengths: Sequence[int]) -> list[list[int]]:
        return plan_batches(
            lengths, budget=budget.plain_tokens, max_rows=budget.rows, overhead=budget.overhead_tokens
        )

    together = budget.decoded_together(max(map(len, tokens.ids)) + beyond)
    batches = plan_decoding(widths, together) if decodes else in_batches(widths)
    yield from run_batches(batches, run, max_rows=budget.rows)


def plan_decoding(lengths: Sequence[int], max_rows: int) -> list[list[int]]:
    """Rows of each decoding batch: sorted by prompt length, in the fewest batches, evenly filled."""
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    count = -(-len(order) // max_rows)
    size = -(-len(order) // count)
    return [order[i : i + size] for i in range(0, len(order), size)]
