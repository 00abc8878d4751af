"""The main job: where refusal and harmfulness live in a model, and what happens when they are steered.

Method in `run.py`; figures and report are drawn from a stored `Result`. Nothing here imports torch.
"""

from dataclasses import dataclass

from interp.evaluation.records import Flag, RefusalRates, RefusalTokens
from interp.experiments import SUMMARIES
from interp.experiments.definition import Experiment, ExperimentResult
from interp.representations.records import LeakCheck
from interp.representations.selection import Candidate, RuleUsed, ScoredCandidate
from interp.stats import Estimate
from interp.storage.settings import CheckedSettings, Count

CONTROLS = ("random ablation", "random addition")
"""Interventions that should change nothing."""


@dataclass(frozen=True, kw_only=True)
class Config(CheckedSettings):
    """Settings of the demo."""

    n_train: Count = 128
    """Prompts of each kind that directions are fitted on."""
    n_val: Count = 32
    """Prompts of each kind that the layer and position are chosen on."""
    n_test: Count = 60
    """Prompts of each kind that everything reported is measured on."""
    n_candidates: Count = 12
    """Layers on the shortlist that the refusal direction is chosen from."""
    max_new_tokens: Count = 20
    """Length of a completion."""
    rules: tuple[tuple[float | None, float | None], ...] = ((0.1, 0.0), (1.0, 0.0), (None, None))
    """Rules as (maximum KL, minimum induce) of a candidate, None for no limit: the published rule, then those used in
    order when no candidate meets it, which the report states. Fixed beforehand for all models."""
    seed: int = 0
    """Seed of the random directions and of generated splits."""


@dataclass(frozen=True, kw_only=True)
class FilteredCounts:
    """Number of training prompts that are refused (harmful) or answered (harmless)."""

    harmful_refused: int
    """Harmful prompts with a positive refusal metric."""
    harmful: int
    """Harmful training prompts."""
    harmless_answered: int
    """Harmless prompts with a negative refusal metric."""
    harmless: int
    """Harmless training prompts."""
    applied: bool
    """Whether the refusal direction was fitted on those alone; too few behave otherwise."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One harmless prompt before and after adding the refusal direction."""

    id: str
    """The prompt's."""
    prompt: str
    before: str
    """Greedy completion, nothing added."""
    after: str
    """The reply with the direction added."""


@dataclass(frozen=True, kw_only=True)
class Result(ExperimentResult):
    """Results of a run."""

    config: Config
    """Settings of the run."""
    refusal_tokens: RefusalTokens
    """Tokens that begin this model's refusals, found on the training prompts."""
    post_inst_tokens: tuple[str, ...]
    """The template's tokens after the instruction, in order."""
    filtered_counts: FilteredCounts
    """Prompts that the refusal direction was fitted on."""
    selected: Candidate
    """The picked position and layer."""
    candidates: tuple[ScoredCandidate, ...]
    """The shortlist with its validation scores."""
    rule: RuleUsed
    """The rule that picked."""
    refusal_rate: dict[str, dict[str, RefusalRates]]
    """Refusal rates by intervention, then kind of prompts."""
    cosine: dict[str, tuple[float, ...]]
    """Cosine of harmfulness (t_inst) and refusal (picked position) at each layer, by ending."""
    auroc: dict[str, dict[str, tuple[Estimate, ...]]]
    """AUROC of harmful against harmless test prompts at each layer, by ending, then role."""
    leak_check: dict[str, LeakCheck]
    """Leak check of the contrast, by ending."""
    random_cosine_sd: float
    """Standard deviation of the cosine of two random directions, 1 / sqrt(d_model)."""
    examples: tuple[Example, ...]
    """A few harmless test prompts."""
    completions: dict[str, tuple[Flag, ...]]
    """Whether each test prompt was refused (12 substrings), by `intervention/kind`."""


EXPERIMENT = Experiment(
    name="demo",
    summary=SUMMARIES["demo"],
    config=Config,
    result=Result,
    package=__name__,
)
