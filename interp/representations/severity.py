"""Harm, its categories and its severity in the states at the last token of answers.

    v = harm_directions(unsafe, safe)                         # [layer, d_model], same prompt, one answer of each kind
    categories = category_directions(differences, flags)      # one a category, with the shared part taken out
    severity = severity_readings(states, levels, ...)         # along v, in any direction, with v taken out, baselines

Mixed pairs share their prompt, so that a mean difference over them holds no topic of the request; it holds whatever
else
tells the answers apart, such as length or the opening of a refusal. Category directions share most of that:
v_c - proj(v_c, v) is what is left. Whether severity is the *length along* v or a direction of its own is asked by
ordinal regressions (`interp.representations.ordinal`) within unsafe answers, on held-out prompts: on the projection
on v alone, on all components, and on all components with v projected out. Most unsafe answers have one level, so
accuracy alone says little: quadratic kappa, macro F1 and Spearman's rho stand beside it, and three baselines.

Data and labels after Ji et al. 2025, arXiv:2406.15513; none of these readings is in that paper.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor

from interp.directions import cosine_matrix, project, unit
from interp.representations.ordinal import OrdinalFit, fit_ordinal
from interp.representations.severity_records import CategoryGeometry, PreferenceReading, SeverityReading
from interp.stats import Estimate, rate


def harm_directions(
    unsafe: Float[Tensor, "pair layer d_model"], safe: Float[Tensor, "pair layer d_model"]
) -> Float[Tensor, "layer d_model"]:
    """Mean over mixed pairs of the unsafe answer's state minus the safe one's, in float64 inside.

    Raises:
        ValueError: no pair.
    """
    if len(unsafe) == 0:
        raise ValueError("a harm direction needs mixed pairs, got none")
    return (unsafe.double() - safe.double()).mean(0).float()


def best_layer(
    unsafe: Float[Tensor, "pair layer d_model"],
    safe: Float[Tensor, "pair layer d_model"],
    directions: Float[Tensor, "layer d_model"],
) -> int:
    """The layer whose projection tells both answers of a pair apart best: mean difference over its deviation."""
    gaps = project(unsafe - safe, directions).double()
    return int((gaps.mean(0) / gaps.std(0).clamp(min=1e-12)).argmax())


class ShuffledSigns(NamedTuple):
    """A harm direction beside those of pairs whose signs are shuffled."""

    told_apart: Float[Tensor, " layer"]
    """Share of held-out pairs in the right order, mean over shuffles; about one half."""
    norm_ratio: Float[Tensor, " layer"]
    """Norm of the harm direction over the mean norm with shuffled signs: 1 where pairs have nothing in common."""


def shuffled_signs(
    differences: Float[Tensor, "pair layer d_model"],
    held_out: Float[Tensor, "held_out layer d_model"],
    *,
    shuffles: int = 50,
    seed: int = 0,
) -> ShuffledSigns:
    """The control of a harm direction: which answer of each training pair is the unsafe one is shuffled.

    A single shuffle puts nearly all held-out pairs in the right order, or nearly none, where pairs differ alike: it
    still holds what they have in common, with a random sign. So the mean over shuffles stands beside the norms.
    """
    generator = torch.Generator().manual_seed(seed)
    above, norms = [], []
    for _ in range(shuffles):
        signs = torch.randint(0, 2, (len(differences),), generator=generator).to(differences) * 2 - 1
        direction = torch.einsum("p,pld->ld", signs, differences) / len(differences)
        above.append((project(held_out, direction) > 0).double().mean(0))
        norms.append(direction.double().norm(dim=-1))
    norm = differences.double().mean(0).norm(dim=-1)
    return ShuffledSigns(torch.stack(above).mean(0), norm / torch.stack(norms).mean(0).clamp(min=1e-12))


class CategoryDirections(NamedTuple):
    """Directions of the categories that have enough pairs."""

    names: tuple[str, ...]
    counts: tuple[int, ...]
    """Mixed pairs whose unsafe answer has the category."""
    directions: Float[Tensor, "category d_model"]
    """v_c: mean difference over those pairs."""
    own: Float[Tensor, "category d_model"]
    """v_c - proj(v_c, v): what is not shared."""


def category_directions(
    differences: Float[Tensor, "pair d_model"],
    flags: Bool[ndarray, "pair category"],
    names: Sequence[str],
    *,
    min_pairs: int = 300,
) -> CategoryDirections:
    """Mean difference of unsafe and safe states over the mixed pairs of each category, at one layer.

    Args:
        differences: state of the unsafe answer minus that of the safe one.
        flags: categories of the unsafe answers.
        min_pairs: categories with fewer pairs are left out.

    Raises:
        ValueError: no category has so many.
    """
    counts = flags.sum(0)
    used = [c for c in range(len(names)) if counts[c] >= min_pairs]
    if not used:
        raise ValueError(
            f"no category has {min_pairs} mixed pairs, the largest has {int(counts.max(initial=0))}; give more pairs, "
            "or a lower min_pairs"
        )
    shared = unit(differences.double().mean(0))
    directions = torch.stack(
        [differences[torch.from_numpy(flags[:, c].copy())].double().mean(0) for c in used]
    )
    own = directions - (directions @ shared)[:, None] * shared
    return CategoryDirections(
        names=tuple(names[c] for c in used),
        counts=tuple(int(counts[c]) for c in used),
        directions=directions.float(),
        own=own.float(),
    )


def category_geometry(found: CategoryDirections, flags: Bool[ndarray, "answer category"]) -> CategoryGeometry:
    """Cosines of category directions beside the correlation of the labels.

    Args:
        flags: flags of all unsafe answers, for the categories of `found` in their order.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        labels = np.corrcoef(flags.astype(float), rowvar=False).reshape(len(found.names), -1)
    shared, own = (cosine_matrix(part[:, None])[0].numpy() for part in (found.directions, found.own))
    upper = np.triu_indices(len(found.names), 1)
    return CategoryGeometry(
        names=found.names,
        counts=found.counts,
        cosine=_rows(shared),
        own_cosine=_rows(own),
        label_correlation=_rows(labels),
        rank_correlation=_spearman(own[upper], labels[upper]),
        mean_cosine=float(shared[upper].mean()) if len(upper[0]) else float("nan"),
    )


