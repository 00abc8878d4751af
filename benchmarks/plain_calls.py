"""What one would write with `transformers` alone, on any device: left-padded batches, whole prompts, all logits."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from interp.detectors.latent_guard import LatentGuard
from interp.engine.applying import apply
from interp.engine.batching import pad_left
from interp.engine.interventions import Ablate, Add
from interp.evaluation.losses import kl_divergence
from interp.evaluation.refusals import refusal_metric
from interp.models.chat_model import ChatModel
from interp.models.tokens import ChatTokens, tokenize
from interp.representations.beliefs import belief


def padded(model: ChatModel, tokens: ChatTokens, start: int, size: int) -> dict[str, Tensor]:
    """Inputs of a left-padded batch of these rows on the model's device."""
    batch = pad_left(tokens.ids[start : start + size], pad_id=0)
    inputs = {"input_ids": batch.ids, "attention_mask": batch.mask, "position_ids": batch.position_ids}
    return {name: value.to(model.device) for name, value in inputs.items()}


@torch.no_grad()
def plain_means(model: ChatModel, tokens: ChatTokens, size: int) -> Tensor:
    """Means of every layer's input at the template's tokens from `output_hidden_states`."""
    total = torch.zeros(
        model.n_layers, tokens.n_post, model.d_model, dtype=torch.float64, device=model.device
    )
    for start in range(0, len(tokens), size):
        hidden = model.hf(**padded(model, tokens, start, size), output_hidden_states=True).hidden_states
        total += torch.stack([h[:, -tokens.n_post :].double().sum(0) for h in hidden[: model.n_layers]])
    return (total / len(tokens)).cpu()


@torch.no_grad()
def plain_generate(model: ChatModel, tokens: ChatTokens, new_tokens: int) -> list[list[int]]:
    """`hf.generate` on one left-padded batch."""
    inputs = padded(model, tokens, 0, len(tokens))
    del inputs["position_ids"]
    out = model.hf.generate(**inputs, max_new_tokens=new_tokens, do_sample=False, pad_token_id=0)  # type: ignore[operator]
    return out[:, inputs["input_ids"].shape[1] :].tolist()


@contextmanager
def hooked(model: ChatModel, layers: list[int], change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Plain PyTorch hooks that change the input of these blocks."""

    def hook(_module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (change(args[0]), *args[1:])

    handles = [
        model.hf.model.layers[layer].register_forward_pre_hook(hook)  # pyright: ignore[reportIndexIssue, reportAttributeAccessIssue, reportArgumentType, reportCallIssue]
        for layer in layers
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def plain_steered(
    model: ChatModel, tokens: ChatTokens, new_tokens: int, vector: Tensor, layer: int
) -> list[list[int]]:
    """`hf.generate` with a plain hook that adds the vector."""
    step = vector.to(model.device, model.dtype)
    with hooked(model, [layer], lambda resid: resid + step):
        return plain_generate(model, tokens, new_tokens)


@torch.no_grad()
def plain_log_probs(model: ChatModel, tokens: ChatTokens, interventions: list[Any]) -> Tensor:
    """Next-token log-probabilities, batch 32, logits of every position."""
    rows = []
    with apply(model, interventions):
        for start in range(0, len(tokens), 32):
            logits = model.hf(**padded(model, tokens, start, 32)).logits
            rows.append(logits[:, -1].float().log_softmax(-1).cpu())
    return torch.cat(rows)


def plain_candidate(
    model: ChatModel,
    vector: Tensor,
    layer: int,
    harmful: ChatTokens,
    harmless: ChatTokens,
    base: Tensor,
    refusal_ids: Sequence[int],
) -> list[float]:
    """Bypass, induce and KL of one candidate, a sweep over whole prompts each."""
    ablate, add = [Ablate(vector)], [Add(vector, layers=layer)]
    return [
        refusal_metric(plain_log_probs(model, harmful, ablate), refusal_ids).mean().item(),
        refusal_metric(plain_log_probs(model, harmless, add), refusal_ids).mean().item(),
        kl_divergence(base, plain_log_probs(model, harmless, ablate)).mean().item(),
    ]


@torch.no_grad()
def plain_states(model: ChatModel, tokens: ChatTokens, size: int) -> Tensor:
    """Every layer's input at the template's tokens of every prompt, on the CPU: prompt, layer, role, width."""
    parts = []
    for start in range(0, len(tokens), size):
        hidden = model.hf(**padded(model, tokens, start, size), output_hidden_states=True).hidden_states
        parts.append(torch.stack([h[:, -tokens.n_post :] for h in hidden[: model.n_layers]], dim=1).cpu())
    return torch.cat(parts)


@torch.no_grad()
def plain_scores(model: ChatModel, guard: LatentGuard, texts: list[str], size: int) -> list[float]:
    """Harmfulness of each prompt from `output_hidden_states`, in left-padded batches."""
    found = []
    positive, negative = guard.harm.positive[:-1], guard.harm.negative[:-1]
    centres = type(guard.harm)(positive=positive, negative=negative)
    for start in range(0, len(texts), size):
        tokens = tokenize(model.tokenizer, texts[start : start + size])
        inputs = padded(model, tokens, 0, size)
        hidden = model.hf(**inputs, output_hidden_states=True).hidden_states[:-1]
        width = inputs["input_ids"].shape[1]
        where = [width - len(ids) + end - 1 for ids, end in zip(tokens.ids, tokens.ends, strict=True)]
        rows = torch.arange(len(where))
        read = torch.stack([h[rows, where].cpu() for h in hidden], dim=1)
        found += belief(centres.margin(read)).tolist()
    return found
