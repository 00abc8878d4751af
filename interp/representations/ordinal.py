"""Ordinal logistic regression: one direction and ordered thresholds, for labels such as severities.

    P(y <= k | x) = sigmoid(threshold_k - w . x)                 proportional odds; McCullagh 1980

With two levels it is logistic regression. The penalty is l2 / 2 * |w|^2 on the summed negative log-likelihood, as
scikit-learn's `C = 1 / l2`; thresholds are not penalised. Levels that do not occur get no threshold of their own.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray


@dataclass(frozen=True, eq=False, kw_only=True)
class OrdinalFit:
    """A fitted ordinal regression."""

    weights: Float[ndarray, " feature"]
    """w: higher values of w . x mean a higher level."""
    thresholds: Float[ndarray, " step"]
    """Ascending, one between each two neighbouring levels."""
    levels: tuple[int, ...]
    """The labels, ascending."""

    def latent(self, x: Float[ndarray, "row feature"]) -> Float[ndarray, " row"]:
        """w . x of every row."""
        return x @ self.weights

    def predict(self, x: Float[ndarray, "row feature"]) -> Int[ndarray, " row"]:
        """The likeliest level of every row."""
        return np.asarray(self.levels)[self.probabilities(x).argmax(1)]

    def probabilities(self, x: Float[ndarray, "row feature"]) -> Float[ndarray, "row level"]:
        """Probability of every level."""
        below = _sigmoid(self.thresholds[None] - self.latent(x)[:, None])
        edges = np.concatenate([np.zeros((len(x), 1)), below, np.ones((len(x), 1))], axis=1)
        return np.diff(edges, axis=1)


def fit_ordinal(
    x: Float[ndarray, "row feature"], y: Int[ndarray, " row"], *, l2: float | int = 1.0
) -> OrdinalFit:
    """Fit by maximum penalised likelihood (L-BFGS with the exact gradient).

    Raises:
        ValueError: fewer than two levels.
    """
    from scipy.optimize import minimize

    levels = tuple(int(level) for level in np.unique(y))
    if len(levels) < 2:
        raise ValueError(f"an ordinal regression needs two levels or more, got {levels}")
    place = np.searchsorted(levels, y)
    n_features, steps = x.shape[1], len(levels) - 1
    shares = np.cumsum(np.bincount(place))[:-1] / len(y)
    start = np.log(shares / (1 - shares))
    # Thresholds as a first one and the logarithms of their gaps, so that they stay in order.
    free = np.concatenate([np.zeros(n_features), start[:1], np.log(np.maximum(np.diff(start), 1e-3))])

    def objective(parameters: Float[ndarray, " parameter"]) -> tuple[float, Float[ndarray, " parameter"]]:
        w, gaps = parameters[:n_features], np.exp(parameters[n_features + 1 :])
        thresholds = np.cumsum(np.concatenate([parameters[n_features : n_features + 1], gaps]))
        z = x @ w
        upper = np.concatenate([thresholds, [np.inf]])[place] - z
        lower = np.concatenate([[-np.inf], thresholds])[place] - z
        up, low = _sigmoid(upper), _sigmoid(lower)
        likelihood = np.maximum(up - low, 1e-300)
        d_up, d_low = up * (1 - up) / likelihood, low * (1 - low) / likelihood
        d_threshold = np.array([d_low[place == k + 1].sum() - d_up[place == k].sum() for k in range(steps)])
        # A first threshold moves all of them, a gap those from its own on.
        later = np.cumsum(d_threshold[::-1])[::-1]
        gradient = np.concatenate([x.T @ (d_up - d_low) + l2 * w, later[:1], later[1:] * gaps])
        return float(-np.log(likelihood).sum() + l2 / 2 * w @ w), gradient

    found = minimize(objective, free, jac=True, method="L-BFGS-B", options={"maxiter": 1000})
    gaps = np.exp(found.x[n_features + 1 :])
    return OrdinalFit(
        weights=found.x[:n_features],
        thresholds=np.cumsum(np.concatenate([found.x[n_features : n_features + 1], gaps])),
        levels=levels,
    )


def _sigmoid(x: Float[ndarray, "..."]) -> Float[ndarray, "..."]:
    from scipy.special import expit

    return expit(x)
