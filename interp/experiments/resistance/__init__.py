"""Resistance: is it easier to train a model back to where it came from than onwards?

Ji, Wang, Qiu, Chen, Zhou, Li, Lou, Dai, Liu, Yang, "Language Models Resist Alignment: Evidence From Data Compression",
arXiv:2406.06144 (ACL 2025), resistance experiment (tables 1 and 2; no seeds or variance printed).

Method in `run.py`, gaps between the arms in `gaps.py`; figures and report are drawn from a stored `Result`. Nothing
here imports torch.

Unlike the paper, which trains all weights for an epoch on larger sets, this trains the small base by LoRA on small
sets. The paper does not define its KL change: the two models, the direction and the tokens are choices of this project.
"""

from dataclasses import dataclass
from typing import Literal

from interp.data.tasks import TaskProvenance
from interp.experiments import SUMMARIES
from interp.experiments.definition import Claim, Experiment, ExperimentResult
from interp.stats import Measured
from interp.storage.settings import AtLeastTwo, CheckedSettings, Count, Positive

Arm = Literal["forward", "inverse"]
ARMS: tuple[Arm, ...] = ("forward", "inverse")
"""Training from the earlier checkpoint on the later one's answers, and the other way round."""

CLAIMS = (
    Claim(
        text="Training towards an earlier checkpoint ends at a lower loss than training away from it.",
        where="table 1",
        theirs="inverse loss below forward loss in all cells, by 0.0002 to 0.096",
        same_when="forward minus inverse, paired over seeds, is above 0 in final and in excess loss, and training "
        "widened the gap",
    ),
    Claim(
        text="Training forward moves the model further than training back.",
        where="table 2",
        theirs="KL change of the forward arm above the inverse arm's in all pairs, such as 0.4568 and 0.2796",
        same_when="forward minus inverse KL change, paired over seeds, is above 0",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Config(CheckedSettings):
    """Settings."""

    slices: AtLeastTwo = 3
    """Consecutive slices, as in the paper."""
    slice_size: Count = 32
    """Examples of a slice."""
    n_targets: Count = 24
    """Held-out prompts that every checkpoint answers and the arms train on."""
    max_new_tokens: Count = 16
    """Length of an answer."""
    seeds: AtLeastTwo = 5
    """Orders of the examples, initialisations and samples."""
    task: str = "builtin"
    """Task whose positive examples are the data set, as in `rebound`."""
    learning_rate: Positive = 5e-4
    """Learning rate of both stages."""
    batch_size: Count = 8
    """Examples per optimiser step."""
    rank: Count = 8
    """Rank of the LoRA update."""
    seed: int = 0
    """First seed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.slice_size % self.batch_size:
            raise ValueError(
                f"slice_size must be a multiple of batch_size = {self.batch_size}, got {self.slice_size}"
            )


@dataclass(frozen=True, kw_only=True)
class TrainedArm:
    """One checkpoint trained on another one's answers. Losses are mean nats per token of those answers."""

    seed: int
    """Order of the examples, initialisation and samples."""
    pair: str
    """The two checkpoints, e.g. `1-3`."""
    arm: Arm
    """`forward` starts at the earlier of the two."""
    final: Measured
    """Loss after training."""
    before: Measured
    """Loss before any training step, the control."""
    self_entropy: Measured
    """Loss of the checkpoint that wrote the answers."""
    kl_change: Measured
    """KL(start || trained), mean nats per token over the answers of both checkpoints of the pair."""

    @property
    def excess(self) -> float:
        """Final loss minus self-entropy: comparable between arms, which fit different answers."""
        return self.final - self.self_entropy

    @property
    def before_excess(self) -> float:
        """Excess loss before any training step."""
        return self.before - self.self_entropy

    @property
    def change(self) -> float:
        """Change of the excess loss by training, which equals that of the loss itself."""
        return self.excess - self.before_excess


@dataclass(frozen=True, kw_only=True)
class Result(ExperimentResult):
    """Results of a run."""

    config: Config
    """Settings of the run."""
    task: TaskProvenance
    """Examples that the checkpoints were trained on."""
    arms: tuple[TrainedArm, ...]
    """One per seed, pair and arm."""


EXPERIMENT = Experiment(
    name="resistance",
    summary=SUMMARIES["resistance"],
    requires=("accelerate",),
    config=Config,
    result=Result,
    package=__name__,
    claims=CLAIMS,
    default_model="smollm2",
)
