"""The measures taken at one checkpoint, against a reference checkpoint of the same shape.

| group | rows | prompts |
|---|---|---|
| refusal | rates by both substring lists, refusal metric (log-odds of the reference's refusal tokens) | test, by kind |
| beliefs | harm and refusal belief, with centres fitted at this checkpoint and with the reference's | test, by kind |
| directions | cosine of the direction fitted at this checkpoint with the reference's | train |
| shift | mean activation minus the reference's, along its directions and in units of their norms | test, by kind |
| guard | AUROC of harmful against harmless prompts under the reference's centres (Latent Guard) | test |
| compression | bits per byte, and the paired change against the reference | corpora |
| knowledge | accuracy on legal questions, probability of the right choice (not by default) | questions |
| detectability | AUROC of its own text against human text by its own scores, and their gap | bundled passages |
| kl | KL(reference || checkpoint) per token on the reference's own samples, temperature 1 | test, by kind |

The directions are harmfulness (`t_inst`), refusal (`t_post_inst`), and for each a control direction unrelated to
safety, read at the same layer and token, that separates its own two classes about as well. A shift of -1 along
harmfulness on harmful prompts means that they moved by the distance between harmful and harmless prompts at the
reference. A shift is no evidence that the model uses the direction.

Which training prompts count as refused and answered is decided once, at the reference, so that centres and directions
are fitted on the same prompts everywhere; where the reference refuses too few, refusal beliefs have no value.

Intervals are 95%: Wilson for rates, bootstrap over prompts or documents otherwise. Source of the measures: Ji et al.
2025, arXiv:2406.06144 (rate, KL); Arditi et al. 2024, arXiv:2406.11717 (refusal metric); Zhao et al. 2025,
arXiv:2507.11878 (beliefs, guard); the shift along a direction and its control are this project's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.data.corpora import Corpus
from interp.data.multiple_choice import load_questions
from interp.data.prompt_sets import KINDS, PAIRED_KINDS, Kind, Split
from interp.directions import cosine, orthogonalised, project
from interp.engine.generation import generate
from interp.engine.log_probs import map_completions
from interp.evaluation.compression import CodeLengths, bits
from interp.evaluation.losses import token_kl
from interp.evaluation.multiple_choice import option_scores
from interp.evaluation.refusals import refusal_rate, refusal_scores
from interp.models.chat_model import ChatModel
from interp.models.tokens import ChatTokens, tokenize
from interp.representations.beliefs import belief, fit_centres, states
from interp.stats import Estimate, auroc, mean_with_interval, ratio_with_interval
from interp.tracking.detectability import detectability
from interp.tracking.records import Measurement, ModelShape
from interp.tracking.spec import Axis, Reference, TrackingSpec

Part = tuple[Kind, Split]
States = dict[Part, Float[Tensor, "prompt layer role d_model"]]
"""States of each kind and split at `ROLES`, layers 0..L."""
ROLES: tuple[Literal["t_inst"], Literal["t_post_inst"]] = ("t_inst", "t_post_inst")
"""Token roles at which states are read, in the order of the axis `role`."""
_RESAMPLES = 200


def measure(model: ChatModel, spec: TrackingSpec, reference: Reference) -> list[Measurement]:
    """All measurements at one checkpoint except KL on its own samples and the weight change (see `tracker`).

    Raises:
        ValueError: a model of another shape than the reference, or activations that are not finite.
    """
    check_shape(model, reference)
    rows: list[Measurement] = []
    tokens = tokenised(model, spec)
    if "refusal" in spec.measures:
        rows += _refusal(model, spec, reference, {kind: tokens[kind, "test"] for kind in KINDS})
    if {"beliefs", "directions", "shift", "guard"} & set(spec.measures):
        read = read_states(model, tokens)
        train = torch.cat([read[kind, "train"] for kind in PAIRED_KINDS])
        here = {f"train/{axis.name}": train[:, axis.layer, axis.role] for axis in reference.axes}
        if "beliefs" in spec.measures:
            rows += _beliefs(reference, read)
        if "directions" in spec.measures:
            rows += [_cosine(reference, axis, here) for axis in reference.axes]
        if "shift" in spec.measures:
            rows += [_shift(reference, axis, kind, read) for axis in reference.axes for kind in KINDS]
        if "guard" in spec.measures:
            rows.append(_guard(reference, read))
    if "compression" in spec.measures:
        for corpus in spec.measured_corpora.values():
            rows += _compression(reference, corpus, bits(model, corpus, n_documents=spec.n_documents))
    if "knowledge" in spec.measures:
        rows += _knowledge(model, spec)
    if "detectability" in spec.measures:
        own = detectability(model, n_texts=spec.n_texts, text_tokens=spec.text_tokens, seed=spec.seed)
        rows += [measurement(name, detector, estimate) for (name, detector), estimate in own.items()]
    if "kl" in spec.measures:
        rows += [_kl_from(model, spec, reference, kind) for kind in PAIRED_KINDS]
    return rows


def check_shape(model: ChatModel, reference: Reference) -> None:
    """Raise a ValueError unless the model has the reference's shape and tokenizer."""
    for name, value in vars(shape(model)).items():
        if value != (wanted := getattr(reference.facts.shape, name)):
            raise ValueError(
                f"{name} is {value}, at the reference {wanted}: checkpoints of one series must have one shape"
            )


