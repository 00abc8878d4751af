"""Refusal in Language Models Is Mediated by a Single Direction (Arditi et al. 2024, arXiv:2406.11717).

The method, by the paper's sections; figure and table numbers are those of the final arXiv version:

| section | file |
|---|---|
| 2.3, appendix A: refusal metric, filtering, difference in means | `candidates.py` |
| 2.3, appendix C: bypass, induce, KL and the pick; random directions | `selection.py` |
| 3 and 4: ablation, addition, subtraction, weight edit | `completions.py` |
| appendix G.3: cross-entropy | `cross_entropy.py` |
| 5: what writes and reads the direction | `mechanism.py` |
| appendix I.1: where subtraction moves activations | `activation_shift.py` |
| appendix J: the base model | `base_model.py` |

Not implemented: the Llama Guard 2 and HarmBench judges (they need models of 8B and 13B), and the capability benchmarks
and LoRA baseline of section 4. Substrings detect whether a reply sounds like a refusal, not whether it is harmful.
"""

import math
from dataclasses import dataclass
from typing import Literal

from interp.evaluation.records import BehavingCount, Flag, RefusalRates, RefusalTokens
from interp.experiments import SUMMARIES
from interp.experiments.definition import Claim, Experiment, ExperimentResult
from interp.experiments.refusal_direction.results import (
    BaseCheck,
    FirstToken,
    Mechanism,
    RandomControls,
    Scatter,
    SelectionBaseline,
)
from interp.representations.selection import (
    Candidate,
    Confirmation,
    PickShare,
    Rule,
    RuleUsed,
    ScoredCandidate,
)
from interp.stats import Estimate, Measured
from interp.storage.settings import CheckedSettings, Count, Share

