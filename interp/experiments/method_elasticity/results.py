"""Records of the method-elasticity result: what is measured along each leg."""

from dataclasses import dataclass
from typing import Literal, get_args

from interp.stats import Estimate

Method = Literal["sft", "dpo", "kto", "orpo", "ppo", "dr-po", "grpo", "tree"]
"""A method of alignment; `tree` is PPO towards a reward fitted on pairs from prefix trees."""
METHODS: tuple[Method, ...] = get_args(Method)
Control = Literal["shuffled", "none"]
"""An arm that should show nothing."""
CONTROLS: tuple[Control, ...] = get_args(Control)
Arm = Literal["sft", "dpo", "kto", "orpo", "ppo", "dr-po", "grpo", "tree", "shuffled", "none"]
"""A method or control."""
Matching = Literal["refusal", "kl"]
"""What the checkpoints of methods are matched by."""
LABELS: dict[Arm, str] = {
    "sft": "SFT",
    "dpo": "DPO",
    "kto": "KTO",
    "orpo": "ORPO",
    "ppo": "PPO",
    "dr-po": "DR-PO",
    "grpo": "GRPO",
    "tree": "PPO (tree pairs)",
    "shuffled": "shuffled preferences (control)",
    "none": "no alignment (control)",
}
"""Names of arms as readers see them."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """One measurement along a leg."""

    step: int
    """Optimiser steps of the leg so far; updates, under policy optimisation."""
    examples: int
    """Pairs, stubs or rollouts that these saw."""
    values: dict[str, Estimate]
    """Values by name: `refusal` and `over_refusal` (shares of harmful and harmless prompts refused), `kl`
    (KL(base || checkpoint) on the base's own samples, nats a token), `refusals` (bits per byte of refusals to held-out
    harmful prompts) and `stubs`; then `cosine_*`, `shift_*` and `belief_*` of `interp.tracking.measures`."""


@dataclass(frozen=True, kw_only=True)
class Leg:
    """Unlearning of one aligned model."""

    arm: Arm
    seed: int
    matching: Matching
    """What its start was matched by."""
    moments: tuple[Moment, ...]
    """From step 0, which is the aligned model."""


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """Alignment of one arm, the first or the second time."""

    arm: Arm
    seed: int
    moments: tuple[Moment, ...]
    """From step 0, on the prompts that methods are matched on."""
    collapsed: str | None = None
    """Why policy optimisation stopped early; None where it did not collapse."""


@dataclass(frozen=True, kw_only=True)
class Match:
    """The checkpoint of an alignment that is compared with those of other methods."""

    arm: Arm
    seed: int
    matching: Matching
    target: float
    """Refusal rate, or KL in nats a token."""
    step: int
    """Step of the checkpoint; 0 is the start."""
    reached: Estimate
    """Its value on the prompts of matching."""
    matched: bool
    """Whether the target lies in the interval of its value."""
