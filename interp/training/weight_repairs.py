"""Repairs of a fine-tuned model by arithmetic on its weights: the methods that recovery is compared with, and controls.

    aligned, finetuned = weights_of(model), weights_with_adapter(model, folder)
    repaired = interpolate(finetuned, aligned, aligned_weight=0.5)
    names = block_weights(model, cut=20)
    control = random_restore(finetuned, aligned, names, count=100_000, seed=0)

| repair | new weights |
|---|---|
| `interpolate` (WiSE-FT) | a aligned + (1 - a) finetuned |
| `task_arithmetic` (RESTA) | finetuned + c (aligned - unaligned) |
| `safe_lora` (SafeLoRA) | aligned + P (finetuned - aligned), of the matrices whose update P changes most |
| `full_restore` | aligned, of the named tensors |
| `random_restore`, `random_restore_of_norm` | aligned at random coordinates of the named tensors |

Weights are tensors by state-dict name. Every function returns new tensors, of the names that it changes and no other,
in the fine-tuned tensor's dtype, computed in float32, and changes none of its arguments; the repaired model is
`{**finetuned, **repaired}`. A repair that does no better than restoring as many random coordinates is none.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.models.adapted_models import with_adapter
from interp.models.chat_model import ChatModel
from interp.models.layers import layer_list

Weights = Mapping[str, Tensor]
"""Tensors by state-dict name."""
Projector = Literal["released", "orthogonal"]
"""P of SafeLoRA for V = aligned - unaligned: V V^T / ||V||_F as released, or the projection on the columns of V."""


def weights_of(model: ChatModel) -> dict[str, Tensor]:
    """The model's parameters by name, not copied: of tied tensors the first name."""
    return {name: parameter.detach() for name, parameter in model.hf.named_parameters()}


def weights_with_adapter(model: ChatModel, adapter: str) -> dict[str, Tensor]:
    """The parameters with an adapter merged into them; those that it does not change are the model's own tensors.

    Raises:
        ValueError: as `interp.models.adapted_models.with_adapter`.
    """
    before = weights_of(model)
    with with_adapter(model, adapter) as adapted:
        return {
            name: before[name] if name in before and torch.equal(value, before[name]) else value.clone()
            for name, value in weights_of(adapted).items()
        }


def block_weights(model: ChatModel, *, cut: int | None = None) -> tuple[str, ...]:
    """Names of the matrices and biases of attention and MLP in the blocks below a cut layer, norms left out.

    Args:
        cut: first block that is left out, 1..number of blocks; None takes all blocks.

    Raises:
        ValueError: a cut out of range.
    """
    cut = model.n_layers if cut is None else cut
    if not 1 <= cut <= model.n_layers:
        raise ValueError(f"cut must be in 1..{model.n_layers}, the blocks of {model.name}, got {cut}")
    inside = {
        id(parameter)
        for layer in layer_list(range(cut), n_layers=model.n_layers)
        for module in model.blocks[layer].module.modules()
        if "norm" not in type(module).__name__.lower()
        for parameter in module.parameters(recurse=False)
    }
    return tuple(name for name, parameter in model.hf.named_parameters() if id(parameter) in inside)


def interpolate(finetuned: Weights, aligned: Weights, *, aligned_weight: float | int) -> dict[str, Tensor]:
    """Weights on the line between two models: a aligned + (1 - a) finetuned; 0 and 1 give either exactly.

    Source: Wortsman et al. 2022, "Robust fine-tuning of zero-shot models" (WiSE-FT), arXiv:2109.01903, section 3; there
    the line goes from the zero-shot to the fine-tuned model.

    Args:
        aligned_weight: a, 0 to 1.

    Raises:
        ValueError: a out of range, or weights that are not of one architecture, equal, or quantised.
    """
    if not 0 <= aligned_weight <= 1:
        raise ValueError(f"aligned_weight must be in 0..1, got {aligned_weight}")
    return {
        name: torch.lerp(finetuned[name].float(), aligned[name].float(), aligned_weight).to(finetuned[name])
        for name in _differing(finetuned, aligned)
    }


