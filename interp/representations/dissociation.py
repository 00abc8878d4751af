"""Are harm and refusal one direction? The cosine of two contrasts, each with its own labels and token, by layer.

    d_harm    = mean(states of harmful prompts at t_inst)     - mean(states of harmless ones)
    d_refusal = mean(states of refused prompts at t_post_inst) - mean(states of answered ones)

    hidden = states(model, texts)                                 # [prompt, layer, role, d_model]
    contrast_cosines(hidden, harm, refused)                       # cos(d_harm, d_refusal), an estimate a layer
    shuffled_cosines(hidden, harm, refused)                       # the same with shuffled refusals: the control

Where a model refuses what is harmful, both labels are nearly the same, and so are the contrasts: a cosine near 1 then
says nothing about the model. The question needs prompts of all four kinds, or an organism in which the labels are
independent (`interp.data.planted`). A cosine near 0 says that the contrasts differ, not that the model uses either.

Source: Zhao et al. 2025, arXiv:2507.11878, section 3.2, with labels of its own for each contrast. The interval is
normal, from the bootstrap's standard deviation: contrasts of resampled prompts carry the sampling noise twice, so that
percentiles of their cosines are biased towards 0.
"""

import torch
from einops import einsum
from jaxtyping import Bool, Float
from torch import Tensor

from interp.directions import cosine
from interp.stats import Estimate

_ROUNDING = 1e-6
"""Norm of a contrast, relative to the states' mean norm, that is rounding: a template's token at layer 0."""


def contrast_cosines(
    hidden: Float[Tensor, "prompt layer role d_model"],
    harm: Bool[Tensor, " prompt"],
    refused: Bool[Tensor, " prompt"],
    *,
    resamples: int = 200,
    seed: int = 0,
) -> tuple[Estimate, ...]:
    """Cosine of the harm contrast at the first role with the refusal contrast at the last, by layer.

    Prompts are resampled within the four kinds that both labels give.

    Args:
        hidden: `states` at `t_inst` and `t_post_inst`.
        harm: whether a prompt is harmful.
        refused: whether the model refuses it.

    Raises:
        ValueError: prompts that are all alike in one label.
    """
    _check(harm, refused)
    used = _cosines(hidden, harm[None], refused[None])[0]
    spread = torch.zeros_like(used)
    if resamples > 1:
        rows = _resampled(harm, refused, resamples, seed)
        counts = torch.nn.functional.one_hot(rows, len(harm)).sum(1).double()
        spread = _cosines(hidden, harm[None] * counts, refused[None] * counts, counts).std(0)
    return tuple(
        Estimate(
            value=value,
            n=len(harm),
            low=max(-1.0, value - 1.96 * sd),
            high=min(1.0, value + 1.96 * sd),
            unit="cosine",
            interval="normal, bootstrap SD",
        )
        for value, sd in zip(used.tolist(), spread.tolist(), strict=True)
    )


def shuffled_cosines(
    hidden: Float[Tensor, "prompt layer role d_model"],
    harm: Bool[Tensor, " prompt"],
    refused: Bool[Tensor, " prompt"],
    *,
    shuffles: int = 200,
    seed: int = 0,
) -> tuple[Estimate, ...]:
    """The same with refusals shuffled over prompts: mean, and the central 95% of shuffles in place of an interval.

    Raises:
        ValueError: prompts that are all alike in one label.
    """
    _check(harm, refused)
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.stack([refused[torch.randperm(len(refused), generator=generator)] for _ in range(shuffles)])
    found = _cosines(hidden, harm[None].expand(shuffles, -1), mixed)
    low, high = found.quantile(torch.tensor([0.025, 0.975]).double(), dim=0)
    return tuple(
        Estimate(value=value, n=len(harm), low=a, high=b, unit="cosine", interval="95% of shuffles")
        for value, a, b in zip(found.mean(0).tolist(), low.tolist(), high.tolist(), strict=True)
    )


def _check(harm: Tensor, refused: Tensor) -> None:
    for name, label, words in (("harm", harm, "harmful"), ("refused", refused, "refused")):
        if not 0 < int(label.sum()) < len(label):
            raise ValueError(
                f"{name}: {int(label.sum())} of {len(label)} prompts are {words}; a contrast needs both sides"
            )


def _resampled(harm: Tensor, refused: Tensor, resamples: int, seed: int) -> Tensor:
    """Rows drawn with replacement within each kind, [draw, prompt]."""
    generator = torch.Generator().manual_seed(seed)
    kinds = harm.long() * 2 + refused.long()
    parts = [(kinds == kind).nonzero().flatten() for kind in range(4)]
    return torch.cat(
        [
            part[torch.randint(len(part), (resamples, len(part)), generator=generator)]
            for part in parts
            if len(part)
        ],
        dim=1,
    )


def _cosines(hidden: Tensor, harm: Tensor, refused: Tensor, counts: Tensor | None = None) -> Tensor:
    """Cosines [draw, layer] in float64, from how often each draw has a prompt on the positive side of each label."""
    weights = torch.ones(len(harm), hidden.shape[0]).double() if counts is None else counts
    found = []
    for layer in range(
        hidden.shape[1]
    ):  # a layer at a time: all draws of all layers would not fit a large model
        pair = []
        for label, role in ((harm.double(), 0), (refused.double(), -1)):
            x = hidden[:, layer, role].double()
            rest = weights - label
            sides = label / label.sum(1, keepdim=True) - rest / rest.sum(1, keepdim=True)
            contrast = einsum(sides, x, "draw prompt, prompt d_model -> draw d_model")
            tiny = contrast.norm(dim=-1, keepdim=True) <= _ROUNDING * x.norm(dim=-1).mean()
            pair.append(torch.where(tiny, 0.0, contrast))
        found.append(cosine(*pair).double())
    return torch.stack(found, dim=1)
