"""Scores that compare a text with changed versions of it: DetectGPT, NPR, and DNA-GPT by regeneration.

    scores = perturbation_scores(model, texts, WordPerturber(), n_perturbations=20)
    scores[0].detect_gpt, scores[0].npr
    dna_gpt(model, texts)[0].likelihood_gap

| score | formula | source |
|---|---|---|
| DetectGPT | (LL(x) - mean LL(x')) / std LL(x') | Mitchell et al. 2023, arXiv:2301.11305, section 4 |
| DetectGPT, d | LL(x) - mean LL(x') | |
| NPR | mean LR(x') / LR(x) | Su et al. 2023, arXiv:2306.05540, "NPR" |
| DNA-GPT, white-box | LL(x) - mean LL(x'') | Yang et al. 2023, arXiv:2305.17359, "WScore" |
| DNA-GPT, black-box | overlap of n-grams of x and x'' | the same, "BScore" |

LL is the mean log-likelihood per token, LR the mean log-rank, x' a perturbed version, x'' a text whose second half the
model wrote again. All are higher for machine-written text. With the same model as scorer and author they are published
near AUROC 0.95, under paraphrase near chance.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from interp.detectors.machine_text.perturbers import Perturber
from interp.detectors.machine_text.reading import check_finite, check_texts, map_texts, token_ids
from interp.detectors.machine_text.scores import TextScores, TokenScores, distribution_columns, text_scores
from interp.display.progress import progress
from interp.engine.activations import fast_path_agrees
from interp.engine.generation import generate
from interp.engine.interventions import Intervention
from interp.engine.log_probs import token_count
from interp.engine.packed_texts import map_packed_positions
from interp.engine.plain_texts import leading_ids, scored_windows
from interp.models.chat_model import ChatModel
from interp.models.tokens import ChatTokens


@dataclass(frozen=True, kw_only=True)
class PerturbationScores:
    """How a text differs from its perturbed versions; higher for machine-written text."""

    detect_gpt: float
    """Log-likelihood above the mean of the versions, in their standard deviations."""
    detect_gpt_difference: float
    """The same in nats per token."""
    npr: float
    """Mean log-rank of the versions over that of the text; NaN for a text whose every token is the likeliest."""
    n_perturbations: int
    """Number of versions."""


def perturbation_scores(
    model: ChatModel,
    texts: Sequence[str],
    perturber: Perturber,
    *,
    n_perturbations: int = 10,
    seed: int = 0,
    interventions: Sequence[Intervention] = (),
    fast: bool = True,
    show_progress: bool = False,
) -> list[PerturbationScores]:
    """DetectGPT and NPR of every text, in order.

    A text and its versions run as one prefix tree (`interp.engine.packed_texts`), unless there are interventions, a
    text is longer than the context, or the model cannot be packed.

    Args:
        perturber: `WordPerturber()`, `MaskedPerturber.load(name)`, or a function of the same signature.
        n_perturbations: published with 1, 10 and 100.
        fast: False runs every version by itself, in padded batches.

    Raises:
        ValueError: no perturbations, a perturber that gives another number of versions, or a text, or a version of
            one, that is too short.
    """
    check_texts(texts)
    if n_perturbations < 1:
        raise ValueError(f"n_perturbations must be 1 or more, got {n_perturbations}")
    found = []
    shown = progress(texts, total=len(texts), label="perturbed texts", show=show_progress)
    for number, text in enumerate(shown):
        token_ids([model], [text], first=number)
        versions = perturber(text, n_perturbations, seed=seed + number)
        if len(versions) != n_perturbations:
            raise ValueError(f"the perturber gave {len(versions)} versions of {n_perturbations} asked for")
        try:
            own, *changed = _version_scores(model, [text, *versions], interventions, fast)
        except ValueError as error:
            raise ValueError(f"versions of text {number}, which is their text 0: {error}") from error
        found.append(compare(own, changed))
    return found


def _version_scores(
    model: ChatModel, versions: Sequence[str], interventions: Sequence[Intervention], fast: bool
) -> list[TextScores]:
    ids = token_ids([model], versions)
    bos = leading_ids(model.tokenizer)
    whole = [(*bos, *row) for row in ids]
    tokens = ChatTokens(
        ids=tuple(whole),
        starts=(0,) * len(whole),
        ends=tuple(map(len, whole)),
        tokenizer=model.tokenizer,
    )
    fits = len(scored_windows([model], ids).texts) == len(ids)
    if fast and not interventions and fits and fast_path_agrees(model, tokens):
        columns = map_packed_positions(model, tokens, distribution_columns)
    else:
        parts = map_texts([model], ids, distribution_columns, interventions=interventions)
        columns = [part.values for part in parts]
    for number, values in enumerate(columns):
        check_finite(values, number)
    return [
        text_scores(TokenScores.of_columns(torch.tensor(row[-len(values) :]), values))
        for row, values in zip(ids, columns, strict=True)
    ]


def compare(own: TextScores, changed: Sequence[TextScores]) -> PerturbationScores:
    """DetectGPT and NPR from a text's scores and those of its versions."""
    likelihoods = np.array([scores["likelihood"] for scores in changed])
    log_ranks = np.array([scores["log_rank"] for scores in changed])
    difference = own["likelihood"] - float(likelihoods.mean())
    # As released: the population's standard deviation, and 1 where all versions score the same.
    deviation = float(likelihoods.std()) or 1.0
    return PerturbationScores(
        detect_gpt=difference / deviation,
        detect_gpt_difference=difference,
        npr=float(log_ranks.mean()) / own["log_rank"] if own["log_rank"] else math.nan,
        n_perturbations=len(changed),
    )


