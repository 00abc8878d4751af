"""What a recovery gives: a sparse change of the fine-tuned model, and the record of how it came about."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.engine.model_exports import SavedModel, save_model
from interp.models.adapted_models import copy_with_delta, with_delta
from interp.models.chat_model import ChatModel
from interp.models.weight_deltas import WeightChange, WeightDelta, take, with_changes, write_delta
from interp.stats import Estimate, Measured
from interp.training.recovery_config import RecoveryConfig
from interp.training.weight_restoration import Place


@dataclass(frozen=True, kw_only=True)
class RecoveryStep:
    """One step, and the model after it."""

    step: int
    """Number of the step; 0 is the fine-tuned model."""
    n_candidates: int
    """Weights that differ from the aligned ones and pass the sign test, where it applies."""
    n_restored: int
    """Weights that the step gave their aligned values."""
    n_returned: int
    """Of these, weights that the rollback gave their fine-tuned values again."""
    n_aligned: int
    """Weights that have their aligned values by recovery, of all steps so far."""
    loss: Measured
    """Mean recovery loss of the mini-batches before the step, -1 to 1; lower is closer to the aligned model."""
    predicted_decrease: Measured
    """By how much restoring lowers that loss to first order, sum(gradient x difference) over the restored weights,
    before rollback. Where gradients are summed over steps, of their mean over the steps."""
    rollback_loss: Measured
    """Mean loss of the mini-batches of task prompts before the rollback; NaN without one."""
    harmful_cosine: Measured
    """Cosine of the mean over all harmful prompts and d_harm after the step; NaN where the step was not saved."""
    task_cosine: Measured
    """The same for task prompts and d_task."""
    task_score: Estimate | None
    """Task score after the step; None where the step was not saved."""
    restored_by_tensor: Mapping[str, int]
    """Weights that the step gave their aligned values, by tensor."""
    returned_by_tensor: Mapping[str, int]
    """Weights that the rollback gave their fine-tuned values again, by tensor."""


class ShareTable(NamedTuple):
    """A share for every layer and module."""

    layers: tuple[int, ...]
    """Block of each row."""
    modules: tuple[str, ...]
    """Module of each column, such as `mlp.down_proj`."""
    shares: Float[Tensor, "layer module"]
    """Share of the module's weights, 0 to 1; NaN where a layer has no such module."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Recovered:
    """A recovery of one fine-tuned model, which is not changed by it."""

    delta: WeightDelta
    """What changes the fine-tuned model into the recovered one, at the picked step."""
    steps: tuple[RecoveryStep, ...]
    """The steps that led there and beyond, from the fine-tuned model on; empty where no weight differs."""
    discarded: tuple[RecoveryStep, ...]
    """The warm-up, where it was thrown away for a new start with rollback."""
    saved: Mapping[int, Mapping[str, Int[Tensor, " place"]]]
    """Flat indices of the weights that have their aligned values at every saved step, by tensor; 0 is the fine-tuned
    model, without any."""
    picked_step: int
    """The last saved step before the first whose task score is at or below the floor; 0 is the fine-tuned model."""
    used_rollback: bool
    """Whether each step was followed by a rollback."""
    floor: Measured
    """Task score that a step must exceed; minus infinity where any loss is allowed."""
    n_different: int
    """Weights below the cut that differ from the aligned ones; 0 where there is nothing to recover."""
    places: Mapping[str, Place]
    """Layer, module and size of every tensor below the cut."""
    config: RecoveryConfig
    """Settings."""

    def __repr__(self) -> str:
        total = sum(place.size for place in self.places.values())
        return (
            f"Recovered(step {self.picked_step}, {self.delta.n_changed:,} of {total:,} weights below the cut"
            f"{', with rollback' if self.used_rollback else ''})"
        )

    @contextmanager
    def applied(self, finetuned: ChatModel) -> Iterator[ChatModel]:
        """The recovered model, in the memory of the fine-tuned one, which is restored when the context exits.

        Raises:
            ValueError: another model than was recovered.
        """
        with with_delta(finetuned, self.delta) as model:
            yield model

    def copied(self, finetuned: ChatModel) -> ChatModel:
        """The recovered model as a second model that shares all unchanged tensors with the fine-tuned one.

        Raises:
            ValueError: another model than was recovered.
        """
        return copy_with_delta(finetuned, self.delta)

    def weights_at(
        self, step: int, finetuned: Mapping[str, Tensor], aligned: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The weights of a saved step, of the tensors that differ from the fine-tuned ones.

        Args:
            step: a step of `saved`.
            finetuned: weights of the fine-tuned model, by name.
            aligned: weights of the aligned model, by name.

        Raises:
            ValueError: a step that was not saved.
        """
        if step not in self.saved:
            raise ValueError(f"step {step} was not saved; saved are {', '.join(map(str, self.saved))}")
        changes = {
            name: WeightChange(indices=places, values=take(aligned[name], places))
            for name, places in self.saved[step].items()
        }
        return with_changes(finetuned, changes)

    def write(self, path: str | Path) -> Path:
        """Write the sparse change, for `interp.load(finetuned, delta=path)`; raises as `write_delta`."""
        return write_delta(path, self.delta)

    def save(self, finetuned: ChatModel, folder: str | Path) -> SavedModel:
        """Write the recovered model as a folder that transformers loads, proved by its hash.

        Raises:
            ValueError: another model than was recovered, or as `save_model`.
            OSError: the disk is full or not writable; nothing is left behind.
        """
        with self.applied(finetuned) as model:
            return save_model(model, folder, about=dict(self.delta.provenance))


def restored_share(recovered: Recovered, *, before_rollback: bool = False) -> ShareTable:
    """Share of each module's weights that have their aligned values at the picked step, layer by layer.

    Args:
        before_rollback: count what the rollbacks up to there gave back as well.
    """
    counts = {name: len(change.indices) for name, change in recovered.delta.changes.items()}
    if before_rollback:
        for step in recovered.steps:
            if step.step <= recovered.picked_step:
                for name, count in step.returned_by_tensor.items():
                    counts[name] = counts.get(name, 0) + count
    layers = tuple(sorted({place.layer for place in recovered.places.values()}))
    modules = tuple(dict.fromkeys(place.module for place in recovered.places.values()))
    shares = torch.full((len(layers), len(modules)), torch.nan)
    for name, place in recovered.places.items():
        cell = layers.index(place.layer), modules.index(place.module)
        shares[cell] = counts.get(name, 0) / place.size
    return ShareTable(layers, modules, shares)
