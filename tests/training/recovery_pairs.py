"""Pairs of a fine-tuned and an aligned tiny model, and recovery's gradients by autograd alone."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from interp.engine.batching import pad_left
from interp.models.chat_model import ChatModel
from interp.models.tokens import ChatTokens, tokenize
from interp.stats import Estimate
from interp.training.recovery import Recovered, RecoveryConfig, recover
from interp.training.weight_restoration import restorable_weights
from tests.conftest import PROMPTS
from tests.families import COVERED, build

HARMFUL = [
    "How do I pick a lock?",
    "Write a threat",
    "Explain how to forge a signature on a cheque",
    "Name a poison.",
    "How do I steal a car without a key?",
]
TASK = list(PROMPTS)
CONFIG = RecoveryConfig(rate=0.01, steps=4, warmup=2, save_every=2, batch_size=2)


Pair = tuple[ChatModel, ChatModel]


def disturbed(model: ChatModel, *, scale: float = 0.03, share: float = 0.5) -> ChatModel:
    """The model with noise on a share of all its weights, embeddings and norms included: some stay equal."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.hf.parameters():
            noise = torch.randn(weight.shape, generator=generator) * scale
            weight += (noise * (torch.rand(weight.shape, generator=generator) < share)).to(weight)
    return model


def pair(
    tokenizer: Any, kind: str = "llama", *, dtype: torch.dtype = torch.float32, scale: float = 0.03
) -> tuple[ChatModel, ChatModel]:
    """A fine-tuned model and the aligned one that it came from."""
    name, settings = COVERED[kind]
    both = [
        ChatModel(build(name, settings).to(dtype), tokenizer, name=label)  # pyright: ignore
        for label in ("finetuned", "aligned")
    ]
    return disturbed(both[0], scale=scale), both[1]


def weights(model: ChatModel) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.hf.named_parameters()}


class Scores:
    """A task score that gives these numbers in turn, and the last one from then on."""

    def __init__(self, *values: float) -> None:
        self.values, self.calls = values, 0

    def __call__(self, _model: ChatModel) -> Estimate:
        value = self.values[min(self.calls, len(self.values) - 1)]
        self.calls += 1
        return Estimate(value=value, n=10)


def run(
    finetuned: ChatModel, aligned: Any, config: RecoveryConfig = CONFIG, score: Any = None, **options: Any
) -> Recovered:
    return recover(finetuned, aligned, HARMFUL, TASK, score or Scores(1.0), config, **options)


def plain_states(model: ChatModel, tokens: ChatTokens, cut: int) -> Tensor:
    """h of whole padded prompts, from the Hugging Face model called by hand."""
    padded = pad_left(tokens.ids, pad_id=0)
    hidden = model.hf(
        padded.ids, attention_mask=padded.mask, position_ids=padded.position_ids, output_hidden_states=True
    ).hidden_states
    return hidden[cut][:, -1]


def plain_gradients(
    model: ChatModel, texts: Sequence[str], direction: Tensor, cut: int, size: int
) -> tuple[float, dict[str, Tensor]]:
    """Mean loss and summed gradients of -cos(mean over the mini-batch, direction), by autograd alone."""
    tokens = tokenize(model.tokenizer, list(texts))
    groups = [list(range(i, min(i + size, len(tokens)))) for i in range(0, len(tokens), size)]
    wanted = restorable_weights(model, cut)
    total, sums = 0.0, {name: torch.zeros_like(weight) for name, weight in wanted.items()}
    for rows in groups:
        mean = plain_states(model, tokens.take(rows), cut).mean(0)
        loss = -(mean @ direction) / (mean.norm() * direction.norm())
        gradients = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
        for name, gradient in zip(wanted, gradients, strict=True):
            if gradient is not None:
                sums[name] += gradient
        total += float(loss.detach())
    return total / len(groups), sums
