"""The steps of alignment recovery on the weights of a model: `recovery_step` and `rollback_step`.

Source: Yang et al. 2025, arXiv:2504.09757, as released; `interp.training.recovery` has the schedule.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from interp.models.chat_model import ChatModel
from interp.models.reference_weights import ReferenceWeights
from interp.models.tokens import ChatTokens
from interp.training.recovered import RecoveryStep
from interp.training.recovery_config import RecoveryConfig
from interp.training.recovery_references import (
    Reference,
    Summed,
    harmful_reference,
    mean_state,
    sum_gradients,
    task_reference,
)
from interp.training.weight_restoration import Restoration, n_block_parameters, restorable_weights
from interp.training.weight_selection import Chosen, global_top_k, ranks_of


def predicted_decrease(restoration: Restoration, gradients: Mapping[str, Tensor]) -> float:
    """sum(gradient x difference) over the weights restored last: the decrease of the summed loss to first order."""
    total = 0.0
    for name, indices, change in restoration.last():
        if name in gradients:
            total -= float((gradients[name].flatten()[indices].double() * change.double()).sum())
    return total


class RecoverySteps:
    """Steps of a recovery, which change the weights of the fine-tuned model in place.

    Args:
        model: the fine-tuned model.
        aligned: weights to copy from.
        harmful: prompts of the recovery steps.
        task: prompts of the rollback steps.
        fast: as `recover`.
    """

    def __init__(
        self,
        model: ChatModel,
        aligned: ReferenceWeights,
        harmful: ChatTokens,
        task: ChatTokens,
        config: RecoveryConfig,
        *,
        fast: bool,
    ) -> None:
        self._model, self._config, self._harmful, self._task, self._fast = model, config, harmful, task, fast
        weights = restorable_weights(model, config.cut_layer(model.n_layers))
        different = Restoration(weights, aligned).n_different()
        # An adapter leaves most tensors as they are: these need no gradients.
        self._weights = {name: weight for name, weight in weights.items() if different[name]}
        self.n_different = sum(different.values())
        """Weights below the cut that differ from the aligned ones before the first step."""
        self.restoration = Restoration(self._weights, aligned)
        self._budget = math.ceil(config.rate * n_block_parameters(model) - 1e-9)
        self.gradients: dict[str, Tensor] = {}
        """Sums that the last selection ranked by, for the tensors that differ."""
        self.n_batches = 0
        """Number of mini-batches that these are summed over."""
        self._references: tuple[Reference, Reference] | None = None
        self._aligned = aligned

    @property
    def references(self) -> tuple[Reference, Reference]:
        """d_harm of the aligned and d_task of the fine-tuned model, of which the latter must not be changed yet."""
        if self._references is None:
            prompts = self._harmful, self._task
            self._references = (
                harmful_reference(self._aligned, self._model, *prompts, self._config),
                task_reference(self._model, *prompts, self._config),
            )
        return self._references

    def cosines(self) -> tuple[float, float]:
        """Cosine of the mean over the harmful prompts and d_harm, and over the task prompts and d_task, now."""
        to_harmful, to_task = self.references
        return (
            float(to_harmful.cosine(mean_state(self._model, self._harmful, self._config))),
            float(to_task.cosine(mean_state(self._model, self._task, self._config))),
        )

    def start_again(self) -> None:
        """All weights are the fine-tuned ones, and no gradient is left."""
        self.restoration.undo()
        self._clear()

    def resume(self, places: Mapping[str, Tensor], gradients: Mapping[str, Tensor], n_batches: int) -> None:
        """Go on from a saved step: the weights at these places restored, and the gradients summed so far."""
        _ = self.references  # of the models as they are before any weight is restored
        self.restoration.copy(places)
        self.gradients = {name: sums.to(self._weights[name].device) for name, sums in gradients.items()}
        self.n_batches = n_batches

    def recovery_step(self, number: int, *, rollback: bool) -> RecoveryStep:
        """Gradients towards d_harm, sign test, global top-k and hard copy."""
        config = self._config
        if rollback or config.accumulate == "cleared":
            self._clear()
        summed = self._summed(self._harmful, self.references[0])
        self.n_batches += summed.n_batches
        # More than there are weights to choose from, so that none is left out.
        k = n_block_parameters(self._model) + 1 if config.rank_by == "all" else self._budget
        chosen = global_top_k(lambda: self._recovery_ranks(number), k, tie_rule=config.tie_rule)
        self.restoration.copy(chosen.indices)
        return replace(
            untouched(),
            step=number,
            n_candidates=chosen.n_candidates,
            n_restored=_count(chosen),
            n_aligned=self.restoration.n_restored,
            loss=summed.loss,
            predicted_decrease=predicted_decrease(self.restoration, self.gradients) / self.n_batches,
            restored_by_tensor={name: len(indices) for name, indices in chosen.indices.items()},
        )

    def _recovery_ranks(self, number: int) -> Iterator[tuple[str, Float[Tensor, " weight"]]]:
        """Ranks of every tensor's weights for being restored in a step."""
        for place, (name, difference) in enumerate(self.restoration.differences()):
            seed = (self._config.seed * 1_000_003 + number) * 1_000_003 + place
            yield (
                name,
                ranks_of(
                    difference,
                    self._gradient(name),
                    rank_by=self._config.rank_by,
                    sign_test=self._config.sign_test,
                    generator=torch.Generator().manual_seed(seed % 2**63),
                ),
            )

    def rollback_step(self, step: RecoveryStep) -> RecoveryStep:
        """Give back a share of the weights restored in this step, by their gradients towards d_task."""
        self._clear()
        summed = self._summed(self._task, self.references[1])
        ranks = list(self._rollback_ranks())
        n_candidates = sum(int(torch.isfinite(values).sum()) for _, values in ranks)
        k = math.ceil(self._config.rollback_rate * n_candidates - 1e-9)
        chosen = global_top_k(lambda: iter(ranks), k, tie_rule=self._config.tie_rule)
        self.restoration.give_back(chosen.indices)
        self._clear()
        return replace(
            step,
            n_returned=_count(chosen),
            n_aligned=self.restoration.n_restored,
            rollback_loss=summed.loss,
            returned_by_tensor={name: len(indices) for name, indices in chosen.indices.items()},
        )

    def _rollback_ranks(self) -> Iterator[tuple[str, Float[Tensor, " weight"]]]:
        """Ranks of the weights restored last for being given back."""
        for name, indices, difference in self.restoration.last():
            gradient = self._gradient(name).flatten()[indices]
            yield (
                name,
                ranks_of(
                    difference,
                    gradient,
                    rank_by="gradient",
                    sign_test=self._config.sign_test,
                    generator=torch.Generator(),
                ),
            )

    def _summed(self, prompts: ChatTokens, reference: Reference) -> Summed:
        return sum_gradients(
            self._model,
            self._weights,
            prompts,
            reference,
            self._config,
            into=self.gradients,
            fast=self._fast,
        )

    def _gradient(self, name: str) -> Tensor:
        """The summed gradient of a weight; zeros where no pass reached it."""
        gradient = self.gradients.get(name)
        return torch.zeros_like(self._weights[name], dtype=torch.float32) if gradient is None else gradient

    def _clear(self) -> None:
        self.gradients.clear()
        self.n_batches = 0


def untouched() -> RecoveryStep:
    """The fine-tuned model as step 0, not measured yet."""
    return RecoveryStep(
        step=0,
        n_candidates=0,
        n_restored=0,
        n_returned=0,
        n_aligned=0,
        loss=math.nan,
        predicted_decrease=math.nan,
        rollback_loss=math.nan,
        harmful_cosine=math.nan,
        task_cosine=math.nan,
        task_score=None,
        restored_by_tensor={},
        returned_by_tensor={},
    )


def _count(chosen: Chosen) -> int:
    return sum(map(len, chosen.indices.values()))