def task_arithmetic(
    finetuned: Weights, aligned: Weights, unaligned: Weights, *, weight: float | int = 1.0
) -> dict[str, Tensor]:
    """The fine-tuned weights plus a safety vector: finetuned + c (aligned - unaligned).

    Source: Bhardwaj et al. 2024, "Language Models are Homer Simpson!" (RESTA), arXiv:2402.11746, without its DARE step,
    as Yang et al. 2025 (arXiv:2504.09757) compare with it.

    Args:
        unaligned: the aligned model after fine-tuning that undoes its alignment, for instance on empty stubs alone.
        weight: c.

    Raises:
        ValueError: weights that are not of one architecture, quantised, or an unaligned model equal to the aligned one.
    """
    _differing(finetuned, aligned)
    return {
        name: (finetuned[name].float() + weight * (aligned[name].float() - unaligned[name].float())).to(
            finetuned[name]
        )
        for name in _differing(unaligned, aligned, what="unaligned")
    }


def safe_lora(
    finetuned: Weights,
    aligned: Weights,
    unaligned: Weights,
    *,
    threshold: float | int = 0.5,
    projector: Projector = "released",
) -> dict[str, Tensor]:
    """Project the update of each matrix on what alignment changed there, where the projection turns it far enough.

    With U = finetuned - aligned (the product BA of a LoRA trained on the aligned model) and V = aligned - unaligned,
    U becomes P U where cos(P U, U) <= threshold. P = V V^T / ||V||_F is not a projection: P P is not P, and P U scales
    with V, so where alignment changed little, next to nothing is left of the update. The cosine does not depend on that
    scale. `projector="orthogonal"` is our deviation without it. Tensors that are not matrices, or that alignment did
    not change, keep their update.

    Source: Hsu et al. 2024, "Safe LoRA", arXiv:2405.16833, section 3.

    Raises:
        ValueError: as `task_arithmetic`, or no matrix that both alignment and fine-tuning changed.
    """
    repaired = {}
    for name, update, projected in _projected_updates(finetuned, aligned, unaligned, projector):
        if _cosine(projected, update) <= threshold:
            repaired[name] = (aligned[name].float() + projected).to(finetuned[name])
    return repaired


def alignment_cosines(
    finetuned: Weights, aligned: Weights, unaligned: Weights, *, projector: Projector = "released"
) -> dict[str, float]:
    """cos(P U, U) of every matrix that `safe_lora` may project, 0 to 1: how much of an update lies in what
    alignment changed.

    Raises:
        ValueError: as `safe_lora`.
    """
    return {
        name: _cosine(projected, update)
        for name, update, projected in _projected_updates(finetuned, aligned, unaligned, projector)
    }


def _projected_updates(
    finetuned: Weights, aligned: Weights, unaligned: Weights, projector: Projector
) -> Iterable[tuple[str, Tensor, Tensor]]:
    """Name, update and projected update of every matrix that both alignment and fine-tuning changed."""
    moved = set(_differing(finetuned, aligned))
    names = [
        name
        for name in _differing(unaligned, aligned, what="unaligned")
        if name in moved and aligned[name].ndim == 2
    ]
    if not names:
        raise ValueError(
            "no matrix was changed both by alignment and by fine-tuning, so nothing can be projected; train the "
            "unaligned model with the same target_modules"
        )
    for name in names:
        update = finetuned[name].float() - aligned[name].float()
        change = aligned[name].float() - unaligned[name].float()
        yield name, update, _projected(update, change, projector)


def _projected(
    update: Float[Tensor, "out in"], change: Float[Tensor, "out in"], projector: Projector
) -> Float[Tensor, "out in"]:
    if projector == "released":
        return change @ (change.T @ update) / change.norm()
    basis, sizes, _ = torch.linalg.svd(change, full_matrices=False)
    basis = basis[:, sizes > sizes[0] * 1e-4]  # a LoRA's change has few; the rest is rounding
    return basis @ (basis.T @ update)


