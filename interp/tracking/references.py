"""Fitting the reference of a series: where directions are read, and control directions of equal separability.

Places. Harmfulness is read at `t_inst`, refusal at `t_post_inst`, each at the layer (of the first 80%) whose difference
in means separates harmful from harmless validation prompts best, by the difference of the projected means in pooled
standard deviations.

Controls. Moving along a direction of safety says little unless other directions of equal standing stay. A control is
the difference in means of a contrast that is not safety: questions against instructions, long against short prompts,
one topic against the others. Both classes of a contrast hold as many harmful as harmless prompts, and the component
along the safety direction is taken out, so neither harm nor refusal is in it. Of all contrasts the one is taken whose
AUROC on validation prompts, at the safety direction's own layer and token, is nearest to the safety direction's. Both
AUROCs are kept in the reference's facts.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from interp.data.prompts import KINDS, Prompts
from interp.directions import cosine, difference_in_means, orthogonalised, project
from interp.engine.log_probs import next_token_log_probs
from interp.evaluation.compression import bits
from interp.evaluation.refusals import find_refusal_tokens, refusal_metric
from interp.models.chat_model import ChatModel
from interp.representations.beliefs import fit_centres
from interp.representations.confounds import leak_check
from interp.stats import Estimate, auroc
from interp.storage.untyped import Parts
from interp.tracking.measures import along, distributions, read_states, sample, shape
from interp.tracking.spec import LEAST, Axis, Probe, Reference

logger = logging.getLogger(__name__)

_QUESTION_WORDS = (
    "how what which who whom whose where when why is are was were do does did can could should would will may"
).split()


class Contrast(NamedTuple):
    """Two classes that are not about safety, as rows of harmful and then harmless prompts."""

    positive: list[int]
    negative: list[int]


def fit_reference(model: ChatModel, probe: Probe) -> Reference:
    """What this checkpoint fixes for a series of checkpoints that are measured against it.

    Raises:
        ValueError: prompts that are too few, or activations that are not finite.
    """
    train = {kind: probe.part(kind, "train") for kind in ("harmful", "harmless")}
    if min(len(part) for part in train.values()) < LEAST:
        raise ValueError(
            f"a reference needs {LEAST} training prompts of each kind, got {len(train['harmful'])} harmful and "
            f"{len(train['harmless'])} harmless; add prompts or raise n_fit"
        )
    first = [next_token_log_probs(model, train[kind].texts) for kind in ("harmful", "harmless")]
    tokens = find_refusal_tokens(first[0], first[1], model.tokenizer)
    refused = (refusal_metric(first[0], tokens.ids) > 0).nonzero()[:, 0]
    answered = (refusal_metric(first[1], tokens.ids) < 0).nonzero()[:, 0]
    behaved = min(len(refused), len(answered)) >= LEAST
    read = read_states(model, probe, ("train", "val", "test"))
    facts: dict[str, Any] = {
        "model": model.provenance,
        "shape": shape(model),
        "refusal_tokens": asdict(tokens),
        "refused": len(refused),
        "answered": len(answered),
        "filtered": behaved,
        "leak": leak_check(
            model,
            train=(train["harmful"], train["harmless"]),
            held_out=(probe.part("harmful", "val"), probe.part("harmless", "val")),
            label=probe.prompts.name,
        ).as_dict(),
    }
    tensors: dict[str, Tensor] = {}
    harmful, harmless = read["harmful", "train"], read["harmless", "train"]
    centres = {"harm": fit_centres(harmful[:, :, 0], harmless[:, :, 0])}
    if behaved:
        centres["refusal"] = fit_centres(harmful[refused][:, :, 1], harmless[answered][:, :, 1])
    else:
        logger.warning(
            "%s refuses %d of %d harmful and answers %d of %d harmless training prompts: too few for a refusal belief; "
            "its refusal direction is harmful minus harmless at the last template token",
            model.name,
            len(refused),
            len(harmful),
            len(answered),
            len(harmless),
        )
    for name, found in centres.items():
        tensors |= {f"{name}/positive": found.positive, f"{name}/negative": found.negative}
    rows = (range(len(harmful)), range(len(harmful), len(harmful) + len(harmless)))
    groups = {
        "harmfulness": (0, rows[0], rows[1]),
        "refusal": (1, refused.tolist(), (answered + len(harmful)).tolist()) if behaved else (1, *rows),
    }
    pooled = torch.cat([harmful, harmless])
    validation = {kind: read[kind, "val"] for kind in ("harmful", "harmless")}
    axes: list[Axis] = []
    facts["axes"] = {}
    for name, (role, positive, negative) in groups.items():
        acts = pooled[:, :, role]
        directions = difference_in_means(acts[list(positive)], acts[list(negative)])
        layer = best_layer(directions, validation["harmful"][:, :, role], validation["harmless"][:, :, role])
        axis = Axis(name=name, layer=layer, role=role, positive=tuple(positive), negative=tuple(negative))
        separation = auroc(
            *(project(part[:, layer, role], directions[layer]) for part in validation.values()), resamples=200
        )
        facts["axes"][name] = {"layer": layer, "role": role, "auroc": separation.as_dict()}
        axes.append(axis)
        tensors[f"train/{name}"] = pooled[:, layer, role].clone()
        control = _control(axis, directions[layer], pooled, validation, probe, separation)
        if control is None:
            logger.warning("no contrast of %s is fit for a control of %s", probe.prompts.name, name)
            continue
        axis, facts["axes"][axis.name] = control
        axes.append(axis)
        tensors[f"train/{axis.name}"] = pooled[:, layer, role].clone()
    reference = Reference(facts=facts, refusal_ids=tokens.ids, axes=tuple(axes), tensors=tensors, samples={})
    _values_here(model, probe, reference, read)
    return reference


def best_layer(
    directions: Float[Tensor, "layer d_model"],
    positive: Float[Tensor, "positive layer d_model"],
    negative: Float[Tensor, "negative layer d_model"],
) -> int:
    """The layer, but the first and the last fifth, whose direction separates the two sets best."""
    a, b = (
        project(positive, directions.expand_as(positive)),
        project(negative, directions.expand_as(negative)),
    )
    pooled = ((a.var(0) + b.var(0)) / 2).sqrt()
    effect = torch.where(pooled > 0, (a.mean(0) - b.mean(0)) / pooled.clamp(min=1e-12), 0.0)
    last = max(2, int(0.8 * (len(directions) - 1)))
    return 1 + int(effect[1:last].argmax())


def contrasts(harmful: Prompts, harmless: Prompts) -> dict[str, Contrast]:
    """Contrasts of the pooled prompts that are not about safety; each class half harmful, half harmless."""
    parts = (harmful, harmless)
    labels: dict[str, list[list[bool]]] = {
        "question or instruction": [[_is_question(text) for text in part] for part in parts],
        "long or short": [
            [len(text) > sorted(map(len, part))[len(part) // 2] for text in part] for part in parts
        ],
    }
    for category in sorted({c for c in harmful.categories if c} & {c for c in harmless.categories if c}):
        labels[f"prompts on {category} or on others"] = [
            [found == category for found in part.categories] for part in parts
        ]
    found = {}
    for name, by_kind in labels.items():
        sides: list[list[int]] = [[], []]
        for number, wanted in enumerate((True, False)):
            rows = [[i for i, label in enumerate(labels) if label is wanted] for labels in by_kind]
            n = min(map(len, rows))
            sides[number] = rows[0][:n] + [len(harmful) + i for i in rows[1][:n]]
        if min(map(len, sides)) >= 2 * LEAST:
            found[name] = Contrast(*sides)
    return found


def _is_question(text: str) -> bool:
    return text.rstrip().endswith("?") or text.split()[0].lower() in _QUESTION_WORDS


def _control(
    axis: Axis,
    direction: Float[Tensor, " d_model"],
    pooled: Float[Tensor, "prompt layer role d_model"],
    validation: Mapping[str, Tensor],
    probe: Probe,
    target: Estimate,
) -> tuple[Axis, dict[str, Any]] | None:
    """The contrast whose AUROC on validation prompts is nearest to the target; None when none is large enough."""
    train = contrasts(probe.part("harmful", "train"), probe.part("harmless", "train"))
    held_out = contrasts(probe.part("harmful", "val"), probe.part("harmless", "val"))
    acts = pooled[:, axis.layer, axis.role]
    scored = torch.cat(list(validation.values()))[:, axis.layer, axis.role]
    tried: dict[str, Estimate] = {}
    for name in train.keys() & held_out.keys():
        vector = _of_contrast(acts, train[name], direction)
        along = project(scored, vector)
        tried[name] = auroc(along[held_out[name].positive], along[held_out[name].negative], resamples=0)
    if not tried:
        return None
    best = min(sorted(tried), key=lambda name: abs(tried[name].value - target.value))
    vector = difference_in_means(acts[train[best].positive], acts[train[best].negative])
    projected = project(scored, _of_contrast(acts, train[best], direction))
    found = auroc(projected[held_out[best].positive], projected[held_out[best].negative], resamples=200)
    control = Axis(
        name=f"control_{axis.name}",
        layer=axis.layer,
        role=axis.role,
        positive=tuple(train[best].positive),
        negative=tuple(train[best].negative),
        orthogonal_to=axis.name,
        about=best,
    )
    return control, {
        "layer": axis.layer,
        "role": axis.role,
        "about": best,
        "auroc": found.as_dict(),
        "target_auroc": target.as_dict(),
        "cosine_before": float(cosine(vector, direction)),
        "tried": {name: rate.value for name, rate in sorted(tried.items())},
    }


def _of_contrast(
    acts: Float[Tensor, "prompt d_model"], contrast: Contrast, safety: Float[Tensor, " d_model"]
) -> Float[Tensor, " d_model"]:
    return orthogonalised(difference_in_means(acts[contrast.positive], acts[contrast.negative]), safety)


def _values_here(model: ChatModel, probe: Probe, reference: Reference, read: Mapping[Any, Tensor]) -> None:
    """Fill in what later checkpoints are compared with."""
    for axis in reference.axes:
        for kind in KINDS:
            reference.tensors[f"test/{axis.name}/{kind}"] = along(reference, axis, read[kind, "test"])
    if "compression" in probe.measures:
        for name, corpus in probe.measured_corpora.items():
            reference.tensors[f"bits/{name}"] = torch.from_numpy(
                bits(model, corpus, n_documents=probe.n_documents).bits
            )
    if "kl" in probe.measures:
        for kind in ("harmful", "harmless"):
            reference.samples[kind] = sample(model, probe, kind)
            reference.tensors[f"log_probs/{kind}"] = distributions(
                model, probe, kind, reference.samples[kind]
            )


def load_reference(parts: Parts, name: str, fit: Callable[[], Reference]) -> Reference:
    """The reference of this name, fitted when it is not among the finished parts."""

    def compute() -> dict[str, Any]:
        made = fit()
        (parts.folder / f"{name}.safetensors").unlink(missing_ok=True)
        parts.tensors(name, lambda: made.tensors)
        return {
            "facts": made.facts,
            "refusal_ids": made.refusal_ids,
            "axes": [asdict(axis) for axis in made.axes],
            "samples": made.samples,
        }

    stored = parts.numbers(name, compute)
    axes = [
        Axis(**{**axis, "positive": tuple(axis["positive"]), "negative": tuple(axis["negative"])})
        for axis in stored["axes"]
    ]
    return Reference(
        facts=stored["facts"],
        refusal_ids=tuple(stored["refusal_ids"]),
        axes=tuple(axes),
        tensors=parts.tensors(name, dict),
        samples=stored["samples"],
    )
