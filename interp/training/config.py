"""Settings of a fine-tuning run, by examples or preferences, of one pass at a constant rate, and of safety prompts."""

from dataclasses import dataclass
from typing import Any, Literal

from interp.representations.records import Solver
from interp.storage.settings import CheckedSettings, Count, NonNegative, Positive, Share


@dataclass(frozen=True, kw_only=True)
class TrainConfig(CheckedSettings):
    """Fine-tuning settings."""

    method: Literal["lora", "full"] = "lora"
    """Whether to train a LoRA adapter or all weights."""
    epochs: Positive = 3.0
    """Passes over the examples."""
    batch_size: Count = 16
    """Examples per optimiser step."""
    learning_rate: Positive = 5e-4
    """Peak learning rate, after a linear warm-up."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Schedule after the warm-up: a cosine to zero, or constant, so that checkpoints do not depend on later ones."""
    warmup_steps: int = 8
    """Optimiser steps of warm-up."""
    rank: Count = 8
    """Rank of every LoRA matrix."""
    alpha: Count = 16
    """Numerator of the LoRA scale, alpha / rank."""
    dropout: Share = 0.05
    """Dropout on the LoRA inputs during training."""
    target_modules: tuple[str, ...] = ("q_proj", "v_proj", "o_proj", "down_proj")
    """Names of the modules that get an adapter."""
    first_layer: int = 0
    """First block with an adapter."""
    max_completion_tokens: Count = 64
    """Maximum tokens of a completion; longer ones are cut."""
    embedding_noise: float = 0.0
    """Alpha of NEFTune (Jain et al. 2023, arXiv:2310.05914): uniform noise on the embeddings in training; 0 is none."""
    first_token_weight: float = 1.0
    """Weight in the supervised loss of a completion's first token, where refusing is decided; others have 1."""
    constraint: NonNegative = 0.0
    """Strength b of the token-wise constraint of the supervised loss (SoftSFT, 0.1 as published); 0 is plain
    cross-entropy."""
    objective: Literal["dpo", "kto", "orpo"] = "dpo"
    """Loss of preference fine-tuning (`interp.training.preference_trainers`)."""
    beta: Positive = 0.1
    """Strength of the penalty of DPO and KTO on distance from the initial model, larger keeps it closer; of ORPO the
    weight of the odds ratio, larger weighs preferences more."""
    saved_dtype: Literal["float32", "float16"] = "float32"
    """Dtype of stored adapters; float16 halves their size and rounds the weights that later stages start from."""
    log_every: Count = 16
    """Optimiser steps between stored losses."""
    seed: int = 0
    """Seed of initialisation, shuffling and dropout."""


def one_pass(*, batch_size: int, learning_rate: float, rank: int, seed: int, **further: Any) -> TrainConfig:
    """One pass at a constant rate: every checkpoint is the model that training on its examples alone would give.

    There is no warm-up, because its first step has a learning rate of 0: half of what 16 examples teach.
    """
    return plain_adapter(
        rank=rank,
        seed=seed,
        epochs=1.0,
        schedule="constant",
        warmup_steps=0,
        batch_size=batch_size,
        learning_rate=learning_rate,
        **further,
    )


def plain_adapter(*, rank: int, seed: int, **further: Any) -> TrainConfig:
    """An adapter whose alpha is twice its rank, without dropout."""
    return TrainConfig(rank=rank, alpha=2 * rank, dropout=0.0, seed=seed, **further)


@dataclass(frozen=True, kw_only=True)
class SafetyPromptConfig(CheckedSettings):
    """Settings of a trained safety prompt; the defaults are the released code's, unless a field says otherwise."""

    refusal_weight: float | int = 1.0
    """Weight of L_r."""
    harmfulness_weight: float | int = 0.01
    """Weight of L_h."""
    rest_weight: float | int = 0.001
    """Weight of L_U."""
    unlikelihood_weight: float | int = 1.0
    """Weight of the undesired answers in prompt tuning; 5 for Llama 2 and CodeLlama in the paper."""
    learning_rate: Positive = 1e-3
    """Of AdamW, with its default weight decay."""
    max_norm: Positive = 1.0
    """Norm to which gradients are clipped."""
    batch_size: Count = 50
    """Queries of a step."""
    epochs: Count = 40
    """Passes over the queries."""
    products: Literal["bfloat16", "model"] = "bfloat16"
    """Dtype of matrix products of a float32 model on the CPU; `model` is its own, three times slower with AMX."""
    texts: tuple[str, ...] = ("default", "short", "mistral")
    """Safety prompts that the plane is fitted under, beside none: names of `SAFETY_TEXTS`, or texts."""
    n_components: Count = 4
    """Principal components of the plane."""
    folds: Count = 10
    """Folds of its regressions."""
    solver: Solver = "released"
    """How they are solved (`interp.representations.safety_regressions`)."""
    refusal: Literal["first-token", "sampled"] = "first-token"
    """Refusal probability that the plane is fitted to; `sampled` is the paper's."""
    n_samples: Count = 25
    """Answers to each query, with `sampled`, of which four fifths count."""
    max_new_tokens: Count = 300
    """Length of those answers; the paper takes 200 for harmless queries."""
    n_replies: Count = 2
    """Answers sampled to each query for prompt tuning, of which the first that fits is taken (ours)."""
    reply_tokens: Count = 24
    """Tokens of an answer that prompt tuning trains on (ours)."""
    seed: int = 42
    """Seed of folds, batches and samples."""


SAFETY_PROMPT = SafetyPromptConfig()
"""The default settings of a safety prompt."""
