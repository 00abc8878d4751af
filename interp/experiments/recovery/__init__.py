"""Alignment recovery: copy a few weights back from the aligned model until the fine-tuned one refuses again.

Yang, Tao, Chen, Xu 2025, *Alleviating the Fear of Losing Alignment in LLM Fine-tuning* (arXiv:2504.09757, IEEE S&P).
The algorithm is `interp.training.recovery`; the study is in `run.py`. The released code is the source where the paper's
text could not be read; it ranks by the gradient of a cosine with a mean activation, and never takes an optimiser step.
The claims are `CLAIMS`; figures and report are drawn from a stored `Result`.
"""

from dataclasses import dataclass

from interp.experiments import SUMMARIES
from interp.experiments.definition import Claim, Experiment, ExperimentResult
from interp.stats import Estimate, Measured
from interp.storage.settings import Count, OpenShare, Share
from interp.training.breaking_config import BreakingConfig

PAPER = "paper's rule"
"""The rule as released: rank by |gradient|, towards the raw mean, read at the last token."""
RANDOM, EVERYTHING = "random weights (control)", "everything below the cut"
ABLATIONS: dict[str, dict[str, str]] = {
    "|gradient x difference|": {"rank_by": "gradient-x-difference"},
    "|difference|": {"rank_by": "difference"},
    "towards a difference in means": {"target": "difference-of-means"},
    "read at t_inst": {"position": "t_inst"},
    "gradients cleared": {"accumulate": "cleared"},
    RANDOM: {"rank_by": "random"},
    EVERYTHING: {"rank_by": "all"},
}
"""Ablations, each one setting of `interp.training.recovery.RecoveryConfig` away from the paper's rule. Like the sweeps
they take all steps, whatever the task loses, so that choices of weights are compared at one budget."""
ALL_STEPS = f"{PAPER}, all steps"
"""The paper's choice of weights without its floor for the task score: what ablations and sweeps are compared with."""
ALIGNED, FINE_TUNED, RECOVERED = "aligned", "fine-tuned", "all steps"
MODELS = (ALIGNED, FINE_TUNED, RECOVERED)
"""Models that are compared from the inside."""

