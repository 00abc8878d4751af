"""The induced Bayesian network as a simulation: S1 hops, S2 best-path distances, S3 both quantities over noise.

Answers are the leaves of a binary tree. Two leaves whose last common ancestor stands at depth t have distance
2^(-alpha t) by inductive bias alone, realised as variances of the tree's edges, so that F(M) ~ M^-alpha. A comparison
is a further edge of variance v between two leaves. Variances add along a path (Gaussian approximation).

- Chain: n comparisons of fresh random leaves. Tree-like: m answers, one in each subtree, reused in n random
  comparisons; reuse is what is kept of prefix-tree data, the paper's own tree model was not found.
- Best path: smallest variance over paths (the paper's proxy). Posterior: variance given all comparisons, which is the
  effective resistance of a network of conductances 1 / variance.

Source: Qiu et al. 2025, arXiv:2402.10184, sections 3 and 4.
"""

import math
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse
from scipy.sparse.csgraph import dijkstra
from scipy.sparse.linalg import splu

Design = Literal["chain", "tree"]


class Edges(NamedTuple):
    """Edges between nodes of the network, with their variances."""

    starts: Int[np.ndarray, " edge"]
    ends: Int[np.ndarray, " edge"]
    variances: Float[np.ndarray, " edge"]


def bias_edges(depth: int, alpha: float | int) -> Edges:
    """Edges of the inductive bias: node i has the parent (i - 1) // 2, leaves are the last 2^depth nodes."""
    nodes = np.arange(1, 2 ** (depth + 1) - 1)
    levels = np.floor(np.log2(nodes + 1)).astype(int)
    here = np.where(levels == depth, 0.0, 2.0 ** (-alpha * levels))
    variances = (2.0 ** (-alpha * (levels - 1)) - here) / 2
    return Edges(nodes, (nodes - 1) // 2, variances)


def comparisons(
    rng: np.random.Generator, *, design: Design, depth: int, n: int, answers: int | None = None
) -> Int[np.ndarray, "comparison two"]:
    """Leaves that are compared.

    Args:
        answers: number of reused answers of the tree-like design, a power of 2; n when None.

    Raises:
        ValueError: more subtrees than leaves, or not a power of 2.
    """
    leaves, first = 2**depth, 2**depth - 1
    if design == "chain":
        return first + rng.integers(0, leaves, (n, 2))
    m = n if answers is None else answers
    if m & (m - 1) or m > leaves:
        raise ValueError(f"one answer in each subtree takes a power of 2 up to {leaves} answers, got {m}")
    width = leaves // m
    chosen = first + np.arange(m) * width + rng.integers(0, width, m)
    return chosen[rng.integers(0, m, (n, 2))]


def _all_edges(bias: Edges, compared: Int[np.ndarray, "comparison two"], noise: float | int) -> Edges:
    distinct = compared[compared[:, 0] != compared[:, 1]]
    return Edges(
        np.concatenate([bias.starts, distinct[:, 0]]),
        np.concatenate([bias.ends, distinct[:, 1]]),
        np.concatenate([bias.variances, np.full(len(distinct), float(noise))]),
    )


def best_path_distance(
    bias: Edges,
    compared: Int[np.ndarray, "comparison two"],
    noise: float | int,
    pairs: Int[np.ndarray, "pair two"],
) -> float:
    """Mean over pairs of the smallest variance of a path."""
    edges = _all_edges(bias, compared, noise)
    # Of parallel edges the smaller counts; a matrix would add them up.
    low, high = np.minimum(edges.starts, edges.ends), np.maximum(edges.starts, edges.ends)
    order = np.lexsort((edges.variances, high, low))
    low, high, variances = low[order], high[order], edges.variances[order]
    first = np.r_[True, (low[1:] != low[:-1]) | (high[1:] != high[:-1])]
    size = int(high.max()) + 1
    graph = sparse.csr_matrix((variances[first], (low[first], high[first])), shape=(size, size))
    sources, place = np.unique(pairs[:, 0], return_inverse=True)
    distances = dijkstra(graph, directed=False, indices=sources)
    return float(distances[place, pairs[:, 1]].mean())


def posterior_variance(
    bias: Edges,
    compared: Int[np.ndarray, "comparison two"],
    noise: float | int,
    pairs: Int[np.ndarray, "pair two"],
) -> float:
    """Mean over pairs of the exact posterior variance of their difference: the effective resistance."""
    edges = _all_edges(bias, compared, noise)
    conductance = 1 / edges.variances
    size = int(max(edges.starts.max(), edges.ends.max())) + 1
    rows = np.concatenate([edges.starts, edges.ends])
    columns = np.concatenate([edges.ends, edges.starts])
    weights = sparse.csc_matrix((np.r_[conductance, conductance], (rows, columns)), shape=(size, size))
    laplacian = sparse.csc_matrix(sparse.diags(np.asarray(weights.sum(0)).ravel()) - weights)
    factor = splu(laplacian[1:, 1:])  # node 0 is grounded
    right = np.zeros((size - 1, len(pairs)))
    for i, (a, b) in enumerate(pairs):
        right[a - 1, i] += 1
        right[b - 1, i] -= 1
    potentials = factor.solve(right)
    return float((right * potentials).sum(0).mean())


def leaf_pairs(rng: np.random.Generator, depth: int, n: int, sources: int) -> Int[np.ndarray, "pair two"]:
    """Random pairs of different leaves, from few sources: a search from one gives all its distances."""
    first, leaves = 2**depth - 1, 2**depth
    starts = rng.choice(leaves, sources, replace=False)[np.arange(n) % sources]
    offsets = rng.integers(1, leaves, n)
    return first + np.stack([starts, (starts + offsets) % leaves], 1)


def mean_hops(rng: np.random.Generator, n: int, sources: int = 32) -> float:
    """Mean number of comparisons between reachable clusters: n random links over n / log n clusters."""
    clusters = round(n / math.log(n))
    links = rng.integers(0, clusters, (n, 2))
    graph = sparse.csr_matrix((np.ones(n), (links[:, 0], links[:, 1])), shape=(clusters, clusters))
    starts = rng.choice(clusters, min(sources, clusters), replace=False)
    hops = dijkstra(graph, directed=False, unweighted=True, indices=starts)
    return float(hops[np.isfinite(hops) & (hops > 0)].mean())


def predicted_hops(n: int) -> float:
    """log M / log(2 log n): the typical distance in a random graph of M = n / log n clusters and mean degree 2 log
    n."""
    return math.log(n / math.log(n)) / math.log(2 * math.log(n))


def log_ratio(n: int) -> float:
    """log n / log log n."""
    return math.log(n) / math.log(math.log(n))
