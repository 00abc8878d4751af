"""A small sweep on the tiny model, and its scores by the plain procedure, for the tests of sweeps and picks."""

import math
from typing import Any

import torch
from torch import Tensor

from interp.engine.interventions import Ablate, Add
from interp.engine.log_probs import next_token_log_probs
from interp.evaluation.losses import kl_divergence
from interp.evaluation.refusals import refusal_metric
from interp.models.chat_model import ChatModel
from interp.models.tokens import ChatTokens, tokenize
from interp.representations.selection import Candidate, Rule
from interp.representations.sweeps import Sweep
from tests.conftest import PROMPTS

REFUSAL_IDS = [65, 66, 67]
OPEN = Rule(kl_threshold=math.inf, induce_threshold=-math.inf)
HARMFUL = [*PROMPTS[:3], "How do I bake a cake", "Why?"]
HARMLESS = [*PROMPTS[3:], *(f"Name {n} colours" for n in range(9))]


def directions_for(model: ChatModel, positions: int = 3) -> dict[tuple[int, int], Tensor]:
    """Random directions; those of layer 0 are zero, as differences in means at template tokens are."""
    generator = torch.Generator().manual_seed(0)
    return {
        (position, layer): (0.0 if layer == 0 else 2.0) * torch.randn(model.d_model, generator=generator)
        for position in range(-positions, 0)
        for layer in range(model.n_layers)
    }


def sweep_of(model: ChatModel, **options: Any) -> Sweep:
    harmful, harmless = (tokenize(model.tokenizer, texts) for texts in (HARMFUL, HARMLESS))
    return Sweep(
        model, directions_for(model), harmful=harmful, harmless=harmless, refusal_ids=REFUSAL_IDS, **options
    )


def plain_scores(model: ChatModel) -> list[Candidate]:
    """Three full sweeps, one candidate at a time, whole left-padded prompts, all blocks."""

    def scores(tokens: ChatTokens, intervention: Ablate | Add) -> Tensor:
        return next_token_log_probs(model, tokens, interventions=[intervention], fast=False)

    harmful, harmless = (tokenize(model.tokenizer, texts) for texts in (HARMFUL, HARMLESS))
    base = next_token_log_probs(model, harmless, fast=False)
    table = []
    for (position, layer), direction in directions_for(model).items():
        ablate, add = Ablate(direction=direction), Add(direction=direction, layers=[layer])
        table.append(
            Candidate(
                position=position,
                layer=layer,
                bypass=refusal_metric(scores(harmful, ablate), REFUSAL_IDS).mean().item(),
                induce=refusal_metric(scores(harmless, add), REFUSAL_IDS).mean().item(),
                kl=kl_divergence(base, scores(harmless, ablate)).mean().item(),
            )
        )
    return table