def _cosine(one: Tensor, other: Tensor) -> float:
    return float(torch.cosine_similarity(one.flatten(), other.flatten(), dim=0).clamp(-1, 1))  # rounding


def full_restore(
    finetuned: Weights, aligned: Weights, names: Sequence[str] | None = None
) -> dict[str, Tensor]:
    """The aligned values of the named tensors that differ; of all tensors without names.

    Raises:
        ValueError: as `interpolate`, or a name that the weights do not have.
    """
    return {
        name: aligned[name].to(finetuned[name].dtype, copy=True)
        for name in _differing(finetuned, aligned, names)
    }


def random_restore(
    finetuned: Weights, aligned: Weights, names: Sequence[str] | None = None, *, count: int, seed: int
) -> dict[str, Tensor]:
    """Aligned values at `count` coordinates, drawn uniformly from those of the named tensors that differ.

    The control of a repair that restores as many: every other coordinate keeps its fine-tuned value bit for bit.

    Raises:
        ValueError: as `full_restore`, or a count of more coordinates than differ.
    """
    changed = _Changed(finetuned, aligned, names)
    if not 1 <= count <= changed.total:
        raise ValueError(f"count must be in 1..{changed.total}, the coordinates that differ, got {count}")
    return changed.restored(_random_coordinates(changed.total, count, seed))


def random_restore_of_norm(
    finetuned: Weights, aligned: Weights, names: Sequence[str] | None = None, *, norm: float | int, seed: int
) -> dict[str, Tensor]:
    """Aligned values at random coordinates, as many as change the weights by this norm (`change_norm`) and no more.

    The control of a repair that moves the weights as far: the coordinates are the first ones of a random order, up to
    the last that keeps the norm of the change at or below `norm`.

    Raises:
        ValueError: as `full_restore`, or a norm below one coordinate's or above that of restoring all of them.
    """
    changed = _Changed(finetuned, aligned, names)
    whole = changed.norm()
    if not 0 < norm <= whole * (1 + 1e-6):
        raise ValueError(
            f"norm must be above 0 and at most {whole:.4g}, that of restoring every coordinate that differs, "
            f"got {norm:.4g}"
        )
    share = (norm / whole) ** 2
    size = min(changed.total, math.ceil(1.05 * share * changed.total) + 64)
    while True:
        order = _random_coordinates(changed.total, size, seed)
        squares = changed.gathered(order).square().cumsum(0)
        count = int((squares <= norm**2 * (1 + 1e-12)).sum())
        if count < size or size == changed.total:
            break
        size = min(changed.total, 2 * size)
    if not count:
        raise ValueError(
            f"norm {norm:.4g} is less than the change of the first coordinate drawn; give a larger one"
        )
    return changed.restored(order[:count])


def change_norm(before: Weights, changes: Weights) -> float:
    """Euclidean norm of the change of all weights when these tensors take the place of those before."""
    squares = ((value.double() - before[name].double()).square().sum() for name, value in changes.items())
    return math.sqrt(sum(float(square) for square in squares))


def changed_count(before: Weights, changes: Weights) -> int:
    """Number of coordinates that differ when these tensors take the place of those before."""
    return sum(int((value != before[name]).sum()) for name, value in changes.items())


