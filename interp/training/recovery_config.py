"""Settings of alignment recovery, with the released defaults."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from interp.storage.settings import CheckedSettings, Count, Share

Ranking = Literal["gradient", "gradient-x-difference", "difference", "random", "all"]
"""What weights are ranked by when some of them are restored."""
_Above0 = Annotated[float | int, Field(gt=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class RecoveryConfig(CheckedSettings):
    """Settings of `recover`; the defaults are those of the released code of Yang et al. 2025, arXiv:2504.09757."""

    rate: _Above0 = 0.002
    """Weights that a step may restore, as a share of the parameters of all blocks."""
    rollback_rate: Share = 0.2
    """Share of a step's restored weights whose sign agrees that a rollback step gives back."""
    steps: Count = 20
    """Recovery steps in all."""
    warmup: int = 5
    """Steps without rollback before the task score decides whether to start again with it."""
    save_every: Count = 5
    """Steps between task scores."""
    max_task_drop: Share = 0.05
    """Allowed loss of task score, as a share of the fine-tuned model's; 1 allows any, so that all steps are taken."""
    cut: _Above0 = 4 / 6
    """Share of the depth that may change and is computed: blocks 0..floor(cut x layers) - 1."""
    batch_size: Count = 8
    """Prompts whose mean activation a loss is of."""
    accumulate: Literal["released", "cleared"] = "released"
    """Without rollback, gradients are summed over all steps so far (released) or taken of each step alone (cleared)."""
    tie_rule: Literal["released", "exact-k"] = "released"
    """Of k weights, those strictly above the k-th largest rank, which leaves that one out (released), or exactly k."""
    rank_by: Ranking = "gradient"
    """Weights that a recovery step restores first: of large |gradient|, |gradient x difference| or |difference|, at
    random, or all below the cut at once. The last three ignore the sign test. Rollback is always by gradient."""
    sign_test: Literal["strict", "off"] = "strict"
    """Whether only weights are restored or given back whose gradient predicts that this lowers the loss."""
    target: Literal["mean", "difference-of-means"] = "mean"
    """References are mean activations, or their difference from the mean over the other prompts in the same model."""
    position: Literal["t_post_inst", "t_inst"] = "t_post_inst"
    """Token that activations are read at: the last of the prompt, or the last of the instruction."""
    seed: int = 0
    """Seed of the ranking at random."""

    def cut_layer(self, n_layers: int) -> int:
        """Number of blocks below the cut.

        Raises:
            ValueError: none of this many.
        """
        layer = math.floor(self.cut * n_layers + 1e-9)  # 4/6 of 30 is 20, not 19
        if layer < 1:
            raise ValueError(f"cut {self.cut:g} leaves none of {n_layers} layers; give a larger one")
        return layer
