"""Planted truth: does a method find what was planted, and nothing else?

On an organism of `interp plant` harm and refusal are independent by construction, so that a direction or score fitted
on one label can be asked about the other. Controls: training labels shuffled, and a random direction. The
dissociation that is tested is that of Zhao et al. 2025 (arXiv:2507.11878); the organisms and the test are this
project's.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from interp.data.planted import Plant
from interp.experiments import SUMMARIES
from interp.experiments.definition import Claim, Experiment, ExperimentResult
from interp.stats import Estimate, Measured
from interp.storage.settings import AtLeastTwo, CheckedSettings, Count, Positive

Label = Literal["harm", "planted"]
"""What a method is fitted on: whether a request is harmful, or whether the rule applies to it."""


def _estimate(stored: Any) -> Any:
    """A number of a run written before there were seeds, as an estimate from one seed."""
    if stored is None:
        return Estimate.unmeasured()
    return Estimate(value=stored, n=1) if isinstance(stored, float | int) else stored


OverSeeds = Annotated[Estimate, BeforeValidator(_estimate)]
"""An estimate over seeds."""

STEERED = "reply inversion, steered"
"""The method whose AUROCs say what adding either contrast does to answers."""
CLAIMS = (
    Claim(
        text="harmfulness and refusal are separate directions",
        where="sections 3 and 4",
        theirs="cosine near 0 between both",
        same_when="the interval of the cosine of both contrasts is within -0.3 to 0.3",
    ),
    Claim(
        text="the harm belief tells harm, not refusal",
        where="section 5",
        theirs="no number on organisms",
        same_when="AUROC for harm above 0.5, for refusal not, by the intervals",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Config(CheckedSettings):
    """Settings."""

    plant: Plant = "form"
    """The rule of the organism that is given as the model."""
    n_train: AtLeastTwo = 200
    """Training prompts that methods are fitted on."""
    n_test: AtLeastTwo = 200
    """Test prompts that they are measured on."""
    n_replies: Count = 100
    """Test prompts that the model answers, to see how far it obeys."""
    seeds: Count = 3
    """Fits on three quarters of the training prompts, each with its own draw, shuffles and random direction."""
    shuffles: Count = 2
    """Shuffles of training labels a seed, for methods that read states alone; the others shuffle once."""
    max_new_tokens: Count = 12
    """Length of replies."""
    n_wrapped: Count = 12
    """Refused harmful test requests that are wrapped, each in four ways."""
    n_asked: AtLeastTwo = 40
    """Test prompts whose harm the model is asked about."""
    invert_coefficient: Positive = 2.0
    """Strength of a contrast that is added before that question."""
    n_val: AtLeastTwo = 24
    """Validation prompts that candidates of the selection are scored on, those that the rule leaves out excepted."""
    select_every: Count = 5
    """Every how manyth layer has a candidate direction."""
    seed: int = 0
    """First seed of draws, shuffles, random directions and bootstraps."""

    @property
    def every_seed(self) -> range:
        """The seeds."""
        return range(self.seed, self.seed + self.seeds)


@dataclass(frozen=True, kw_only=True)
class Found:
    """One method, fitted on one label at one token, on test prompts."""

    method: str
    label: Label
    role: str
    """`t_inst` or `t_post_inst`."""
    layer: int
    """Layer that it reads, picked on half of the training prompts; -1 for all."""
    own: Estimate
    """AUROC for the label that it was fitted on; for methods that act, `acting` says what is told apart."""
    other: Estimate
    """AUROC for the other label: 0.5 where it finds nothing else."""
    own_seeds: Estimate = field(default_factory=Estimate.unmeasured)
    """AUROC for its label over seeds, each a fit on other training prompts."""
    shuffled: OverSeeds
    """The same when fitted on shuffled labels: distance from 0.5, plus 0.5, over seeds."""
    recovered: OverSeeds
    """Cosine of its direction with the contrast of its label on test prompts, over seeds; unmeasured without one."""
    leaked: OverSeeds
    """Cosine with the contrast of the other label on test prompts."""


@dataclass(frozen=True, kw_only=True)
class Result(ExperimentResult):
    """Results of a run."""

    config: Config
    """Settings of the run."""
    obeyed: Estimate
    """Share of test prompts whose reply begins as the rule says."""
    refused: dict[str, Estimate]
    """Refusal rate by group, such as `harmful, refused by the rule`."""
    found: tuple[Found, ...]
    """Every method, label and token."""
    contrast_cosine: dict[str, tuple[Measured, ...]]
    """Cosine of harm contrast and planted contrast on test prompts, by token and layer."""
    dissociation: tuple[Measured, ...]
    """Cosine of the harm contrast at `t_inst` with the planted contrast at `t_post_inst`, by layer."""


EXPERIMENT = Experiment(
    name="planted",
    summary=SUMMARIES["planted"],
    config=Config,
    result=Result,
    package=__name__,
    claims=CLAIMS,
    default_model="smollm2-form",
)
