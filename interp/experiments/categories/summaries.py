"""Summaries of the compared directions: estimates per layer, means over layers, and the claims' difference."""

from collections.abc import Mapping, Sequence

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from interp.experiments.categories import CategoryDirections, Comparison, Config, LayerMean
from interp.experiments.categories.comparisons import off_diagonal
from interp.experiments.categories.groups import Group
from interp.representations.records import HarmAndRefusal
from interp.stats import Estimate

OVER_CATEGORIES = "bootstrap over categories"
OVER_SHUFFLES = "95% of shuffles"


def comparison(
    compared: HarmAndRefusal[dict[str, Tensor]],
    groups: HarmAndRefusal[Group],
    names: Sequence[str],
    config: Config,
) -> Comparison:
    """Both kinds of directions as a result states them.

    Args:
        compared: what `interp.experiments.categories.comparisons.compare` gives.
        names: of all categories.
    """
    return Comparison(
        directions=HarmAndRefusal(
            harm=_directions(compared.harm, groups.harm.names(names), config),
            refusal=_directions(compared.refusal, groups.refusal.names(names), config),
        ),
        refusal_minus_harmfulness=_difference(compared, groups, config),
    )


def _directions(found: Mapping[str, Tensor], names: tuple[str, ...], config: Config) -> CategoryDirections:
    """One kind of direction: the matrix, and per layer the off-diagonal mean and its controls."""
    cosines, shuffled = found["cosines"], found["shuffled"]
    draws = _resampled(cosines, config.seed)
    return CategoryDirections(
        categories=names,
        cosines=tuple(tuple(map(tuple, matrix)) for matrix in cosines.tolist()),
        off_diagonal=_by_layer(off_diagonal(cosines), draws, cosines.shape[1], OVER_CATEGORIES),
        shuffled=_by_layer(shuffled.mean(0), shuffled, len(shuffled), OVER_SHUFFLES),
        sham=tuple(found["sham"].mean(0).tolist()),
        within=tuple(found["within"].mean(0).tolist()),
        between=tuple(found["between"].mean(0).tolist()),
        mean=_layer_mean(found, draws),
    )


def _layer_mean(found: Mapping[str, Tensor], draws: Float[Tensor, "draw layer"]) -> LayerMean:
    """Means over all layers that have a direction."""
    cosines, null = found["cosines"], found["shuffled"].nanmean(1)
    value = off_diagonal(cosines).nanmean()
    return LayerMean(
        off_diagonal=estimate(value, draws.nanmean(1), cosines.shape[1], OVER_CATEGORIES),
        shuffled=estimate(null.mean(), null, len(null), OVER_SHUFFLES),
        p=(int((null <= value).sum()) + 1) / (len(null) + 1),
        sham=float(found["sham"].mean(0).nanmean()),
        within=float(found["within"].mean(0).nanmean()),
        between=float(found["between"].mean(0).nanmean()),
    )


def _difference(
    compared: HarmAndRefusal[dict[str, Tensor]], groups: HarmAndRefusal[Group], config: Config
) -> Estimate:
    """Off-diagonal mean of refusal less that of harmfulness, on the categories that both kept."""
    harm, refusal = groups.harm.kept, groups.refusal.kept
    both = [i for i, category in enumerate(harm) if category in refusal]
    own = [refusal.index(harm[i]) for i in both]
    gap = compared.refusal["cosines"][:, own][:, :, own] - compared.harm["cosines"][:, both][:, :, both]
    draws = _resampled(gap, config.seed).nanmean(1)
    return estimate(off_diagonal(gap).nanmean(), draws, len(both), OVER_CATEGORIES)


def _resampled(matrix: Tensor, seed: int, draws: int = 1000) -> Float[Tensor, "draw layer"]:
    """Off-diagonal means over categories drawn with replacement; pairs of one category with itself are left out."""
    generator = torch.Generator().manual_seed(seed)
    n = matrix.shape[1]
    counts = torch.stack(
        [torch.randint(n, (n,), generator=generator).bincount(minlength=n) for _ in range(draws)]
    )
    weights = einsum(counts.double(), counts.double(), "draw a, draw b -> draw a b")
    weights = weights * (1 - torch.eye(n, dtype=torch.float64))
    weights = weights[weights.sum((1, 2)) > 0]  # a draw of one category only has no pairs
    weights = weights / weights.sum((1, 2), keepdim=True)
    return einsum(weights, matrix.double(), "draw a b, layer a b -> draw layer")


def estimate(value: Tensor, draws: Float[Tensor, " draw"], n: int, interval: str) -> Estimate:
    """A mean cosine with the 2.5th and 97.5th percentile of its draws; those without a number are left out."""
    known = draws[~draws.isnan()].double()
    if value.isnan() or len(known) == 0:
        return Estimate.unmeasured(n, unit="cosine")
    low, high = known.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Estimate(value=float(value), n=n, low=low, high=high, unit="cosine", interval=interval)


def _by_layer(
    values: Float[Tensor, " layer"], draws: Float[Tensor, "draw layer"], n: int, interval: str
) -> tuple[Estimate, ...]:
    return tuple(estimate(value, draws[:, layer], n, interval) for layer, value in enumerate(values))
