"""PKU-SafeRLHF from the inside: harm, its categories, its severity and both preferences at the last token of answers.

Ji et al. 2025, *PKU-SafeRLHF* (arXiv:2406.15513): the data, their labels and the table of moderation. The readings
inside a model are this project's. Without `data` it runs on the bundled miniature, whose answers are refusals and
harmless sentences with labels by construction: numbers then say that the method runs, and nothing about harm.
"""

from dataclasses import dataclass
from typing import Literal

from interp.experiments import SUMMARIES
from interp.experiments.definition import Claim, Experiment, ExperimentResult
from interp.representations.severity_records import (
    CategoryGeometry,
    ModerationScores,
    PreferenceReading,
    SeverityReading,
)
from interp.stats import Estimate, Measured
from interp.storage.settings import CheckedSettings, Count, OpenShare, Positive

CLAIMS = (
    Claim(
        text="categories overlap most for economic and white-collar crime",
        where="section on categories",
        theirs="label correlation 0.55, the rest low or negative",
        same_when="the largest label correlation of this copy is that pair's",
    ),
    Claim(
        text="moderation is accurate with few false positives",
        where="table of moderation",
        theirs="accuracy 0.93, F1 0.93, false positives 0.077; levels 85, 77, 71%; all flags right 71.3%",
        same_when="accuracy above words alone, intervals apart",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Config(CheckedSettings):
    """Settings."""

    data: str = ""
    """File or folder of pairs in the layout of PKU-SafeRLHF, the named set pku-saferlhf, or hub:...; the bundled
    miniature when empty."""
    n_pairs: Count = 2000
    """Pairs that are read at most, the first of the data in the order of a seeded shuffle."""
    held_out: OpenShare = 0.3
    """Share of prompts that everything is measured on; no prompt is on both sides."""
    layer: int | Literal["best"] = "best"
    """Layer of categories, severity and preferences; `best` is where training pairs are told apart best."""
    min_pairs: Count = 300
    """Mixed pairs that a category needs for a direction; 5 on the miniature."""
    l2: Positive = 1.0
    """Penalty of every regression on standardised components."""
    n_components: Count = 64
    """Principal components of the states that regressions see."""
    n_directions: Count = 64
    """Prompts of each kind that the refusal direction is fitted on."""
    false_positive_rate: OpenShare = 0.1
    """False-positive rate of the calibrated moderator on safe answers that it was not fitted on."""
    seed: int = 0
    """Seed of the shuffle, the bootstrap and the shuffled labels."""


@dataclass(frozen=True, kw_only=True)
class PublishedCount:
    """A published count beside that of the data."""

    what: str
    published: int
    found: int
    holds: bool


@dataclass(frozen=True, kw_only=True)
class Result(ExperimentResult):
    """Results of a run."""

    config: Config
    """Settings of the run."""
    data: str
    """Where the pairs come from."""
    miniature: bool
    """Whether they are the bundled miniature."""
    counts: dict[str, int]
    """Counts of the pairs that were read."""
    published: tuple[PublishedCount, ...]
    """Published counts beside those of the whole data; empty for the miniature."""
    unread: int
    """Answers that are empty or do not fit into the context."""
    layer: int
    """Layer that was read, as `interp.representations.beliefs` counts them."""
    told_apart: tuple[Estimate, ...]
    """Share of held-out mixed pairs whose unsafe answer lies further along the harm direction, by layer."""
    told_apart_shuffled: tuple[float, ...]
    """The same with the signs of the training pairs shuffled, mean over 50 shuffles."""
    norm_ratio: tuple[float, ...]
    """Norm of the harm direction over its mean norm with shuffled signs: 1 where pairs have nothing in common."""
    length_gap: float
    """Mean words of unsafe answers minus those of safe ones in mixed pairs: what the harm direction may hold."""
    cosine_with_refusal: tuple[Measured, ...]
    """Cosine of the harm direction of answers with the refusal direction of prompts (`t_post_inst`), by layer."""
    categories: CategoryGeometry
    """Directions of categories beside their labels."""
    severity: dict[str, SeverityReading]
    """Severity of held-out unsafe answers by reader, baselines among them."""
    severity_shuffled: SeverityReading
    """All directions, fitted on shuffled severities."""
    preferences: dict[str, PreferenceReading]
    """Probes for the more helpful and the more harmless answer."""
    preference_cosine: float
    """Cosine of both probes' directions."""
    moderation: dict[str, ModerationScores]
    """Moderation of held-out answers by detector."""


EXPERIMENT = Experiment(
    name="safe-rlhf",
    summary=SUMMARIES["safe-rlhf"],
    config=Config,
    result=Result,
    package=__name__,
    claims=CLAIMS,
)
