"""What is measured at one checkpoint, against a reference checkpoint of the same shape.

| group | rows | prompts |
|---|---|---|
| refusal | rates by both substring lists, refusal metric (log-odds of the reference's refusal tokens) | test, by kind |
| beliefs | harmfulness and refusal belief, with centres fitted here and with the reference's | test, by kind |
| directions | cosine of the direction fitted here with the reference's | train |
| shift | mean activation here minus the reference's along its directions, in their lengths | test, by kind |
| guard | AUROC of harmful against harmless prompts under the reference's centres (Latent Guard) | test |
| compression | bits per byte, and the paired change against the reference | corpora |
| kl | KL(reference || here) per token on the reference's own samples, temperature 1 | test, by kind |

The directions are harmfulness (`t_inst`), refusal (`t_post_inst`), and for each a control that has nothing to do with
safety, read at the same place and separating its own two classes about as well. A shift of -1 along harmfulness on
harmful prompts means: they moved as far as harmless ones lay away at the reference. What a shift is not: evidence that
the model uses the direction.

Which training prompts count as refused and answered is decided once, at the reference, so that what is fitted here
compares with what was fitted there; where the reference refuses too few, refusal beliefs have no value.

Intervals are 95%: Wilson for rates, bootstrap over prompts or documents otherwise. Source of the measures: Ji et al.
2025, arXiv:2406.06144 (rate, KL); Arditi et al. 2024, arXiv:2406.11717 (refusal metric); Zhao et al. 2025,
arXiv:2507.11878 (beliefs, guard); the shift along a direction and its control are this project's.
"""

import math
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.data.corpora import Corpus
from interp.data.prompts import KINDS, Kind, Split
from interp.directions import cosine, orthogonalised, project
from interp.engine.generation import generate
from interp.engine.log_probs import map_completions
from interp.evaluation.compression import CodeLengths, bits
from interp.evaluation.losses import token_kl
from interp.evaluation.refusals import refusal_rate, refusal_scores
from interp.models.chat_model import ChatModel
from interp.models.tokens import ChatTokens, tokenize
from interp.representations.beliefs import belief, fit_centres, states
from interp.stats import Estimate, auroc, mean_with_interval, ratio_with_interval
from interp.tracking.spec import Axis, Probe, Reference

Part = tuple[Kind, Split]
_RESAMPLES = 200


class Row(NamedTuple):
    """One number with its interval."""

    measure: str
    prompts: str | None
    """A kind of prompts, or a corpus; None where there are none."""
    rate: Estimate | None
    """None where it could not be measured; `note` says why."""
    layer: int | None = None
    note: str = ""


def measure(model: ChatModel, probe: Probe, reference: Reference) -> list[Row]:
    """Every row of the probe at this checkpoint, but KL from its own samples and the change of weights (`tracking`).

    Raises:
        ValueError: a model of another shape than the reference, or activations that are not finite.
    """
    check_shape(model, reference)
    rows: list[Row] = []
    tests: dict[Kind, ChatTokens] = {
        kind: tokenize(model.tokenizer, probe.part(kind, "test").texts) for kind in KINDS
    }
    if "refusal" in probe.measures:
        rows += _refusal(model, probe, reference, tests)
    if {"beliefs", "directions", "shift", "guard"} & set(probe.measures):
        read = read_states(model, probe)
        train = torch.cat([read["harmful", "train"], read["harmless", "train"]])
        here = {f"train/{axis.name}": train[:, axis.layer, axis.role] for axis in reference.axes}
        if "beliefs" in probe.measures:
            rows += _beliefs(reference, read)
        if "directions" in probe.measures:
            rows += [_cosine(reference, axis, here) for axis in reference.axes]
        if "shift" in probe.measures:
            rows += [_shift(reference, axis, kind, read) for axis in reference.axes for kind in KINDS]
        if "guard" in probe.measures:
            rows.append(_guard(reference, read))
    if "compression" in probe.measures:
        for corpus in probe.measured_corpora.values():
            rows += _compression(reference, corpus, bits(model, corpus, n_documents=probe.n_documents))
    if "kl" in probe.measures:
        rows += [_kl_from(model, probe, reference, kind) for kind in ("harmful", "harmless")]
    return rows


