"""Settings and records of policy optimisation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from interp.stats import Measured
from interp.storage.settings import CheckedSettings, Count, NonNegative, OpenShare, Positive, Share

if TYPE_CHECKING:
    from torch import Tensor

    from interp.models.tokens import ChatTokens

RewardFunction = Callable[["ChatTokens", Sequence[Sequence[int]]], "Tensor"]
"""Scores answers, given as token ids with their end, to prompts; `RewardModel.score` is one."""


@dataclass(frozen=True, kw_only=True)
class PolicyConfig(CheckedSettings):
    """Settings of PPO and DR-PO; defaults in brackets are the published ones where ours differ for small models."""

    method: Literal["lora", "full"] = "lora"
    """Whether an adapter is trained (published: rank 1024), or all weights."""
    beta: Share = 0.0
    """Share of rollouts that start from a cut of a reference answer; 0 is PPO, 1 the main setting of DR-PO."""
    forced: Literal["policy-loss", "everywhere"] = "policy-loss"
    """Where forced tokens are masked out: of the policy loss alone as released, or also of value loss and whitening."""
    updates: Count = 50
    """Batches of rollouts (1,953)."""
    rollouts: Count = 64
    """Answers in a batch (512)."""
    epochs: Count = 4
    """Passes over each batch."""
    minibatches: Count = 1
    """Optimiser steps in each pass."""
    micro_batch: Count = 16
    """Answers in one forward pass of training; halved where memory does not suffice."""
    learning_rate: Positive = 1e-4
    """Of AdamW with eps 1e-5, falling linearly to 0 (3e-6)."""
    kl_coefficient: NonNegative = 0.05
    """lambda: price of a nat of log pi - log pi_ref."""
    gamma: Share = 1.0
    """Discount."""
    gae_lambda: Share = 0.95
    """lambda of GAE."""
    clip: OpenShare = 0.2
    """Of the policy's ratio."""
    value_clip: Positive = 0.2
    """Distance that a value may move in the value loss."""
    value_coefficient: NonNegative = 0.1
    """Weight of the value loss."""
    whiten_rewards: bool = True
    """Scale the rewards of a batch to unit variance, mean kept."""
    temperature: Positive = 0.7
    """Of sampling and of all log-probabilities (0.1 in the paper's table, 0.7 in the code)."""
    max_new_tokens: Count = 32
    """Length of reset prefix and generated tokens together (53)."""
    missing_end_score: float | int | None = -1.0
    """Score of an answer that does not end in time; None leaves its own."""
    rank: Count = 8
    """Of the adapter."""
    target_modules: tuple[str, ...] = ("q_proj", "v_proj", "o_proj", "down_proj")
    """Modules that get an adapter."""
    max_kl: Positive = 100.0
    """Mean KL to the reference in nats an answer beyond which a run counts as collapsed and stops."""
    max_empty: Share = 0.5
    """Share of answers that hold nothing but their end beyond which it does."""
    save_every: Count = 5
    """Updates between saved states, from which a killed run continues."""
    seed: int = 0
    """Of initialisation, prompts, resets and sampling."""


@dataclass(frozen=True, kw_only=True)
class UpdateRecord:
    """One batch of rollouts and the update on it."""

    update: int
    """Number of the update, from 1."""
    tokens: int
    """Generated and forced tokens so far, this batch included."""
    reward: float
    """Mean score, before the KL reward."""
    kl: Measured
    """Mean of log pi - log pi_ref summed over the generated tokens of an answer, nats: KL to the reference."""
    forced_kl: Measured
    """The same sum over forced tokens, which no policy drew."""
    entropy: Measured
    """Mean entropy at generated tokens, nats."""
    length: float
    """Mean number of generated tokens."""
    empty: float
    """Share of answers that hold nothing but their end."""
    finished: float
    """Share of answers that the policy ended itself."""
    reset_share: float
    """Share of answers that started from a reset."""
    policy_loss: Measured
    value_loss: Measured
    clip_share: Measured
    """Share of generated tokens at which the ratio was clipped, mean over passes."""
    explained: Measured
    """Share of the variance of returns that the values explain; not measurable where returns are equal."""


@dataclass(frozen=True, kw_only=True)
class OptimisedPolicy:
    """A finished or collapsed run."""

    folder: Path
    """Adapter or model, as `interp.load` takes it."""
    records: tuple[UpdateRecord, ...]
    """One an update."""
    collapsed: str | None = None
    """Why the run was stopped; None for one that ran to its end."""


def collapse_of(records: Sequence[UpdateRecord], config: PolicyConfig) -> str | None:
    """Why a run is to be stopped: KL beyond the bound, or answers that are empty; None while neither is so."""
    last, first = records[-1], records[0]
    moved = f"reward {first.reward:.3g} -> {last.reward:.3g}, KL {last.kl:.3g} nats, {last.empty:.0%} empty answers"
    if last.kl > config.max_kl:
        return f"collapsed at update {last.update}: KL beyond {config.max_kl:g} nats an answer ({moved})"
    if last.empty > config.max_empty:
        return f"collapsed at update {last.update}: more than {config.max_empty:.0%} of answers are empty ({moved})"
    return None


def logged(record: UpdateRecord) -> dict[str, Any]:
    """The record under the names that trackers show."""
    values = {name: value for name, value in vars(record).items() if name != "update"}
    return {f"policy/{name}": float(value) for name, value in values.items()}
