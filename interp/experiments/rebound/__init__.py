"""Rebound: does a model that was aligned on more examples return faster under reverse examples?

Ji, Wang, Qiu, Chen, Zhou, Li, Lou, Dai, Liu, Yang, "Language Models Resist Alignment: Evidence From Data Compression",
arXiv:2406.06144 (ACL 2025), rebound experiment (figures 4 to 10, table 3).

Method in `run.py`, what is measured at a checkpoint in `measurement.py`; figures and report are drawn from a stored
`Result`. Nothing here imports torch.

The paper's figure 8 (negatives first) is the task `builtin-reversed` with the scorer `compliance`. Reverse stages by
PPO, KTO and SimPO are not implemented. Unlike the paper, models are trained by LoRA instead of fully, on fewer
examples by default, and on other data (the paper does not name its own). A verdict holds for these models, data and
optimiser; it does not prove elasticity.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from interp.data.tasks import TaskProvenance
from interp.experiments import SUMMARIES
from interp.experiments.definition import Claim, Experiment, ExperimentResult
from interp.stats import Estimate, Measured
from interp.storage.provenance import ModelProvenance
from interp.storage.settings import CheckedSettings, Count, Positive
from interp.tracking.rebound import ReboundStatistics

Reverse = Literal["sft", "dpo"]
"""Algorithm of the reverse stage."""
CORPORA = ("positive", "negative", "prose")
"""Held-out text whose compression rate is measured."""

CLAIMS = (
    Claim(
        text="A model aligned on more positive examples starts higher, falls faster at first, then flattens.",
        where="figure 4",
        theirs="so on all of their models",
        same_when="the verdict of `interp.tracking.rebound.judge`: slopes and time constant, with intervals",
    ),
    Claim(
        text="Larger N+ needs fewer N- to bring KL to the model before alignment under 0.01.",
        where="table 3",
        theirs="961 -> 729 negatives for N+ from 1000 to 10000 (Llama2-7B)",
        same_when="negatives until return by KL fall with N+; those until return by score stand beside them",
    ),
    Claim(
        text="Rebound is stronger with model size and with the volume of pre-training.",
        where="figures 5, 6, 9, 10",
        theirs="so along both",
        same_when="verdicts along several `models`, a panel each",
    ),
    Claim(
        text="The order is the same under other reverse algorithms.",
        where="figure 7",
        theirs="so for SFT, DPO and others",
        same_when="the verdict is the same in a run with `reverse` sft and one with dpo; a heat map of each",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Config(CheckedSettings):
    """Settings. The paper's grid is positives (1000, 2000, 5000, 10000), negatives (0, 100, 200, 500, 1000, 2000)."""

    positives: tuple[int, ...] = (0, 32, 128)
    """N+; 0 is the control that was never aligned."""
    negatives: tuple[int, ...] = (0, 8, 16, 32, 64)
    """N-, ascending from 0."""
    seeds: Count = 3
    """Orders of the examples and initialisations."""
    models: tuple[str, ...] = ()
    """Names as `interp.load` takes them, to run the same grid on each instead of on the one model."""
    task: str = "builtin"
    """`builtin`, `builtin-reversed` (negatives first, figure 8), or positive=FILE,negative=FILE[,prompts=FILE]."""
    scorer: str = "refusal"
    """`refusal`, `compliance` (for reversed roles), substring:TEXT[|TEXT...], or classifier:MODEL:LABEL."""
    reverse: Reverse = "sft"
    """Algorithm of the reverse stage: `sft` (supervised, as the first stage), or `dpo` (beta 0.1)."""
    learning_rate: Positive = 5e-4
    """Of both stages, whatever their algorithms. It is one for supervised LoRA; DPO is usually trained at a lower one
    (TRL's default is a twentieth of its supervised one), so compare algorithms by whole grids, not at an equal N-."""
    batch_size: Count = 8
    """Examples per optimiser step; every count must be a multiple."""
    rank: Count = 8
    """Rank of the LoRA update."""
    n_eval: Count = 32
    """Prompts that are scored."""
    max_new_tokens: Count = 12
    """Length of a reply."""
    n_kl: int = 8
    """Prompts that KL is sampled on."""
    n_documents: int = 12
    """Held-out documents of each kind for the compression rates."""
    n_states: int = 16
    """Test prompts of each kind whose activations are projected; 0 leaves the representation side out."""
    n_fit: int = 24
    """Training prompts of each kind that the directions are fitted on."""
    kl_threshold: float = 0.01
    """Nats; at or below it a model has returned by KL (table 3)."""
    seed: int = 0
    """First seed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self.positives, self.negatives, self.batch_size)


def check_counts(positives: Sequence[int], negatives: Sequence[int], batch: int) -> None:
    """Raise a ValueError unless the grid can be trained in batches."""
    if list(negatives) != sorted(set(negatives)) or len(negatives) < 3 or negatives[0] != 0:
        raise ValueError(f"negatives must ascend from 0, three or more, got {list(negatives)}")
    if list(positives) != sorted(set(positives)) or not positives or max(positives) < 1:
        raise ValueError(f"positives must ascend and hold one above 0, got {list(positives)}")
    if wrong := [n for n in (*positives, *negatives) if n % batch]:
        raise ValueError(f"counts must be multiples of batch_size = {batch}, got {wrong[0]}; change either")


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """A checkpoint's behaviour and compression rates."""

    rate: Estimate
    """Share of replies that show the behaviour, the score S."""
    bits_per_byte: dict[str, tuple[float, ...]]
    """Compression rate of each held-out document in bits per byte, by corpus of `CORPORA`; lower is better."""


