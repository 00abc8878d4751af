"""Detectors of harmful prompts that are fitted on a model's states, or on words: what the guard is compared with.

Each is fitted on training prompts and, where it has a layer to choose, chosen on validation prompts.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from interp.data.prompts import Kind, Prompts
from interp.directions import difference_in_means, project, random_direction
from interp.evaluation.responses import Responses
from interp.representations.beliefs import belief, fit_centres
from interp.stats import auroc

KINDS: tuple[Kind, ...] = ("harmful", "harmless")
CONTROL = "random direction (control)"
Scores = Callable[[Sequence[str], Tensor], list[float]]
"""(texts, states [prompt, layer, role, d_model]) → a score each, higher is more harmful."""
_LEAST = 8


class Detector(NamedTuple):
    """A fitted detector."""

    score: Scores
    threshold: float
    """Above it a prompt is called harmful, before any calibration."""
    about: str = ""
    """Layer and role that were picked."""


def fit_detectors(
    sets: Mapping[str, Prompts],
    read: Mapping[str, Float[Tensor, "prompt layer role d_model"]],
    seen: Mapping[str, Responses],
    seed: int,
) -> dict[str, Detector]:
    """All detectors that need no other model, fitted on `train-*` and chosen on `val-*`.

    Args:
        sets: prompts of `{train,val}-{harmful,harmless}`.
        read: their states, [prompt, layer, role (t_inst, t_post_inst), d_model].
        seen: what the model did with training prompts; the refusal direction takes those that behave, where there are
            enough; harmless prompts of another source are taken as answered.
    """
    train = [read[f"train-{kind}"] for kind in KINDS]
    val = [read[f"val-{kind}"] for kind in KINDS]
    centres = fit_centres(train[0][:, :, 0], train[1][:, :, 0])
    found = {
        "Latent Guard": Detector(
            lambda _, acts: belief(centres.margin(acts[:, :, 0])).tolist(), 0.0, "t_inst, all layers"
        )
    }
    rows = [
        seen[kind].rows(refused=kind == "harmful") if kind in seen else list(range(len(train[i])))
        for i, kind in enumerate(KINDS)
    ]
    behaved = min(map(len, rows)) >= _LEAST
    pair = [part[r][:, :, 1] if behaved else part[:, :, 1] for part, r in zip(train, rows, strict=True)]
    found["refusal direction"] = _refusal_direction(
        difference_in_means(pair[0].float(), pair[1].float()),
        pair,
        [part[:, :, 1].float() for part in val],
        behaved,
    )
    probe, layer, role = _probe(train, val)
    found["logistic probe"] = probe
    random = random_direction(train[0][0, layer, role].float(), seed=seed)

    def length(acts: Tensor) -> Tensor:
        values = acts[:, layer, role].float()
        return project(values, random.expand_as(values))

    means = [float(length(part).mean()) for part in train]
    # Turned towards the harmful side, as every fitted detector is: without it half of all draws are below chance.
    sign = 1.0 if means[0] >= means[1] else -1.0
    found[CONTROL] = Detector(
        lambda _, acts: (sign * length(acts)).tolist(), sign * sum(means) / 2, probe.about
    )
    words = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10.0, max_iter=2000)
    ).fit(
        [*sets["train-harmful"].texts, *sets["train-harmless"].texts],
        [1] * len(train[0]) + [0] * len(train[1]),
    )
    found["TF-IDF"] = Detector(
        lambda texts, _: words.decision_function(list(texts)).tolist(), 0.0, "words and pairs of words"
    )
    return found


def _refusal_direction(
    direction: Tensor, train: Sequence[Tensor], val: Sequence[Tensor], behaved: bool
) -> Detector:
    """Projection at the layer whose validation AUROC is highest; threshold halfway between the training means."""

    def best(layer: int) -> float:
        a, b = (project(part[:, layer], direction[layer].expand_as(part[:, layer])) for part in val)
        return auroc(a, b, resamples=0).value

    layer = max(range(direction.shape[0]), key=best)

    def score(_: Sequence[str], acts: Tensor) -> list[float]:
        values = acts[:, layer, 1].float()
        return project(values, direction[layer].expand_as(values)).tolist()

    means = [
        float(project(part[:, layer].float(), direction[layer].expand_as(part[:, layer])).mean())
        for part in train
    ]
    which = "" if behaved else ", of all prompts: too few behave"
    return Detector(score, sum(means) / 2, f"t_post_inst, layer {layer}{which}")


def _probe(train: Sequence[Tensor], val: Sequence[Tensor]) -> tuple[Detector, int, int]:
    """Logistic regression on standardised states; layer and role by validation AUROC, then by log-loss."""
    labels = [1] * len(train[0]) + [0] * len(train[1])
    held = [1] * len(val[0]) + [0] * len(val[1])

    def fit(layer: int, role: int) -> Any:
        x = torch.cat([part[:, layer, role] for part in train]).double().numpy()
        return make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000)).fit(x, labels)

    def quality(layer: int, role: int) -> tuple[float, float]:
        probe = fit(layer, role)
        x = torch.cat([part[:, layer, role] for part in val]).double().numpy()
        scores = torch.from_numpy(probe.decision_function(x))
        n = len(val[0])
        return auroc(scores[:n], scores[n:], resamples=0).value, -log_loss(held, probe.predict_proba(x)[:, 1])

    layer, role = max(
        ((layer, role) for layer in range(train[0].shape[1]) for role in (0, 1)),
        key=lambda place: quality(*place),
    )
    probe = fit(layer, role)

    def score(_: Sequence[str], acts: Tensor) -> list[float]:
        return probe.decision_function(acts[:, layer, role].double().numpy()).tolist()

    return Detector(score, 0.0, f"{('t_inst', 't_post_inst')[role]}, layer {layer}"), layer, role
