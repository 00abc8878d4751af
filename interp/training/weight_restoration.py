"""Weights of a model under repair: which may move, hard copies from a reference, and the way back.

A restoration works in place on the weights of the model that it was made for, and remembers the value of every weight
that it overwrites, so that `undo` gives back every bit. What it takes is memory for the overwritten weights alone.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.models.chat_model import ChatModel
from interp.models.reference_weights import ReferenceWeights
from interp.models.weight_deltas import WeightChange, put, take


class Place(NamedTuple):
    """Where a parameter is in the model."""

    layer: int
    """Block, from 0."""
    module: str
    """Name of its module inside the block, such as `mlp.down_proj`; with `.bias` for a bias."""
    size: int
    """Number of weights."""


def restorable_weights(model: ChatModel, below: int) -> dict[str, nn.Parameter]:
    """Matrices and biases of attention and MLP in the blocks below a layer: all parameters but those of norms.

    Embeddings, the final norm and the unembedding are in no block.
    """
    names = {id(weight): name for name, weight in model.hf.named_parameters()}
    return {
        names[id(weight)]: weight
        for block in model.blocks[:below]
        for weight in _without_norms(block.module).values()
    }


def places_of(model: ChatModel, below: int) -> dict[str, Place]:
    """Layer, module and size of every restorable weight, by its name in the model."""
    names = {id(weight): name for name, weight in model.hf.named_parameters()}
    return {
        names[id(weight)]: Place(layer, path.removesuffix(".weight"), weight.numel())
        for layer, block in enumerate(model.blocks[:below])
        for path, weight in _without_norms(block.module).items()
    }


def n_block_parameters(model: ChatModel) -> int:
    """Number of parameters of all blocks, norms included: what rates are a share of."""
    return sum(weight.numel() for block in model.blocks for weight in block.module.parameters())


def _without_norms(block: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters of a block by their path inside it, without those of norms, whatever these are called."""
    norms = [path for path, module in block.named_modules() if "norm" in type(module).__name__.lower()]
    return {
        path: weight
        for path, weight in block.named_parameters()
        if not any(path.startswith(f"{norm}.") for norm in norms)
    }


class Restoration:
    """Weights that are partly those of a reference.

    Args:
        weights: what may change, by name; changed in place.
        reference: the values that are copied.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], reference: ReferenceWeights) -> None:
        self._weights, self._reference = weights, reference
        self._steps: list[dict[str, WeightChange]] = []  # own values of the weights that a step restored

    def differences(self) -> Iterator[tuple[str, Float[Tensor, "..."]]]:
        """Every weight tensor minus its reference, in float32, one at a time."""
        for name, weight in self._weights.items():
            yield name, weight.detach().float() - self._reference.tensor(name).float()

    def n_different(self) -> dict[str, int]:
        """Number of weights of every tensor that differ from the reference."""
        return {name: int((difference != 0).sum()) for name, difference in self.differences()}

    def copy(self, chosen: Mapping[str, Int[Tensor, " place"]]) -> None:
        """Hard copy: give the chosen weights the values of the reference. None of them may be restored already."""
        self._steps.append({})
        for name, indices in chosen.items():
            weight = self._weights[name]
            own = WeightChange(indices=indices, values=take(weight, indices))
            self._steps[-1][name] = own
            put(weight, indices, take(self._reference.tensor(name), indices))

    def last(self) -> Iterator[tuple[str, Int[Tensor, " place"], Float[Tensor, " place"]]]:
        """Name, indices, and difference from their own values, in float32, of the weights restored last."""
        for name, own in self._steps[-1].items():
            restored = take(self._weights[name], own.indices)
            yield name, own.indices, restored.float() - own.values.float()

    def give_back(self, chosen: Mapping[str, Int[Tensor, " chosen"]]) -> None:
        """Give weights that were restored last their own values again.

        Args:
            chosen: indices into what `last` yields for each tensor.
        """
        for name, which in chosen.items():
            own = self._steps[-1][name]
            put(self._weights[name], own.indices[which], own.values[which])
            kept = torch.ones_like(own.indices, dtype=torch.bool)
            kept[which] = False
            self._steps[-1][name] = WeightChange(indices=own.indices[kept], values=own.values[kept])

    def places(self) -> dict[str, Int[Tensor, " place"]]:
        """Flat indices of all weights that have the values of the reference now, ascending; tensors without any left
        out."""
        names = dict.fromkeys(name for step in self._steps for name in step)
        found = {
            name: torch.cat([step[name].indices for step in self._steps if name in step]).sort().values
            for name in names
        }
        return {name: indices for name, indices in found.items() if len(indices)}

    @property
    def n_restored(self) -> int:
        """Number of weights that have the values of the reference now."""
        return sum(len(own.indices) for step in self._steps for own in step.values())

    def undo(self) -> None:
        """Give all weights their own values again."""
        for step in reversed(self._steps):
            for name, own in step.items():
                put(self._weights[name], own.indices, own.values)
        self._steps.clear()

    def change_to_reference(self, places: Mapping[str, Int[Tensor, " place"]]) -> dict[str, WeightChange]:
        """The values of the reference at these places, on the CPU."""
        return {
            name: WeightChange(
                indices=indices.cpu(), values=take(self._reference.tensor(name), indices).cpu()
            )
            for name, indices in places.items()
        }