def shape(model: ChatModel) -> ModelShape:
    """The shape of a model, which all checkpoints of a series share."""
    return ModelShape(
        n_layers=model.n_layers,
        d_model=model.d_model,
        vocabulary=model.d_vocab,
        template_hash=model.template_hash,
    )


def tokenised(
    model: ChatModel, spec: TrackingSpec, splits: Sequence[Split] = ("train", "test")
) -> dict[Part, ChatTokens]:
    """The spec's prompts of every kind and split, as tokens; borderline prompts are in the test split alone."""
    parts: list[Part] = [
        (kind, split) for split in splits for kind in KINDS if split == "test" or kind != "borderline"
    ]
    return {part: tokenize(model.tokenizer, spec.part(*part).texts) for part in parts}


def read_states(model: ChatModel, tokens: Mapping[Part, ChatTokens]) -> States:
    """States of these prompts at `ROLES`, read in one call."""
    read = states(model, reduce(ChatTokens.joined, tokens.values())).float()
    return dict(zip(tokens, read.split([len(part) for part in tokens.values()]), strict=True))


def sample(model: ChatModel, spec: TrackingSpec, kind: Kind) -> list[list[int]]:
    """The model's own replies at temperature 1, as token ids."""
    prompts = spec.prompts[kind, "test"].first(spec.n_samples).texts
    replies = generate(model, prompts, temperature=1.0, seed=spec.seed, max_new_tokens=spec.max_new_tokens)
    return [list(ids) for ids in replies.ids]


def distributions(
    model: ChatModel, spec: TrackingSpec, kind: Kind, replies: Sequence[Sequence[int]]
) -> Float[Tensor, "token d_vocab"]:
    """Log-probabilities at every token of the replies, in float16: 2 bytes per token and vocabulary entry."""
    prompts = spec.prompts[kind, "test"].first(spec.n_samples).texts
    return torch.cat(map_completions(model, prompts, replies, lambda logs, _: logs.half()))


def kl_per_token(
    model: ChatModel,
    spec: TrackingSpec,
    kind: Kind,
    replies: Sequence[Sequence[int]],
    log_p: Float[Tensor, "token d_vocab"],
) -> Estimate:
    """Mean over reply tokens of KL(p || model) in nats for stored log-probabilities of p; bootstrap over replies."""
    prompts = spec.prompts[kind, "test"].first(spec.n_samples).texts
    lengths = [len(reply) for reply in replies]
    kl = token_kl(model, prompts, replies, log_p.split(lengths))
    sums = np.array([float(row.double().sum()) for row in kl if len(row)])
    return ratio_with_interval(sums, np.array([n for n in lengths if n]))


def _refusal(
    model: ChatModel, spec: TrackingSpec, reference: Reference, tests: Mapping[Kind, ChatTokens]
) -> list[Measurement]:
    rows = []
    for kind, tokens in tests.items():
        replies = generate(model, tokens, max_new_tokens=spec.max_new_tokens)
        scores = refusal_scores(model, tokens, reference.refusal_ids)
        rows += [
            measurement("refusal_rate", kind, refusal_rate(replies, "arditi")),
            measurement("refusal_rate_zhao", kind, refusal_rate(replies, "zhao")),
            measurement("refusal_metric", kind, mean_with_interval(scores.tolist())),
        ]
    return rows


def _beliefs(reference: Reference, read: States) -> list[Measurement]:
    """Beliefs with centres fitted at this checkpoint, on the reference's groups, and with the reference's centres."""
    train = torch.cat([read[kind, "train"] for kind in PAIRED_KINDS])
    rows = []
    for stored, axis, label in (
        (reference.centres("harm"), reference.axis("harmfulness"), "harmfulness_belief"),
        (reference.centres("refusal"), reference.axis("refusal"), "refusal_belief"),
    ):
        positive, negative = (train[list(group), :, axis.role] for group in (axis.positive, axis.negative))
        here = None if stored is None else fit_centres(positive, negative)
        for suffix, centres in (("", here), ("_reference", stored)):
            for kind in KINDS:
                if centres is None:
                    note = "too few refused or answered training prompts at the reference"
                    rows.append(measurement(label + suffix, kind, Estimate.unmeasured(), note=note))
                    continue
                values = belief(centres.margin(read[kind, "test"][:, :, axis.role]))
                rows.append(measurement(label + suffix, kind, mean_with_interval(values.tolist())))
    return rows


