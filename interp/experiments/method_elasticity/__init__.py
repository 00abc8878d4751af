"""Which alignment is the most elastic? One base model, aligned by eight methods to the same point, and unlearned alike.

Ji et al. 2025 (arXiv:2406.06144) call a model elastic that falls back to its behaviour before alignment under little
reverse training. Whether that depends on the method of alignment has no published answer. Here every method aligns the
same model and is stopped where its refusal rate on held-out harmful prompts reaches a target, and not after so many
steps; each then learns the same empty affirmative stubs, and is aligned again. A second comparison starts where the
methods have moved the model equally far, by KL.

| file | part |
|---|---|
| `legs.py` | the legs of one seed: its start, alignments and unlearning |
| `shared_legs.py` | the same over workers |
| `methods.py` | the methods and controls: one leg of alignment each |
| `tracking.py` | what is measured along a leg, by `ElasticityCallback`, and where a leg stops |
| `matching.py` | which checkpoint of each method is compared |
| `fits.py` | half-lives, time constants, exponents; no model |
| `analysis.py` | the same over seeds, from a stored result |

Results on a small model with a handful of examples show that the comparison runs; they rank no methods for large ones.
Importing this package does not import torch.
"""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from interp.experiments import SUMMARIES
from interp.experiments.definition import Claim, Experiment, ExperimentResult
from interp.experiments.method_elasticity.results import (
    CONTROLS,
    METHODS,
    Alignment,
    Arm,
    Control,
    Leg,
    Match,
    Matching,
    Method,
)
from interp.storage.settings import CheckedSettings, Count, NonNegative, OpenShare, Positive, Share

