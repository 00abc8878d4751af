"""Scores of texts equal those of the plain Hugging Face computation, text by text, whatever runs beside them."""

import gc
import math
from collections.abc import Iterator, Sequence
from typing import Any

import pandas
import pytest
import torch
from transformers import AutoModelForCausalLM

from interp.detectors.machine_text import reading
from interp.detectors.machine_text.gltr import gltr
from interp.detectors.machine_text.reading import (
    check_texts,
    read_texts,
    sampled_fast_detect_gpt,
    score_texts,
    stream_scores,
)
from interp.detectors.machine_text.scores import TextScores
from interp.detectors.machine_text.watermark import Watermark
from interp.detectors.machine_text.watermark_detection import mean_spike_entropies
from interp.engine.interventions import Ablate
from interp.models.chat_model import ChatModel
from tests.conftest import make_tokenizer, tiny_config
from tests.engine.vectors import vector

TEXTS = (
    "The river rose in the night, and by morning the lower road was gone.",
    "ab",
    "A short one.",
    "Four of the seven keys were found, but none of them fitted the lock that mattered most to anybody there."
    * 2,
    "Une phrase en français, avec des accents : déjà vu.",
)


@pytest.fixture(scope="module")
def base(tiny: ChatModel) -> ChatModel:
    """Another model with the same tokenizer, whose vocabulary is padded to another size."""
    torch.manual_seed(5)
    hf = AutoModelForCausalLM.from_config(tiny_config(vocab_size=320)).float()
    return ChatModel(hf, tiny.tokenizer, name="base")


@torch.no_grad()
def plain(model: ChatModel, text: str, reference: ChatModel | None = None) -> dict[str, float]:
    """The scores as one would write them: one text, one pass, whole logits, float64."""
    ids = torch.tensor(model.tokenizer(text, add_special_tokens=False)["input_ids"])
    n = len(model.tokenizer)

    def logs_of(m: ChatModel) -> torch.Tensor:
        return m.hf(ids[None]).logits[0, :-1, :n].double().log_softmax(-1)

    target, s = ids[1:, None], logs_of(model)
    p = s if reference is None else logs_of(reference)
    own = s.gather(1, target)[:, 0]
    rank = 1 + (s > own[:, None]).sum(1).double()
    mu = (p.exp() * s).sum(1)
    var = (p.exp() * s**2).sum(1) - mu**2
    found = {
        "likelihood": own.mean(),
        "perplexity": (-own.mean()).exp(),
        "rank": rank.mean(),
        "log_rank": rank.log().mean(),
        "entropy": -(s.exp() * s).sum(1).mean(),
        "lrr": -own.sum() / rank.log().sum(),
        "fast_detect_gpt": (own.sum() - mu.sum()) / var.sum().sqrt(),
        "burstiness": own.std(correction=0),
    }
    if reference is not None:
        found["binoculars"] = own.mean() / mu.mean()
        found["binoculars_observer"] = p.gather(1, target).mean() / mu.mean()
    return {name: float(value) for name, value in found.items()}


def same(found: TextScores, expected: dict[str, float]) -> None:
    for name, value in expected.items():
        # Ranks of near ties may differ by one between batches in float32.
        assert found[name] == pytest.approx(value, rel=2e-4, abs=1e-5), name


def test_scores_are_those_of_plain_hugging_face_passes(tiny: ChatModel, base: ChatModel) -> None:
    for text, found in zip(TEXTS, score_texts(tiny, TEXTS), strict=True):
        same(found, plain(tiny, text))
        assert found.n_tokens == len(text.encode()) - 1
    for text, found in zip(TEXTS, score_texts(tiny, TEXTS, reference=base), strict=True):
        same(found, plain(tiny, text, base))


