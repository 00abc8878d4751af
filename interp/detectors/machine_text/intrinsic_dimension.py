"""Persistent homology dimension of a text's token states.

The minimum spanning tree of n points of a d-dimensional set is E(n) ~ n^(1 - 1/d) long. E is measured on random subsets
of several sizes; with the slope k of log E against log n, the dimension is 1 / (1 - k).

Source: Tulchinskii et al. 2023, arXiv:2306.04723, section 3 ("PHD", alpha = 1). They embed texts with RoBERTa and
report about 9 for human-written and 8 for generated text; here the points are the scoring model's final states, so that
only differences between texts under one model mean something. Short texts are excluded: below `MIN_POINTS` sizes are
too close together for a slope.
"""

import math

import numpy as np
from jaxtyping import Float
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import pdist, squareform
from torch import Tensor

MIN_POINTS = 60
"""Minimum tokens of a text."""
MAX_POINTS = 1024
"""Tokens that are read of a longer text, drawn at random: the distances of all pairs would take gigabytes."""
_SMALLEST = 40
_SIZES = 6
_SUBSETS = 5


def persistent_homology_dimension(points: Float[Tensor, "token d_model"], *, seed: int = 0) -> float:
    """Dimension of a set of points; NaN for fewer than `MIN_POINTS` of them.

    Subsets of 6 sizes between 40 and all points, at most `MAX_POINTS`, 5 of each size, whose median length counts.
    """
    if len(points) < MIN_POINTS:
        return math.nan
    generator = np.random.default_rng(seed)
    if len(points) > MAX_POINTS:
        points = points[generator.choice(len(points), MAX_POINTS, replace=False)]
    n = len(points)
    distances = squareform(pdist(points.double().cpu().numpy()))
    sizes = np.unique(np.linspace(_SMALLEST, n, _SIZES).astype(int))
    lengths = [
        np.median([_tree_length(distances, generator.permutation(n)[:size]) for _ in range(_SUBSETS)])
        for size in sizes
    ]
    if min(lengths) <= 0:  # every state is the same
        return math.nan
    slope = float(np.polyfit(np.log(sizes), np.log(lengths), 1)[0])
    return 1 / (1 - slope) if slope < 1 else math.nan


def _tree_length(distances: np.ndarray, rows: np.ndarray) -> float:
    """Length of the minimum spanning tree: single linkage joins clusters along its edges."""
    return float(linkage(squareform(distances[np.ix_(rows, rows)], checks=False), "single")[:, 2].sum())
