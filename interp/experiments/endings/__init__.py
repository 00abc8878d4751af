"""How prompts end: a confound of everything that is read at the last instruction token, measured over sets and models.

Public sets end their prompts differently (AdvBench without a mark, Alpaca with a full stop, XSTest with a question
mark), and at `t_inst` a difference in means between two such sets encodes punctuation. This experiment measures it
under five treatments: prompts as they are, stripped of closing marks, ended by a full stop, ended by a question mark,
and with the endings of the other set. A set whose endings are planted (no mark on harmful prompts, a full stop on
harmless ones) is the positive control, directions and centres of shuffled labels the negative one. Method in
`run.py`; figures and report are drawn from a stored `Result`. Nothing here imports torch.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from interp.experiments import SUMMARIES
from interp.experiments.definition import Claim, Experiment, ExperimentResult
from interp.stats import Estimate
from interp.storage.settings import AtLeastTwo, CheckedSettings, Count

Treatment = Literal["as-is", "strip", "period", "question", "swapped"]
"""How prompts end: unchanged, without closing marks, with a full stop or a question mark, or as the other set does."""
TREATMENTS: tuple[Treatment, ...] = get_args(Treatment)
TREATMENT_LABELS: dict[str, str] = {
    "as-is": "as they are",
    "strip": "no closing mark",
    "period": "full stop",
    "question": "question mark",
    "swapped": "endings of the other set",
}
"""Treatments in words."""
PLANTED = "planted endings"
"""The positive control: prompts of the first set, of which only the harmless ones end with a full stop."""

CLAIMS = (
    Claim(
        text="the last token alone tells harmful from harmless prompts of sets that end differently",
        where="this project",
        theirs="AUROC 1 by construction in the positive control",
        same_when="leak above 0.6 as they are, 0.5 within the interval with a full stop",
    ),
    Claim(
        text="equal endings bring the directions at t_inst and t_post_inst closer where endings leak",
        where="this project",
        theirs="cosine 0.2 as they are, 0.5 to 0.7 with a full stop (design trial)",
        same_when="cosine higher with a full stop, intervals apart",
    ),
    Claim(
        text="a guard fitted on leaking endings fails when the endings are exchanged",
        where="this project",
        theirs="not published",
        same_when="AUROC lower with the endings of the other set, intervals apart",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Config(CheckedSettings):
    """Settings."""

    sets: tuple[str, ...] = ()
    """Further prompt sets beside that of --prompts, as --prompts takes them."""
    models: tuple[str, ...] = ()
    """Further models beside that of --model, as interp.load takes them."""
    n_train: AtLeastTwo = 100
    """Training prompts of each kind and set."""
    n_test: AtLeastTwo = 100
    """Test prompts of each kind and set."""
    n_shuffles: Count = 20
    """Shuffles of the labels for the negative controls."""
    n_resamples: Count = 200
    """Bootstrap resamples of prompts for the cosine's interval."""
    seed: int = 0
    """Seed of shuffles, resamples and exchanged endings."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One set under one treatment."""

    leak: Estimate
    """AUROC of harmful against harmless test prompts from the last instruction token's identity alone."""
    embedding: Estimate
    """AUROC from the embedding of that token, along the difference in means."""
    cosine: Estimate
    """Cosine of the differences in means at t_inst and t_post_inst at the middle layer; bootstrap over prompts."""
    cosines: tuple[float, ...]
    """The same at every layer, 0..L."""
    cosine_shuffled: tuple[float, float]
    """Lowest and highest cosine at the middle layer under shuffled labels."""
    guard: Estimate
    """AUROC of the harm belief at t_inst on test prompts of the same set."""
    guard_shuffled: tuple[float, float]
    """Lowest and highest AUROC with centres of shuffled labels."""
    transfer: dict[str, Estimate]
    """AUROC of the same guard on test prompts of the other sets, by set."""


@dataclass(frozen=True, kw_only=True)
class Endings:
    """How the training prompts of one set end, as they are."""

    harmful: dict[str, float]
    """Share of harmful prompts by ending."""
    harmless: dict[str, float]
    """Share of harmless prompts by ending."""
    n_train: int
    """Training prompts of each kind."""
    n_test: int
    """Test prompts of each kind."""


@dataclass(frozen=True, kw_only=True)
class ModelResult:
    """One model on every set."""

    layer: int
    """The middle layer, three fifths of the depth, at which the cosine's interval is given."""
    cells: dict[str, dict[str, Cell]]
    """Cells by set, then by treatment."""


@dataclass(frozen=True, kw_only=True)
class Result(ExperimentResult):
    """Results of a run."""

    config: Config
    """Settings of the run."""
    endings: dict[str, Endings]
    """How prompts end, by set."""
    models: dict[str, ModelResult]
    """Results by model."""


EXPERIMENT = Experiment(
    name="endings",
    summary=SUMMARIES["endings"],
    config=Config,
    result=Result,
    package=__name__,
    claims=CLAIMS,
)
