"""Curve statistics: planted tau, slopes, exponents and drift are recovered within their intervals."""

import math

import numpy as np
import pytest

from interp.tracking.decay_curves import crossing, fit_decay, half_life, knee, slope_within

DOSES = [0, 50, 100, 200, 400, 800, 1200, 2000]


def decaying(start: float, floor: float, tau: float, noise: float, seed: int) -> list[float]:
    generator = np.random.default_rng(seed)
    x = np.array(DOSES, dtype=float)
    return (floor + (start - floor) * np.exp(-x / tau) + noise * generator.normal(size=len(x))).tolist()


@pytest.mark.parametrize("floor", [0.3, None])
@pytest.mark.parametrize("tau", [80.0, 500.0])
def test_planted_tau_is_recovered_within_its_interval(tau: float, floor: float | None) -> None:
    found = [fit_decay(DOSES, decaying(0.9, 0.3, tau, 0.01, seed), floor=floor) for seed in range(60)]
    covered = np.mean([f.tau.low <= tau <= f.tau.high for f in found])
    assert 0.85 <= covered  # 95% nominal, 60 draws: 0.85 is beyond three standard errors
    # Control: an interval that always covers would also cover a tau four times as long.
    assert np.mean([f.tau.low <= 4 * tau <= f.tau.high for f in found]) < 0.1
    assert np.isclose(np.median([f.start for f in found]), 0.9, atol=0.02)


def test_tau_without_noise_is_exact_and_its_curve_passes_through_the_points() -> None:
    curve = decaying(0.9, 0.3, 300.0, 0.0, 0)
    found = fit_decay(DOSES, curve)
    assert np.isclose(found.tau.value, 300, rtol=1e-4)
    assert np.isclose(found.floor, 0.3, atol=1e-4)
    assert np.allclose(found.at(DOSES), curve, atol=1e-5)
    assert found.rmse < 1e-5


def test_a_flat_curve_has_no_tau() -> None:
    flat = [0.5 + 0.02 * v for v in np.random.default_rng(0).normal(size=len(DOSES))]
    assert math.isnan(fit_decay(DOSES, flat, floor=0.5).tau.value)
    assert fit_decay(DOSES, flat, floor=0.5).tau.missing == len(DOSES)


def test_decay_needs_points() -> None:
    with pytest.raises(ValueError, match=r"at least 2 different doses, got 1 scores at 1 doses"):
        fit_decay([0], [0.5], floor=0.1)
    with pytest.raises(ValueError, match=r"fitted floor .* at least 3 different doses"):
        fit_decay([0, 1], [0.5, 0.4])


def test_half_life_crossing_and_slopes_of_known_curves() -> None:
    tau = 300.0
    dense = np.linspace(0, 2000, 2001)
    curve = (0.2 + 0.6 * np.exp(-dense / tau)).tolist()
    assert np.isclose(half_life(dense.tolist(), curve, 0.2), tau * math.log(2), atol=0.5)
    assert crossing([0, 10, 20], [1.0, 0.6, 0.2], 0.4) == pytest.approx(15)
    assert crossing([0, 10], [0.2, 0.8], 0.5) == pytest.approx(5)  # upwards, too
    assert math.isnan(crossing([0, 10, 20], [1.0, 0.9, 0.8], 0.4))
    assert slope_within([0, 10, 20, 100], [1.0, 0.8, 0.6, 0.6], 0, 20) == pytest.approx(-0.02)
    assert math.isnan(slope_within([0, 10], [1.0, 0.8], 5, 10))


def test_knee_is_where_two_lines_meet_and_nowhere_on_one_line() -> None:
    x = list(range(0, 2001, 100))
    generator = np.random.default_rng(0)
    bent = [1 - 0.001 * min(v, 600) - 0.0001 * max(v - 600, 0) + 0.005 * generator.normal() for v in x]
    assert knee(x, bent) == pytest.approx(600, abs=60)
    straight = [1 - 0.0004 * v + 0.005 * generator.normal() for v in x]
    assert math.isnan(knee(x, straight))
    assert math.isnan(knee([0, 1, 2], [1.0, 0.5, 0.2]))