CLAIMS = (
    Claim(
        text="The method of alignment decides how fast alignment is lost.",
        where="not published; asked by Ji et al. 2025 (arXiv:2406.06144, section 7, reverse algorithms)",
        theirs="none",
        same_when="two methods whose half-lives have intervals that do not overlap, both matched to the target",
    ),
    Claim(
        text="Going back is easier than going on: unlearning takes fewer examples than alignment took.",
        where="Ji et al. 2025, resistance (table 1)",
        theirs="inverse loss below forward loss in all 27 cells",
        same_when="examples to the half of the way, forward over inverse, above 1 with its interval, over methods",
    ),
    Claim(
        text="A model that was aligned and unlearned is aligned again faster than the first time.",
        where="rehearsal priming, arXiv:2605.18309",
        theirs="predicted, and seen on safety, emergent misalignment and sentiment",
        same_when="examples to the same refusal rate, first over second alignment, above 1 with its interval",
    ),
    Claim(
        text="Loss of alignment grows with the fourth power of training time.",
        where="arXiv:2602.15799",
        theirs="exponent 4",
        same_when="exponent of the growth of the refusals' code length, with an interval that holds 4 and not 1",
    ),
    Claim(
        text="What is lost comes from alignment, not from stubs alone.",
        where="control",
        theirs="none",
        same_when="the arm without alignment has no decline, and shuffled preferences reach no target",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Config(CheckedSettings):
    """Settings, chosen for a model of 135M parameters on a processor: a seed in half an hour on one core, in a
    quarter of an hour on two (`--workers 2`)."""

    methods: tuple[Method, ...] = METHODS
    """Methods of alignment."""
    controls: tuple[Control, ...] = CONTROLS
    """`none` unlearns the model as it starts, whose refusal rate is the level that half-lives go to (0 without it);
    `shuffled` is DPO with the sides of each pair drawn by a coin."""
    seeds: Count = 3
    """Orders of examples, initialisations and samples."""
    matchings: tuple[Matching, ...] = ("refusal", "kl")
    """What methods are matched by: the refusal rate of held-out harmful prompts, or KL to the base."""
    target: OpenShare = 0.75
    """Refusal rate on held-out harmful prompts at which alignment stops."""
    warm_up: int = 4
    """Supervised refusals that every arm starts from: a policy that never refuses cannot be rewarded for it. 0 leaves
    them out."""
    n_pairs: Count = 16
    """Preference pairs of an alignment at most."""
    harmless_share: Share = 0.25
    """Share of them that prefer a stub to a refusal, on harmless requests. At a half, six steps of DPO and KTO moved
    `smollm2` nowhere: both kinds have the same replies, so that what they teach cancels until they are told apart."""
    n_stubs: Count = 16
    """Harmful requests with empty affirmative replies that each aligned model learns."""
    batch_size: Annotated[int, Field(ge=2)] = 4
    """Pairs or examples in an optimiser step."""
    rank: Count = 8
    """Of every LoRA update."""
    learning_rate: Positive = 1e-3
    """Of supervised steps: warm-up, SFT, unlearning."""
    preference_learning_rate: Positive = 1e-3
    """Of DPO, KTO and ORPO."""
    policy_learning_rate: Positive = 1e-3
    """Of PPO, DR-PO, GRPO and the tree-built reward."""
    beta: Positive = 0.1
    """Of DPO, KTO and ORPO."""
    updates: Count = 4
    """Batches of rollouts at most."""
    rollouts: Count = 8
    """Answers in a batch."""
    group: Annotated[int, Field(ge=2)] = 4
    """Answers to one prompt in GRPO."""
    reset_share: Share = 0.5
    """Share of DR-PO's rollouts that start inside a preferred reply."""
    kl_coefficient: NonNegative = 0.05
    """Price of a nat of KL to the start in policy optimisation."""
    reward_pairs: Count = 48
    """Bundled pairs that the reward model of PPO, DR-PO and GRPO is fitted on."""
    tree_prompts: Count = 12
    """Prompts whose answers are grown as trees for the tree-built reward."""
    tree_depth: Count = 2
    """Segments of an answer of a tree."""
    tree_branching: Annotated[int, Field(ge=2)] = 3
    """Segments sampled after each node."""
    align_every: Count = 2
    """Steps between measurements of an alignment."""
    unlearn_every: Count = 1
    """Steps between measurements of unlearning."""
    inside_every: Count = 4
    """Steps between measurements of directions and beliefs; a multiple of `unlearn_every`."""
    n_match: Count = 12
    """Held-out harmful prompts that methods are matched on; the curves are of others."""
    n_test: Count = 12
    """Harmful test prompts of every curve."""
    n_other: Annotated[int, Field(ge=2)] = 4
    """Harmless prompts of every curve."""
    n_fit: Annotated[int, Field(ge=4)] = 8
    """Training prompts of each kind that directions and centres are fitted on."""
    n_samples: Count = 4
    """Prompts of each kind on which KL is measured."""
    max_new_tokens: Count = 6
    """Tokens of a reply whose refusal is judged, and of a sample."""
    answer_tokens: Count = 12
    """Tokens of an answer in policy optimisation and of a tree."""
    align_again: bool = True
    """Whether each unlearned model is aligned again."""
    seed: int = 0
    """First seed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.methods or not self.matchings:
            raise ValueError(
                f"methods and matchings must not be empty; methods are {', '.join(METHODS)}, matchings refusal and kl"
            )
        for name in ("methods", "controls", "matchings"):
            given = getattr(self, name)
            if len(set(given)) != len(given):
                raise ValueError(f"{name} must be different, got {', '.join(given)}")
        if self.rollouts % self.group:
            raise ValueError(
                f"rollouts must be a multiple of the group, got {self.rollouts} and {self.group}; change either"
            )
        for name in ("n_pairs", "n_stubs"):
            if getattr(self, name) % self.batch_size:
                raise ValueError(
                    f"{name} must be a multiple of batch_size = {self.batch_size}, got {getattr(self, name)}"
                )
        if self.n_harmless == self.n_pairs:
            raise ValueError(
                f"harmless_share {self.harmless_share} leaves no harmful request among {self.n_pairs} pairs; lower it"
            )
        if (steps := self.n_stubs // self.batch_size) < 3 * self.unlearn_every:
            raise ValueError(
                f"unlearning takes {steps} steps and is measured every {self.unlearn_every}: a curve needs three "
                "measurements after its start; raise n_stubs or lower unlearn_every"
            )
        if self.inside_every % self.unlearn_every or self.inside_every > steps:
            raise ValueError(
                f"inside_every must be a multiple of unlearn_every = {self.unlearn_every} and at most {steps}, the "
                f"steps of unlearning, got {self.inside_every}"
            )

    @property
    def n_harmless(self) -> int:
        """Pairs of harmless requests."""
        return round(self.n_pairs * self.harmless_share)

    @property
    def arms(self) -> tuple[Arm, ...]:
        """Methods, then controls."""
        return (*self.methods, *self.controls)


@dataclass(frozen=True, kw_only=True)
class Result(ExperimentResult):
    """Results of a run."""

    config: Config
    """Settings of the run."""
    alignments: tuple[Alignment, ...]
    """The first leg of every arm and seed; the control without alignment has none."""
    matches: tuple[Match, ...]
    """The checkpoint of every arm, seed and matching from which it is unlearned."""
    unlearned: tuple[Leg, ...]
    """The second leg of every arm, seed and matching."""
    aligned_again: tuple[Alignment, ...]
    """The third leg of every arm and seed, from the end of the second one matched by refusal."""


EXPERIMENT = Experiment(
    name="method-elasticity",
    summary=SUMMARIES["method-elasticity"],
    config=Config,
    result=Result,
    package=__name__,
    claims=CLAIMS,
    default_model="smollm2",
    requires=("trl", "datasets", "accelerate"),
    shares="seeds and arms",
)
