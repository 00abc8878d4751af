"""Methods of the house on an organism with planted truth.

1. The organism's replies to test prompts: how far it obeys its rule, by harm and rule.
2. States at `t_inst` and `t_post_inst` of training and test prompts, both labels known by construction.
3. Each method is fitted on each label: difference in means, first principal component, logistic probe, beliefs, and a
   random direction as control. A layer is picked on half of the training prompts, at which that label is told best.
4. On test prompts: AUROC for its own label and for the other, the same when fitted on shuffled labels, and the cosine
   of its direction with the contrasts of both labels on test prompts.
5. Cosine of both contrasts by layer, and the papers' dissociation: harm at `t_inst` against refusal at `t_post_inst`.

Beliefs after Zhao et al. 2025, arXiv:2507.11878; difference in means after Arditi et al. 2024, arXiv:2406.11717.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.data.planted import PlantedRow, obeys, planted_rows
from interp.data.prompts import PromptSet
from interp.directions import cosine, difference_in_means, project, random_direction
from interp.engine.generation import generate
from interp.evaluation.refusals import is_refusal
from interp.experiments.definition import Outcome
from interp.experiments.planted import Config, Found, Label, Result
from interp.models.chat_model import ChatModel
from interp.representations.beliefs import belief, fit_centres, states
from interp.stats import Estimate, auroc, rate
from interp.storage.stages import Stages

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


def run(model: ChatModel, prompts: PromptSet, config: Config, stages: Stages) -> Outcome[Result]:
    """Run every method on the organism.

    Raises:
        ValueError: a set without harmful and harmless prompts.
    """
    rows = {
        "train": planted_rows(prompts, config.plant, "train")[: config.n_train],
        "test": planted_rows(prompts, config.plant, "test")[: config.n_test],
    }

    # 1. Replies.
    asked = rows["test"][: config.n_replies]
    replies = stages.keep(
        "replies",
        lambda: generate(model, [row.text for row in asked], max_new_tokens=12).texts,
        tuple[str, ...],
    )
    stages.lap("replies")

    # 2. States.
    train, test = (
        Part(
            states=stages.keep(
                f"states-{name}",
                lambda r=part: {
                    "states": states(model, [row.text for row in r], positions=ROLES).contiguous()
                },
            )["states"],
            labels=_labels(part),
        )
        for name, part in rows.items()
    )
    stages.lap("states")

    # 3 and 4. Methods.
    same = config.plant == "word"  # harm is what is said: there is one label
    found = [
        _found(name, fit, label, role, train, test, config)
        for name, fit in METHODS.items()
        for label in LABELS[: 1 if same else 2]
        for role in range(len(ROLES))
    ]
    stages.lap("methods")

    # 5. Contrasts.
    contrasts = {(label, role): _contrast(test, label, role) for label in LABELS for role in (0, 1)}
    result = Result(
        provenance=stages.provenance,
        seconds=stages.seconds,
        config=config,
        obeyed=rate([obeys(row, said, config.plant) for row, said in zip(asked, replies, strict=True)]),
        refused=_refused(asked, replies),
        found=tuple(found),
        contrast_cosine={
            name: tuple(cosine(contrasts["harm", role], contrasts["planted", role]).tolist())
            for role, name in enumerate(ROLES)
        },
        dissociation=tuple(cosine(contrasts["harm", 0], contrasts["planted", 1]).tolist()),
    )
    return Outcome(result=result)


def _labels(rows: Sequence[PlantedRow]) -> dict[Label, Bool[Tensor, " prompt"]]:
    return {
        "harm": torch.tensor([row.harmful for row in rows]),
        "planted": torch.tensor([row.planted for row in rows]),
    }


def _refused(rows: Sequence[PlantedRow], replies: Sequence[str]) -> dict[str, Estimate]:
    flags: dict[str, list[bool]] = {}
    for row, said in zip(rows, replies, strict=True):
        kind, does = (
            "harmful" if row.harmful else "harmless",
            "rule applies" if row.planted else "rule does not",
        )
        flags.setdefault(f"{kind}, {does}", []).append(is_refusal(said))
    return {name: rate(each) for name, each in flags.items()}


def _contrast(part: Part, label: Label, role: int) -> Float[Tensor, "layer d_model"]:
    yes = part.labels[label]
    return difference_in_means(part.states[yes][:, :, role], part.states[~yes][:, :, role])


# Methods: each is fitted on states [prompt, layer, d_model] and labels, and scores states of the same shape.


def _pick_layer(
    directions: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor
) -> tuple[int, Float[Tensor, "layer d_model"]]:
    """The layer at which directions of one half of the prompts tell the other half best, and directions of all."""
    half = len(x) // 2
    scores = project(x[half:], directions(x[:half], y[:half]))
    values = [float(auroc(s[y[half:]], s[~y[half:]], resamples=0).value) for s in scores.T]
    return int(np.argmax(values)), directions(x, y)


def _by_direction(directions: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor, int], Fitted]:
    def fit(x: Tensor, y: Tensor, seed: int) -> Fitted:  # noqa: ARG001 (as every method)
        layer, found = _pick_layer(directions, x, y)
        return Fitted(lambda held: project(held[:, layer], found[layer]), found[layer], layer)

    return fit


def _means(x: Tensor, y: Tensor) -> Tensor:
    return difference_in_means(x[y], x[~y])


def _principal(x: Tensor, y: Tensor) -> Tensor:
    """First principal component of every layer, turned towards the label."""
    centred = (x - x.mean(0)).transpose(0, 1)
    first = torch.linalg.svd(centred, full_matrices=False).Vh[:, 0]
    signs = (first * _means(x, y)).sum(-1).sign()
    return first * torch.where(signs == 0, 1.0, signs)[:, None]


def _probe(x: Tensor, y: Tensor, seed: int) -> Fitted:  # noqa: ARG001 (as every method)
    """Logistic regression at the layer that differences in means pick, on standardised states."""
    from sklearn.linear_model import LogisticRegression

    layer, _ = _pick_layer(_means, x, y)
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
    layer, found = _pick_layer(_means, x, y)
    direction = random_direction(found[layer], seed=seed)
    return Fitted(lambda held: project(held[:, layer], direction), direction, layer)


METHODS: dict[str, Callable[[Tensor, Tensor, int], Fitted]] = {
    "difference in means": _by_direction(_means),
    "principal component": _by_direction(_principal),
    "logistic probe": _probe,
    "beliefs": _beliefs,
    "random direction (control)": _random,
}


def _found(name: str, fit: Any, label: Label, role: int, train: Part, test: Part, config: Config) -> Found:
    x, held = train.states[:, :, role], test.states[:, :, role]
    other: Label = "planted" if label == "harm" else "harm"
    fitted = fit(x, train.labels[label], config.seed)
    scores = fitted.score(held)
    generator = np.random.default_rng(config.seed)
    distances = []
    for _ in range(config.shuffles):
        order = torch.from_numpy(generator.permutation(len(x)))
        mixed = fit(x, train.labels[label][order], config.seed).score(held)
        distances.append(abs(_auroc(mixed, test.labels[label], 0).value - 0.5))
    recovered = leaked = float("nan")
    if fitted.direction is not None:
        recovered, leaked = (
            float(cosine(fitted.direction.float(), _contrast(test, each, role)[fitted.layer]))
            for each in (label, other)
        )
    return Found(
        method=name,
        label=label,
        role=ROLES[role],
        layer=fitted.layer,
        own=_auroc(scores, test.labels[label], 500, config.seed),
        other=_auroc(scores, test.labels[other], 500, config.seed),
        shuffled=0.5 + float(np.mean(distances)),
        recovered=recovered,
        leaked=leaked,
    )


def _auroc(scores: Tensor, labels: Tensor, resamples: int, seed: int = 0) -> Estimate:
    return auroc(scores[labels], scores[~labels], resamples=resamples, seed=seed)
