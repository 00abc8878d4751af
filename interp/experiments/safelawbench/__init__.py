"""SafeLawBench under steering: does refusing cost knowledge, where the law is about safety?

Cao et al. 2025, *SafeLawBench* (arXiv:2506.06636), measures safety as knowledge of the law, in four risk groups. Here
its questions are answered by the log-probability of each choice, while the refusal direction is added or ablated, with
random directions as control. Method in `run.py`; figures and report are drawn from a stored `Result`. Nothing here
imports torch.
"""

from dataclasses import dataclass

from interp.evaluation.choice_scores import ChoiceScores
from interp.experiments import SUMMARIES
from interp.experiments.definition import Claim, Experiment, ExperimentResult
from interp.stats import Estimate
from interp.storage.settings import AtLeastTwo, CheckedSettings, Count

CRITICAL = "Critical Personal Safety"
"""The gravest risk group of SafeLawBench."""
BASELINE = "baseline"
"""The arm without an intervention."""
RANDOM = "random"
"""Beginning of the names of control arms."""
CLAIMS = (
    Claim(
        text="models know the law on safety better than chance",
        where="table of 20 models",
        theirs="30.0% (vicuna-13b) to 80.5% (Claude-3.5-Sonnet), mean 68.8%; chance 25%",
        same_when="accuracy above chance, by the interval",
    ),
    Claim(
        text="steering towards refusal costs knowledge",
        where="this project",
        theirs="not published",
        same_when="right choice less probable than without, and than with random directions, by the interval",
    ),
    Claim(
        text="it costs more where personal safety is critical",
        where="this project",
        theirs="not published",
        same_when=f"loss larger in {CRITICAL} than in the other groups, by the interval",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Config(CheckedSettings):
    """Settings."""

    questions: str = "builtin"
    """Questions as interp.data.load_questions takes them: builtin, safelawbench, a folder or a file."""
    n_questions: Count = 400
    """At most so many questions, from the groups in turn."""
    shots: int = 0
    """Examples shown before each question, in file order."""
    coefficients: tuple[float, ...] = (0.5, 1.0)
    """Multiples of the refusal direction's norm that are added."""
    n_random: Count = 3
    """Random directions of the same norm, for each of addition and ablation."""
    n_train: AtLeastTwo = 64
    """Training prompts of each kind that the refusal direction is fitted on."""
    layer: int | None = None
    """Layer of the refusal direction; three fifths of the depth when None."""
    n_replies: int = 24
    """Questions that are also answered by a reply, to count refusals; 0 leaves replies out."""
    seed: int = 0
    """Seed of the random directions and bootstraps."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """All questions under one intervention."""

    scores: ChoiceScores
    """Accuracy by the likeliest choice."""
    right_probability: Estimate
    """Mean probability of the right choice among the choices."""
    change: Estimate
    """Paired change of that probability against the baseline; bootstrap over questions."""
    change_by_group: dict[str, Estimate]
    """The same by group."""
    letter_mass: float
    """Mean probability that the next token is a letter at all, 0 to 1; low where the model would not answer so."""
    letter_bias: dict[str, float]
    """Mean probability of each letter, whatever choice stands there."""
    refused: int | None
    """Replies that refuse; None where no replies were asked for."""
    unread: int | None
    """Replies without a letter that do not refuse; None where no replies were asked for."""


@dataclass(frozen=True, kw_only=True)
class Result(ExperimentResult):
    """Results of a run."""

    config: Config
    """Settings of the run."""
    questions: str
    """Name of the questions."""
    questions_hash: str
    """SHA-256 of the questions."""
    groups: dict[str, int]
    """Number of questions by group."""
    layer: int
    """Layer of the refusal direction."""
    critical_against_rest: dict[str, Estimate]
    """By arm: change of the right choice's probability in the gravest group minus that in the others."""
    arms: dict[str, Arm]
    """Results by intervention: `baseline`, `ablation`, `addition x1`, `random ablation`, `random addition x1`."""


EXPERIMENT = Experiment(
    name="safelawbench",
    summary=SUMMARIES["safelawbench"],
    config=Config,
    result=Result,
    package=__name__,
    claims=CLAIMS,
)
