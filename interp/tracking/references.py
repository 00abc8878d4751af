"""Fitting the reference of a series: the layers of its directions and their controls.

Harmfulness is read at `t_inst`, refusal at `t_post_inst`, each at the layer (of the first 80%) whose difference in
means separates harmful from harmless validation prompts best, by the difference of the projected means in pooled
standard deviations. Each has a control direction (`interp.tracking.controls`). The AUROC of both is stored in the
reference's facts.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.data.prompt_sets import KINDS, PAIRED_KINDS, Kind, Prompts
from interp.directions import difference_in_means, project
from interp.engine.log_probs import next_token_log_probs
from interp.evaluation.compression import bits
from interp.evaluation.records import RefusalTokens
from interp.evaluation.refusals import find_refusal_tokens, refusal_metric
from interp.models.chat_model import ChatModel
from interp.models.tokens import ChatTokens
from interp.representations.beliefs import fit_centres
from interp.representations.confounds import leak_check
from interp.stats import auroc
from interp.storage.provenance import ModelProvenance
from interp.storage.stages import StageCache
from interp.tracking.controls import fit_control
from interp.tracking.measures import (
    ROLES,
    States,
    along,
    distributions,
    read_states,
    sample,
    shape,
    tokenised,
)
from interp.tracking.records import DirectionFacts, ReferenceFacts
from interp.tracking.spec import MIN_PROMPTS, Axis, Reference, TrackingSpec

logger = logging.getLogger(__name__)


def keep_reference(cache: StageCache, name: str, fit: Callable[[], Reference]) -> Reference:
    """The reference of this name from the cache, fitted where it is not there yet."""
    if name not in cache:
        fitted = fit()
        cache.put(f"{name}-tensors", fitted.tensors)
        fixed = _Fixed(model=fitted.model, facts=fitted.facts, axes=fitted.axes, samples=fitted.samples)
        cache.put(name, fixed, _Fixed)  # stored last, so that its presence means a complete reference
    fixed = cache.get(name, _Fixed)
    return Reference(
        model=fixed.model,
        facts=fixed.facts,
        axes=fixed.axes,
        tensors=cache.get(f"{name}-tensors"),
        samples=fixed.samples,
    )


@dataclass(frozen=True, kw_only=True)
class _Fixed:
    """A `Reference` without its tensors."""

    model: ModelProvenance
    facts: ReferenceFacts
    axes: tuple[Axis, ...]
    samples: dict[str, list[list[int]]]


def fit_reference(model: ChatModel, spec: TrackingSpec) -> Reference:
    """Fit the reference that the checkpoints of a series are measured against.

    Raises:
        ValueError: too few prompts, or activations that are not finite.
    """
    train: dict[Kind, Prompts] = {kind: spec.part(kind, "train") for kind in PAIRED_KINDS}
    if min(len(part) for part in train.values()) < MIN_PROMPTS:
        raise ValueError(
            f"a reference needs {MIN_PROMPTS} training prompts of each kind, got {len(train['harmful'])} harmful and "
            f"{len(train['harmless'])} harmless; add prompts or raise n_fit"
        )
    tokens = tokenised(model, spec, ("train", "val", "test"))
    behaviour = _behaviour(model, harmful=tokens["harmful", "train"], harmless=tokens["harmless", "train"])
    read = read_states(model, tokens)
    axes, directions = _fit_axes(read, behaviour, spec)
    facts = ReferenceFacts(
        shape=shape(model),
        refusal_tokens=behaviour.tokens,
        refused=len(behaviour.refused),
        answered=len(behaviour.answered),
        filtered=behaviour.filtered,
        leak=leak_check(
            model,
            train=(train["harmful"], train["harmless"]),
            held_out=(spec.part("harmful", "val"), spec.part("harmless", "val")),
            label=spec.prompts.name,
        ),
        directions=directions,
    )
    pooled = torch.cat([read[kind, "train"] for kind in PAIRED_KINDS])
    tensors = _centres(read, behaviour)
    tensors |= {f"train/{axis.name}": pooled[:, axis.layer, axis.role].clone() for axis in axes}
    reference = Reference(
        model=ModelProvenance(**model.provenance), facts=facts, axes=axes, tensors=tensors, samples={}
    )
    return _with_own_values(reference, model, spec, read)


class _Behaviour(NamedTuple):
    """Which training prompts the reference refuses and answers."""

    tokens: RefusalTokens
    refused: Int[Tensor, " refused"]
    """Rows of the refused harmful training prompts."""
    answered: Int[Tensor, " answered"]
    """Rows of the answered harmless training prompts."""

    @property
    def filtered(self) -> bool:
        """Whether there are enough to fit refusal on these prompts alone."""
        return min(len(self.refused), len(self.answered)) >= MIN_PROMPTS


def _behaviour(model: ChatModel, *, harmful: ChatTokens, harmless: ChatTokens) -> _Behaviour:
    """Which training prompts are refused and answered; logs a warning where these are too few."""
    after_harmful, after_harmless = (next_token_log_probs(model, part) for part in (harmful, harmless))
    tokens = find_refusal_tokens(after_harmful, after_harmless, model.tokenizer)
    behaviour = _Behaviour(
        tokens=tokens,
        refused=(refusal_metric(after_harmful, tokens.ids) > 0).nonzero()[:, 0],
        answered=(refusal_metric(after_harmless, tokens.ids) < 0).nonzero()[:, 0],
    )
    if not behaviour.filtered:
        logger.warning(
            "%s refuses %d of %d harmful and answers %d of %d harmless training prompts: too few for a refusal belief; "
            "its refusal direction is harmful minus harmless at the last template token",
            model.name,
            len(behaviour.refused),
            len(harmful),
            len(behaviour.answered),
            len(harmless),
        )
    return behaviour


def _fit_axes(
    read: States, behaviour: _Behaviour, spec: TrackingSpec
) -> tuple[tuple[Axis, ...], dict[str, DirectionFacts]]:
    """The axes of harmfulness and refusal at the layers that separate best, with their controls where there are any."""
    harmful, harmless = (read[kind, "train"] for kind in PAIRED_KINDS)
    pooled = torch.cat([harmful, harmless])
    validation = [read[kind, "val"] for kind in PAIRED_KINDS]
    every = (tuple(range(len(harmful))), tuple(range(len(harmful), len(pooled))))
    behaved = (
        tuple(behaviour.refused.tolist()),
        tuple((behaviour.answered + len(harmful)).tolist()),
    )
    groups = {"harmfulness": (0, every), "refusal": (1, behaved if behaviour.filtered else every)}
    axes: list[Axis] = []
    facts: dict[str, DirectionFacts] = {}
    for name, (role, (positive, negative)) in groups.items():
        acts = pooled[:, :, role]
        directions = difference_in_means(acts[list(positive)], acts[list(negative)])
        layer = best_layer(directions, *(part[:, :, role] for part in validation))
        axis = Axis(name=name, layer=layer, role=role, positive=positive, negative=negative)
        separation = auroc(
            *(project(part[:, layer, role], directions[layer]) for part in validation), resamples=200
        )
        control = fit_control(axis, directions[layer], pooled, torch.cat(validation), spec, separation)
        axes += [axis] if control is None else [axis, control.axis]
        if control is None:
            logger.warning("no contrast of %s is fit for a control of %s", spec.prompts.name, name)
        facts[name] = DirectionFacts(
            layer=layer,
            role=ROLES[role],
            auroc=separation,
            control=None if control is None else control.facts,
        )
    return tuple(axes), facts


def best_layer(
    directions: Float[Tensor, "layer d_model"],
    positive: Float[Tensor, "positive layer d_model"],
    negative: Float[Tensor, "negative layer d_model"],
) -> int:
    """The layer whose direction separates the two sets best, without the first layer and the last fifth."""
    a, b = (
        project(positive, directions.expand_as(positive)),
        project(negative, directions.expand_as(negative)),
    )
    pooled = ((a.var(0) + b.var(0)) / 2).sqrt()
    effect = torch.where(pooled > 0, (a.mean(0) - b.mean(0)) / pooled.clamp(min=1e-12), 0.0)
    last = max(2, int(0.8 * (len(directions) - 1)))
    return 1 + int(effect[1:last].argmax())


def _centres(read: States, behaviour: _Behaviour) -> dict[str, Tensor]:
    """Centres of harmful and harmless prompts at `t_inst`, of refused and answered ones at `t_post_inst`."""
    harmful, harmless = (read[kind, "train"] for kind in PAIRED_KINDS)
    centres = {"harm": fit_centres(harmful[:, :, 0], harmless[:, :, 0])}
    if behaviour.filtered:
        centres["refusal"] = fit_centres(
            harmful[behaviour.refused][:, :, 1], harmless[behaviour.answered][:, :, 1]
        )
    tensors: dict[str, Tensor] = {}
    for name, pair in centres.items():
        tensors |= {f"{name}/positive": pair.positive, f"{name}/negative": pair.negative}
    return tensors


def _with_own_values(reference: Reference, model: ChatModel, spec: TrackingSpec, read: States) -> Reference:
    """The reference with its own projections, code lengths and sampled replies, for comparison with checkpoints."""
    tensors = {
        f"test/{axis.name}/{kind}": along(reference, axis, read[kind, "test"])
        for axis in reference.axes
        for kind in KINDS
    }
    if "compression" in spec.measures:
        for name, corpus in spec.measured_corpora.items():
            tensors[f"bits/{name}"] = torch.from_numpy(bits(model, corpus, n_documents=spec.n_documents).bits)
    samples: dict[str, list[list[int]]] = {}
    if "kl" in spec.measures:
        samples = {kind: sample(model, spec, kind) for kind in PAIRED_KINDS}
        for kind in PAIRED_KINDS:
            tensors[f"log_probs/{kind}"] = distributions(model, spec, kind, samples[kind])
    return replace(reference, tensors=reference.tensors | tensors, samples=samples)
