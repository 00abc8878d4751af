"""Greedy completions of the same prompts under several sets of interventions, decoded together.

plain, steered = generate_each(model, prompts, [(), (Add(direction, positions="t_inst", new_tokens="none"),)])
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from interp.engine.applying import apply
from interp.engine.budgets import PassBudget
from interp.engine.decoding import (
    Decoding,
    Settled,
    decode_steps,
    packed_weights,
)
from interp.engine.generation import Completions, completions_of, gather, generate
from interp.engine.interventions import Intervention, new_token_limit
from interp.engine.packed_prefill import packing_pays
from interp.engine.prefill import decoding_passes, plan_decoding
from interp.engine.sampling import likeliest
from interp.engine.stored_completions import stored_completions
from interp.models.chat_model import ChatModel
from interp.models.contexts import check_context
from interp.models.scalars import whole_number
from interp.models.tokens import ChatTokens, PromptInput, as_tokens


def generate_each(
    model: ChatModel,
    prompts: PromptInput,
    arms: Sequence[Sequence[Intervention]],
    *,
    max_new_tokens: int = 64,
    settled: Settled | None = None,
) -> list[Completions]:
    """Greedy completions of the same prompts under each of several sets of interventions on prompt tokens.

    Equal to calling `generate` once per set. Since no intervention acts on generated tokens, prompts run set by set
    and all sets decode together: with few prompts, decoding time is mostly spent on reading the weights.

    Raises:
        ValueError: an intervention that also acts on generated tokens, or as `generate`.
    """
    max_new_tokens = whole_number(max_new_tokens, "max_new_tokens", at_least=1)
    for intervention in (i for arm in arms for i in arm):
        if new_token_limit(intervention) != 0:
            raise ValueError(
                "sets of interventions decode together only where none acts on generated tokens; give "
                "new_tokens='none', or call generate for each"
            )
    tokens = as_tokens(model.tokenizer, prompts)
    check_context(model, tokens, new_tokens=max_new_tokens)
    if model.rotary.vary:  # keys may have to be computed again, each under its own interventions
        return [
            generate(model, tokens, interventions=arm, max_new_tokens=max_new_tokens, settled=settled)
            for arm in arms
        ]
    kept = stored_completions(model, tokens, arms, max_new_tokens=max_new_tokens, settled=settled)
    missing = [range(len(tokens)) if of_arm is None else of_arm.missing for of_arm in kept]
    rows = sorted(set().union(*missing))  # of any arm: they decode together
    running = [arm for arm, lacks in enumerate(missing) if lacks]
    done: list[list[list[int]]] = [[[] for _ in range(len(tokens))] for _ in arms]
    if running:
        part, active = tokens.take(rows), [arms[arm] for arm in running]
        ran = _decode_each(model, part, active, max_new_tokens=max_new_tokens, settled=settled)
        for arm, replies in zip(running, ran, strict=True):
            for row, ids in zip(rows, replies, strict=True):
                done[arm][row] = ids
    for replies, of_arm in zip(done, kept, strict=True):
        if of_arm is not None:
            of_arm.keep({row: replies[row] for row in of_arm.missing})
            for row, ids in of_arm.found.items():
                replies[row] = ids
    return [
        completions_of(model, replies, tokens, arm, recorded=settled is None)
        for replies, arm in zip(done, arms, strict=True)
    ]


def _decode_each(
    model: ChatModel,
    tokens: ChatTokens,
    arms: Sequence[Sequence[Intervention]],
    *,
    max_new_tokens: int,
    settled: Settled | None,
) -> list[list[list[int]]]:
    """Token ids of every prompt's completion, set by set."""
    weights = packed_weights(model, len(tokens) * len(arms), max_new_tokens, likeliest=True)
    packs = packing_pays(model, tokens)
    done: list[list[list[int]]] = [[[] for _ in range(len(tokens))] for _ in arms]
    waiting: list[tuple[int, list[int], Tensor, Decoding]] = []

    def flush() -> None:
        logits = torch.cat([logits for _, _, logits, _ in waiting])
        state = Decoding.joined([state for *_, state in waiting])
        places = [done[arm][row] for arm, rows, _, _ in waiting for row in rows]
        prompts = [tokens.ids[row] for _, rows, *_ in waiting for row in rows]
        waiting.clear()
        steps = decode_steps(
            model,
            logits,
            state,
            likeliest,
            prompts,
            max_new_tokens=max_new_tokens,
            shrink=True,
            settled=settled,
        )
        gather(steps, places)

    longest = max(map(len, tokens.ids)) + max_new_tokens
    max_rows = PassBudget.for_(model).decoded_together(longest)
    with torch.no_grad():
        for chunk in plan_decoding([len(ids) for ids in tokens.ids], max_rows):
            part = tokens.take(chunk)
            for arm, interventions in enumerate(arms):
                with apply(model, interventions) as applied:
                    passes = decoding_passes(model, part, applied, weights, max_new_tokens, packs=packs)
                    ran = list(passes)
                for rows, (logits, state) in ran:
                    # Rows padded to another width, after running out of memory, are decoded separately.
                    odd = waiting and waiting[0][3].mask.shape[1] != state.mask.shape[1]
                    if odd or sum(len(w[1]) for w in waiting) + len(rows) > max_rows:
                        flush()
                    waiting.append((arm, [chunk[row] for row in rows], logits, state))
            flush()
    return done
