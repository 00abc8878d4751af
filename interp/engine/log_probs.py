"""Log-probabilities of the first completion token and of given completions, with or without interventions.

Only next-token log-probabilities use packed batches (`interp.engine.packing`); completions run in padded batches, and
`map_positions` reduces their distributions a few positions at a time, of two models side by side where asked.

    first = next_token_log_probs(model, prompts, interventions=[Ablate(direction)])
    nats = [-log_probs.mean() for log_probs in completion_log_probs(model, prompts, replies.ids)]
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.display.progress import progress
from interp.engine.activations import fast_path_agrees
from interp.engine.applying import Applied, apply
from interp.engine.batching import plan_batches, run_batches
from interp.engine.budgets import PassBudget
from interp.engine.interventions import Intervention
from interp.engine.packing import packed_passes
from interp.engine.prefill import prompt_passes
from interp.engine.prepacked_weights import PackedWeights
from interp.engine.unembedding import CompletionStates, completion_states, unembedded
from interp.models.chat_model import ChatModel
from interp.models.contexts import check_context
from interp.models.threads import in_this_thread
from interp.models.tokens import ChatTokens, PromptInput, as_tokens


def next_token_log_probs(
    model: ChatModel,
    prompts: PromptInput,
    *,
    interventions: Sequence[Intervention] = (),
    fast: bool = True,
) -> Float[Tensor, "prompt d_vocab"]:
    """Log-probabilities of the first completion token, in nats, float32, on the CPU.

    The whole table is held in memory; `map_next_token` reduces batch by batch instead.
    """
    return map_next_token(model, prompts, lambda logits: logits, interventions=interventions, fast=fast)


def map_next_token(
    model: ChatModel,
    prompts: PromptInput,
    reduce: Callable[[Float[Tensor, "batch d_vocab"]], Float[Tensor, "batch *rest"]],
    *,
    interventions: Sequence[Intervention] = (),
    fast: bool = True,
    show_progress: bool = False,
) -> Float[Tensor, "prompt *rest"]:
    """Apply `reduce` to the first completion token's log-probabilities (float32) of every prompt, in prompt order."""
    tokens = as_tokens(model.tokenizer, prompts)
    check_context(model, tokens)
    out: list[Tensor] = [torch.empty(0)] * len(tokens)
    packs = fast and fast_path_agrees(model, tokens)  # tested before any intervention is active
    with torch.no_grad(), apply(model, interventions) as applied:
        passes = (
            packed_next_tokens(model, tokens, applied)
            if packs
            else ((rows, logits) for rows, (logits, _) in prompt_passes(model, tokens, applied, fast))
        )
        for rows, logits in progress(
            passes, total=len(tokens), label="next tokens", show=show_progress, size=lambda b: len(b[0])
        ):
            reduced = reduce(logits.float().log_softmax(-1)).cpu()
            for row, value in zip(rows, reduced, strict=True):
                out[row] = value
    return torch.stack(out)


def final_states(
    model: ChatModel,
    prompts: PromptInput,
    *,
    interventions: Sequence[Intervention] = (),
    fast: bool = True,
) -> Float[Tensor, "prompt d_model"]:
    """The state of every prompt's last token after the final norm, which the unembedding reads; float32, on the CPU.

    It is the last entry of the hidden states of transformers, with the norm's learned scale.
    """
    tokens = as_tokens(model.tokenizer, prompts)
    check_context(model, tokens)
    out = torch.empty(len(tokens), model.d_model)
    packs = fast and fast_path_agrees(model, tokens)  # tested before any intervention is active
    with torch.no_grad(), apply(model, interventions) as applied:
        passes = (
            _packed_final_states(model, tokens, applied)
            if packs
            else _padded_final_states(model, tokens, applied, fast)
        )
        for rows, states in passes:
            out[rows] = states.float().cpu()
    return out


@torch.no_grad()
def next_token_of_states(
    model: ChatModel, states: Float[Tensor, "prompt d_model"]
) -> Float[Tensor, "prompt d_vocab"]:
    """Log-probabilities of the token that follows each of `final_states`, in nats, float32, on the CPU."""
    chunks = states.split(PassBudget.for_(model).unembedded_positions)
    return torch.cat([unembedded(model, chunk).float().log_softmax(-1).cpu() for chunk in chunks])


def _packed_final_states(
    model: ChatModel, tokens: ChatTokens, applied: Applied
) -> Iterator[tuple[list[int], Float[Tensor, "batch d_model"]]]:
    """Rows of each packed pass and their final states: replies to one prompt run it once."""
    with packed_passes(model, tokens, applied) as passes:
        yield from run_batches(
            passes.batches, lambda rows: passes.final_states(passes.pack(rows)), max_rows=passes.max_rows
        )


