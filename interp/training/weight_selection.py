"""Choosing single weights of a model: sign test, ranks and one global top-k over all tensors.

All functions see one tensor at a time, so that no ranks of the whole model have to fit into memory: `global_top_k`
holds at most twice as many as it chooses, and those of one tensor.
"""

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.training.recovery_config import Ranking

NOT_A_CANDIDATE = float("-inf")
"""Rank of a weight that cannot be chosen."""

Ranks = Callable[[], Iterator[tuple[str, Float[Tensor, " weight"]]]]
"""Gives name and ranks of every tensor, one after the other."""


class Chosen(NamedTuple):
    """Chosen weights."""

    indices: dict[str, Int[Tensor, " chosen"]]
    """Indices into the ranks of each tensor, ascending; tensors without any are left out."""
    n_candidates: int
    """Number of weights that could have been chosen."""


def agrees_in_sign(
    difference: Float[Tensor, "*axes"], gradient: Float[Tensor, "*axes"]
) -> Bool[Tensor, "*axes"]:
    """Sign test: whether replacing w by w - difference lowers the loss to first order, by gradient x difference > 0.

    Signs are compared and not the product, which may be rounded to 0. Where either is 0 there is no agreement.
    """
    return ((difference > 0) == (gradient > 0)) & (difference != 0) & (gradient != 0)


def ranks_of(
    difference: Float[Tensor, "*axes"],
    gradient: Float[Tensor, "*axes"],
    *,
    rank_by: Ranking,
    sign_test: Literal["strict", "off"],
    generator: torch.Generator,
) -> Float[Tensor, " weight"]:
    """Rank of every weight of a tensor, flat; `NOT_A_CANDIDATE` where it does not differ or fails the sign test.

    Args:
        difference: the weight minus its reference, in float32.
        generator: of the ranking at random, on the CPU.
    """
    difference, gradient = difference.flatten(), gradient.flatten()
    if rank_by == "random":
        ranks = torch.rand(len(difference), generator=generator).to(difference.device)
    elif rank_by == "all":
        ranks = torch.zeros_like(difference)
    elif rank_by == "difference":
        ranks = difference.abs()
    else:
        ranks = (gradient if rank_by == "gradient" else gradient * difference).abs()
    uses_gradient = rank_by in ("gradient", "gradient-x-difference")
    if uses_gradient and sign_test == "strict":
        candidates = agrees_in_sign(difference, gradient)
    else:
        candidates = difference != 0
    return torch.where(candidates, ranks, NOT_A_CANDIDATE)


def global_top_k(ranks: Ranks, k: int, *, tie_rule: Literal["released", "exact-k"]) -> Chosen:
    """The k highest-ranked weights of all tensors together; every candidate where there are fewer than k.

    Under `released`, those strictly above the k-th largest rank: k - 1 of them, or fewer where ranks are equal. Under
    `exact-k`, exactly k; equal ranks at the end are taken in the order of the tensors.
    """
    held: dict[str, tuple[Tensor, Tensor]] = {}  # indices and ranks of those that may be among the k
    limit, n_held, n_candidates = NOT_A_CANDIDATE, 0, 0
    for name, values in ranks():
        n_candidates += int((values > NOT_A_CANDIDATE).sum())
        indices = ((values >= limit) & (values > NOT_A_CANDIDATE)).nonzero()[:, 0]
        held[name] = indices, values[indices]
        n_held += len(indices)
        if n_held > 2 * k > 0:
            limit = _kth_largest(held, k)
            for name, (indices, values) in held.items():
                held[name] = indices[values >= limit], values[values >= limit]
            n_held = sum(len(indices) for indices, _ in held.values())
    if k < 1 or n_candidates == 0:
        return Chosen({}, n_candidates)
    limit = _kth_largest(held, k) if n_held >= k else NOT_A_CANDIDATE
    room = k - sum(int((values > limit).sum()) for _, values in held.values())
    found: dict[str, Tensor] = {}
    for name, (indices, values) in held.items():
        taken = values > limit
        if tie_rule == "exact-k" and limit > NOT_A_CANDIDATE:
            equal = (values == limit).nonzero()[:room, 0]
            taken[equal] = True
            room -= len(equal)
        if taken.any():
            found[name] = indices[taken]
    return Chosen(found, n_candidates)


def _kth_largest(held: dict[str, tuple[Tensor, Tensor]], k: int) -> float:
    return float(torch.cat([values for _, values in held.values()]).topk(k).values[-1])
