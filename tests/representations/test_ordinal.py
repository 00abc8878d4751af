"""Ordinal regression against logistic regression, a hand-computed likelihood, and planted thresholds."""

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from interp.representations.ordinal import fit_ordinal


def test_two_levels_are_logistic_regression() -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(200, 3))
    y = (x @ [1.0, -2.0, 0.0] + generator.logistic(size=200) > 0.5).astype(int)
    ours, theirs = fit_ordinal(x, y, l2=0.5), LogisticRegression(C=2.0, tol=1e-8).fit(x, y)
    np.testing.assert_allclose(ours.weights, theirs.coef_[0], atol=1e-3)
    np.testing.assert_allclose(-ours.thresholds[0], theirs.intercept_[0], atol=1e-3)
    np.testing.assert_allclose(ours.probabilities(x), theirs.predict_proba(x), atol=1e-3)
    assert (ours.predict(x) == theirs.predict(x)).all()


def test_the_optimum_is_that_of_the_likelihood_written_out() -> None:
    x = np.array([[-2.0], [-1.0], [-1.0], [0.0], [0.5], [1.0], [2.0], [2.5]])
    y = np.array([1, 1, 2, 1, 2, 3, 2, 3])

    def negative(parameters: np.ndarray) -> float:
        w, first, second = parameters

        def below(t: float, z: float) -> float:
            return 1 / (1 + np.exp(-(t - w * z)))

        total = 0.0
        for (z,), level in zip(x, y, strict=True):
            p = {1: below(first, z), 2: below(second, z) - below(first, z), 3: 1 - below(second, z)}[
                int(level)
            ]
            total -= np.log(max(p, 1e-300))
        return total + 0.3 / 2 * w**2

    slow = minimize(negative, [0.0, -1.0, 1.0], method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-9})
    fitted = fit_ordinal(x, y, l2=0.3)
    np.testing.assert_allclose([fitted.weights[0], *fitted.thresholds], slow.x, atol=1e-3)
    assert fitted.levels == (1, 2, 3)


def test_planted_thresholds_and_direction_are_found() -> None:
    generator = np.random.default_rng(1)
    x = generator.normal(size=(4000, 4))
    latent = x @ [1.5, 0.0, -1.0, 0.0] + generator.logistic(size=4000)
    y = np.digitize(latent, [-1.0, 0.5, 2.0])
    fitted = fit_ordinal(x, y, l2=1e-3)
    np.testing.assert_allclose(fitted.thresholds, [-1.0, 0.5, 2.0], atol=0.2)
    np.testing.assert_allclose(fitted.weights, [1.5, 0.0, -1.0, 0.0], atol=0.15)
    shuffled = fit_ordinal(x, generator.permutation(y), l2=1e-3)
    assert np.abs(shuffled.weights).max() < 0.15  # control
    with pytest.raises(ValueError, match="two levels or more"):
        fit_ordinal(x, np.ones(4000, dtype=int))
