"""A training step that runs out of memory is taken again in parts, with the same gradients.

    class MyTrainer(InParts, DPOTrainer):
        pairs = True

The losses that this covers are means over the rows of a batch (or over their tokens), so that the mean of the parts,
each weighted by its share, is the loss of the whole: supervised steps, DPO and Bradley-Terry. Dropout and noise, where
there are any, are drawn anew. KTO and ORPO compare the rows of a batch with each other, so that parts would have other
gradients: there, the error says what to change (`interp.training.runner.train_to_the_end`).
"""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from interp.engine.batching import is_out_of_memory

logger = logging.getLogger(__name__)


class InParts:
    """In front of a transformers trainer: `training_step` in as many passes as memory needs.

    The trainer accumulates no gradients of its own over steps.
    """

    pairs = False
    """Whether a batch holds rows of chosen completions, then as many of rejected ones, which stay together."""
    _rows: int | None = None
    """Rows, or pairs, of a pass that fitted; None while a whole batch does."""
    share = 1.0
    """The share of the batch's loss that the rows of this pass have."""

    def training_step(self, model: Any, inputs: Mapping[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """The mean loss of the batch, whose gradients are added."""
        batch = len(inputs["input_ids"]) // (2 if self.pairs else 1)
        while True:
            size = min(self._rows or batch, batch)
            if size == batch:  # nothing to weigh, which would wait for a device in every step
                parts, weights = [inputs], [1.0]
            else:
                parts = [self.part(inputs, batch, first, first + size) for first in range(0, batch, size)]
                weights = [self.loss_weight(part) for part in parts]
            try:
                total = torch.zeros(())
                for part, weight in zip(parts, weights, strict=True):
                    self.share = weight / sum(weights)
                    loss = super().training_step(model, dict(part), num_items_in_batch)  # pyright: ignore[reportAttributeAccessIssue]
                    total = total.to(loss.device) + loss
                return total
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or size == 1:
                    raise
            self._rows = size // 2
            model.zero_grad(set_to_none=True)
            logger.warning(
                "out of memory in training; going on with passes of %d (same gradients)", self._rows
            )

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """The trainer's loss, times the share of the rows."""
        found = super().compute_loss(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(found, tuple):
            return (found[0] * self.share, *found[1:])
        return found * self.share

    def loss_weight(self, part: Mapping[str, Any]) -> float:
        """How much of a batch's mean these rows are; by default their number."""
        return float(len(part["input_ids"]))

    def part(self, inputs: Mapping[str, Any], batch: int, first: int, last: int) -> dict[str, Any]:
        """Some rows, or pairs, of a batch of so many."""

        def rows(value: Any) -> Any:
            if not isinstance(value, Tensor) or value.ndim == 0:
                return value
            if self.pairs and len(value) == 2 * batch:
                return torch.cat([value[first:last], value[batch + first : batch + last]])
            return value[first:last]

        return {key: rows(value) for key, value in inputs.items()}
