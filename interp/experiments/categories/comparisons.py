"""One direction per category, their cosines, and the controls: shuffled labels, sham categories, split halves.

Source: Zhao et al. 2025, arXiv:2507.11878, category analysis; the controls are ours.
"""

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from interp.directions import cosine_matrix, unit
from interp.experiments.categories import Config


def compare(
    harmful: Float[Tensor, "prompt layer d_model"],
    labels: Tensor,
    harmless: Float[Tensor, "harmless layer d_model"],
    config: Config,
) -> dict[str, Tensor]:
    """Directions per category, their cosines, and the three controls.

    Args:
        labels: category of each harmful prompt, 0..C-1.

    Returns:
        `directions` [category, layer, d_model]; `cosines` [layer, category, category]; off-diagonal means `shuffled`
        [shuffle, layer], `sham` [draw, layer]; `within` and `between` [halving, layer], mean cosine of one half of a
        category with the other half of itself and of other categories. NaN where a layer has no direction.
    """
    generator = torch.Generator().manual_seed(config.seed)
    # Everything is measured from the harmless mean, so that float32 sums lose nothing; differences are the same.
    origin = harmless.double().mean(0)
    x = (harmful.double() - origin).float()
    y = (harmless.double() - origin).float()
    sizes = labels.bincount()
    directions = _means(x, labels, sizes)
    scale = torch.linalg.vector_norm(harmless.double(), dim=-1).mean(0)
    # A constant token leaves rounding, which is no direction.
    none = torch.linalg.vector_norm(directions.double(), dim=-1).amax(0) < 1e-5 * scale

    def kept(values: Tensor) -> Tensor:
        return torch.where(none, torch.nan, values)

    cosines = cosine_matrix(directions)
    cosines[none] = torch.nan
    shuffled = [
        off_diagonal(
            cosine_matrix(_means(x, labels[torch.randperm(len(labels), generator=generator)], sizes))
        )
        for _ in range(config.n_shuffles)
    ]
    within, between, sham = [], [], []
    for _ in range(config.n_halvings):
        halves = [_halved(labels, generator), _halved(torch.zeros(len(y), dtype=torch.long), generator)]
        first, second = (
            _means(x[halves[0] == h], labels[halves[0] == h], sizes) - y[halves[1] == h].mean(0)
            for h in (0, 1)
        )
        crossed = einsum(unit(first.double()), unit(second.double()), "a layer d, b layer d -> layer a b")
        within.append(kept(crossed.diagonal(dim1=1, dim2=2).mean(1)))
        between.append(kept(off_diagonal(crossed)))
        sham.append(kept(_sham(y, sizes, generator)))
    return {
        "directions": directions,
        "cosines": cosines,
        "shuffled": kept(torch.stack(shuffled)),
        "sham": torch.stack(sham),
        "within": torch.stack(within),
        "between": torch.stack(between),
    }


def off_diagonal(matrix: Float[Tensor, "layer category category"]) -> Float[Tensor, " layer"]:
    """Mean over pairs of different categories."""
    c = matrix.shape[-1]
    return (matrix.sum((1, 2)) - matrix.diagonal(dim1=1, dim2=2).sum(1)) / (c * (c - 1))


def _means(x: Tensor, labels: Tensor, sizes: Tensor) -> Float[Tensor, "category layer d_model"]:
    """Mean of each category, by one matrix product."""
    weights = torch.nn.functional.one_hot(labels, len(sizes)).T.float()
    weights = weights / weights.sum(1, keepdim=True)
    return einsum(weights.to(x), x, "category prompt, prompt layer d -> category layer d")


def _halved(labels: Tensor, generator: torch.Generator) -> Tensor:
    """0 or 1 for each row, half and half in every category."""
    half = torch.empty(len(labels), dtype=torch.long)
    for label in labels.unique():
        rows = (labels == label).nonzero()[:, 0]
        rows = rows[torch.randperm(len(rows), generator=generator)]
        half[rows] = torch.arange(len(rows)) % 2
    return half


def _sham(y: Tensor, sizes: Tensor, generator: torch.Generator) -> Float[Tensor, " layer"]:
    """Off-diagonal mean of directions that share nothing but their reference.

    Harmless prompts are dealt into categories and a reference that stand in the real proportions, on which this cosine
    depends, and have no prompt in common.
    """
    share = len(y) / (len(y) + int(sizes.sum()))
    wanted = [max(1, int(share * int(size))) for size in sizes]
    order = torch.randperm(len(y), generator=generator)
    *dealt, rest = order.split([*wanted, len(y) - sum(wanted)])
    return off_diagonal(cosine_matrix(torch.stack([y[rows].mean(0) for rows in dealt]) - y[rest].mean(0)))
