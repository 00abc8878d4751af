"""S4: rewards fitted on synthetic comparisons of a tree of answers, and what is left of a design's lead.

A true reward is drawn from the tree's prior: a sum over ancestors of independent parts, whose variances fall as
2^(-alpha t). Features are all ancestors, scaled by their prior spread, so that ridge-penalised Bradley-Terry is the
posterior mode under that prior. Rank agreement is measured on leaves that were never compared.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import stats

from interp.experiments.reward_topology.bayesian_network import Design, bias_edges, comparisons
from interp.training.reward_models import fit_bradley_terry


class Fitted(NamedTuple):
    """One fit."""

    tau: float
    """Kendall's tau between fitted and true reward on leaves that were not compared."""
    rewards: Float[np.ndarray, " leaf"]
    """Fitted rewards of all leaves."""


def ancestor_features(depth: int, alpha: float | int) -> Float[np.ndarray, "leaf node"]:
    """Every leaf's ancestors, itself included, each with the square root of its edge's variance."""
    edges = bias_edges(depth, alpha)
    scale = np.sqrt(edges.variances)
    leaves, first = 2**depth, 2**depth - 1
    features = np.zeros((leaves, len(scale)))
    for leaf in range(leaves):
        node = first + leaf
        while node > 0:
            features[leaf, node - 1] = scale[node - 1]
            node = (node - 1) // 2
    return features


def fitted_reward(
    features: Float[np.ndarray, "leaf node"],
    truth: Float[np.ndarray, " leaf"],
    compared: Int[np.ndarray, "comparison two"],
    rng: np.random.Generator,
    *,
    sharpness: float | int,
) -> Fitted:
    """Fit a reward on comparisons whose outcomes are drawn by Bradley-Terry at a sharpness (beta)."""
    pairs = compared[compared[:, 0] != compared[:, 1]]
    margin = sharpness * (truth[pairs[:, 0]] - truth[pairs[:, 1]])
    wins = rng.random(len(pairs)) < 1 / (1 + np.exp(-margin))
    signs = np.where(wins, 1.0, -1.0)[:, None]
    differences = signs * (features[pairs[:, 0]] - features[pairs[:, 1]])
    # Weights have unit prior variance in units of the sharpness.
    weight = fit_bradley_terry(torch.from_numpy(differences).float(), penalty=1 / (sharpness**2 * len(pairs)))
    rewards = features @ weight.double().numpy()
    unseen = np.setdiff1d(np.arange(len(truth)), pairs)
    agreement: Any = stats.kendalltau(rewards[unseen], truth[unseen])
    return Fitted(float(agreement.statistic), rewards)


def fits(
    design: Design, *, depth: int, alpha: float | int, n: int, runs: int, seed: int, sharpness: float | int
) -> tuple[list[float], float]:
    """Tau of every run on one true reward, and the variance over runs of differences of two leaves."""
    features = ancestor_features(depth, alpha)
    truth = features @ np.random.default_rng(seed).standard_normal(features.shape[1])
    found = []
    for run in range(runs):
        rng = np.random.default_rng(10_000 * (seed + 1) + run)
        answers = 2 ** int(np.log2(min(n, 2 ** (depth - 1))))
        compared = comparisons(rng, design=design, depth=depth, n=n, answers=answers) - (2**depth - 1)
        found.append(fitted_reward(features, truth, compared, rng, sharpness=sharpness))
    rewards = np.stack([one.rewards for one in found]) / sharpness
    # Half the mean squared difference of centred rewards is their variance.
    centred = rewards - rewards.mean(1, keepdims=True)
    return [one.tau for one in found], float(2 * centred.var(0, ddof=1).mean())