def _padded_final_states(
    model: ChatModel, tokens: ChatTokens, applied: Applied, fast: bool
) -> Iterator[tuple[list[int], Float[Tensor, "batch d_model"]]]:
    """Rows of each padded pass and their final states, taken from the unembedding's input."""
    read: list[Tensor] = []
    unembedding: Any = model.hf.get_output_embeddings()
    keep = in_this_thread(lambda _module, args: read.append(args[0][:, -1]), lambda *_: None)
    handle = unembedding.register_forward_pre_hook(keep)
    try:
        for rows, _ in prompt_passes(model, tokens, applied, fast):
            yield rows, read.pop()
            read.clear()  # of passes that ran out of memory
    finally:
        handle.remove()


def packed_next_tokens(
    model: ChatModel,
    tokens: ChatTokens,
    applied: Applied,
    *,
    max_shared: int | None = None,
    budget: int | None = None,
    weights: PackedWeights | None = None,
) -> Iterator[tuple[list[int], Float[Tensor, "batch d_vocab"]]]:
    """Yield the rows of each packed pass and the logits of their first completion token, under active interventions.

    Args:
        max_shared: maximum length of the shared prefix.
        budget: maximum nodes of one pass.
        weights: the model's prepacked weights, where it will run many times.
    """
    with packed_passes(
        model, tokens, applied, max_shared=max_shared, budget=budget, weights=weights
    ) as passes:
        yield from run_batches(
            passes.batches,
            lambda rows: passes.next_token_logits(passes.pack(rows)),
            max_rows=passes.max_rows,
        )


def completion_log_probs(
    model: ChatModel,
    prompts: PromptInput,
    completions: Sequence[Sequence[int]],
    *,
    interventions: Sequence[Intervention] = (),
) -> list[Float[Tensor, " token"]]:
    """Teacher-forced log-probability of every token of given completions, in nats, float32, on the CPU.

    Arguments and errors as `map_completions`.
    """

    def chosen(log_probs: Float[Tensor, "token d_vocab"], row: int) -> Float[Tensor, " token"]:
        ids = torch.tensor(list(completions[row]), device=log_probs.device)
        return log_probs.gather(1, ids[:, None])[:, 0]

    return map_completions(model, prompts, completions, chosen, interventions=interventions)


def map_completions(
    model: ChatModel,
    prompts: PromptInput,
    completions: Sequence[Sequence[int]],
    reduce: Callable[[Float[Tensor, "token d_vocab"], int], Float[Tensor, "token *rest"]],
    *,
    interventions: Sequence[Intervention] = (),
) -> list[Float[Tensor, "token *rest"]]:
    """Apply `reduce` to the teacher-forced log-probabilities (float32) at each token of given completions.

    Interventions treat the completion as generated tokens.

    Args:
        completions: token ids, one list per prompt; an empty one gives an empty tensor.
        reduce: called with the log-probabilities of one completion and the row of its prompt.

    Raises:
        ValueError: not one completion per prompt, or a prompt and completion that are too long together.
    """
    tokens = as_tokens(model.tokenizer, prompts)
    if len(completions) != len(tokens):
        raise ValueError(f"got {len(completions)} completions for {len(tokens)} prompts; give one each")
    check_context(model, tokens, new_tokens=[len(completion) for completion in completions])
    out: list[Tensor] = [torch.empty(0)] * len(tokens)
    present = [row for row in range(len(tokens)) if len(completions[row])]
    lengths = [len(tokens.ids[row]) + len(completions[row]) for row in present]

    def run(group: list[int]) -> None:
        rows = [present[i] for i in group]
        final = completion_states(model, tokens, completions, rows, applied)
        logits = final.logits(model, slice(None))
        for row, own in zip(rows, final.per_text(logits), strict=True):
            out[row] = reduce(own.float().log_softmax(-1), row).cpu()

    # Without tokens to score no pass runs, so interventions that never act are no error.
    until = None if present else 0
    budget = PassBudget.for_(model)
    plan = plan_batches(
        lengths, budget=budget.scored_tokens, max_rows=budget.rows, overhead=budget.overhead_tokens
    )
    with torch.no_grad(), apply(model, interventions, until=until) as applied:
        for _ in run_batches(plan, run, max_rows=budget.rows):
            pass
    return out