ARMS: dict[Literal["harmful", "harmless"], tuple[str, ...]] = {
    "harmful": ("baseline", "ablation", "addition_minus", "orthogonalized", "random_ablation"),
    "harmless": ("baseline", "addition_plus", "random_addition"),
}
"""Interventions that completions are made under, by kind of prompts."""
_APART = "the 95% intervals do not meet"
CLAIMS = (
    Claim(
        text="ablating one direction removes refusal of harmful requests",
        where="figure 1",
        theirs="0.95 -> 0.01 (Llama-3 8B, table 10)",
        same_when=f"apart from random ablation: {_APART}",
    ),
    Claim(
        text="adding it makes harmless requests refused",
        where="figure 3",
        theirs="most, 13 models",
        same_when=f"apart from random addition: {_APART}",
    ),
    Claim(
        text="subtracting it removes refusal too",
        where="figure 23",
        theirs="0.95 -> 0.01 (Llama-3 8B, table 10)",
        same_when=f"apart from random ablation: {_APART}",
    ),
    Claim(
        text="the rank-one weight edit equals the ablation",
        where="section 4",
        theirs="exact",
        same_when="same logits (a test)",
    ),
    Claim(
        text="ablation costs less cross-entropy than subtraction",
        where="table 9",
        theirs="<= 0.07, up to 0.5 nats",
        same_when="same order",
    ),
    Claim(
        text="a jailbreak lowers the direction's presence",
        where="figure 5",
        theirs="strongly, one suffix",
        same_when="shown for general templates",
    ),
    Claim(
        text="the base model tells the two kinds apart along it",
        where="figure 24",
        theirs="similar split, 4 pairs",
        same_when="shown",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Config(CheckedSettings):
    """Settings; the paper's unless a reason is given."""

    n_train: Count = 128
    """Prompts of each kind that directions are fitted on, before filtering (section 2.3)."""
    n_val: Count = 32
    """Prompts of each kind that candidates are scored on, before filtering (section 2.3)."""
    n_test: Count = 100
    """Prompts of each kind for completions (sections 3.1, 3.2)."""
    sweep: Literal["default", "exhaustive"] = "default"
    """`default` leaves out what provably cannot win; `exhaustive` measures every score of every candidate."""
    kl_threshold: float | None = 0.1
    """Maximum KL of a candidate, in nats; None is no limit (appendix C)."""
    induce_threshold: float | None = 0.0
    """Minimum induce score of a candidate, in nats; None is no limit (appendix C)."""
    prune_layer_fraction: Share = 0.2
    """Share of the last layers that is left out (appendix C)."""
    refusal_tokens: tuple[int, ...] = ()
    """Token ids that begin refusals (table 4); found on the training prompts when empty."""
    n_random: int = 8
    """Random directions through the same scores: a control that the paper does not have."""
    random_every: Count = 3
    """Layers between those at which random directions are added."""
    max_new_tokens: Count = 32
    """Length of a completion; the paper has 512, but a refusal shows in its first words."""
    instructions: str = ""
    """File or `hub:` set of instructions with answers, for cross-entropy (the paper: Alpaca)."""
    text: str = ""
    """Plain text file for cross-entropy (the paper: the Pile); a bundled page of prose when empty."""
    n_answers: int = 200
    """Rows of `instructions` that are scored."""
    n_mechanism: Count = 32
    """Prompts of each kind for the mechanism (section 5; the paper has 128)."""
    suffixes: tuple[str, ...] = ()
    """Adversarial suffixes to compare with (section 5)."""
    base: str = ""
    """Base model for appendix J; `smollm2` for the bundled safe model when empty."""
    seed: int = 0
    """Seed of random directions, random suffixes and the bootstrap."""

    @property
    def rule(self) -> Rule:
        """The selection rule."""
        return Rule(
            kl_threshold=math.inf if self.kl_threshold is None else self.kl_threshold,
            induce_threshold=-math.inf if self.induce_threshold is None else self.induce_threshold,
            prune_layer_fraction=self.prune_layer_fraction,
        )


@dataclass(frozen=True, kw_only=True)
class Result(ExperimentResult):
    """What a run found.

    Its run folder also has `refusal.safetensors`, the picked direction at its natural length, and in its tensors
    `mean_diffs` [position, layer, d_model] and the scores of every prompt, `bypass`, `induce` and `kl` [candidate,
    prompt], NaN where not measured.
    """

    config: Config
    """Settings of the run."""
    refusal_tokens: RefusalTokens
    """Tokens that begin this model's refusals; those of the settings where given, else found."""
    filtered_counts: dict[str, BehavingCount]
    """Number of prompts after filtering by kind and split, as `harmful_train` (appendix A)."""
    first_tokens: dict[str, tuple[FirstToken, ...]]
    """The ten likeliest first tokens on the training prompts, by kind."""
    refusal_metric: dict[str, tuple[Measured, ...]]
    """Refusal metric of every training prompt before filtering, in nats, by kind."""
    post_inst_tokens: tuple[str, ...]
    """The template's tokens after the instruction, in order."""
    selected: Candidate
    """The picked position and layer."""
    selected_norm: float
    """Length of the picked direction, in activation units."""
    rule: RuleUsed
    """The rule that picked."""
    candidates: tuple[ScoredCandidate, ...]
    """Every candidate with its validation scores."""
    selection_baseline: SelectionBaseline
    """The scores' levels without an intervention."""
    pick_stability: tuple[PickShare, ...]
    """Candidates picked over resampled validation prompts, most frequent first."""
    random_directions: RandomControls
    """The control of the three scores."""
    refusal_rate: dict[str, dict[str, RefusalRates]]
    """Refusal rates by kind of prompts, then intervention."""
    completions: dict[str, dict[str, tuple[Flag, ...]]]
    """Whether each test prompt was refused (12 substrings), by kind, then intervention."""
    skipped: dict[str, str]
    """Interventions that the model does not allow, and why."""
    cross_entropy: dict[str, dict[str, Estimate]]
    """Cross-entropy in nats per token, by corpus, then intervention."""
    mechanism: Mechanism
    """Section 5."""
    scatter: Scatter
    """Appendix I.1."""
    base_check: BaseCheck | None = None
    """Appendix J; None where no base model is known."""
    confirmation: Confirmation | None = None
    """What the pick rests on for a model in `fast`, whose candidates are screened with rounded products; else None."""


EXPERIMENT = Experiment(
    name="refusal-direction",
    summary=SUMMARIES["refusal-direction"],
    config=Config,
    result=Result,
    package=__name__,
    claims=CLAIMS,
    # Scores do not depend on the rule that is applied to them: relaxing it goes on from the scores that are there.
    also_resumes=("sweep", "kl_threshold", "induce_threshold", "prune_layer_fraction"),
    shares="candidates",
)
