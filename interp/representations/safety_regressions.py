"""Logistic regressions on the coordinates of the safety plane, over folds, to soft targets.

    sigma(w . z + b) ~ p,   loss  -p log sigma - (1 - p) log(1 - sigma), mean over the training rows of a fold

`released` is the procedure of Zheng et al. 2024 (arXiv:2401.18018, code): AdamW at 1e-4 on all rows, at most 10,000
steps, stopped after 3 without a gain of 1e-4 on the held-out fold. It begins at zero here, so that no random direction
stays in the weights; the released clipping of gradients comes before they are known, has no effect and is left out.
All folds and targets are one tensor. Weights move by at most 1e-4 a step: where coordinates are small (below about 1)
it stops long before the optimum, which `converged` reaches (scikit-learn, an L2 penalty of C = 1, every row once with
each label, weighted by its probability).
"""

from typing import NamedTuple

import numpy as np
import torch
from einops import einsum
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.representations.records import Solver

LEARNING_RATE, MAX_STEPS, PATIENCE, MIN_GAIN = 1e-4, 10_000, 3, 1e-4


class FoldWeights(NamedTuple):
    """Weights of every regression on every fold, float64."""

    weights: Float[Tensor, "target fold component"]
    biases: Float[Tensor, "target fold"]
    held_out_loss: Float[Tensor, "target fold"]
    """Loss on the held-out rows, nats."""
    steps: Int[Tensor, "target fold"]
    """Optimisation steps; 0 with `converged`."""


def fit_folds(
    coordinates: Float[Tensor, "row component"],
    targets: Float[Tensor, "target row"],
    *,
    folds: int = 10,
    solver: Solver = "released",
    seed: int = 42,
) -> FoldWeights:
    """Fit every target on all rows but those of each fold in turn.

    Args:
        targets: probabilities, 0 to 1.
        seed: seed of the shuffle that makes the folds.

    Raises:
        ValueError: fewer than two folds, fewer rows than folds, or a target without any variation.
    """
    n = len(coordinates)
    if not 2 <= folds <= n:
        raise ValueError(f"folds must be in 2..{n}, the number of points, got {folds}")
    for number, target in enumerate(targets):
        if float(target.max() - target.min()) < 1e-6:
            raise ValueError(
                f"target {number} is {float(target[0]):.3g} at every point: no direction tells it apart; take other "
                "queries, other system prompts, or a model that refuses some of them"
            )
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    held = torch.zeros(folds, n, dtype=torch.bool)
    held[torch.arange(n) % folds, order] = True
    z, p = coordinates.double(), targets.double()
    if solver == "released":
        return _released(z, p, held)
    if solver == "converged":
        return _converged(z, p, held)
    raise ValueError(f"solver must be 'released' or 'converged', got {solver!r}")


def _released(z: Tensor, p: Tensor, held: Bool[Tensor, "fold row"]) -> FoldWeights:
    rows = torch.cat([z, torch.ones(len(z), 1, dtype=z.dtype)], dim=1)
    shape = (len(p), len(held), rows.shape[1])
    weights = torch.nn.Parameter(torch.zeros(shape, dtype=z.dtype))
    optimizer = torch.optim.AdamW([weights], lr=LEARNING_RATE)
    train = (~held).double() / (~held).sum(1, keepdim=True)
    test = held.double() / held.sum(1, keepdim=True)
    best = torch.full(shape[:2], torch.inf, dtype=z.dtype)
    waited, steps = (torch.zeros(shape[:2], dtype=torch.long) for _ in range(2))
    loss, logits = best, torch.zeros(*shape[:2], len(rows), dtype=z.dtype)
    with torch.no_grad():
        for _ in range(MAX_STEPS):
            active = waited < PATIENCE
            if not active.any():
                break
            before = weights.clone()
            weights.grad = ((logits.sigmoid() - p[:, None]) * train) @ rows
            optimizer.step()
            weights.copy_(torch.where(active[..., None], weights, before))
            logits = weights @ rows.T
            loss = torch.where(active, _loss(logits, p, test), loss)
            gained = loss < best - MIN_GAIN
            best = torch.where(active & gained, loss, best)
            waited = torch.where(active, torch.where(gained, 0, waited + 1), waited)
            steps += active
    found = weights.detach()
    return FoldWeights(found[..., :-1], found[..., -1], loss, steps)


def _loss(logits: Tensor, p: Tensor, share: Tensor) -> Tensor:
    """Mean binary cross-entropy over the rows of each fold."""
    losses = torch.nn.functional.softplus(logits) - p[:, None] * logits
    return einsum(losses, share, "target fold row, fold row -> target fold")


def _converged(z: Tensor, p: Tensor, held: Bool[Tensor, "fold row"]) -> FoldWeights:
    from sklearn.linear_model import LogisticRegression

    shape = len(p), len(held)
    weights, biases = torch.zeros(*shape, z.shape[1], dtype=z.dtype), torch.zeros(shape, dtype=z.dtype)
    for target in range(shape[0]):
        for fold in range(shape[1]):
            rows, share = z[~held[fold]].numpy(), p[target][~held[fold]].numpy()
            twice = np.concatenate([rows, rows])
            labels = np.repeat([1, 0], len(rows))
            fitted = LogisticRegression(max_iter=2000).fit(
                twice, labels, sample_weight=np.concatenate([share, 1 - share])
            )
            weights[target, fold] = torch.from_numpy(fitted.coef_[0])
            biases[target, fold] = float(fitted.intercept_[0])
    logits = weights @ z.T + biases[..., None]
    test = held.double() / held.sum(1, keepdim=True)
    return FoldWeights(weights, biases, _loss(logits, p, test), torch.zeros(shape, dtype=torch.long))