CLAIMS = (
    Claim(
        text="Fine-tuning on a harmless task weakens refusal.",
        where="abstract",
        theirs="yes",
        same_when="refusal of held-out harmful prompts below the aligned model's without any stubs, intervals apart",
    ),
    Claim(
        text="Recovery restores refusal.",
        where="abstract",
        theirs="harmful answers 33.25% -> 1.74%, mean of 125 fine-tuned models",
        same_when="refusal after recovery above that of the fine-tuned model, paired by prompt",
    ),
    Claim(
        text="The task is kept.",
        where="abstract; a summary gives about 2 to 3%",
        theirs="little loss",
        same_when="held-out task score after recovery at least 95% of the fine-tuned model's",
    ),
    Claim(
        text="The steps restore refusal, whatever the task loses (question of this project).",
        where="none",
        theirs="not reported",
        same_when="refusal after the last step above that of the fine-tuned model, paired by prompt",
    ),
    Claim(
        text="The gradient finds the weights that matter (control of this project).",
        where="none",
        theirs="not measured",
        same_when="refusal after all steps above that of as many random weights, paired by prompt",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Config(BreakingConfig):
    """Settings; the released code's unless a reason is given. `--model` is the aligned model; the task of a given model
    is what it was trained on."""

    finetuned: str = ""
    """The model to recover: a folder, an adapter of the aligned model, or a Hub id. Empty: fine-tuned here."""
    stubs: tuple[int, ...] = (0, 10, 50, 100)
    """Empty affirmative stubs mixed into the task, a fine-tuned model each (0 to 1,500 answered harmful pairs)."""
    n_recovery: Count = 64
    """Harmful prompts, and task prompts, that gradients are taken from (256; the released file holds 64 different)."""
    rate: OpenShare = 0.002
    """Share of the block weights that a step may restore."""
    rollback_rate: OpenShare = 0.2
    """Share of what a step restored that a rollback gives back."""
    steps: Count = 20
    """Recovery steps."""
    warmup: Count = 5
    """Steps without rollback, after which the task decides."""
    save_every: Count = 5
    """Steps between saved models, of which the task score picks one."""
    max_task_drop: Share = 0.05
    """Relative loss of the task score on the validation split that is allowed."""
    cut: OpenShare = 4 / 6
    """Share of the depth at which states are read; weights above it never change."""
    batch_size: Count = 8
    """Prompts in a batch of gradients."""
    ablations: tuple[str, ...] = tuple(ABLATIONS)
    """Ablations, run on the model with the most stubs."""
    cuts: tuple[OpenShare, ...] = (2 / 6, 3 / 6, 5 / 6)
    """Further cuts of the sweep."""
    rates: tuple[OpenShare, ...] = (0.0005, 0.005)
    """Further rates of the sweep."""
    n_val: Count = 24
    """Task examples of the validation split that the schedule scores; never reported."""
    n_test: Count = 40
    """Held-out harmful, and harmless, prompts."""
    n_task_test: Count = 48
    """Held-out task examples."""
    max_new_tokens: Count = 24
    """Length of replies to prompts (128; refusals show in their first words)."""
    seed: int = 0
    """Seed of fine-tuning, batches, random weights and bootstrap (42)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := [name for name in self.ablations if name not in ABLATIONS]:
            raise ValueError(f"unknown ablation {unknown[0]!r}; known: {', '.join(ABLATIONS)}")
        if not self.stubs or list(self.stubs) != sorted(set(self.stubs)):
            raise ValueError(f"stubs must ascend, one or more, got {list(self.stubs)}")
        if self.warmup > self.steps:
            raise ValueError(f"warmup must be at most steps = {self.steps}, got {self.warmup}")


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """A model on held-out prompts and on the held-out task."""

    refused: dict[str, tuple[bool, ...]]
    """Whether each held-out prompt is refused, by kind."""
    refusal_rate: dict[str, Estimate]
    """Share refused, by kind."""
    task: Estimate
    """Score on the held-out task."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One recovery step."""

    number: int
    """0 is the fine-tuned model."""
    loss: Measured
    """Mean over batches of minus the cosine with the harmful reference, before the step."""
    predicted: Measured
    """Sum of gradient times difference over restored weights: the fall of the loss to first order."""
    candidates: int
    """Weights that differ from the aligned ones and pass the sign test."""
    restored: int
    """Weights copied from the aligned model."""
    given_back: int
    """Of these, weights given back by the rollback."""
    cosine_harmful: Measured
    """Cosine of the mean state of the harmful prompts with their reference, where the step was saved."""
    cosine_task: Measured
    """Cosine of the mean state of the task prompts with theirs, where the step was saved."""
    validation: Measured
    """Task score on the validation split, where the step was saved."""


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """One recovery."""

    steps: tuple[Step, ...]
    """Its steps."""
    floor: Measured
    """Task score on the validation split that a saved step must exceed; NaN where all steps are taken."""
    picked: int
    """Step whose model is the result; 0 is the fine-tuned model itself."""
    used_rollback: bool
    """Whether the warm-up lost too much of the task."""
    behaviour: Behaviour
    """The picked model on held-out prompts and task."""
    saved: dict[int, Behaviour]
    """Saved models by step, with 0 for the fine-tuned one; empty for ablations and sweeps."""
    share: float
    """Share of the weights of all blocks that the picked model has from the aligned one."""
    shares: dict[str, tuple[float, ...]]
    """Share restored of each tensor of a block, by its name and then by layer, in the picked model."""
    shares_before_rollback: dict[str, tuple[float, ...]]
    """The same without what rollbacks gave back."""
    seconds: float
    """Seconds of the recovery, without measuring it, and without those before an interruption."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One fine-tuned model and its recovery by the paper's rule."""

    finetuned: Behaviour
    """Before recovery."""
    recovery: Recovery
    """The recovery."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Cosines of a model's mean states with both references of its layer, by layer 1..L (after each block)."""

    harmful: tuple[float, ...]
    """Mean state of held-out harmful prompts with the aligned model's."""
    task: tuple[float, ...]
    """Mean state of held-out task prompts with the fine-tuned model's."""
    harmful_centred: tuple[float, ...]
    """The same after subtracting the mean over both sets of the reference's model."""
    task_centred: tuple[float, ...]
    """Likewise."""


@dataclass(frozen=True, kw_only=True)
class Plane:
    """First two principal components of the states at the cut, fitted on all models together."""

    points: dict[str, dict[str, tuple[tuple[float, float], ...]]]
    """Points by model, then kind of prompt."""
    explained: tuple[float, float]
    """Share of the variance along each."""


@dataclass(frozen=True, kw_only=True)
class Result(ExperimentResult):
    """Results of a run."""

    config: Config
    """Settings of the run."""
    n: dict[str, int]
    """Held-out prompts by kind, and `task` examples."""
    cut_layer: int
    """Number of blocks below the cut."""
    aligned: Behaviour
    """The aligned model."""
    cases: dict[str, Case]
    """By `N stubs`, or `given model`."""
    compared: str
    """The case that all steps, ablations, sweeps, profiles and plane are of: the last."""
    all_steps: Recovery
    """The paper's choice of weights with every step taken."""
    ablations: dict[str, Recovery]
    """By name."""
    cuts: dict[str, Recovery]
    """By share of the depth."""
    rates: dict[str, Recovery]
    """By rate."""
    profiles: dict[str, Profile]
    """By model of `MODELS`."""
    plane: Plane
    """States of harmful and harmless prompts of the three models."""
    all_below: Behaviour | None = None
    """The compared model with every aligned weight below the cut, whatever the task score; no upper bound, since a
    part of them can give more."""
    all_above: Behaviour | None = None
    """The same with every aligned weight above the cut and none below: what recovery never touches."""


EXPERIMENT = Experiment(
    name="recovery",
    summary=SUMMARIES["recovery"],
    requires=("accelerate",),
    config=Config,
    result=Result,
    package=__name__,
    claims=CLAIMS,
)
