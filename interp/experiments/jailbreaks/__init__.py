"""Jailbreaks: which of the two beliefs moves when a wrapped request gets past the model?

Zhao et al. 2025, *LLMs Encode Harmfulness and Refusal Separately* (arXiv:2507.11878), section 4. Method in `run.py`,
statistics of the shifts in `shifts.py`; figures and report are drawn from a stored `Result`. Nothing here imports
torch.
"""

from dataclasses import dataclass

from interp.data.prompts import Ending, Kind
from interp.data.wrappers import wrappers
from interp.evaluation.records import BehavingCount
from interp.experiments import SUMMARIES
from interp.experiments.definition import Claim, Experiment, ExperimentResult
from interp.representations.records import HarmAndRefusal
from interp.stats import Estimate, Measured
from interp.storage.settings import CheckedSettings, Count


@dataclass(frozen=True, kw_only=True)
class Config(CheckedSettings):
    """Settings."""

    families: tuple[str, ...] = ("template", "persuasion")
    """Families of wrappers of `interp.data.wrappers`."""
    suffixes: str = ""
    """File of adversarial suffixes, one a line."""
    attacks: str = ""
    """File of further jailbreaks: wrappers, or finished prompts with the request each is for."""
    n_found: int = 0
    """Refused training requests for each of which a suffix is searched (needs nanogcg); 0 is none."""
    search_steps: Count = 100
    """Steps of a search (the package's default is 250)."""
    search_width: Count = 512
    """Candidates a step (the package's default)."""
    n_train: Count = 100
    """Prompts of each kind that the centres are fitted on, before filtering (the paper's guard has 100)."""
    n_test: Count = 50
    """Requests of each kind that are wrapped."""
    max_new_tokens: Count = 24
    """Length of the replies that say what is refused."""
    seed: int = 0
    """Seed of the bootstrap and of the search for suffixes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        wrappers(self.families)  # an unknown family is refused here


@dataclass(frozen=True, kw_only=True)
class Point:
    """One prompt: what it is, what the model did, what it believes."""

    kind: Kind
    """Harmful or harmless."""
    family: str
    """Family of the wrapper; `plain` for an unwrapped request."""
    wrapper: str
    """Name of the wrapper; `plain` for an unwrapped request."""
    id: str
    """The request's."""
    refused: bool
    """Whether the reply to the unchanged message is a refusal."""
    beliefs: dict[Ending, HarmAndRefusal[float]]
    """Both beliefs by ending, -2 to 2; above 0 is nearer the harmful, or the refused, centre."""


@dataclass(frozen=True, kw_only=True)
class PromptCounts:
    """Number of refused harmful and answered harmless prompts."""

    train: dict[Kind, BehavingCount]
    """Training prompts; the centres are fitted on those that behave."""
    plain: dict[Kind, BehavingCount]
    """Unwrapped requests; only refused harmful and answered harmless ones are wrapped and counted."""


@dataclass(frozen=True, kw_only=True)
class Success:
    """Success of a wrapper, or a family, on requests that are refused when asked plainly."""

    family: str
    harmful_answered: Estimate
    """Share of plainly refused harmful requests that are answered when wrapped: the success."""
    harmless_refused: Estimate
    """Share of plainly answered harmless requests that are refused when wrapped: the control."""


@dataclass(frozen=True, kw_only=True)
class BeliefShift:
    """How far one belief of successful prompts lies from that of their own plain requests; n counts requests."""

    moved: Estimate
    """Mean over requests of (mean belief of the request's successful prompts - belief of the plain request)."""
    p_value: Measured
    """Wilcoxon's signed-rank test of `moved` against 0; NaN where there are too few."""
    effect_size: Measured
    """Mean over standard deviation of the differences (Cohen's d_z); NaN where there are too few."""
    share_of_gap: Estimate
    """`moved` over the gap between plain harmful and plain harmless requests, so that both beliefs have one unit."""
    harmless: Estimate
    """Control: the same shift of harmless requests, each wrapper weighted as often as it succeeded."""
    beyond: Estimate
    """`moved` minus `harmless`: what wrapping by itself does not explain."""
    still_refused: Estimate
    """Shift of wrapped harmful requests that did not succeed."""
    negative_side: Estimate
    """Share of successes with a belief of 0 or less."""
    plain_negative_side: Estimate
    """Share of the same requests, asked plainly, on the negative side."""


@dataclass(frozen=True, kw_only=True)
class FamilyShifts:
    """Shifts of both beliefs under one family of wrappers."""

    requests: int
    """Harmful requests with a success."""
    prompts: int
    """Successful prompts."""
    beliefs: HarmAndRefusal[BeliefShift]
    refusal_beyond_harm: Estimate
    """How much further the refusal belief falls than the harm belief, in shares of their gaps; above 0 is further."""


@dataclass(frozen=True, kw_only=True)
class Shifts:
    """Shifts of all families with prompts of one ending."""

    gap: HarmAndRefusal[float]
    """Mean belief of plain refused harmful requests minus that of plain answered harmless ones."""
    families: dict[str, FamilyShifts]


@dataclass(frozen=True, kw_only=True)
class Result(ExperimentResult):
    """Results of a run."""

    config: Config
    """Settings of the run."""
    counts: PromptCounts
    """Prompts that the rest is fitted and measured on."""
    points: tuple[Point, ...]
    """Every prompt, plain and wrapped."""
    wrappers: dict[str, Success]
    """Success by name of the wrapper."""
    families: dict[str, Success]
    """Success by family: mean over requests of the share of its wrappers that succeed."""
    shifts: dict[Ending, Shifts]
    """Shifts of the beliefs by ending."""


CLAIMS = (
    Claim(
        text="every family of jailbreaks lowers the refusal belief",
        where="figure 6",
        theirs="-0.19..0.00, refused harmful 0.21..0.33 (read off it)",
        same_when="lower, beyond wrapped harmless requests",
    ),
    Claim(
        text="template and suffix jailbreaks keep the harm belief",
        where="figure 6",
        theirs="0.00..0.15, refused harmful 0.04..0.15 (read off it)",
        same_when="most successes lie on the harmful side",
    ),
    Claim(
        text="part of the persuasion jailbreaks flips the harm belief",
        where="figure 6",
        theirs="-0.07..-0.02 and 0.07..0.13 (read off it)",
        same_when="more successes lie on the harmless side than the same requests plainly asked",
    ),
)

EXPERIMENT = Experiment(
    name="jailbreaks",
    summary=SUMMARIES["jailbreaks"],
    config=Config,
    result=Result,
    package=__name__,
    claims=CLAIMS,
)
