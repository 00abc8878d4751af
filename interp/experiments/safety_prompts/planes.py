"""The plane of a model's queries: fitted on training queries, measured on held-out ones, at the end and at layers."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor

from interp.data.prompt_sets import Ending
from interp.data.prompts import Prompts
from interp.data.safety_texts import safety_text
from interp.directions import cosine
from interp.evaluation.refusal_probabilities import first_token_refusal
from interp.experiments.safety_prompts import (
    NEUTRAL,
    NEUTRAL_TEXT,
    NONE,
    SAFETY,
    Config,
    Geometry,
    LayerPlane,
    Plane,
    Separation,
    ShiftParts,
    Similarity,
)
from interp.models.chat_model import ChatModel
from interp.representations.safety_plane import SafetySpace, anchor, plane_by_layer, shift_table
from interp.representations.safety_regressions import fit_folds
from interp.representations.safety_states import (
    Conditions,
    SafetyStates,
    asked_under,
    joined,
    query_sides,
    refusal_targets,
    safety_representations,
    safety_representations_by_layer,
)
from interp.stats import Estimate, auroc, mean_with_interval

Sides = dict[str, Prompts]
"""Queries by kind."""
TEXTS: Conditions = {NONE: "", **{name: safety_text(name) for name in SAFETY}}
"""System prompts that the plane is fitted under."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Fitted:
    """The plane after the final norm, with what it was fitted on."""

    space: SafetySpace
    states: SafetyStates
    """States of the training queries."""
    refusal: Float[Tensor, "condition query"]
    """Their refusal probabilities."""
    openers: tuple[int, ...]
    """First tokens that begin refusals."""


def fit_plane(model: ChatModel, train: Sides, config: Config, ending: Ending) -> Fitted:
    """States and refusal probabilities of the training queries, and the plane."""
    states = safety_representations(model, train, TEXTS, ending=ending)
    cheap = refusal_targets(model, train, TEXTS, ending=ending, states=states)
    assert cheap.tokens is not None
    targets = cheap.values
    if config.refusal == "sampled":
        targets = refusal_targets(
            model,
            train,
            TEXTS,
            method="sampled",
            n_samples=config.refusal_samples,
            max_new_tokens=config.refusal_tokens,
            ending=ending,
            seed=config.seed,
        ).values
    space = anchor(
        states,
        targets,
        n_components=config.n_components,
        folds=config.folds,
        solver=config.solver,
        seed=config.seed,
    )
    return Fitted(space=space, states=states, refusal=targets, openers=cheap.tokens.ids)


def geometry(
    model: ChatModel, fitted: Fitted, train: Sides, test: Sides, config: Config, ending: Ending
) -> Geometry:
    """What the plane says of the training queries and of held-out ones, after the final norm and at layers."""
    prompts = {**TEXTS, NEUTRAL: NEUTRAL_TEXT}
    states = safety_representations(model, test, prompts, ending=ending)
    refuses = opening_probabilities(model, test, TEXTS, fitted.openers, ending=ending) > 0.5
    return Geometry(
        plane=_drawn(fitted),
        separation=_separation(fitted, states, refuses, config),
        shifts=shift_parts(fitted.space, states, config.seed),
        similarity={kind: _similarity(states, kind == "harmful", config.seed) for kind in train},
        layers=_layers(model, fitted, train, test, refuses, config, ending),
    )


def opening_probabilities(
    model: ChatModel, queries: Sides, prompts: Conditions, openers: Sequence[int], *, ending: Ending
) -> Float[Tensor, "condition query"]:
    """Probability that the reply to each query begins with a refusal, harmful queries first."""
    every, rows = joined(query_sides(queries, ending)), []
    for prompt in prompts.values():
        with asked_under(model, every, prompt) as tokens:
            rows.append(first_token_refusal(model, tokens, openers))
    return torch.stack(rows)


def _drawn(fitted: Fitted) -> Plane:
    space, states = fitted.space, fitted.states
    harmful = states.harmful
    values = {
        name: {"harmful": row[harmful], "harmless": row[~harmful]}
        for name, row in zip(states.conditions, fitted.refusal, strict=True)
    }
    return Plane(
        points={
            name: {kind: on_plane(space, states.of(name, harmful=kind == "harmful")) for kind in values[name]}
            for name in states.conditions
        },
        refusal={name: {kind: tuple(v.tolist()) for kind, v in by.items()} for name, by in values.items()},
        explained=space.explained,
        refusal_weights=tuple(space.refusal_weights.tolist()),
        refusal_bias=space.refusal_bias,
        harm_weights=tuple(space.harm_weights.tolist()),
        harm_bias=space.harm_bias,
    )


def on_plane(space: SafetySpace, states: Float[Tensor, "query d_model"]) -> tuple[tuple[float, float], ...]:
    """Components 1 and 2 of every state."""
    return tuple((x, y) for x, y in space.coordinates(states.double())[:, :2].tolist())


def _separation(fitted: Fitted, states: SafetyStates, refuses: Tensor, config: Config) -> Separation:
    space = fitted.space
    sides = [states.of(NONE, harmful=harmful).double() for harmful in (True, False)]
    harm, refusal = _accuracies(space, states, refuses, config.seed)
    return Separation(
        harmfulness=auroc(*map(space.harmfulness, sides), seed=config.seed),
        shuffled=_shuffled(fitted, sides, config),
        harm_accuracy=harm,
        refusal_accuracy=refusal,
    )