def check_shape(model: ChatModel, reference: Reference) -> None:
    """Raise a ValueError unless the model has the reference's shape and tokenizer."""
    for key, found in shape(model).items():
        if found != (wanted := reference.facts["shape"][key]):
            raise ValueError(
                f"{key} is {found}, at the reference {wanted}: checkpoints of one series must have one shape"
            )


def shape(model: ChatModel) -> dict[str, Any]:
    """What all checkpoints of a series share."""
    return {
        "n_layers": model.n_layers,
        "d_model": model.d_model,
        "vocabulary": model.d_vocab,
        "template_hash": model.template_hash,
    }


def read_states(
    model: ChatModel, probe: Probe, splits: Sequence[Split] = ("train", "test")
) -> dict[Part, Float[Tensor, "prompt layer role d_model"]]:
    """States of every part at `t_inst` and `t_post_inst`, read in one go."""
    keys: list[Part] = [
        (kind, split) for split in splits for kind in KINDS if split == "test" or kind != "borderline"
    ]
    tokens = [tokenize(model.tokenizer, probe.part(*key).texts) for key in keys]
    found = states(model, reduce(ChatTokens.joined, tokens)).float()
    return dict(zip(keys, found.split([len(part) for part in tokens]), strict=True))


def sample(model: ChatModel, probe: Probe, kind: Kind) -> list[list[int]]:
    """The model's own replies at temperature 1, as token ids."""
    prompts = probe.prompts[kind, "test"].first(probe.n_samples).texts
    done = generate(model, prompts, temperature=1.0, seed=probe.seed, max_new_tokens=probe.max_new_tokens)
    return [list(ids) for ids in done.ids]


def distributions(
    model: ChatModel, probe: Probe, kind: Kind, replies: Sequence[Sequence[int]]
) -> Float[Tensor, "token d_vocab"]:
    """Log-probabilities at every token of the replies, float16: 2 bytes a word of the vocabulary and token."""
    prompts = probe.prompts[kind, "test"].first(probe.n_samples).texts
    return torch.cat(map_completions(model, prompts, replies, lambda logs, _: logs.half()))


def kl_per_token(
    model: ChatModel,
    probe: Probe,
    kind: Kind,
    replies: Sequence[Sequence[int]],
    log_p: Float[Tensor, "token d_vocab"],
) -> Estimate:
    """Mean over tokens of KL(p || model) in nats, p given at every token of the replies; bootstrap over replies."""
    prompts = probe.prompts[kind, "test"].first(probe.n_samples).texts
    lengths = [len(reply) for reply in replies]
    found = token_kl(model, prompts, replies, log_p.split(lengths))
    sums = np.array([float(row.double().sum()) for row in found if len(row)])
    return ratio_with_interval(sums, np.array([n for n in lengths if n]))


def _refusal(
    model: ChatModel, probe: Probe, reference: Reference, tests: Mapping[Kind, ChatTokens]
) -> list[Row]:
    rows = []
    for kind, tokens in tests.items():
        done = generate(model, tokens, max_new_tokens=probe.max_new_tokens)
        scores = refusal_scores(model, tokens, reference.refusal_ids)
        rows += [
            Row("refusal_rate", kind, refusal_rate(done, "arditi")),
            Row("refusal_rate_24", kind, refusal_rate(done, "zhao")),
            Row("refusal_metric", kind, mean_with_interval(scores.tolist())),
        ]
    return rows


def _beliefs(reference: Reference, read: Mapping[Part, Tensor]) -> list[Row]:
    """Beliefs with centres fitted here, on the groups that the reference's were fitted on, and with the reference's."""
    train = torch.cat([read["harmful", "train"], read["harmless", "train"]])
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
                    rows.append(Row(label + suffix, kind, None, note=note))
                    continue
                values = belief(centres.margin(read[kind, "test"][:, :, axis.role]))
                rows.append(Row(label + suffix, kind, mean_with_interval(values.tolist())))
    return rows