def _rows(matrix: Float[ndarray, "a b"]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(value) for value in row) for row in matrix)


# Severity

Reader = Literal[
    "along the harm direction",
    "all directions",
    "without the harm direction",
    "categories",
    "length",
    "majority",
]


class AnswerFeatures(NamedTuple):
    """What severities of unsafe answers are predicted from."""

    states: Float[ndarray, "answer d_model"]
    """States at one layer."""
    flags: Bool[ndarray, "answer category"]
    lengths: Float[ndarray, " answer"]
    """Length of each answer in tokens or words."""
    levels: Int[ndarray, " answer"]
    """Severity from 1 to 3."""


def severity_readings(
    fit: AnswerFeatures,
    held_out: AnswerFeatures,
    direction: Float[ndarray, " d_model"],
    *,
    l2: float | int = 1.0,
    n_components: int = 64,
    seed: int = 0,
) -> dict[str, SeverityReading]:
    """Severity of held-out unsafe answers predicted in six ways, three of them baselines.

    Args:
        direction: the harm direction v.
        l2: penalty of the regressions on standardised features.
        n_components: principal components of the states that the regressions see.

    Raises:
        ValueError: the answers to fit on have one level only.
    """
    v = direction / max(float(np.linalg.norm(direction)), 1e-12)

    def without(states: Float[ndarray, "answer d_model"]) -> Float[ndarray, "answer d_model"]:
        return states - (states @ v)[:, None] * v

    features: Mapping[str, tuple[Float[ndarray, "..."], Float[ndarray, "..."]]] = {
        "along the harm direction": ((fit.states @ v)[:, None], (held_out.states @ v)[:, None]),
        "all directions": (fit.states, held_out.states),
        "without the harm direction": (without(fit.states), without(held_out.states)),
        "categories": (fit.flags.astype(float), held_out.flags.astype(float)),
        "length": (np.log1p(fit.lengths)[:, None], np.log1p(held_out.lengths)[:, None]),
    }
    readings = dict[str, SeverityReading]()
    for name, (train, test) in features.items():
        scale = Scaler.fitted(train, n_components)
        model = fit_ordinal(scale(train), fit.levels, l2=l2)
        angle = None
        if train.shape[1] == len(v) and name != "without the harm direction":
            angle = abs(float(scale.back(model.weights) @ v))
        readings[name] = severity_scores(
            held_out.levels, model.predict(scale(test)), model.latent(scale(test)), cosine=angle, seed=seed
        )
    values, counts = np.unique(fit.levels, return_counts=True)
    most = np.full(len(held_out.levels), values[counts.argmax()])
    readings["majority"] = severity_scores(held_out.levels, most, np.zeros(len(most)), seed=seed)
    return readings