class _Changed:
    """The coordinates of the named tensors in which two models differ, counted through all of them.

    Only one tensor's coordinates are listed at a time.
    """

    def __init__(self, finetuned: Weights, aligned: Weights, names: Sequence[str] | None) -> None:
        self._finetuned, self._aligned = finetuned, aligned
        self._counts = {
            name: int((finetuned[name] != aligned[name]).sum())
            for name in _differing(finetuned, aligned, names)
        }
        self.total = sum(self._counts.values())
        """Number of coordinates that differ."""

    def norm(self) -> float:
        """Norm of the change when all of them are restored."""
        return change_norm(self._finetuned, {name: self._aligned[name] for name in self._counts})

    def restored(self, order: Int[Tensor, " coordinate"]) -> dict[str, Tensor]:
        """The tensors with the aligned values at these coordinates; those without any are left out."""
        new: dict[str, Tensor] = {}

        def restore(name: str, places: Tensor, _: Tensor) -> None:
            new[name] = self._finetuned[name].clone(memory_format=torch.contiguous_format)
            new[name].view(-1)[places] = self._aligned[name].reshape(-1)[places].to(new[name])

        self._visit(order, restore)
        return new

    def gathered(self, order: Int[Tensor, " coordinate"]) -> Float[Tensor, " coordinate"]:
        """The change of each of these coordinates, in their order, in float64."""
        changes = torch.zeros(len(order), dtype=torch.float64)

        def gather(name: str, places: Tensor, rows: Tensor) -> None:
            one, other = (
                side[name].reshape(-1)[places].double() for side in (self._finetuned, self._aligned)
            )
            changes[rows] = (one - other).cpu()

        self._visit(order, gather)
        return changes

    def _visit(self, order: Tensor, visit: Callable[[str, Tensor, Tensor], None]) -> None:
        """Call `visit` with each tensor's name, the flat places of its coordinates, and their rows in the order."""
        ranks, rows = order.sort()
        first = start = 0
        for name, count in self._counts.items():
            end = int(torch.searchsorted(ranks, first + count))
            if end > start:
                differs = (self._finetuned[name] != self._aligned[name]).reshape(-1).nonzero()[:, 0]
                visit(name, differs[(ranks[start:end] - first).to(differs.device)], rows[start:end])
            first, start = first + count, end


def _random_coordinates(total: int, count: int, seed: int) -> Int[Tensor, " coordinate"]:
    """`count` different numbers below `total` in random order, every one as likely at every place."""
    generator = torch.Generator().manual_seed(seed)
    if 2 * count > total:
        return torch.randperm(total, generator=generator)[:count]
    drawn = torch.empty(0, dtype=torch.long)
    while len(drawn) < count:  # memory in proportion to the count, not to the model
        more = torch.randint(total, (count - len(drawn) + 64,), generator=generator)
        drawn = torch.cat([drawn, more]).unique()
    return drawn[torch.randperm(len(drawn), generator=generator)[:count]]


def _differing(
    changed: Weights, aligned: Weights, names: Sequence[str] | None = None, *, what: str = "fine-tuned"
) -> list[str]:
    """Names of the tensors in which two models differ, of the given ones or of all.

    Raises:
        ValueError: models of different architectures, quantised weights, unknown names, or equal weights.
    """
    for name in changed.keys() ^ aligned.keys():
        side, other = (what, "aligned") if name in changed else ("aligned", what)
        raise ValueError(
            f"{name} is in the {side} model and not in the {other} one; both must be of one architecture"
        )
    for name, tensor in changed.items():
        if tensor.shape != aligned[name].shape:
            raise ValueError(
                f"{name} is {tuple(tensor.shape)} in the {what} model and {tuple(aligned[name].shape)} in the aligned "
                "one; both must be of one architecture and vocabulary"
            )
        if not (tensor.is_floating_point() and aligned[name].is_floating_point()):
            raise ValueError(f"{name} is quantised ({tensor.dtype}); load both models unquantised")
    if unknown := [name for name in names or () if name not in aligned]:
        raise ValueError(
            f"the models have no weights {unknown[0]}; `block_weights` lists those of the blocks"
        )
    differing = [
        name
        for name in (aligned if names is None else names)
        if not torch.equal(changed[name], aligned[name])
    ]
    if not differing:
        raise ValueError(
            f"the {what} weights{'' if names is None else ' of these names'} equal the aligned ones; there is nothing "
            "to repair or to tell them apart by"
        )
    return differing