def _cosine(reference: Reference, axis: Axis, here: Mapping[str, Tensor]) -> Row:
    """Cosine with the reference's direction; both are resampled over the same prompts."""
    value = float(cosine(reference.direction(axis, here), reference.direction(axis)))
    generator = torch.Generator().manual_seed(0)
    means = []
    for found in (here, reference.tensors):
        acts, draws = found[f"train/{axis.name}"].double(), []
        generator.manual_seed(0)  # the same draws for both
        for rows in (axis.positive, axis.negative):
            picks = torch.randint(len(rows), (_RESAMPLES, len(rows)), generator=generator)
            share = torch.zeros(_RESAMPLES, len(rows), dtype=torch.float64)
            share.scatter_add_(1, picks, torch.full_like(picks, 1 / len(rows), dtype=torch.float64))
            draws.append(share @ acts[list(rows)])
        vector = draws[0] - draws[1]
        if axis.orthogonal_to is not None:
            safety = reference.direction(reference.axis(axis.orthogonal_to), found)
            vector = orthogonalised(vector, safety.double().expand_as(vector))
        means.append(vector)
    # Resampled directions carry the sampling noise twice, so that percentiles of their cosines can leave the estimate
    # out: a normal interval of their SD.
    half = 1.96 * float(cosine(*means).double().std())
    n = len(axis.positive) + len(axis.negative)
    rate = Estimate(value=value, n=n, low=max(-1.0, value - half), high=min(1.0, value + half))
    return Row(f"cosine_{axis.name}", "train", rate, layer=axis.layer)


def along(
    reference: Reference, axis: Axis, read: Float[Tensor, "prompt layer role d_model"]
) -> Float[Tensor, " prompt"]:
    """Projection of the states at the axis' place on the reference's direction, in lengths of that direction."""
    vector = reference.direction(axis)
    return project(read[:, axis.layer, axis.role], vector) / vector.norm()


def _shift(reference: Reference, axis: Axis, kind: Kind, read: Mapping[Part, Tensor]) -> Row:
    moved = along(reference, axis, read[kind, "test"]) - reference.tensors[f"test/{axis.name}/{kind}"]
    return Row(f"shift_{axis.name}", kind, mean_with_interval(moved.tolist()), layer=axis.layer)


def _guard(reference: Reference, read: Mapping[Part, Tensor]) -> Row:
    centres = reference.centres("harm")
    assert centres is not None
    harmful, harmless = (
        belief(centres.margin(read[kind, "test"][:, :, 0])) for kind in ("harmful", "harmless")
    )
    return Row("guard_auroc", "harmful against harmless", auroc(harmful, harmless, resamples=_RESAMPLES))


def _compression(reference: Reference, corpus: Corpus, found: CodeLengths) -> list[Row]:
    before = reference.tensors[f"bits/{corpus.name}"].numpy()
    return [
        Row("bits_per_byte", corpus.name, _documents(ratio_with_interval(found.bits, found.bytes), found)),
        Row(
            "bits_per_byte_change",
            corpus.name,
            _documents(ratio_with_interval(found.bits - before, found.bytes), found),
        ),
    ]


def _documents(rate: Estimate, found: CodeLengths) -> Estimate:
    return Estimate(value=rate.value, n=len(found.bits), low=rate.low, high=rate.high)


def _kl_from(model: ChatModel, probe: Probe, reference: Reference, kind: Kind) -> Row:
    log_p = reference.tensors[f"log_probs/{kind}"]
    return Row("kl_from_reference", kind, kl_per_token(model, probe, kind, reference.samples[kind], log_p))


def as_records(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows as results store them: a number that is not finite becomes null and a note."""
    records = []
    for row in rows:
        rate, note = row.rate, row.note
        if rate is not None and not math.isfinite(rate.value):
            rate, note = None, note or "not finite"
        numbers = rate.as_dict() if rate is not None else {"value": None, "n": 0, "low": None, "high": None}
        records.append(
            {
                "measure": row.measure,
                "prompts": row.prompts,
                "layer": row.layer,
                **numbers,
                "status": "ok" if rate is not None else f"not measured: {note}",
            }
        )
    return records