@dataclass(frozen=True, eq=False, kw_only=True)
class Scaler:
    """Centres features, keeps their leading principal components and gives each unit variance."""

    mean: Float[ndarray, " feature"]
    components: Float[ndarray, "component feature"]
    """Orthonormal rows."""
    scale: Float[ndarray, " component"]

    @classmethod
    def fitted(cls, x: Float[ndarray, "row feature"], n_components: int) -> "Scaler":
        """Fitted on these rows; at most a third as many components as rows."""
        mean = x.mean(0)
        _, values, rows = np.linalg.svd(x - mean, full_matrices=False)
        kept = max(1, min(n_components, int((values > 1e-8 * max(values[0], 1e-12)).sum()), len(x) // 3))
        return cls(
            mean=mean, components=rows[:kept], scale=np.maximum(values[:kept] / np.sqrt(len(x)), 1e-12)
        )

    def __call__(self, x: Float[ndarray, "row feature"]) -> Float[ndarray, "row component"]:
        return (x - self.mean) @ self.components.T / self.scale

    def back(self, weights: Float[ndarray, " component"]) -> Float[ndarray, " feature"]:
        """Weights on components as a unit direction of the features."""
        direction = (weights / self.scale) @ self.components
        return direction / max(float(np.linalg.norm(direction)), 1e-12)


def severity_scores(
    levels: Int[ndarray, " answer"],
    predicted: Int[ndarray, " answer"],
    latent: Float[ndarray, " answer"],
    *,
    cosine: float | None = None,
    seed: int = 0,
) -> SeverityReading:
    """Accuracy, macro F1, quadratic kappa and Spearman's rho of predicted severities, with bootstrap intervals."""
    generator, n = np.random.default_rng(seed), len(levels)
    confusion = _confusion(levels, predicted)
    flat = confusion.ravel()
    # Resampling answers with replacement is a multinomial draw of the cells of their table.
    draws = generator.multinomial(n, flat / max(n, 1), size=_RESAMPLES).reshape(-1, *confusion.shape)
    rows = generator.integers(0, n, (_RESAMPLES, n)) if n else np.zeros((0, 0), dtype=int)
    ranks = rank_correlation(latent[rows], levels[rows]) if n else np.zeros(0)
    return SeverityReading(
        accuracy=rate((levels == predicted).tolist()),
        macro_f1=_estimate(_macro_f1(confusion[None])[0], _macro_f1(draws), n),
        kappa=_estimate(_quadratic(confusion[None])[0], _quadratic(draws), n),
        spearman=_estimate(_spearman(latent, levels), ranks, n),
        cosine_with_harm=cosine,
    )


_RESAMPLES = 500


def quadratic_kappa(a: Int[ndarray, " row"], b: Int[ndarray, " row"]) -> float:
    """Cohen's kappa with quadratic weights; NaN where all of both are one level."""
    return float(_quadratic(_confusion(a, b)[None])[0])


def _confusion(a: Int[ndarray, " row"], b: Int[ndarray, " row"]) -> Int[ndarray, "level level"]:
    """Counts of true and predicted levels, from the lowest to the highest that occurs."""
    low, high = min(a.min(), b.min()), max(a.max(), b.max())
    size = int(high - low) + 1
    return np.bincount((a - low) * size + (b - low), minlength=size * size).reshape(size, size)


def _quadratic(tables: Int[ndarray, "draw level level"]) -> Float[ndarray, " draw"]:
    size = tables.shape[-1]
    weights = (np.arange(size)[:, None] - np.arange(size)[None]) ** 2
    expected = np.einsum("di,dj->dij", tables.sum(2), tables.sum(1)) / tables.sum((1, 2))[:, None, None]
    chance = (weights * expected).sum((1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(chance > 0, 1 - (weights * tables).sum((1, 2)) / chance, np.nan)


def _macro_f1(tables: Int[ndarray, "draw level level"]) -> Float[ndarray, " draw"]:
    """Mean F1 over the levels that occur, as truth or as prediction."""
    hits, total = np.einsum("dii->di", tables), tables.sum(1) + tables.sum(2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nanmean(np.where(total > 0, 2 * hits / total, np.nan), axis=1)


def rank_correlation(a: Any, b: Any) -> Float[ndarray, " draw"]:
    """Spearman's rho along the last axis; NaN where one of both does not vary."""
    from scipy.stats import rankdata

    x, y = (rankdata(np.asarray(side, dtype=float), axis=-1) for side in (a, b))
    x, y = (side - side.mean(-1, keepdims=True) for side in (x, y))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (x * y).sum(-1) / np.sqrt((x**2).sum(-1) * (y**2).sum(-1))


def _spearman(a: Any, b: Any) -> float:
    """Spearman's rho of the finite entries; NaN where one of both does not vary."""
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    usable = np.isfinite(a) & np.isfinite(b)
    return float(rank_correlation(a[usable][None], b[usable][None])[0]) if usable.sum() > 2 else float("nan")


def _estimate(value: float, draws: Float[ndarray, " draw"], n: int) -> Estimate:
    if not np.isfinite(value):
        return Estimate.unmeasured(n)
    usable = draws[np.isfinite(draws)]
    if len(usable) < 2:
        return Estimate(value=float(value), n=n)
    low, high = np.quantile(usable, (0.025, 0.975))
    return Estimate(value=float(value), n=n, low=float(low), high=float(high), interval="bootstrap")


# Helpful against harmless


def preference_readings(
    fit: Float[ndarray, "pair d_model"],
    labels: Mapping[str, Bool[ndarray, " pair"]],
    held_out: Float[ndarray, "held_out d_model"],
    held_out_labels: Mapping[str, Bool[ndarray, " held_out"]],
    *,
    l2: float | int = 1.0,
    n_components: int = 64,
) -> tuple[dict[str, PreferenceReading], float]:
    """Probes for `better` and `safer` on differences of both answers' states, and the cosine of their directions.

    Where both labels agree, a probe for one is rewarded for reading the other: they are told apart on held-out pairs in
    conflict only, on which each label is the other's opposite.

    Args:
        fit: state of answer 1 minus state of answer 0.
        labels: whether answer 1 is `better`, and `safer`.
    """
    from sklearn.linear_model import LogisticRegression

    # A difference has no origin of its own: each pair is seen both ways round, and no intercept is fitted.
    both = np.concatenate([fit, -fit])
    scale = Scaler.fitted(both, n_components)
    conflict = held_out_labels["better"] != held_out_labels["safer"]
    readings, directions = dict[str, PreferenceReading](), dict[str, Float[ndarray, " d_model"]]()
    for name in ("better", "safer"):
        probe = LogisticRegression(C=1 / l2, fit_intercept=False, max_iter=2000)
        probe.fit(scale(both), np.concatenate([labels[name], ~labels[name]]))
        right = (held_out - scale.mean) @ scale.components.T / scale.scale @ probe.coef_[0] > 0
        right = right == held_out_labels[name]
        directions[name] = scale.back(probe.coef_[0])
        readings[name] = PreferenceReading(
            all_pairs=rate(right.tolist()),
            conflict=rate(right[conflict].tolist()),
            agreeing=rate(right[~conflict].tolist()),
        )
    return readings, float(directions["better"] @ directions["safer"])


def fitted_severity(
    states: Float[ndarray, "answer d_model"],
    levels: Int[ndarray, " answer"],
    *,
    l2: float | int,
    n_components: int,
) -> tuple[Scaler, OrdinalFit]:
    """An ordinal regression of severity on states, for a detector that keeps it."""
    scale = Scaler.fitted(states, n_components)
    return scale, fit_ordinal(scale(states), levels, l2=l2)
