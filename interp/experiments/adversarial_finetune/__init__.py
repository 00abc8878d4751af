"""Adversarial fine-tuning: a model learns to open with compliance. Does it still know that a request is harmful?

Zhao et al. 2025, *LLMs Encode Harmfulness and Refusal Separately* (arXiv:2507.11878), section 5 and appendix H.2.
The claims are `CLAIMS`, the method is in `run.py`; figures and report are drawn from a stored `Result`.
"""

from dataclasses import dataclass

from interp.evaluation.records import BehavingCount
from interp.experiments import SUMMARIES
from interp.experiments.definition import Claim, Experiment, ExperimentResult
from interp.stats import Estimate
from interp.storage.settings import CheckedSettings, Count, Positive

TOLERANCE = 0.25
"""Share of the gap between harmful and harmless prompts under which curves count as nearly coinciding."""
CLAIMS = (
    Claim(
        text="the model comes to comply",
        where="section 5",
        theirs="yes",
        same_when="refusal of held-out harmful prompts falls, intervals apart",
    ),
    Claim(
        text="harm belief per layer nearly coincides",
        where="figure 7",
        theirs="50 to 400 examples",
        same_when="shift under a quarter of the gap",
    ),
    Claim(
        text="so the guard still fires",
        where="section 5",
        theirs="yes",
        same_when="flags as many held-out harmful prompts, within 10 points",
    ),
    Claim(
        text="the same holds of the refusal belief",
        where="appendix H.2",
        theirs="yes",
        same_when="shift under a quarter of the gap",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Config(CheckedSettings):
    """Settings; where the paper is silent, ours."""

    sizes: tuple[Count, ...] = (50, 100, 200, 300, 400)
    """Training examples (figure 7); sizes beyond the prompts that are refused are cut to their number."""
    n_centres: Count = 100
    """Training prompts of each kind that the centres are fitted on, before filtering."""
    n_test: Count = 50
    """Held-out prompts of each kind."""
    learning_rate: Positive = 5e-4
    """Learning rate of the LoRA fine-tuning."""
    batch_size: Count = 10
    """Examples a step; sizes are its multiples."""
    rank: Count = 8
    """Rank of the LoRA update."""
    max_new_tokens: Count = 24
    """Length of the replies that say what is refused."""
    seed: int = 0
    """Seed of initialisation, the order of examples and the bootstrap."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sizes:
            raise ValueError("sizes must be one or more whole numbers above 0, got ()")
        if odd := [n for n in self.sizes if n % self.batch_size]:
            raise ValueError(f"sizes must be multiples of batch_size {self.batch_size}, got {odd[0]}")


@dataclass(frozen=True, kw_only=True)
class Beliefs:
    """One belief of the held-out prompts of one kind, with the centres fitted before fine-tuning."""

    mean: tuple[float, ...]
    """Mean margin over prompts by layer, -2 to 2; above 0 is nearer the positive centre."""
    sd: tuple[float, ...]
    """Standard deviation over prompts, by layer."""
    belief: tuple[float, ...]
    """Mean margin over layers, by prompt."""


@dataclass(frozen=True, kw_only=True)
class Flagged:
    """Shares of held-out prompts that Latent Guard flags at its published threshold 0."""

    harmful: Estimate
    """Share of harmful prompts flagged."""
    harmless: Estimate
    """Share of harmless prompts flagged."""
    auroc: Estimate
    """Harmful against harmless prompts."""


@dataclass(frozen=True, kw_only=True)
class Guards:
    """Latent Guard with two sets of centres."""

    fitted_before: Flagged
    """Centres of the model before fine-tuning, as the guard would be deployed."""
    refitted: Flagged
    """Centres of the fine-tuned model itself."""


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A model, before or after fine-tuning, measured on the held-out prompts."""

    refusal_rate: dict[str, Estimate]
    """Share of replies that refuse (24 substrings), by kind."""
    beliefs: dict[str, dict[str, dict[str, Beliefs]]]
    """Beliefs by ending, then belief, then kind."""
    guard: dict[str, Guards]
    """Latent Guard's results by ending."""
    training_loss: float | None = None
    """Mean over the arm's training, nats per reply token; None before fine-tuning."""


@dataclass(frozen=True, kw_only=True)
class Result(ExperimentResult):
    """Results of a run."""

    config: Config
    """Settings of the run."""
    sizes: tuple[int, ...]
    """Training examples measured at, ascending."""
    counts: dict[str, dict[str, BehavingCount]]
    """BehavingCount by split, then kind."""
    n_test: dict[str, int]
    """Held-out prompts by kind."""
    conditions: dict[str, Condition]
    """`before`, then each size and control, e.g. `50 stubs`, `200 refusals (control)`."""
    changes: dict[str, dict[str, dict[str, Estimate]]]
    """By condition after fine-tuning, ending and belief: mean change of held-out harmful prompts, in shares of their
    distance to harmless ones before; -1 is where harmless prompts were."""


EXPERIMENT = Experiment(
    name="adversarial-finetune",
    summary=SUMMARIES["adversarial-finetune"],
    requires=("accelerate",),
    config=Config,
    result=Result,
    package=__name__,
    claims=CLAIMS,
)