def test_a_text_scores_alone_as_in_company_and_in_a_stream(
    tiny: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = score_texts(tiny, TEXTS)
    monkeypatch.setattr(reading, "_CHUNK", 2)
    taken: list[str] = []

    def arriving() -> Iterator[str]:
        for text in TEXTS:
            taken.append(text)
            yield text

    stream = stream_scores(tiny, arriving())
    first = next(stream)
    assert len(taken) == 2  # no further than asked
    for found, other in zip([first, *stream], together, strict=True):
        same(found, {k: v for k, v in other.values.items() if math.isfinite(v)})


def test_windows_beyond_the_context_score_every_token_with_half_a_window_before_it(tiny: ChatModel) -> None:
    text = TEXTS[3]
    ids = tiny.tokenizer(text, add_special_tokens=False)["input_ids"]
    (read,) = read_texts(tiny, [text], window=64)
    assert read.tokens.ids.tolist() == ids[1:] and len(read.states) == len(ids) - 1
    for t in (1, 30, 63, 64, 65, 100, len(ids) - 1):
        # The window that scores token t begins half a window before the first token that it scores.
        start = 0 if t < 64 else 32 * ((t - 64) // 32 + 1)
        with torch.no_grad():
            logs = tiny.hf(torch.tensor([ids[start:t]])).logits[0, -1, :259].log_softmax(-1)
        assert read.tokens.log_probs[t - 1] == pytest.approx(float(logs[ids[t]]), abs=1e-4)
    (whole,) = read_texts(tiny, [text])
    assert (whole.tokens.log_probs[70:] - read.tokens.log_probs[70:]).abs().max() > 1e-3  # control


def test_interventions_change_the_scores(tiny: ChatModel) -> None:
    (steered,) = score_texts(tiny, TEXTS[:1], interventions=[Ablate(vector())])
    assert abs(steered["likelihood"] - score_texts(tiny, TEXTS[:1])[0]["likelihood"]) > 1e-3


def test_sampling_agrees_with_the_analytic_score(tiny: ChatModel, base: ChatModel) -> None:
    for reference in (None, base):
        analytic = [s["fast_detect_gpt"] for s in score_texts(tiny, TEXTS, reference=reference)]
        sampled = sampled_fast_detect_gpt(tiny, TEXTS, reference=reference, n_samples=4000)
        # The mean of 4,000 draws has a standard error of 0.016, their deviation one of 1.1%.
        for a, b in zip(analytic, sampled, strict=True):
            assert b == pytest.approx(a, abs=0.06 + 0.05 * abs(a))
    assert sampled_fast_detect_gpt(tiny, TEXTS[:2], n_samples=50, seed=1) != sampled_fast_detect_gpt(
        tiny, TEXTS[:2], n_samples=50, seed=2
    )


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["fine", ""], "text 1 has 0 tokens; a score needs at least 2"),
        (["x"], "text 0 has 1 token; a score needs at least 2"),
        (["fine", "half \ud800"], r"text 1 holds half of a character \(a lone surrogate\)"),
    ],
)
def test_texts_that_cannot_be_scored_are_named(tiny: ChatModel, texts: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(stream_scores(tiny, iter(texts)))


def test_sampling_needs_two_samples(tiny: ChatModel) -> None:
    with pytest.raises(ValueError, match="n_samples must be 2 or more, got 1"):
        sampled_fast_detect_gpt(tiny, TEXTS[:1], n_samples=1)


def test_a_single_string_is_no_list_of_texts(tiny: ChatModel) -> None:
    with pytest.raises(ValueError, match="texts must be a list of strings, got one string"):
        score_texts(tiny, TEXTS[0])


def test_two_models_with_different_tokenizers_are_refused(tiny: ChatModel) -> None:
    other = ChatModel(tiny.hf, make_tokenizer(special=("<s>", "<a>", "</s>")), name="other")
    with pytest.raises(ValueError, match=r"tiny and other have different tokenizers .* one family"):
        score_texts(tiny, TEXTS, reference=other)


def test_nan_is_refused_with_its_text(tiny: ChatModel) -> None:
    hf = AutoModelForCausalLM.from_config(tiny_config(tie_word_embeddings=False)).float()
    model = ChatModel(hf, tiny.tokenizer, name="broken")
    with torch.no_grad():
        hf.model.embed_tokens.weight[model.tokenizer("q")["input_ids"][0]] = math.nan
    with pytest.raises(ValueError, match=r"not finite at token \d of text 1; float16 may overflow"):
        score_texts(model, ["fine", "aqb"])
    with pytest.raises(ValueError, match=r"not finite at token \d of text 0"):
        gltr(model, "aqb")
    with pytest.raises(ValueError, match=r"not finite at token \d of text 1"):
        mean_spike_entropies(model, ["fine", "aqb"], Watermark.of_model(model, key=5))


def texts_of(n: int) -> Sequence[str]:
    return [f"text number {i}, which is one of {n}" for i in range(n)]


def test_what_is_held_does_not_grow_with_the_number_of_texts(tiny: ChatModel) -> None:
    """Texts are read chunk by chunk, and nothing of a chunk is kept."""
    taken = 0

    def arriving() -> Iterator[str]:
        nonlocal taken
        for text in texts_of(3 * reading._CHUNK):
            taken += 1
            yield text

    alive: list[int] = []
    for number, _ in enumerate(stream_scores(tiny, arriving())):
        assert taken <= number + reading._CHUNK
        if number % reading._CHUNK == 5:
            alive.append(sum(type(held) is torch.Tensor for held in gc.get_objects()))
    assert taken == 3 * reading._CHUNK
    assert alive[0] > reading._CHUNK and abs(alive[2] - alive[1]) < reading._CHUNK / 4


@pytest.mark.parametrize(
    "given", ["one text", pandas.DataFrame({"text": ["one text"]}), {"a": "one text"}, b"one text", None]
)
def test_what_is_no_list_of_texts_is_refused(given: Any) -> None:
    """A table was read as the names of its columns, each a text."""
    with pytest.raises(ValueError, match="texts must be a list of strings, got"):
        check_texts(given)