def _cosine(reference: Reference, axis: Axis, here: Mapping[str, Tensor]) -> Measurement:
    """Cosine with the reference's direction; the bootstrap resamples the same prompts for both."""
    value = float(cosine(reference.direction(axis, here), reference.direction(axis)))
    generator = torch.Generator().manual_seed(0)
    means = []
    for tensors in (here, reference.tensors):
        acts, draws = tensors[f"train/{axis.name}"].double(), []
        generator.manual_seed(0)  # the same resamples for both
        for rows in (axis.positive, axis.negative):
            picks = torch.randint(len(rows), (_RESAMPLES, len(rows)), generator=generator)
            share = torch.zeros(_RESAMPLES, len(rows), dtype=torch.float64)
            share.scatter_add_(1, picks, torch.full_like(picks, 1 / len(rows), dtype=torch.float64))
            draws.append(share @ acts[list(rows)])
        vector = draws[0] - draws[1]
        if axis.orthogonal_to is not None:
            safety = reference.direction(reference.axis(axis.orthogonal_to), tensors)
            vector = orthogonalised(vector, safety.double().expand_as(vector))
        means.append(vector)
    # Resampled directions contain the sampling noise twice, so a percentile interval of their cosines may exclude the
    # estimate: a normal interval with their SD is used.
    half = 1.96 * float(cosine(*means).double().std())
    n = len(axis.positive) + len(axis.negative)
    estimate = Estimate(
        value=value,
        n=n,
        low=max(-1.0, value - half),
        high=min(1.0, value + half),
        interval="normal, SD by bootstrap",
    )
    return measurement(f"cosine_{axis.name}", "train", estimate, layer=axis.layer)


def along(
    reference: Reference, axis: Axis, read: Float[Tensor, "prompt layer role d_model"]
) -> Float[Tensor, " prompt"]:
    """Projection of the states on the reference's direction at the axis' layer and role, in units of its norm."""
    vector = reference.direction(axis)
    return project(read[:, axis.layer, axis.role], vector) / vector.norm()


def _shift(reference: Reference, axis: Axis, kind: Kind, read: States) -> Measurement:
    moved = along(reference, axis, read[kind, "test"]) - reference.tensors[f"test/{axis.name}/{kind}"]
    return measurement(f"shift_{axis.name}", kind, mean_with_interval(moved.tolist()), layer=axis.layer)


def _guard(reference: Reference, read: States) -> Measurement:
    centres = reference.centres("harm")
    assert centres is not None
    harmful, harmless = (belief(centres.margin(read[kind, "test"][:, :, 0])) for kind in PAIRED_KINDS)
    separation = auroc(harmful, harmless, resamples=_RESAMPLES)
    return measurement("guard_auroc", "harmful against harmless", separation)


def _compression(reference: Reference, corpus: Corpus, lengths: CodeLengths) -> list[Measurement]:
    before = reference.tensors[f"bits/{corpus.name}"].numpy()
    per_byte = {
        "bits_per_byte": ratio_with_interval(lengths.bits, lengths.bytes),
        "bits_per_byte_change": ratio_with_interval(lengths.bits - before, lengths.bytes),
    }
    documents = len(lengths.bits)  # the bootstrap resamples documents, so n counts documents, not bytes
    return [
        measurement(name, corpus.name, replace(estimate, n=documents)) for name, estimate in per_byte.items()
    ]


def _knowledge(model: ChatModel, spec: TrackingSpec) -> list[Measurement]:
    """Accuracy on legal questions, a control: flat where safety goes and the model is not damaged in general."""
    questions = load_questions(spec.questions).first(spec.n_questions)
    scored = option_scores(model, questions)
    return [
        measurement("legal_accuracy", questions.name, scored.scores.accuracy),
        measurement("legal_right_probability", questions.name, scored.right_probability),
    ]


def _kl_from(model: ChatModel, spec: TrackingSpec, reference: Reference, kind: Kind) -> Measurement:
    log_p = reference.tensors[f"log_probs/{kind}"]
    kl = kl_per_token(model, spec, kind, reference.samples[kind], log_p)
    return measurement("kl_from_reference", kind, kl)


def measurement(
    measure: str, prompts: str | None, estimate: Estimate, *, layer: int | None = None, note: str = ""
) -> Measurement:
    """Make a measurement; a value that is not finite becomes not measurable, with a note."""
    if not estimate.measurable:
        estimate, note = Estimate.unmeasured(), note or "not finite"
    return Measurement(measure=measure, prompts=prompts, layer=layer, estimate=estimate, note=note)