class Reduced(NamedTuple):
    """What `map_positions` gives for one completion."""

    row: int
    """Row of its prompt."""
    values: Float[Tensor, "token *rest"]
    """The reduced distributions that its tokens come from, on the CPU."""
    states: Float[Tensor, "token d_model"]
    """The first model's final hidden states that they are read from, on the CPU."""


PositionReducer = Callable[
    [Sequence[Float[Tensor, "position d_vocab"]], Int[Tensor, " position"]], Float[Tensor, "position *rest"]
]
"""Called with the logits of each model (float32, cut to the tokenizer's ids) and the tokens that came."""


def map_positions(
    models: Sequence[ChatModel],
    prompts: Sequence[ChatTokens],
    completions: Sequence[Sequence[int]],
    reduce: PositionReducer,
    *,
    interventions: Sequence[Intervention] = (),
    show_progress: bool = False,
) -> Iterator[Reduced]:
    """Reduce the distribution that each completion token comes from; one pass per model, in flat memory.

    Rows of the vocabulary that belong to no token of the tokenizer are cut off before anything is normalised: models
    of one family pad them differently, and no text contains them. Completions come as passes end, not in order.

    Args:
        models: one, or several that share a tokenizer.
        prompts: each model's prompts, which may differ in a token that only one of them starts with.
        completions: token ids, one list per prompt; an empty one is left out.
        interventions: on the first model.

    Raises:
        ValueError: not one completion per prompt, a prompt and completion that are too long together, or a token that
            is none of the tokenizer's.
    """
    first = prompts[0]
    for model, own in zip(models, prompts, strict=True):
        if len(own) != len(completions):
            raise ValueError(f"got {len(completions)} completions for {len(own)} prompts; give one each")
        check_context(model, own, new_tokens=[len(completion) for completion in completions])
    size = min(token_count(model) for model in models)
    for row, completion in enumerate(completions):
        if completion and not 0 <= min(completion) <= max(completion) < size:
            raise ValueError(
                f"completion {row} holds token {max(completion)}, which is none of the tokenizer's {size}; give tokens "
                f"of {models[0].name}"
            )
    budget = PassBudget.for_(models[0])

    # Grad mode and interventions are those of the caller again between two passes.
    @torch.no_grad()
    def run(rows: list[int]) -> list[Reduced]:
        finals = list[CompletionStates]()
        for number, (model, own) in enumerate(zip(models, prompts, strict=True)):
            with apply(model, () if number else interventions) as applied:
                finals.append(completion_states(model, own, completions, rows, applied))
        ids = torch.tensor([i for row in rows for i in completions[row]], device=models[0].device)
        parts = []
        for chunk in finals[0].chunks(budget.unembedded_positions):
            whole = [final.logits(model, chunk) for model, final in zip(models, finals, strict=True)]
            step = budget.reduced_positions
            for start in range(0, len(whole[0]), step):
                logits = [
                    part[start : start + step, :size].to(ids.device, torch.float32).contiguous()
                    for part in whole
                ]
                parts.append(reduce(logits, ids[chunk][start : start + step]).cpu())
        states = finals[0].per_text(finals[0].states.cpu())
        return list(map(Reduced, rows, finals[0].per_text(torch.cat(parts)), states))

    passes = run_batches(_plan_by_prompt(first, completions, budget), run, max_rows=budget.rows)
    for _, done in progress(
        passes,
        total=sum(map(len, completions)),
        label="scoring tokens",
        show=show_progress,
        size=lambda batch: sum(len(reduced.values) for reduced in batch[1]),
    ):
        yield from done


def _plan_by_prompt(
    tokens: ChatTokens, completions: Sequence[Sequence[int]], budget: PassBudget
) -> list[list[int]]:
    """Rows of each pass; prompts of one length run together, since completions are padded on their other side."""
    present = [row for row in range(len(tokens)) if len(completions[row])]
    plan: list[list[int]] = []
    for length in sorted({len(tokens.ids[row]) for row in present}):
        rows = [row for row in present if len(tokens.ids[row]) == length]
        batches = plan_batches(
            [length + len(completions[row]) for row in rows],
            budget=budget.plain_tokens,
            max_rows=budget.rows,
            overhead=budget.overhead_tokens,
        )
        plan += [[rows[i] for i in batch] for batch in batches]
    return plan


def token_count(model: ChatModel) -> int:
    """Rows of the vocabulary that the tokenizer can produce or read; further rows are padding."""
    highest = max(model.tokenizer.get_vocab().values())
    return min(highest + 1, model.d_vocab)
