"""Decay curves of a model's grid, of any number that its points have: N+ → [seed][N-]. Imports no torch."""

from collections.abc import Callable, Sequence

import numpy as np

from interp.experiments.rebound import Config, Point
from interp.tracking.rebound import ReboundStatistics, summarise

Curves = dict[int, list[list[float]]]
"""N+ → [seed][N-]."""


def positives(points: Sequence[Point]) -> list[int]:
    """The N+ of the grid, ascending."""
    return sorted({point.n_plus for point in points})


def negatives(points: Sequence[Point]) -> list[int]:
    """The N- of the grid, ascending."""
    return sorted({point.n_minus for point in points})


def curves(points: Sequence[Point], value: Callable[[Point], float]) -> Curves:
    """A number of every point, by N+, seed and N-."""
    by = {(p.n_plus, p.seed, p.n_minus): value(p) for p in points}
    doses, seeds = negatives(points), _seeds(points)
    return {n_plus: [[by[n_plus, s, dose] for dose in doses] for s in seeds] for n_plus in positives(points)}


def score_curves(points: Sequence[Point]) -> Curves:
    """The score against N-."""
    return curves(points, lambda point: point.score)


def kl_curves(points: Sequence[Point]) -> Curves:
    """KL to the model before alignment against N-."""
    return curves(points, lambda point: point.kl)


def compression_curves(points: Sequence[Point], corpus: str) -> Curves:
    """Mean bits per byte of a corpus against N-."""
    return curves(points, lambda point: float(np.mean(point.bits(corpus))))


def scores_by_negatives(points: Sequence[Point]) -> Curves:
    """The transposed scores, [seed][N+] by N-."""
    by = {(p.n_plus, p.seed, p.n_minus): p.score for p in points}
    return {
        n_minus: [[by[n_plus, seed, n_minus] for n_plus in positives(points)] for seed in _seeds(points)]
        for n_minus in negatives(points)
    }


def base_scores(points: Sequence[Point]) -> list[float]:
    """Score of the model before alignment, by seed."""
    by = {point.seed: point.base_score for point in points}
    return [by[seed] for seed in _seeds(points)]


def statistics(points: Sequence[Point], config: Config) -> ReboundStatistics:
    """Statistics of the score's decay curves, and the verdict."""
    return summarise(
        negatives(points),
        score_curves(points),
        base=base_scores(points),
        kl=kl_curves(points),
        kl_threshold=config.kl_threshold,
    )


def _seeds(points: Sequence[Point]) -> list[int]:
    return sorted({point.seed for point in points})
