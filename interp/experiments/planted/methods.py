"""Methods that read states alone, each fitted on one label and asked about both.

Difference in means, first principal component, logistic probe, beliefs, and a random direction as control. Every
method is fitted once on all training prompts, and once a seed on three quarters of them, drawn by that seed: the first
fit gives the AUROCs with their bootstrap over test prompts, the others how much they depend on what was fitted on.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.directions import cosine, difference_in_means, project, random_direction
from interp.experiments.planted import Config, Found, Label
from interp.representations.beliefs import belief, fit_centres
from interp.stats import Estimate, auroc, over_seeds

ROLES = ("t_inst", "t_post_inst")
LABELS: tuple[Label, Label] = ("harm", "planted")


class Fitted(NamedTuple):
    """A method fitted on one label at one role."""

    score: Callable[[Tensor], Tensor]
    """Scores states [prompt, layer, d_model]."""
    direction: Tensor | None
    """Its direction at the layer that it reads; None for a score over all layers."""
    layer: int


@dataclass(frozen=True, eq=False, kw_only=True)
class Part:
    """Prompts with states and both labels."""

    states: Float[Tensor, "prompt layer role d_model"]
    labels: dict[Label, Bool[Tensor, " prompt"]]


@dataclass
class Seeds:
    """What is measured once a seed."""

    own: list[float] = field(default_factory=list)
    shuffled: list[float] = field(default_factory=list)
    recovered: list[float] = field(default_factory=list)
    leaked: list[float] = field(default_factory=list)

    def compare(self, cosines: "Cosines") -> None:
        """Keep the cosines of a fitted direction with both contrasts."""
        self.recovered.append(cosines.own)
        self.leaked.append(cosines.other)

    def found(
        self, method: str, label: Label, role: int, layer: int, own: Estimate, other: Estimate
    ) -> Found:
        """With what was fitted on all training prompts, the record of the method."""
        return Found(
            method=method,
            label=label,
            role=ROLES[role],
            layer=layer,
            own=own,
            other=other,
            own_seeds=over_seeds(self.own),
            shuffled=over_seeds(self.shuffled),
            recovered=over_seeds(self.recovered),
            leaked=over_seeds(self.leaked),
        )


def contrast(part: Part, label: Label, role: int) -> Float[Tensor, "layer d_model"]:
    """Difference in means of a label at a role, by layer."""
    yes = part.labels[label]
    return difference_in_means(part.states[yes][:, :, role], part.states[~yes][:, :, role])


# Methods: each is fitted on states [prompt, layer, d_model] and labels, and scores states of the same shape.


def pick_layer(
    directions: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor
) -> tuple[int, Float[Tensor, "layer d_model"]]:
    """The layer at which directions of one half of the prompts tell the other half best, and directions of all."""
    half = len(x) // 2
    scores = project(x[half:], directions(x[:half], y[:half]))
    values = [float(auroc(s[y[half:]], s[~y[half:]], resamples=0).value) for s in scores.T]
    return int(np.argmax(values)), directions(x, y)


def _by_direction(directions: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor, int], Fitted]:
    def fit(x: Tensor, y: Tensor, seed: int) -> Fitted:  # noqa: ARG001 (as every method)
        layer, found = pick_layer(directions, x, y)
        return Fitted(lambda held: project(held[:, layer], found[layer]), found[layer], layer)

    return fit


def means(x: Tensor, y: Tensor) -> Tensor:
    """Difference in means of every layer."""
    return difference_in_means(x[y], x[~y])


def _principal(x: Tensor, y: Tensor) -> Tensor:
    """First principal component of every layer, turned towards the label."""
    centred = (x - x.mean(0)).transpose(0, 1)
    first = torch.linalg.svd(centred, full_matrices=False).Vh[:, 0]
    signs = (first * means(x, y)).sum(-1).sign()
    return first * torch.where(signs == 0, 1.0, signs)[:, None]


def _probe(x: Tensor, y: Tensor, seed: int) -> Fitted:  # noqa: ARG001 (as every method)
    """Logistic regression at the layer that differences in means pick, on standardised states."""
    from sklearn.linear_model import LogisticRegression

    layer, _ = pick_layer(means, x, y)
    mean, scale = x[:, layer].mean(0), x[:, layer].std(0).clamp(min=1e-6)
    fitted = LogisticRegression(C=0.01, max_iter=500).fit(((x[:, layer] - mean) / scale).numpy(), y.numpy())
    direction = torch.from_numpy(fitted.coef_[0]).float() / scale
    return Fitted(lambda held: project(held[:, layer] - mean, direction), direction, layer)


def _beliefs(x: Tensor, y: Tensor, seed: int) -> Fitted:  # noqa: ARG001 (as every method)
    """Cosine margins to both centres, averaged over all layers."""
    centres = fit_centres(x[y], x[~y])
    return Fitted(lambda held: belief(centres.margin(held)), None, -1)


def _random(x: Tensor, y: Tensor, seed: int) -> Fitted:
    """A random direction where differences in means would read."""
    layer, found = pick_layer(means, x, y)
    direction = random_direction(found[layer], seed=seed)
    return Fitted(lambda held: project(held[:, layer], direction), direction, layer)


Method = Callable[[Tensor, Tensor, int], Fitted]
"""Fits on states, a label and a seed."""
METHODS: dict[str, Method] = {
    "difference in means": _by_direction(means),
    "principal component": _by_direction(_principal),
    "logistic probe": _probe,
    "beliefs": _beliefs,
    "random direction (control)": _random,
}


def found_by_states(
    name: str, fit: Method, label: Label, role: int, train: Part, test: Part, config: Config
) -> Found:
    """What a method fitted on one label at one role finds on the test prompts."""
    x, y, held = train.states[:, :, role], train.labels[label], test.states[:, :, role]
    other = other_label(label)
    fitted = fit(x, y, config.seed)
    scores = fitted.score(held)
    seeds = Seeds()
    for seed in config.every_seed:
        rows = drawn_rows(len(x), seed)
        drawn = fit(x[rows], y[rows], seed)
        seeds.own.append(auroc_of(drawn.score(held), test.labels[label], 0).value)
        seeds.compare(cosines_with_contrasts(drawn.direction, drawn.layer, label, test, role))
        generator = np.random.default_rng(seed)
        mixed = [y[rows][torch.from_numpy(generator.permutation(len(rows)))] for _ in range(config.shuffles)]
        seeds.shuffled.append(
            float(np.mean([distance(fit(x[rows], m, seed).score(held), test.labels[label]) for m in mixed]))
        )
    own, told = (auroc_of(scores, test.labels[each], 500, config.seed) for each in (label, other))
    return seeds.found(name, label, role, fitted.layer, own, told)


class Cosines(NamedTuple):
    """Cosines of a direction with both contrasts."""

    own: float
    other: float


def cosines_with_contrasts(
    direction: Tensor | None, layer: int, label: Label, test: Part, role: int
) -> Cosines:
    """Cosines with the contrasts of both labels on test prompts at this layer; NaN without a direction."""
    if direction is None:
        return Cosines(float("nan"), float("nan"))
    return Cosines(
        *(
            float(cosine(direction.float(), contrast(test, each, role)[layer]))
            for each in (label, other_label(label))
        )
    )


def other_label(label: Label) -> Label:
    """The other of both labels."""
    return "planted" if label == "harm" else "harm"


def drawn_rows(n: int, seed: int) -> list[int]:
    """Three quarters of the rows, drawn by the seed, in their order."""
    return sorted(np.random.default_rng(seed).permutation(n)[: max(2, 3 * n // 4)].tolist())


def mixed_rows(rows: list[int], seed: int) -> list[int]:
    """The rows in another order: labels taken in it are shuffled ones."""
    return np.random.default_rng(seed).permutation(rows).tolist()


def auroc_of(scores: Tensor, labels: Tensor, resamples: int, seed: int = 0) -> Estimate:
    """AUROC of scores for labels; unmeasured where all labels are equal."""
    if not labels.any() or labels.all():
        return Estimate.unmeasured(len(labels), unit="AUROC")
    return auroc(scores[labels], scores[~labels], resamples=resamples, seed=seed)


def distance(scores: Tensor, labels: Tensor) -> float:
    """AUROC turned to the side above 0.5: what a false finding would show."""
    return beyond_chance(auroc_of(scores, labels, 0))


def beyond_chance(found: Estimate) -> float:
    """An AUROC turned to the side above 0.5."""
    return 0.5 + abs(found.value - 0.5)
