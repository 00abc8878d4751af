"""Dataset resets: do rollouts that start inside good answers help policy optimisation?

Chang, Zhan, Oertell, Brantley, Misra, Lee, Sun, "Dataset Reset Policy Optimization for RLHF", arXiv:2404.08495 (2024).
PPO starts every rollout at the prompt; DR-PO starts a share beta of them from a uniform cut of a reference answer.

| file | scale |
|---|---|
| `tabular.py` | a prefix tree of all answers: closed-form natural policy gradient, exact values, KL bound, coverage |
| `toy.py` | a two-layer transformer, a reward that is computed; SFT, DPO, PPO, DR-PO and GRPO at equal tokens |
| `alignment.py` | the given model: a reward model of bundled preferences, then PPO and DR-PO |

The paper's runs take a 2.8B model and an A100 week; here the mechanism is shown, its win rates are not reproduced.
Importing this package does not import torch.
"""

from dataclasses import dataclass
from typing import Literal

from interp.experiments import SUMMARIES
from interp.experiments.dataset_reset.results import AlignmentRow, Curve, TabularCurve, ToyRow
from interp.experiments.definition import Claim, Experiment, ExperimentResult
from interp.stats import Estimate
from interp.storage.settings import CheckedSettings, Count, NonNegative, Positive, Share

CLAIMS = (
    Claim(
        text="KL(pi_t | pi_SFT) stays below (t - 1) r_max / lambda in every state.",
        where="section 4, by-product",
        theirs="a theorem",
        same_when="tabular: holds in every state of every run",
    ),
    Claim(
        text="Resets reach a higher reward than PPO.",
        where="table 1",
        theirs="reward 1.52 against 1.17, win rate 70.2% against 62.3%",
        same_when="tabular and toy: reward at beta 1 above that at beta 0, intervals apart",
    ),
    Claim(
        text="A larger share of resets is generally better.",
        where="beta study (one seed)",
        theirs="60.7, 61.7, 66.5, 64.3, 68.5% win rate at beta 0, .25, .5, .75, 1",
        same_when="toy: slope of the reward in beta above 0 with its interval",
    ),
)

ToyArm = Literal["SFT", "DPO", "PPO", "GRPO", "GRPO, resets"]


@dataclass(frozen=True, kw_only=True)
class Config(CheckedSettings):
    """Settings; sizes are ours, the paper's constants stand in `training.policy_config`."""

    betas: tuple[Share, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Shares of resets; as in the paper."""
    runs: Count = 3
    """Seeds of the tabular and the toy part."""
    symbols: Count = 5
    """Alphabet of the tabular part."""
    length: Count = 6
    """Length of its answers."""
    eta: Positive = 2.0
    """Step of the natural policy gradient."""
    lam: Positive = 0.2
    """Price of KL in it."""
    tabular_updates: Count = 15
    """Its updates."""
    tabular_rollouts: Count = 200
    """Rollouts of one of them."""
    tabular_labels: Count = 500
    """Comparisons that its reward is fitted on."""
    tabular_references: Count = 100
    """Reference answers."""
    toy_updates: int = 30
    """Updates of every arm of the toy; 0 leaves it out."""
    toy_rollouts: Count = 64
    """Answers of one of them."""
    toy_examples: Count = 512
    """Examples of mixed quality that the toy model is fine-tuned on."""
    toy_learning_rate: Positive = 2e-3
    """Of PPO, DR-PO and GRPO."""
    toy_grpo: bool = True
    """Whether the toy also runs GRPO, with and without resets."""
    model_updates: int = 10
    """Updates of PPO and DR-PO on the given model; 0 leaves it out."""
    model_rollouts: Count = 32
    """Answers of one of them."""
    model_betas: tuple[Share, ...] = (0.0, 1.0)
    """Shares of resets there."""
    model_tokens: Count = 16
    """Tokens of an answer there."""
    model_learning_rate: Positive = 2e-4
    """Its learning rate."""
    kl_coefficient: NonNegative = 0.05
    """lambda of toy and model; as published."""
    n_test: Count = 24
    """Held-out prompts of each kind on which refusals are counted."""
    seed: int = 0
    """First seed."""


@dataclass(frozen=True, kw_only=True)
class Result(ExperimentResult):
    """Results of a run."""

    config: Config
    tabular: tuple[TabularCurve, ...]
    """By beta, with the exact control (beta -1)."""
    bound_kept: bool
    """Whether the KL bound held in every state of every step."""
    coverage: Estimate
    """log C_TR of the regularised optimum, over seeds."""
    toy: tuple[ToyRow, ...]
    """By arm and seed; empty where it was left out."""
    toy_curves: tuple[Curve, ...]
    """Learning curves of PPO and DR-PO."""
    alignment: tuple[AlignmentRow, ...]
    """By beta; empty where it was left out."""
    reward_accuracy: Estimate | None
    """Of the reward model of the last part, on held-out pairs."""


EXPERIMENT = Experiment(
    name="dataset-reset",
    summary=SUMMARIES["dataset-reset"],
    config=Config,
    result=Result,
    package=__name__,
    claims=CLAIMS,
    default_model="smollm2",
    requires=("trl", "datasets", "accelerate"),
)
