"""LLMs Encode Harmfulness and Refusal Separately (Zhao et al. 2025, arXiv:2507.11878), sections 3 and 4, appendix F.

Every panel that reads or steers at `t_inst` is shown with prompts as they are, with closing punctuation removed, and
with a full stop at the end. Public prompt sets differ in their endings, and `t_inst` is the token that ends a prompt,
so a difference there may be one of punctuation (`interp.representations.confounds`). The paper's jailbreaks,
categories, fine-tuning and guard are separate experiments.

Method in `run.py`, records of the result in `results.py`; figures and report are drawn from a stored `Result`. Nothing
here imports torch.
"""

from dataclasses import dataclass

from interp.data.prompts import Ending
from interp.experiments import SUMMARIES
from interp.experiments.definition import Claim, Experiment, ExperimentResult
from interp.experiments.harmfulness.results import EndingResult, Positions, QuestionChoice
from interp.storage.settings import CheckedSettings, Count

RANDOM = ("random, harmfulness norm", "random, refusal norm")
"""Arms that steer along a random direction of the norm of one of the two."""
ON_INSTRUCTION = "refusal, instruction tokens only"
"""The control arm that adds refusal where harmfulness is added: at instruction tokens alone."""


@dataclass(frozen=True, kw_only=True)
class Config(CheckedSettings):
    """Settings; the paper's unless a reason is given."""

    n_train: Count = 100
    """Prompts of each kind whose refused or accepted ones centres and directions are fitted on (section 5)."""
    n_test: Count = 100
    """Held-out prompts of each kind."""
    anchors: str = ""
    """Prompt set whose accepted harmless/train prompts are harmless anchors from another source, a confound check;
    when empty, the set's own borderline/train prompts."""
    n_steer: Count = 24
    """Harmless prompts that are steered towards refusal (figure 4)."""
    steer_every: Count = 2
    """Layers between those that are steered; the paper steers each."""
    coefficient: float = 1.0
    """Multiples of the raw difference in means (section 3.3)."""
    n_invert: Count = 24
    """Prompts of each kind that the inverted question is asked of (figure 5; the demo of the source has 50)."""
    invert_every: Count = 3
    """Layers between those steered there."""
    invert_coefficient: float = 2.0
    """Multiples of the raw difference in means there (the released command for Qwen2)."""
    least_gap: float = 0.5
    """Minimum excess of right over wrong answers of the unsteered model for steering the inversion."""
    max_new_tokens: Count = 24
    """Length of a reply; a refusal shows in its first words (the paper: 128)."""
    verdict_tokens: Count = 12
    """Length of a reply to the inverted question (the demo of the source: 100)."""
    draws: Count = 200
    """Bootstrap draws and shuffled labellings."""
    seed: int = 0
    """Seed of the controls and the bootstrap."""


@dataclass(frozen=True, kw_only=True)
class Result(ExperimentResult):
    """Results of a run."""

    config: Config
    """Settings of the run."""
    by_ending: dict[Ending, EndingResult]
    """Everything that is read or steered, by how prompts end."""
    question: QuestionChoice
    """The inverted question."""
    positions: Positions
    """Appendix F, with prompts as they are."""

    @property
    def endings(self) -> tuple[Ending, ...]:
        """The endings that are set side by side."""
        return tuple(self.by_ending)


CLAIMS = (
    Claim(
        text="without the template's tokens after the instruction refusal drops",
        where="table 1",
        theirs="96-100% -> 59-85%",
        same_when="intervals apart",
    ),
    Claim(
        text="at t_inst states group by harm",
        where="figure 2, top",
        theirs="accepted harmful > 0 > refused harmless",
        same_when="means apart from 0",
    ),
    Claim(
        text="at t_post_inst they group by refusal",
        where="figure 2, bottom",
        theirs="the signs flip",
        same_when="means apart from 0",
    ),
    Claim(
        text="the two directions are nearly orthogonal",
        where="section 3.2",
        theirs="cosine about 0.1",
        same_when="mean over layers below 0.2",
    ),
    Claim(
        text="beliefs separate the four groups",
        where="figure 3",
        theirs="Llama-2",
        same_when="each tells its own label better than the other's",
    ),
    Claim(
        text="adding either direction induces refusal",
        where="figure 4",
        theirs="94%, 100% at their best layers",
        same_when="apart from random",
    ),
    Claim(
        text="in the inverted question harmfulness moves the verdict with its sign",
        where="figure 5",
        theirs='94% -> 0% "No"',
        same_when="apart from random",
    ),
    Claim(
        text="refusal pushes towards refusing tokens instead",
        where="figure 5",
        theirs="stays 72-98%",
        same_when="apart from harmfulness",
    ),
    Claim(
        text="only t_inst carries harm",
        where="figure 14",
        theirs="position 0 alone has both signs",
        same_when="as there",
    ),
)

EXPERIMENT = Experiment(
    name="harmfulness",
    summary=SUMMARIES["harmfulness"],
    config=Config,
    result=Result,
    package=__name__,
    claims=CLAIMS,
)
