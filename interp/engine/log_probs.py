"""Log-probabilities of the first completion token and of given completions, with or without interventions.

Only next-token log-probabilities use packed batches (`interp.engine.packing`); completions run in padded batches.

    first = next_token_log_probs(model, prompts, interventions=[Ablate(direction)])
    nats = [-log_probs.mean() for log_probs in completion_log_probs(model, prompts, replies.ids)]
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.display.progress import progress
from interp.engine.activations import fast_path_agrees
from interp.engine.applying import Applied, apply
from interp.engine.batching import pad_id, pad_left, plan_batches, run_batches
from interp.engine.budgets import PassBudget
from interp.engine.cpu_kernels import PackedWeights
from interp.engine.decoding import prompt_passes
from interp.engine.interventions import Intervention
from interp.engine.layouts import PassLayout
from interp.engine.packing import packed_passes
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
    read: list[Tensor] = []
    unembedding: Any = model.hf.get_output_embeddings()
    keep = in_this_thread(lambda _module, args: read.append(args[0][:, -1]), lambda *_: None)
    handle = unembedding.register_forward_pre_hook(keep)
    try:
        with torch.no_grad(), apply(model, interventions) as applied:
            for rows, _ in prompt_passes(model, tokens, applied, fast):
                out[rows] = read.pop().float().cpu()
                read.clear()  # of passes that ran out of memory
    finally:
        handle.remove()
    return out


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
        batch = tokens.take(rows)
        prompt = pad_left(batch.ids, pad_id=pad_id(model))
        longest = max(len(completions[row]) for row in rows)
        tail = torch.full((len(rows), longest), pad_id(model), dtype=torch.long)
        for i, row in enumerate(rows):
            tail[i, : len(completions[row])] = torch.tensor(list(completions[row]))
        ids = torch.cat([prompt.ids, tail], dim=1).to(model.device)
        mask = torch.cat([prompt.mask, torch.ones_like(tail)], dim=1).to(model.device)
        layout = PassLayout.left_padded(batch, stop=ids.shape[1]) if applied.tracks else None
        with applied.running(layout), model.rotary.at([lengths[i] for i in group]):
            logits = model.hf(
                input_ids=ids,
                attention_mask=mask,
                position_ids=(mask.cumsum(1) - 1).clamp(min=0),
                use_cache=False,
                logits_to_keep=longest + 1,
            ).logits
        for i, row in enumerate(rows):
            out[row] = reduce(logits[i, : len(completions[row])].float().log_softmax(-1), row).cpu()

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
