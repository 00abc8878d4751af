"""DetectGPT, NPR and DNA-GPT are the formulas over plain scores."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from interp.detectors.machine_text import perturbation
from interp.detectors.machine_text.perturbation import compare, dna_gpt, ngram_overlap, perturbation_scores
from interp.detectors.machine_text.perturbers import WordPerturber
from interp.detectors.machine_text.reading import score_texts
from interp.detectors.machine_text.scores import TextScores
from interp.engine.generation import Completions, generate
from interp.engine.log_probs import PositionReducer
from interp.engine.packed_texts import map_packed_positions
from interp.models.chat_model import ChatModel
from interp.models.tokens import ChatTokens

TEXTS = (
    "The river rose in the night, and by morning the lower road was gone.",
    "Four keys were found, but none fitted.",
)


def scores(likelihood: float, log_rank: float) -> TextScores:
    return TextScores(n_tokens=5, values={"likelihood": likelihood, "log_rank": log_rank})


def test_the_formulas_on_planted_numbers() -> None:
    found = compare(scores(-2.0, 0.5), [scores(-3.0, 0.6), scores(-3.5, 0.9), scores(-4.0, 1.2)])
    assert found.detect_gpt_difference == pytest.approx(1.5)
    assert found.detect_gpt == pytest.approx(1.5 / np.std([3.0, 3.5, 4.0]))  # ddof 0
    assert found.npr == pytest.approx(0.9 / 0.5)
    one = compare(scores(-2.0, 0.0), [scores(-3.0, 0.6)])
    assert one.detect_gpt == 1.0  # no spread counts as 1
    assert math.isnan(one.npr)


def unchanged(text: str, n: int, *, seed: int) -> list[str]:
    del seed
    return [text] * n


def lazy(text: str, n: int, *, seed: int) -> list[str]:
    return unchanged(text, min(n, 1), seed=seed)


def test_perturbation_scores_are_those_of_the_versions(tiny: ChatModel) -> None:
    perturb = WordPerturber()
    found = perturbation_scores(tiny, TEXTS, perturb, n_perturbations=4, seed=3)
    for number, (text, given) in enumerate(zip(TEXTS, found, strict=True)):
        own, *versions = score_texts(tiny, [text, *perturb(text, 4, seed=3 + number)])
        likelihoods = [s["likelihood"] for s in versions]
        expected = (own["likelihood"] - np.mean(likelihoods)) / np.std(likelihoods)
        assert given.detect_gpt == pytest.approx(expected, rel=1e-3)
        assert given.npr == pytest.approx(
            np.mean([s["log_rank"] for s in versions]) / own["log_rank"], rel=1e-3
        )
    # A perturber that changes nothing leaves nothing to find.
    (same,) = perturbation_scores(tiny, TEXTS[:1], unchanged, n_perturbations=3)
    assert same.detect_gpt_difference == pytest.approx(0, abs=1e-5) and same.npr == pytest.approx(1, abs=1e-4)


def test_versions_run_as_one_prefix_tree_score_as_each_by_itself(
    tiny: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = perturbation_scores(tiny, TEXTS, WordPerturber(), n_perturbations=8, fast=False)
    ran = list[int]()

    def counted(model: ChatModel, tokens: ChatTokens, reduce: PositionReducer) -> list[torch.Tensor]:
        def once(logits: Sequence[torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
            ran.append(len(ids))
            return reduce(logits, ids)

        return map_packed_positions(model, tokens, once)

    monkeypatch.setattr(perturbation, "map_packed_positions", counted)
    packed = perturbation_scores(tiny, TEXTS, WordPerturber(), n_perturbations=8)
    for ours, theirs in zip(packed, plain, strict=True):
        for name in ("detect_gpt", "detect_gpt_difference", "npr"):
            assert getattr(ours, name) == pytest.approx(getattr(theirs, name), rel=2e-3, abs=1e-5), name
    # A node for each distinct prefix of two bytes or more, of each text with its versions.
    nodes = 0
    for number, text in enumerate(TEXTS):
        versions = [text, *WordPerturber()(text, 8, seed=number)]
        nodes += len({version[:n] for version in versions for n in range(2, len(version) + 1)})
    assert sum(ran) == nodes < sum(len(t) for t in TEXTS) * 9 - 18


def test_a_perturber_must_give_what_is_asked(tiny: ChatModel) -> None:
    with pytest.raises(ValueError, match="the perturber gave 1 versions of 3 asked for"):
        perturbation_scores(tiny, TEXTS, lazy, n_perturbations=3)
    with pytest.raises(ValueError, match="n_perturbations must be 1 or more, got 0"):
        perturbation_scores(tiny, TEXTS, WordPerturber(), n_perturbations=0)


def test_overlap_counts_shared_ngrams() -> None:
    words = "a b c d e f".split()
    # All of n = 4, 5, 6: three, two and one shared n-grams of as many.
    expected = sum(n * math.log(n) for n in (4, 5, 6)) / 6
    assert ngram_overlap(words, words) == pytest.approx(expected)
    assert ngram_overlap(words, "a b c x d e f".split()) == 0
    assert ngram_overlap(words[:3], words) == 0


def test_short_versions_and_broken_models_are_named(tiny: ChatModel) -> None:
    with pytest.raises(ValueError, match="versions of text 0, which is their text 0: text 1 has 1 token"):
        perturbation_scores(tiny, ["a b"], lambda text, n, *, seed: ["x"] * n, n_perturbations=2)  # noqa: ARG005
    with pytest.raises(ValueError, match="text 1 has 0 tokens"):
        perturbation_scores(tiny, ["a b c", ""], WordPerturber(), n_perturbations=2)


def test_a_model_that_writes_nothing_has_no_likelihood_gap(
    tiny: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(*args: Any, **options: Any) -> Completions:
        written = generate(*args, **options)
        return replace(written, ids=tuple(() for _ in written.ids), texts=tuple("" for _ in written.texts))

    monkeypatch.setattr(perturbation, "generate", ended)
    (found,) = dna_gpt(tiny, ["ab"], n_regenerated=2)
    assert math.isnan(found.likelihood_gap) and (found.overlap, found.n_regenerated) == (0, 0)


def test_the_models_own_greedy_text_is_its_regeneration(tiny: ChatModel) -> None:
    """At temperature 0 the model writes its own greedy text again, so the gap is 0; another text's is not."""
    ids = tuple(tiny.tokenizer("The night was")["input_ids"])
    start = ChatTokens(ids=(ids,), starts=(0,), ends=(len(ids),), tokenizer=tiny.tokenizer)
    written = generate(tiny, start, max_new_tokens=20)
    text = str(tiny.tokenizer.decode([*ids, *written.ids[0]], skip_special_tokens=True))
    if list(tiny.tokenizer(text)["input_ids"]) == [*ids, *written.ids[0]]:
        (own,) = dna_gpt(tiny, [text], n_regenerated=2, temperature=0)
        assert own.likelihood_gap == pytest.approx(0, abs=1e-4)
    (human,) = dna_gpt(tiny, TEXTS[:1], n_regenerated=2, temperature=0)
    assert human.likelihood_gap < -0.05 and human.n_regenerated == 2
    with pytest.raises(ValueError, match="truncation must lie between 0 and 1"):
        dna_gpt(tiny, TEXTS, truncation=1.0)