@dataclass(frozen=True, kw_only=True)
class Shift:
    """Projection of the activations' shift on a direction, by prompt, in lengths of that direction."""

    layer: int
    """Layer at which the direction was fitted in the aligned model."""
    about: str
    """Description of a control's two groups of prompts; empty for harmfulness and refusal."""
    since_base: tuple[float, ...]
    """Checkpoint minus the model before alignment."""
    at_aligned: tuple[float, ...]
    """The aligned model (N- = 0) minus the model before alignment."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One checkpoint of the grid."""

    seed: int
    """Order of the examples and initialisation."""
    n_plus: int
    """Positive examples of the first stage."""
    n_minus: int
    """Negative examples of the reverse stage."""
    behaviour: Behaviour
    """Score and compression rates."""
    kl: Measured
    """KL(checkpoint || model before alignment), nats per token of the checkpoint's own samples."""
    shifts: dict[str, Shift]
    """Shifts by direction: harmfulness, refusal, and controls; empty where `n_states` is 0."""
    base_score: float
    """Score of the model before alignment."""

    @property
    def score(self) -> float:
        """Share of replies that show the behaviour."""
        return self.behaviour.rate.value

    def bits(self, corpus: str) -> tuple[float, ...]:
        """Bits per byte of each document of a corpus."""
        return self.behaviour.bits_per_byte[corpus]


@dataclass(frozen=True, kw_only=True)
class ModelResult:
    """The grid of one model."""

    provenance: ModelProvenance
    """The model."""
    points: tuple[Point, ...]
    """One per seed, N+ and N-."""
    statistics: ReboundStatistics
    """Statistics of the score's decay curves, and the verdict."""


@dataclass(frozen=True, kw_only=True)
class Result(ExperimentResult):
    """Results of a run; its provenance is the first model's."""

    config: Config
    """Settings of the run."""
    task: TaskProvenance
    """Examples that the models were trained on."""
    models: dict[str, ModelResult]
    """Results by name of the model, in the order they were run."""


EXPERIMENT = Experiment(
    name="rebound",
    summary=SUMMARIES["rebound"],
    requires=("accelerate", "datasets", "trl"),
    config=Config,
    result=Result,
    package=__name__,
    claims=CLAIMS,
    default_model="smollm2",
    shares="seeds",
)
