"""Records of the dataset-reset result, scale by scale."""

from dataclasses import dataclass

from interp.stats import Estimate, Measured, Number


@dataclass(frozen=True, kw_only=True)
class TabularCurve:
    """One share of resets in the tabular part, by update, over seeds."""

    beta: Number
    """Share of resets; -1 for exact values."""
    reward: tuple[Estimate, ...]
    """Expected true reward."""
    model_reward: tuple[Estimate, ...]
    """Expected reward of the fitted reward model."""
    kl: tuple[Estimate, ...]
    """KL to the reference over whole answers, nats."""
    covered: tuple[Estimate, ...]
    """Share of the optimum's visits to inner states that rollouts have passed; 0 for exact values."""


@dataclass(frozen=True, kw_only=True)
class ToyRow:
    """One arm and seed of the toy."""

    arm: str
    """SFT, DPO, PPO, DR-PO with its beta, GRPO, or GRPO with resets."""
    beta: Measured
    """Share of resets; not a number where there are no rollouts."""
    seed: int
    tokens: int
    """Tokens that training took: generated and forced, or of the pairs."""
    reward: float
    """Mean reward of held-out answers."""
    kl: float
    """KL to the fine-tuned model over whole answers, nats."""
    motif: float
    """Share of answers with the motif."""
    finished: float
    """Share of answers that end in time."""
    collapsed: str | None = None
    """Why training was stopped."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A learning curve of the toy."""

    beta: Number
    seed: int
    reward: tuple[float, ...]
    """By update."""
    kl: tuple[Measured, ...]
    entropy: tuple[Measured, ...]
    clip_share: tuple[Measured, ...]
    length: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class AlignmentRow:
    """One share of resets on the given model, or the model itself (beta -1)."""

    beta: Number
    tokens: int
    """Generated and forced tokens."""
    reward: tuple[float, ...]
    """Mean score by update."""
    kl: tuple[Measured, ...]
    """KL to the model, by update, nats an answer."""
    held_out: float
    """Mean score of greedy answers to held-out prompts."""
    refuses_harmful: Estimate
    """Share of held-out harmful prompts that are refused."""
    refuses_harmless: Estimate
    """Share of held-out harmless prompts that are."""
    collapsed: str | None = None
    """Why training was stopped."""
