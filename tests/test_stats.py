"""Every number has its interval, against formulas written out and planted truth."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from interp.experiments.elasticity_theory.exponents import exponents
from interp.stats import (
    Estimate,
    auroc,
    fitted_slope,
    mean_with_interval,
    over_seeds,
    paired_test,
    rate,
    ratio_of_means,
)
from interp.storage.typed_json import from_json, to_json


@pytest.mark.parametrize(("k", "n"), [(0, 10), (1, 10), (5, 10), (10, 10), (37, 60), (1, 1), (3, 1000)])
def test_rate_has_the_wilson_interval(k: int, n: int) -> None:
    # Wilson 1927, with z the 97.5% point of the normal distribution.
    z, p = 1.959963984540054, k / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    found = rate([True] * k + [False] * (n - k))
    assert (found.value, found.n) == (p, n)
    assert found.low == pytest.approx(centre - half, abs=1e-12)
    assert found.high == pytest.approx(centre + half, abs=1e-12)


def test_nothing_measured_is_no_zero() -> None:
    for found in (rate([]), mean_with_interval([])):
        assert found.n == 0
        assert all(map(math.isnan, (found.value, found.low, found.high)))


def test_an_estimate_shows_itself_and_what_it_is_not() -> None:
    half = Estimate(value=0.5, n=4, low=0.15, high=0.851, unit="share", interval="Wilson")
    assert (str(half), half.percent) == ("0.50 [0.15, 0.85]", "50% [15, 85]")
    assert str(Estimate(value=123.456, n=1)) == "123"  # one observation has no interval
    nothing = Estimate.unmeasured(3, missing=3)
    assert (str(nothing), nothing.percent, nothing.measurable) == ("not measurable",) * 2 + (False,)
    assert half.measurable and half.positive and not half.negative


def test_estimates_are_apart_only_when_their_intervals_are() -> None:
    low, high = (Estimate(value=v, n=9, low=v - 0.1, high=v + 0.1) for v in (0.2, 0.5))
    assert low.below(high) and high.above(low)
    touching = Estimate(value=0.4, n=9, low=0.3, high=0.5)
    assert not touching.above(low) and not low.below(touching)
    assert not Estimate.unmeasured().above(low) and not low.below(Estimate.unmeasured())


def test_an_estimate_survives_json_with_what_is_not_measurable() -> None:
    for estimate in (rate([True, False]), Estimate.unmeasured(2, missing=2)):
        stored = to_json(estimate, Estimate)
        assert b"NaN" not in stored
        back = from_json(Estimate, stored, source="here")
        assert str(back) == str(estimate) and (back.n, back.missing) == (estimate.n, estimate.missing)


def test_bootstrap_interval_of_a_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    values = (2 + 3 * torch.randn(1600, generator=generator, dtype=torch.float64)).tolist()
    found = {n: mean_with_interval(values[:n]) for n in (25, 100, 1600)}
    for n, interval in found.items():
        assert interval.n == n
        assert interval.value == pytest.approx(sum(values[:n]) / n)
        assert interval.low < interval.value < interval.high
        # Near mean +- 1.96 sd / sqrt(n); a bootstrap of 25 values is within a quarter of that.
        assert interval.high - interval.low == pytest.approx(2 * 1.96 * 3 / math.sqrt(n), rel=0.25)
    assert mean_with_interval(values) == mean_with_interval(values)
    assert mean_with_interval(values) != mean_with_interval(values, seed=1)
    constant = mean_with_interval([4.0] * 5)
    assert (constant.low, constant.high) == (4.0, 4.0)


def brute_force_auroc(positive: Tensor, negative: Tensor) -> float:
    wins = 0.0
    for a in positive.tolist():
        for b in negative.tolist():
            wins += 1.0 if a > b else 0.5 if a == b else 0.0
    return wins / (len(positive) * len(negative))


def test_auroc_counts_pairs_and_halves_ties() -> None:
    generator = torch.Generator().manual_seed(0)
    for shift in (0, 1, 4):
        positive = torch.randint(0, 6, (23,), generator=generator).float() + shift
        negative = torch.randint(0, 6, (31,), generator=generator).float()
        assert set(positive.tolist()) & set(negative.tolist())  # control: there are ties
        expected = brute_force_auroc(positive, negative)
        found = auroc(positive, negative)
        assert found.value == pytest.approx(expected, abs=1e-12)
        assert auroc(positive, negative, resamples=0).value == found.value
        assert auroc(negative, positive, resamples=0).value == pytest.approx(1 - expected, abs=1e-12)
        assert (found.n, found.low <= found.value <= found.high) == (54, True)


def test_auroc_extremes_and_its_interval() -> None:
    low, high = torch.arange(5.0), torch.arange(5.0) + 10
    found = auroc(high, low)
    assert (found.value, found.n, found.low, found.high, found.unit) == (1.0, 10, 1.0, 1.0, "AUROC")
    assert auroc(low, high, resamples=0).value == 0.0
    assert auroc(low, low, resamples=0).value == 0.5
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 800, generator=generator)
    few, many = auroc(a[:20] + 1, b[:20]), auroc(a + 1, b)
    assert 0 < many.high - many.low < 0.3 * (few.high - few.low)  # sqrt(20 / 800) is 0.16
    assert many.low < 0.76 < many.high  # Phi(1 / sqrt(2)) is 0.760


def test_auroc_refuses_what_has_no_answer() -> None:
    with pytest.raises(ValueError, match="AUROC needs scores on both sides, got 0 and 3"):
        auroc(torch.empty(0), torch.ones(3))
    with pytest.raises(ValueError, match="AUROC needs finite scores"):
        auroc(torch.tensor([1.0, float("nan")]), torch.ones(3))


def test_planted_drift_is_covered_by_the_slope_interval() -> None:
    x = np.repeat(np.arange(8.0), 3)
    drift, covered, rejected = -0.03, 0, 0
    for seed in range(100):
        y = 0.5 + drift * x + 0.05 * np.random.default_rng(seed).normal(size=len(x))
        found = fitted_slope(x.tolist(), y.tolist())
        covered += found.low <= drift <= found.high
        rejected += found.negative
    assert covered >= 88
    assert rejected >= 95  # control: the drift is told from none


def test_slopes_count_what_is_missing_and_refuse_one_x() -> None:
    found = fitted_slope([0, 1, 2, 3], [0.0, 1.0, math.nan, 3.0])
    assert (found.n, found.missing) == (3, 1)
    assert found.value == pytest.approx(1)
    with pytest.raises(ValueError, match=r"at least two different x, got \[2"):
        fitted_slope([2, 2], [0.0, 1.0])
    with pytest.raises(ValueError, match="same length, got 2 and 1"):
        fitted_slope([2, 2], [0.0])


def test_a_difference_of_shares_reads_in_points() -> None:
    change = Estimate(value=0.12, n=20, low=-0.03, high=0.214)
    assert change.points == "+12 points [-3, +21]"
    assert Estimate.unmeasured().points == "not measurable"


def test_planted_exponents_are_recovered() -> None:
    generator = np.random.default_rng(0)
    p, a = (values.ravel().tolist() for values in np.meshgrid([1e3, 1e4, 1e5], [10.0, 100.0, 1000.0]))
    response = [-(x**0.5) * y**-1.5 * math.exp(0.1 * generator.normal()) for x, y in zip(p, a, strict=True)]
    found = exponents({"p": p, "a": a}, response)
    assert found["p"].low <= 0.5 <= found["p"].high
    assert found["a"].low <= -1.5 <= found["a"].high
    assert found["p"].positive  # control: 0 is excluded
    assert found["p"].high < 1
    assert found["a"].n == 9
    with pytest.raises(ValueError, match="at least two values"):
        exponents({"p": [1, 1]}, [1, 2])
    with pytest.raises(ValueError, match="must be positive"):
        exponents({"p": [0, 1]}, [1, 2])


def test_seed_intervals_cover_and_count_the_missing() -> None:
    covered = 0
    for seed in range(200):
        values = np.exp(math.log(120) + 0.3 * np.random.default_rng(seed).normal(size=5))
        found = over_seeds(values.tolist(), log=True)
        covered += found.low <= 120 <= found.high
    assert 180 <= covered <= 199
    some = over_seeds([1.0, math.nan, 3.0])
    assert (some.value, some.n, some.missing) == (2.0, 2, 1)
    assert math.isnan(over_seeds([1.0]).low)
    share = over_seeds([0.0, 0.1, 0.5], within=(0.0, 1.0))
    free = over_seeds([0.0, 0.1, 0.5])
    assert free.low < 0 == share.low and share.high == free.high and share.value == pytest.approx(0.2)
    assert over_seeds([math.nan]).n == 0


def test_a_planted_ratio_is_covered_and_an_unresolved_one_is_no_number() -> None:
    covered, resolved = 0, 0
    for seed in range(200):
        generator = np.random.default_rng(seed)
        top, bottom = 0.5 + 0.1 * generator.normal(size=40), -0.05 + 0.05 * generator.normal(size=40)
        found = ratio_of_means(top.tolist(), bottom.tolist())
        resolved += found.measurable
        covered += found.measurable and found.low <= -10 <= found.high
    assert resolved >= 195
    assert covered >= 0.9 * resolved
    generator = np.random.default_rng(0)
    nothing = ratio_of_means(
        (0.5 + 0.1 * generator.normal(size=40)).tolist(), (0.05 * generator.normal(size=40)).tolist()
    )
    assert not nothing.measurable
    assert math.isnan(nothing.value)
    assert str(nothing) == "not measurable"
    assert not ratio_of_means([1.0], [1.0]).measurable


def test_pairs_remove_what_they_share() -> None:
    covered, told = 0, 0
    for seed in range(100):
        generator = np.random.default_rng(seed)
        shared = generator.normal(size=8)
        first, second = shared + 0.1 + 0.02 * generator.normal(size=8), shared
        found = paired_test(first.tolist(), second.tolist())
        covered += found.difference.low <= 0.1 <= found.difference.high
        told += found.p_value < 1e-3
    assert covered >= 88
    assert told >= 95
    assert paired_test([1.0, 2.0], [1.0, 2.0]).p_value == 1.0  # control: nothing to tell
    with pytest.raises(ValueError, match="same length, got 1 and 2"):
        paired_test([1.0], [1.0, 2.0])


def test_an_estimate_is_rounded_with_its_interval_and_what_is_missing() -> None:
    found = over_seeds([0.01, 0.02, 0.03, math.nan])
    assert found.rounded(2, factor=100) == f"2.00 [{100 * found.low:.2f}, {100 * found.high:.2f}] (1 missing)"
    assert over_seeds([1.5]).rounded(1) == "1.5"  # one seed has no interval
    assert over_seeds([math.nan, math.nan]).rounded() == "none (2 missing)"


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"value": 0.5, "n": -1}, "counts must be 0 or more, got n -1"),
        ({"value": 0.5, "n": 1, "missing": -1}, "counts must be 0 or more, got n 1 and missing -1"),
        ({"value": 0.5, "n": 3, "low": 0.6, "high": 0.4}, "must be in order, got 0.6, 0.5 and 0.4"),
        ({"value": 0.7, "n": 3, "low": 0.4, "high": 0.6, "interval": "t"}, "must be in order"),
        ({"value": 7.0, "n": 3, "unit": "AUROC"}, "AUROC must be within 0 to 1, got 7.00"),
        (
            {"value": 1.5, "n": 3, "low": 0.5, "high": 2.0, "interval": "Wilson"},
            "a rate must be within 0 to 1",
        ),
    ],
)
def test_numbers_that_cannot_be_an_estimate(numbers: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Estimate(**numbers)


def test_a_biased_percentile_interval_may_leave_its_value_out() -> None:
    found = Estimate(value=0.7, n=3, low=0.4, high=0.6, unit="cosine", interval="bootstrap over categories")
    assert found.high < found.value
