"""Choosing the next token: greedy, or sampled at a temperature, from the likeliest ones or from all.

pick = picker(64, 0.7, seed, ())                    # one generator for a batch: rows depend on each other
ids = at_quantiles(logits, uniforms, temperatures)  # each row by a uniform number of its own
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.engine.decoding import LogitsProcessor, Pick
from interp.engine.greedy_unembedding import first_largest
from interp.models.scalars import finite_number, whole_number

_ROWS = 64
"""Rows whose probabilities are summed at a time, in float64."""


def picker(
    max_new_tokens: int,
    temperature: float,
    seed: int,
    processors: Sequence[LogitsProcessor],
    *,
    top_k: int | None = None,
    top_p: float | int = 1.0,
) -> Pick:
    """The function that selects the next token of every row: argmax, or sampling at a temperature."""
    temperature, seed = check_sampling(max_new_tokens, temperature, seed)
    top_k = None if top_k is None else whole_number(top_k, "top_k", at_least=1)
    top_p = finite_number(top_p, "top_p")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must lie above 0 and be at most 1, got {top_p}")

    def processed(
        logits: Float[Tensor, "batch d_vocab"], so_far: Sequence[Sequence[int]]
    ) -> Float[Tensor, "batch d_vocab"]:
        for process in processors:
            logits = process(so_far, logits)
        return logits

    if temperature == 0:
        if not processors:
            return likeliest
        return lambda logits, so_far: likeliest(processed(logits.float(), so_far), so_far)
    generator = torch.Generator().manual_seed(seed)

    def sample(
        logits: Float[Tensor, "batch d_vocab"], so_far: Sequence[Sequence[int]]
    ) -> Int[Tensor, " batch"]:
        check_numbers(logits.amax(-1))
        weights = nucleus((logits.float() / temperature).softmax(-1), top_k, top_p)
        if processors:
            weights = processed(weights.log(), so_far).softmax(-1)
        return torch.multinomial(weights.cpu(), 1, generator=generator)[:, 0].to(logits.device)

    return sample


def at_quantiles(
    logits: Float[Tensor, "batch d_vocab"], uniforms: Sequence[float], temperatures: Sequence[float]
) -> list[int]:
    """The token of each row at that quantile of its softmax at a temperature, tokens in their order; 0 is greedy.

    A row's token depends on nothing but its logits and its number, so that batches may be cut in any way.
    """
    check_numbers(logits.amax(-1))
    heat = torch.tensor(temperatures, dtype=torch.float32, device=logits.device)[:, None]
    at = torch.tensor(uniforms, dtype=torch.float64, device=logits.device)[:, None]
    found = []
    for rows, heats, quantiles in zip(logits.split(_ROWS), heat.split(_ROWS), at.split(_ROWS), strict=True):
        # float64: in float32 the sum over a large vocabulary would move the quantile by 1e-5.
        sums = (rows.float() / heats.clamp(min=1e-6)).softmax(-1).double().cumsum(-1)
        ids = torch.searchsorted(sums, quantiles * sums[:, -1:], right=True).clamp(max=rows.shape[1] - 1)
        found += torch.where(heats == 0, rows.argmax(-1, keepdim=True), ids)[:, 0].tolist()
    return found


def check_sampling(max_new_tokens: int, temperature: float | int, seed: int) -> tuple[float, int]:
    """Temperature and seed as numbers of Python.

    Raises:
        ValueError: a value that is no number or out of range, by its name.
    """
    whole_number(max_new_tokens, "max_new_tokens", at_least=1)
    try:
        heat = finite_number(temperature, "temperature")
    except ValueError:
        heat = -1.0
    if heat != 0 and heat < 1e-6:  # smaller ones overflow
        raise ValueError(
            f"temperature must be 0 (greedy), or 1e-06 or more and finite, got {temperature!r:.60}"
        )
    number = whole_number(seed, "seed")
    if not 0 <= number < 2**63:
        raise ValueError(f"seed must be within 0 and 2**63 - 1, got {number}")
    return heat, number


def nucleus(
    probabilities: Float[Tensor, "batch d_vocab"], top_k: int | None, top_p: float | int
) -> Float[Tensor, "batch d_vocab"]:
    """The probabilities of the tokens that sampling is limited to; 0 for all others."""
    if top_k is None and top_p == 1:
        return probabilities
    top = probabilities.topk(min(top_k or probabilities.shape[1], probabilities.shape[1]), dim=-1)
    shares = top.values / top.values.sum(-1, keepdim=True)
    # A token stays as long as those before it have less than top_p together: the first always does.
    stays = shares.cumsum(-1) - shares < top_p
    return torch.zeros_like(probabilities).scatter(-1, top.indices, top.values * stays)


def likeliest(
    logits: Float[Tensor, "batch d_vocab"],
    so_far: Sequence[Sequence[int]],  # noqa: ARG001 (a `Pick`)
) -> Int[Tensor, " batch"]:
    """The token of the largest logit of every row."""
    ids = first_largest(logits)
    check_numbers(logits.gather(-1, ids[:, None]))
    return ids


def check_numbers(largest: Tensor) -> None:
    """Raise a ValueError unless the largest logit of every row is a number: argmax calls NaN the largest, token 0."""
    if not torch.isfinite(largest).all():
        raise ValueError(
            "the logits are not finite: an intervention is too large (a smaller coefficient), float16 overflows (load "
            "in bfloat16 or float32), or the weights are damaged"
        )