@dataclass(frozen=True, kw_only=True)
class RegenerationScores:
    """How a text compares with what the model writes after the same beginning; higher for machine-written text."""

    likelihood_gap: float
    """Mean log-likelihood of the text minus that of the regenerated ones, nats per token ("WScore"); NaN where the
    model wrote none."""
    overlap: float
    """Shared n-grams of the text's rest and the regenerated ones, weighted by n log n ("BScore"); 0 is none."""
    n_regenerated: int
    """Number of regenerated texts; those that the model ended at once are left out."""


def dna_gpt(
    model: ChatModel,
    texts: Sequence[str],
    *,
    truncation: float = 0.5,
    n_regenerated: int = 10,
    temperature: int | float = 1.0,
    seed: int = 0,
    interventions: Sequence[Intervention] = (),
    show_progress: bool = False,
) -> list[RegenerationScores]:
    """DNA-GPT of every text, in order: the model continues the text's beginning, to the text's own length.

    Args:
        truncation: share of the tokens that is kept (0.5 as published).
        temperature: of the continuations.
        interventions: on generation and scoring.

    Raises:
        ValueError: a truncation that leaves nothing to keep or to write, or fewer than one regeneration.
    """
    if not 0 < truncation < 1 or n_regenerated < 1:
        raise ValueError(
            f"truncation must lie between 0 and 1 and n_regenerated be 1 or more, got {truncation} and {n_regenerated}"
        )
    found, size = list[RegenerationScores](), token_count(model)
    special = set(model.tokenizer.all_special_ids)
    rows = token_ids([model], texts)
    for number, ids in enumerate(
        progress(rows, total=len(rows), label="regenerated texts", show=show_progress)
    ):
        kept = max(1, int(truncation * len(ids)))
        start = (*leading_ids(model.tokenizer), *ids[:kept])
        prompts = ChatTokens(
            ids=(start,) * n_regenerated,
            starts=(0,) * n_regenerated,
            ends=(len(start),) * n_regenerated,
            tokenizer=model.tokenizer,
        )
        written = generate(
            model,
            prompts,
            interventions=interventions,
            max_new_tokens=len(ids) - kept,
            temperature=float(temperature),
            seed=seed + number,
        )
        new = [[t for t in row if t not in special and t < size] for row in written.ids]
        again = [
            [*ids[:kept], *row] for row in new if row
        ]  # one that ended at once is no text to compare with
        # Scored as tokens: text that is decoded and cut again may be other tokens.
        parts = map_texts([model], [ids, *again], distribution_columns, interventions=interventions)
        for part in parts:
            check_finite(part.values, number)
        own, *others = (float(part.values[:, 0].double().mean()) for part in parts)
        rest = str(model.tokenizer.decode(ids[kept:])).split()
        overlaps = [ngram_overlap(text.split(), rest) for text in written.texts]
        gap = own - float(np.mean(others)) if others else math.nan
        found.append(
            RegenerationScores(
                likelihood_gap=gap, overlap=float(np.mean(overlaps)), n_regenerated=len(others)
            )
        )
    return found


def ngram_overlap(
    written: Sequence[str], rest: Sequence[str], *, shortest: int = 4, longest: int = 25
) -> float:
    """sum_n n log(n) |shared n-grams| / (|written| |n-grams of rest|): how much of a text is written again.

    Source: Yang et al. 2023, arXiv:2305.17359, "BScore", n from 4 to 25, f(n) = n log n.
    """
    total = 0.0
    for n in range(shortest, min(longest, len(written), len(rest)) + 1):
        ours, theirs = (
            Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1)) for words in (written, rest)
        )
        total += n * math.log(n) * (ours & theirs).total() / (len(written) * theirs.total())
    return total
