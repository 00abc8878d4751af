"""Readings of harm, categories, severity and preferences find what was planted, and nothing under shuffled labels."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.metrics import cohen_kappa_score, f1_score

from interp.representations.severity import (
    AnswerFeatures,
    best_layer,
    category_directions,
    category_geometry,
    harm_directions,
    preference_readings,
    quadratic_kappa,
    severity_readings,
    severity_scores,
    shuffled_signs,
)

D = 24


def axis(k: int) -> np.ndarray:
    return np.eye(D)[k]


def test_the_harm_direction_is_the_mean_difference_at_the_layer_where_it_is() -> None:
    generator = torch.Generator().manual_seed(0)
    safe = torch.randn(60, 3, D, generator=generator)
    unsafe = safe + 0.3 * torch.randn(60, 3, D, generator=generator)
    unsafe[:, 1, 5] += 2.0
    found = harm_directions(unsafe, safe)
    torch.testing.assert_close(found, (unsafe - safe).mean(0), atol=1e-6, rtol=1e-5)
    assert best_layer(unsafe, safe, found) == 1
    control = shuffled_signs(unsafe - safe, unsafe - safe)
    assert control.norm_ratio[1] > 4 > 2.5 > control.norm_ratio[0]
    assert abs(float(control.told_apart[1]) - 0.5) < 0.2
    with pytest.raises(ValueError, match="needs mixed pairs"):
        harm_directions(unsafe[:0], safe[:0])


def test_category_directions_lose_what_they_share() -> None:
    generator = np.random.default_rng(0)
    flags = np.zeros((90, 4), dtype=bool)
    flags[:30, 0], flags[30:60, 1], flags[60:, 2], flags[:5, 3] = True, True, True, True
    flags[30:55, 2] = True  # categories 1 and 2 overlap
    signal = 3 * axis(0) + 2 * sum(np.outer(flags[:, c], axis(c + 1)) for c in range(3))
    differences = torch.tensor(signal + 0.1 * generator.normal(size=(90, D)), dtype=torch.float32)
    found = category_directions(differences, flags, ["a", "b", "c", "d"], min_pairs=20)
    assert found.names == ("a", "b", "c") and found.counts == (30, 30, 55)
    shared = differences.double().mean(0)
    assert (found.own.double() @ (shared / shared.norm())).abs().max() < 1e-4
    geometry = category_geometry(found, flags[:, :3])
    assert geometry.mean_cosine > 0.6  # what they share
    own = np.array(geometry.own_cosine)
    assert own[1, 2] > own[0, 1] and own[1, 2] > own[0, 2]
    labels = np.array(geometry.label_correlation)
    np.testing.assert_allclose(labels, np.corrcoef(flags[:, :3].astype(float), rowvar=False), atol=1e-12)
    assert labels[1, 2] > 0 > labels[0, 2]
    with pytest.raises(ValueError, match="no category has 99 mixed pairs, the largest has 55"):
        category_directions(differences, flags, list("abcd"), min_pairs=99)


def features(n: int, where: int, seed: int) -> AnswerFeatures:
    generator = np.random.default_rng(seed)
    levels = generator.choice([1, 2, 3], size=n, p=[0.2, 0.6, 0.2])
    states = generator.normal(size=(n, D)) + np.outer(levels - 2, 2.5 * axis(where))
    return AnswerFeatures(
        states=states,
        flags=generator.random((n, 3)) < 0.3,
        lengths=generator.integers(5, 50, n).astype(float),
        levels=levels,
    )


@pytest.mark.parametrize("where", [0, 7])
def test_severity_is_found_where_it_was_planted(where: int) -> None:
    """Along the harm direction (axis 0), or along a direction of its own (axis 7)."""
    readings = severity_readings(features(400, where, 1), features(200, where, 2), axis(0), n_components=D)
    along, without = (
        readings[name].kappa for name in ("along the harm direction", "without the harm direction")
    )
    assert readings["all directions"].kappa.low > 0.5
    if where == 0:
        assert along.low > 0.5 and along.above(without)
        assert (readings["all directions"].cosine_with_harm or 0) > 0.9
    else:
        assert without.low > 0.5 and without.above(along)
        assert (readings["all directions"].cosine_with_harm or 0) < 0.3
    for name in ("categories", "length", "majority"):
        assert readings[name].kappa.value < 0.2
    assert 0.5 < readings["majority"].accuracy.value < 0.7  # as accurate as the levels are unequal
    mixed = features(400, where, 1)
    control = severity_readings(
        mixed._replace(levels=np.random.default_rng(3).permutation(mixed.levels)),
        features(200, where, 2),
        axis(0),
    )
    assert control["all directions"].kappa.value < 0.2


def test_scores_are_those_of_the_libraries() -> None:
    generator = np.random.default_rng(4)
    levels, predicted = generator.integers(1, 4, 80), generator.integers(1, 4, 80)
    latent = generator.normal(size=80) + levels
    found = severity_scores(levels, predicted, latent)
    assert found.kappa.value == pytest.approx(cohen_kappa_score(levels, predicted, weights="quadratic"))
    assert found.macro_f1.value == pytest.approx(f1_score(levels, predicted, average="macro"))
    assert found.spearman.value == pytest.approx(spearmanr(latent, levels).statistic)
    assert found.spearman.low < found.spearman.value < found.spearman.high
    assert not severity_scores(levels, predicted, np.zeros(80)).spearman.measurable


def test_quadratic_kappa_by_hand() -> None:
    # One of four is wrong by two levels: weights 1 of a mean squared distance by chance of 2.
    assert quadratic_kappa(np.array([1, 1, 3, 3]), np.array([1, 3, 3, 3])) == pytest.approx(1 - 1 / 2)
    assert quadratic_kappa(np.array([1, 3]), np.array([2, 2])) == 0
    assert np.isnan(quadratic_kappa(np.array([2, 2]), np.array([2, 2])))


def preferences(n: int, seed: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Differences that hold helpfulness along axis 1 and harmlessness along axis 2."""
    generator = np.random.default_rng(seed)
    labels = {name: generator.random(n) < 0.5 for name in ("better", "safer")}
    signal = sum(np.outer(labels[name] * 2 - 1, axis(k)) for name, k in (("better", 1), ("safer", 2)))
    return signal + 0.5 * generator.normal(size=(n, D)), labels


def test_both_preferences_are_told_apart_on_pairs_in_conflict() -> None:
    readings, angle = preference_readings(*preferences(300, 0), *preferences(200, 1), n_components=D)
    assert abs(angle) < 0.2
    assert all(each.conflict.low > 0.85 for each in readings.values())
    # Where harmlessness alone is in the states, a probe for helpfulness fails on conflicts.
    x, labels = preferences(300, 2)
    held, held_labels = preferences(200, 3)
    for part in (x, held):
        part[:, 1] = 0
    agreeing = {**labels, "better": labels["safer"]}
    only, angle = preference_readings(x, agreeing, held, held_labels, n_components=D)
    assert only["better"].conflict.high < 0.2 and angle > 0.95