def _shuffled(fitted: Fitted, sides: Sequence[Tensor], config: Config) -> Estimate:
    """AUROC on held-out queries of planes that were fitted to shuffled labels: a query has one label under all
    prompts."""
    states, space = fitted.states, fitted.space
    generator = torch.Generator().manual_seed(config.seed)
    n = len(states.harmful)
    labels = [states.harmful[torch.randperm(n, generator=generator)] for _ in range(config.n_shuffles)]
    points = space.coordinates(states.values.double().flatten(0, 1))
    targets = torch.stack([label.double().repeat(len(states.conditions)) for label in labels])
    folds = fit_folds(points, targets, folds=config.folds, solver="converged", seed=config.seed)
    held_out = [space.coordinates(side) for side in sides]
    values = [auroc(*(z @ weights for z in held_out), resamples=0).value for weights in folds.weights.mean(1)]
    return mean_with_interval(values, seed=config.seed, unit="AUROC")


def _accuracies(
    space: SafetySpace, states: SafetyStates, refuses: Tensor, seed: int
) -> tuple[Estimate, Estimate]:
    """Share of held-out queries on the right side of both boundaries, each a mean over the plane's system prompts."""
    values = torch.stack([states.values[states.conditions.index(name)] for name in TEXTS]).double()
    right = (
        (space.harmfulness(values) > 0) == states.harmful,
        (space.refusal(values) > 0) == refuses,
    )
    harm, refusal = (
        mean_with_interval(hits.double().mean(0).tolist(), seed=seed, unit="share") for hits in right
    )
    return harm, refusal


def shift_parts(space: SafetySpace, states: SafetyStates, seed: int) -> dict[str, dict[str, ShiftParts]]:
    """Mean shift of each kind of query under every system prompt but none."""
    parts: dict[str, dict[str, ShiftParts]] = {}
    for shift in shift_table(space, states, base=NONE, seed=seed):
        parts.setdefault(shift.condition, {})[shift.kind] = ShiftParts(
            refusal=shift.refusal, harmfulness=shift.harmfulness, rest=shift.rest, total=shift.total
        )
    return parts


def _similarity(states: SafetyStates, harmful: bool, seed: int) -> Similarity:
    none = states.of(NONE, harmful=harmful).double()
    shifts = {
        name: states.of(name, harmful=harmful).double() - none for name in states.conditions if name != NONE
    }
    return Similarity(
        safety=mean_cosine([(shifts[a], shifts[b]) for a, b in combinations(SAFETY, 2)], seed=seed),
        neutral=mean_cosine([(shifts[name], shifts[NEUTRAL]) for name in SAFETY], seed=seed),
    )


def mean_cosine(pairs: Sequence[tuple[Tensor, Tensor]], *, seed: int = 0, resamples: int = 500) -> Estimate:
    """Mean over pairs of the cosine of both mean shifts, with a 95% bootstrap interval over queries.

    Args:
        pairs: shifts [query, d_model] of the same queries.
    """
    n = len(pairs[0][0])
    draws = torch.randint(0, n, (resamples, n), generator=torch.Generator().manual_seed(seed))
    shares = torch.zeros(resamples, n, dtype=torch.float64)
    shares.scatter_add_(1, draws, torch.full(draws.shape, 1 / n, dtype=torch.float64))
    shares = torch.cat([torch.full((1, n), 1 / n, dtype=torch.float64), shares])  # first the mean itself
    cosines = (
        torch.stack([cosine(shares @ a.double(), shares @ b.double()) for a, b in pairs]).double().mean(0)
    )
    low, high = torch.quantile(cosines[1:], torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Estimate(value=cosines[0].item(), n=n, low=low, high=high, interval="bootstrap")


def _layers(
    model: ChatModel,
    fitted: Fitted,
    train: Sides,
    test: Sides,
    refuses: Tensor,
    config: Config,
    ending: Ending,
) -> tuple[LayerPlane, ...]:
    numbers = range(min(config.layer_step, model.n_layers - 1), model.n_layers, config.layer_step)
    planes = plane_by_layer(
        model,
        train,
        TEXTS,
        fitted.refusal,
        layers=numbers,
        ending=ending,
        n_components=config.n_components,
        folds=config.folds,
        solver="converged",
        seed=config.seed,
    )
    held_out = safety_representations_by_layer(
        model, test, TEXTS, layers=[plane.layer for plane in planes], ending=ending
    )
    layers = []
    for plane, states in zip(planes, held_out, strict=True):
        harm, refusal = _accuracies(plane.space, states, refuses, config.seed)
        shifts = shift_parts(plane.space, states, config.seed)
        layers.append(
            LayerPlane(
                layer=plane.layer,
                harm_accuracy=harm,
                refusal_accuracy=refusal,
                **plane.cosines._asdict(),
                towards_refusal={
                    kind: sum(_along(shifts[name][kind]) for name in SAFETY) / len(SAFETY) for kind in train
                },
            )
        )
    return tuple(layers)


def _along(shift: ShiftParts) -> float:
    """Component along the refusal normal as a share of the shift's length."""
    return shift.refusal.value / shift.total if shift.total else 0.0
