"""Batched completions, with or without interventions.

Decoding is greedy unless a temperature is given. `fast=False` runs whole prompts without a shared prefix, with the
model's own arithmetic, and never shrinks the batch; `interp.engine.prefill` and `interp.engine.decoding` describe the
fast path.

    plain = generate(model, prompts, max_new_tokens=32)
    steered = generate(model, prompts, interventions=[Add(direction, coefficient=1.0)])
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor

from interp.display.cards import Card, Shown, Table, shortened
from interp.display.progress import progress
from interp.engine.applying import apply, prepare
from interp.engine.decoding import (
    Decoding,
    DecodingStep,
    LogitsProcessor,
    Pick,
    Settled,
    decode_steps,
    packed_weights,
    stop_ids,
)
from interp.engine.interventions import Intervention, intervention_list
from interp.engine.packed_prefill import packing_pays
from interp.engine.prefill import decoding_passes
from interp.engine.safety_prompts import SafetyPrompt, under
from interp.engine.sampling import likeliest, picker
from interp.engine.stored_completions import stored_completions
from interp.models.chat_model import ChatModel
from interp.models.contexts import check_context
from interp.models.prompt_inputs import PromptIdentity
from interp.models.scalars import whole_number
from interp.models.thinking import opens_thought, separated
from interp.models.tokens import ChatTokens, PromptInput
from interp.storage.reply_records import record_replies

_SHOWN_ROWS = 8


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Completions(Shown):
    """Completions of a list of prompts, in prompt order."""

    texts: tuple[str, ...]
    """Completions as text, decoded without special tokens."""
    ids: tuple[tuple[int, ...], ...]
    """Generated token ids; the end-of-turn token is included where it was reached."""
    finished: tuple[bool, ...]
    """Whether the model ended the turn itself; False means that it was cut, at max_new_tokens or when settled."""
    identity: PromptIdentity | None = None
    """Ids, categories and hash of the prompts."""
    thoughts: tuple[str | None, ...] = ()
    """What the model thought before each answer (`interp.models.thinking`); None for a completion without a thought."""
    answers: tuple[str | None, ...] = ()
    """Completions without the thought; None for one that was cut while the model was thinking."""

    def __post_init__(self) -> None:
        if not self.answers:
            parts = [separated(text) for text in self.texts]
            object.__setattr__(self, "thoughts", tuple(part.thought for part in parts))
            object.__setattr__(
                self, "answers", tuple(part.answer if part.finished else None for part in parts)
            )

    def __len__(self) -> int:
        return len(self.texts)

    def _card(self) -> Card:
        rows = [
            [i, len(ids), "yes" if ended else "cut", shortened(text)]
            for i, (text, ids, ended) in enumerate(zip(self.texts, self.ids, self.finished, strict=True))
        ]
        more = len(rows) - _SHOWN_ROWS
        return Card(
            title=f"{len(self)} completions, {sum(self.finished)} of them ended by the model",
            tables=[Table(header=["prompt", "tokens", "ended", "text"], rows=rows[:_SHOWN_ROWS])],
            notes=[f"and {more} more; all are in .texts"] if more > 0 else [],
        )


def generate(
    model: ChatModel,
    prompts: PromptInput,
    *,
    interventions: Sequence[Intervention] = (),
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | int = 1.0,
    seed: int = 0,
    processors: Sequence[LogitsProcessor] = (),
    safety_prompt: SafetyPrompt | None = None,
    settled: Settled | None = None,
    fast: bool = True,
    show_progress: bool = False,
) -> Completions:
    """Complete every prompt under the interventions.

    Args:
        prompts: instructions or conversations (`interp.models.prompt_inputs`), rendered with the model's chat template,
            or tokens. A prefilled assistant turn is continued; the completion holds what comes after it.
        max_new_tokens: length at which a completion is cut.
        temperature: 0 is greedy; above, tokens are sampled from the softmax at this temperature.
        top_k: sample among this many likeliest tokens; None is all.
        top_p: sample among the fewest likeliest tokens that have this probability together (of those of `top_k`).
        seed: seed of the sampling; a sampled completion depends on the other prompts of the call.
        processors: change the logits that tokens are picked from, one after the other, after temperature, top_k and
            top_p, such as a watermark.
        safety_prompt: stands in the system slot of every prompt.
        settled: cuts a completion as soon as it is true of its tokens so far; completions that are cut are not recorded
            as replies.
        fast: False takes the plain path.
        show_progress: draw a progress bar.

    Raises:
        ValueError: no prompts, one that does not fit into the context with its completion, max_new_tokens below 1,
            temperature, seed, top_k or top_p out of range, an intervention that does not fit, or a safety prompt of
            another model.
    """
    max_new_tokens = whole_number(max_new_tokens, "max_new_tokens", at_least=1)
    interventions = intervention_list(interventions)
    pick = picker(max_new_tokens, temperature, seed, processors, top_k=top_k, top_p=top_p)
    with under(model, prompts, safety_prompt) as tokens:
        check_context(model, tokens, new_tokens=max_new_tokens)
        return _generate(
            model,
            tokens,
            interventions,
            pick,
            max_new_tokens=max_new_tokens,
            settled=settled,
            fast=fast,
            show_progress=show_progress,
            storable=fast and pick is likeliest and safety_prompt is None,
        )


def _generate(
    model: ChatModel,
    tokens: ChatTokens,
    interventions: Sequence[Intervention],
    pick: Pick,
    *,
    max_new_tokens: int,
    settled: Settled | None,
    fast: bool,
    show_progress: bool,
    storable: bool,
) -> Completions:
    kept = None
    if storable:
        (kept,) = stored_completions(
            model, tokens, [interventions], max_new_tokens=max_new_tokens, settled=settled
        )
    rows = list(range(len(tokens))) if kept is None else kept.missing
    done: list[list[int]] = [[] for _ in range(len(tokens))]
    if rows:
        part = tokens if len(rows) == len(tokens) else tokens.take(rows)
        greedy = pick is likeliest
        weights = packed_weights(model, len(rows), max_new_tokens, likeliest=greedy) if fast else None
        packs = fast and packing_pays(model, part)  # compared before any intervention is active
        with torch.no_grad(), apply(model, interventions) as applied:
            passes = decoding_passes(model, part, applied, weights, max_new_tokens, packs=packs)
            steps = _all_steps(
                model, part, passes, pick, max_new_tokens=max_new_tokens, shrink=fast, settled=settled
            )
            # Counted in tokens, so that one long answer moves the bar as well.
            shown = progress(
                steps,
                total=len(rows) * max_new_tokens,
                label="generating tokens",
                show=show_progress,
                size=lambda step: len(step.rows),
            )
            try:
                gather(shown, [done[row] for row in rows])
            finally:  # also after an interrupt: what is complete is stored
                if kept is not None:
                    kept.keep({row: done[row] for row in rows})
    else:
        for intervention in interventions:
            prepare(model, intervention)  # warns as a pass would
    for row, ids in ({} if kept is None else kept.found).items():
        done[row] = ids
    return completions_of(model, done, tokens, interventions, recorded=settled is None)


def stream(
    model: ChatModel,
    prompts: PromptInput,
    *,
    interventions: Sequence[Intervention] = (),
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    processors: Sequence[LogitsProcessor] = (),
    safety_prompt: SafetyPrompt | None = None,
    fast: bool = True,
) -> Iterator[DecodingStep]:
    """The completions of `generate`, token by token as they are made.

    The interventions are active in this thread until the stream ends or is closed: do not run the model for anything
    else between its decoding steps. Up to the budget's `decode_rows` prompts decode together. Arguments and errors are
    those of `generate`.
    """
    max_new_tokens = whole_number(max_new_tokens, "max_new_tokens", at_least=1)
    pick = picker(max_new_tokens, temperature, seed, processors)

    def decode() -> Iterator[DecodingStep]:
        with under(model, prompts, safety_prompt) as tokens, apply(model, interventions) as applied:
            check_context(model, tokens, new_tokens=max_new_tokens)
            weights = packed_weights(model, len(tokens), max_new_tokens) if fast else None
            passes = decoding_passes(model, tokens, applied, weights, max_new_tokens)
            yield from _all_steps(model, tokens, passes, pick, max_new_tokens=max_new_tokens, shrink=fast)

    with closing(decode()) as steps:  # pyright: ignore[reportArgumentType]
        while True:
            # Held during a decoding step only: code that runs between two of them can use the model, with gradients.
            with model.lock, torch.no_grad():
                step = next(steps, None)
            if step is None:
                return
            yield step


def _all_steps(
    model: ChatModel,
    tokens: ChatTokens,
    passes: Iterator[tuple[list[int], tuple[Tensor, Decoding]]],
    pick: Pick,
    *,
    max_new_tokens: int,
    shrink: bool,
    settled: Settled | None = None,
) -> Iterator[DecodingStep]:
    """The decoding steps of one batch after the other, their rows counted over all prompts."""
    for rows, (logits, state) in passes:
        prompts = [tokens.ids[row] for row in rows]
        for step in decode_steps(
            model,
            logits,
            state,
            pick,
            prompts,
            max_new_tokens=max_new_tokens,
            shrink=shrink,
            settled=settled,
        ):
            yield step._replace(rows=tuple(rows[row] for row in step.rows))


def gather(steps: Iterator[DecodingStep], places: Sequence[list[int]]) -> None:
    """Append every row's tokens, its end-of-turn token included, to that row's list."""
    for step in steps:
        for row, token in zip(step.rows, step.ids, strict=True):
            places[row].append(token)


def completions_of(
    model: ChatModel,
    done: Sequence[Sequence[int]],
    tokens: ChatTokens,
    active: Sequence[Intervention],
    *,
    recorded: bool,
) -> Completions:
    """Completions from the token ids of every prompt's, recorded as replies where asked."""
    stops, decode = stop_ids(model), model.tokenizer.batch_decode
    ids = [list(row) for row in done]
    texts = decode(ids, skip_special_tokens=True)
    # Some models mark a thought by special tokens, which the texts do not hold.
    marked = decode([row[:-1] if row[-1] in stops else row for row in ids], skip_special_tokens=False)
    before = decode([list(row[end:]) for row, end in zip(tokens.ids, tokens.ends, strict=True)])
    parts = [
        separated(text, opened=opens_thought(prompt)) for text, prompt in zip(marked, before, strict=True)
    ]
    special = model.tokenizer.all_special_tokens
    completions = Completions(
        texts=tuple(texts),
        ids=tuple(map(tuple, ids)),
        finished=tuple(row[-1] in stops for row in ids),
        identity=tokens.identity,
        thoughts=tuple(None if part.thought is None else _without(part.thought, special) for part in parts),
        answers=tuple(
            text if part.thought is None else _without(part.answer, special) if part.finished else None
            for text, part in zip(texts, parts, strict=True)
        ),
    )
    if recorded:
        record_replies(tokens.identity.ids, tokens.identity.texts, completions.answers, active)
    return completions


def _without(text: str, tokens: Sequence[str]) -> str:
    for token in tokens:
        text = text.replace(token, "")
    return text.strip()
