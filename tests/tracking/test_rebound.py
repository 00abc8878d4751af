"""Rebound or not: planted curves of every kind get their verdict."""

from dataclasses import replace

import numpy as np
import pytest

from interp.stats import Estimate
from interp.tracking.rebound import Trends, initial_range, judge, late_range, summarise

DOSES = [0, 100, 200, 500, 1000, 2000]


def planted(
    taus: dict[int, float],
    starts: dict[int, float],
    *,
    noise: float = 0.01,
    seeds: int = 5,
    floor: float = 0.3,
) -> dict[int, list[list[float]]]:
    generator = np.random.default_rng(0)
    x = np.array(DOSES, dtype=float)
    return {
        n: [
            (floor + (starts[n] - floor) * np.exp(-x / tau) + noise * generator.normal(size=len(x))).tolist()
            for _ in range(seeds)
        ]
        for n, tau in taus.items()
    }


STARTS = {1000: 0.8, 2000: 0.85, 5000: 0.9, 10000: 0.95}


def test_planted_rebound_is_found() -> None:
    taus = {1000: 900.0, 2000: 700.0, 5000: 500.0, 10000: 350.0}
    found = summarise(DOSES, planted(taus, STARTS), base=0.3)
    assert found.verdict == "consistent with rebound"
    for n, tau in taus.items():
        assert found.groups[n].tau.low <= tau <= found.groups[n].tau.high


def test_a_higher_start_alone_is_no_rebound() -> None:
    found = summarise(DOSES, planted(dict.fromkeys(STARTS, 500.0), STARTS, noise=0.003), base=0.3)
    assert found.trends.steepness.positive  # it does fall faster at first
    assert found.verdict != "consistent with rebound"


def test_the_opposite_is_not_consistent() -> None:
    taus = {1000: 300.0, 2000: 400.0, 5000: 600.0, 10000: 900.0}
    found = summarise(DOSES, planted(taus, dict.fromkeys(STARTS, 0.9)), base=0.3)
    assert found.verdict == "not consistent with rebound"
    assert "the time constant is longer" in found.why


def test_noise_is_not_resolved() -> None:
    found = summarise(
        DOSES, planted(dict.fromkeys(STARTS, 500.0), dict.fromkeys(STARTS, 0.9), noise=0.1, seeds=3), base=0.3
    )
    assert found.verdict == "not resolved"


def test_slopes_without_a_time_constant_are_named_for_what_they_are() -> None:
    def estimate(value: float | int) -> Estimate:
        return Estimate(value=float(value), n=9, low=value - 1.0, high=value + 1.0)

    trends = Trends(steepness=estimate(2), late_steepness=estimate(-2), log_tau=estimate(0))
    verdict, why = judge(trends)
    assert verdict == "not resolved"
    assert "a higher start would do the same" in why
    assert judge(replace(trends, log_tau=estimate(-2))).verdict == "consistent with rebound"


def test_a_curve_that_ends_below_its_base_gets_a_fitted_floor() -> None:
    taus = {1000: 300.0, 2000: 400.0, 5000: 600.0, 10000: 900.0}
    found = summarise(DOSES, planted(taus, dict.fromkeys(STARTS, 0.9), floor=0.0), base=0.8)
    assert found.tau_floor == "fitted"
    assert found.groups[1000].tau.missing > 0
    free = found.groups[1000].tau_fitted_floor
    assert free.low <= 300 <= free.high


def test_return_by_score_is_not_return_by_kl() -> None:
    curves = {1000: [[0.9, 0.5, 0.2, 0.1, 0.1, 0.1]] * 2, 2000: [[0.9, 0.6, 0.2, 0.1, 0.1, 0.1]] * 2}
    kl = {n: [[0.3, 0.2, 0.15, 0.1, 0.1, 0.1]] * 2 for n in curves}
    found = summarise(DOSES, curves, base=0.5, kl=kl)
    group = found.groups[1000]
    assert group.return_by_score.value == pytest.approx(100)
    assert group.return_by_kl is not None and group.return_by_kl.missing == 2
    assert summarise(DOSES, curves, base=0.5).groups[1000].return_by_kl is None  # no KL given


def test_ranges_follow_the_papers_grid() -> None:
    assert initial_range(DOSES) == (0, 200)
    assert late_range(DOSES) == (1000, 2000)


def test_wrong_doses_and_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must ascend from 0 .* got \[100"):
        summarise([100, 200, 300], {}, base=0.5)
    with pytest.raises(ValueError, match=r"curves of N\+ = 1000 must have 6 scores, one a dose; got 2"):
        summarise(DOSES, {1000: [[0.1, 0.2]]}, base=0.5)
