"""A model aligned and un-aligned in stages, measured at every checkpoint on the way.

Ji et al. 2025, arXiv:2406.06144, whose grids (the rebound experiment) only see scores and KL: here behaviour, beliefs,
directions, compression, KL and weights along one path, on the same axis (`interp.tracking.tracker`). One path and one
seed: it shows what moves first and what comes back, and cannot say whether the data are consistent with rebound, so the
paper's claims are not judged here.

Method in `run.py`; figures and report are drawn from a stored `Result`. Nothing here imports torch.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from interp.experiments import SUMMARIES
from interp.experiments.definition import Experiment, ExperimentResult
from interp.storage.settings import CheckedSettings, Count, Positive
from interp.tracking.records import TrackRecord

Stage = Literal["align", "stubs"]
"""`align` teaches to refuse harmful requests and to answer the others, `stubs` to affirm harmful ones."""
STAGES: tuple[Stage, ...] = get_args(Stage)


@dataclass(frozen=True, kw_only=True)
class Config(CheckedSettings):
    """Settings of the path."""

    stages: tuple[str, ...] = ("align", "stubs")
    """`align` and `stubs`, in any order; an aligned model begins with `stubs`."""
    counts: tuple[int, ...] = (16, 32, 64, 128)
    """Examples of a stage at which a checkpoint is measured, ascending."""
    n: Count = 32
    """Test prompts of each kind."""
    n_fit: Count = 48
    """Training prompts of each kind that directions and centres are fitted on."""
    n_documents: Count = 16
    """Documents of each corpus."""
    max_new_tokens: Count = 20
    """Length of a reply."""
    answer_tokens: Count = 20
    """Length of the model's own answers that `align` trains on."""
    learning_rate: Positive = 5e-4
    """Learning rate of every stage."""
    batch_size: Count = 8
    """Examples per training step; every count must be a multiple."""
    rank: Count = 8
    """Rank of the LoRA."""
    seed: int = 0
    """Seed of initialisation, the order of examples and sampling."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.stages or any(stage not in STAGES for stage in self.stages):
            raise ValueError(
                f"stages must be some of {', '.join(STAGES)}, got {', '.join(self.stages) or 'none'}"
            )
        if not self.counts or list(self.counts) != sorted(set(self.counts)) or self.counts[0] < 1:
            raise ValueError(f"counts must ascend from 1 or more, got {list(self.counts)}")
        if wrong := [n for n in self.counts if n % self.batch_size]:
            raise ValueError(
                f"counts must be multiples of batch_size = {self.batch_size}, got {wrong[0]}; change either"
            )


@dataclass(frozen=True, kw_only=True)
class Result(ExperimentResult, TrackRecord):
    """The tracked path; `interp.tracking.trajectory.Trajectory(result)` is its tidy table."""

    config: Config
    """Settings of the run."""


EXPERIMENT = Experiment(
    name="trajectory",
    summary=SUMMARIES["trajectory"],
    requires=("accelerate",),
    config=Config,
    result=Result,
    package=__name__,
    default_model="smollm2",
)
