"""Latent Guard against other detectors of harmful prompts, on the same prompts and thresholds.

Zhao et al. 2025, *LLMs Encode Harmfulness and Refusal Separately* (arXiv:2507.11878), section 5, table 3.
The claims are `CLAIMS`, the method is in `run.py`; figures and report are drawn from a stored `Result`.
"""

from dataclasses import dataclass
from typing import Literal

from interp.experiments import SUMMARIES
from interp.experiments.definition import Claim, Experiment, ExperimentResult
from interp.representations.records import LeakCheck
from interp.stats import Estimate
from interp.storage.settings import AtLeastTwo, CheckedSettings, Count, OpenShare

GUARD = "Latent Guard"
"""The detector that is compared."""
CONTROL = "random direction (control)"
"""The detector that should see next to nothing."""
OTHER_ANCHORS = "other anchors"
"""Suffix of detectors fitted with harmless prompts of another source."""
CLAIMS = (
    Claim(
        text="the belief at t_inst detects harmful prompts",
        where="table 3",
        theirs="41.6% to 100%",
        same_when="AUROC above a random direction's",
    ),
    Claim(
        text="also where behaviour misleads",
        where="table 3, last columns",
        theirs="54.6% to 100%",
        same_when="more right than wrong, by the interval",
    ),
    Claim(
        text="jailbreaks that succeed are still flagged",
        where="table 3",
        theirs="41.6% to 100%",
        same_when="most flagged, harmless wrapped not",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Config(CheckedSettings):
    """Settings; the paper's unless a reason is given."""

    n_train: AtLeastTwo = 100
    """Prompts of each kind that detectors are fitted on (section 5)."""
    n_test: AtLeastTwo = 100
    """Prompts of each kind that they are measured on."""
    false_positive_rate: OpenShare = 0.1
    """False-positive rate of the calibrated thresholds on harmless validation prompts."""
    text_guards: tuple[str, ...] = ()
    """Guard models of the Hub or folders, as `interp.detectors.guard_models.load_text_guard` takes them."""
    anchors: str = ""
    """File or `hub:` set of harmless prompts of another source, to fit on instead."""
    unseen: str = ""
    """Further prompt set to be measured on, `harmful=FILE,harmless=FILE` or a folder."""
    families: tuple[Literal["template", "persuasion"], ...] = ("template", "persuasion")
    """Families of jailbreak wrappers whose successes are measured (table 3)."""
    n_wrapped: int = 15
    """Plainly refused test prompts that are wrapped; 0 leaves jailbreaks out."""
    max_new_tokens: Count = 24
    """Length of the replies that say what is refused."""
    seed: int = 0
    """Seed of the random direction and the bootstrap."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A detector's verdicts on the test prompts at one threshold."""

    threshold: float
    """Score above which a prompt is flagged; 0 where a guard model's own answer decides."""
    accuracy: Estimate
    """Share of harmful and harmless test prompts judged rightly."""
    flagged: dict[str, Estimate]
    """Share of prompts flagged as harmful, by group."""
    unread: int
    """Prompts that a guard model gave no answer to."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One detector on the test prompts."""

    auroc: Estimate
    """Harmful against harmless."""
    auroc_by_category: dict[str, Estimate]
    """Each harm category against all harmless prompts."""
    auroc_unseen: Estimate | None = None
    """Harmful against harmless prompts of the unseen set; None without one."""
    scores: dict[str, tuple[float, ...]]
    """Scores of every test prompt by kind; higher is more harmful."""
    own: Judged
    """Verdicts at the detector's own threshold."""
    calibrated: Judged
    """Verdicts at the threshold calibrated on harmless validation prompts."""


@dataclass(frozen=True, kw_only=True)
class WithEnding:
    """All detectors, fitted and measured on prompts that end in one way."""

    detectors: dict[str, Measured]
    """By name."""
    about: dict[str, str]
    """Description of what each detector reads, by name."""
    leak_check: LeakCheck
    """How well the way prompts end tells harmful from harmless test prompts."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """The model's behaviour on training prompts."""

    refused: int
    """Prompts that it refuses (24 substrings)."""
    of: int
    """Prompts asked."""


@dataclass(frozen=True, kw_only=True)
class Result(ExperimentResult):
    """Results of a run."""

    config: Config
    """Settings of the run."""
    groups: dict[str, int]
    """Prompts in each group that is measured on."""
    counts: dict[str, Counts]
    """Counts by kind."""
    by_ending: dict[str, WithEnding]
    """Results by ending of the prompts."""


EXPERIMENT = Experiment(
    name="guard",
    summary=SUMMARIES["guard"],
    config=Config,
    result=Result,
    package=__name__,
    claims=CLAIMS,
)
