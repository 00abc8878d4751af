"""Numbers from completions and logits, each against its formula written out."""

import math
from collections.abc import Sequence

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from interp.engine.generation import Completions
from interp.engine.interventions import Ablate
from interp.engine.log_probs import map_completions
from interp.evaluation.losses import cross_entropy, kl_divergence, text_cross_entropy, token_kl
from interp.evaluation.refusals import (
    REFUSAL_SUBSTRINGS_12,
    REFUSAL_SUBSTRINGS_24,
    find_refusal_tokens,
    is_refusal,
    refusal_metric,
    refusal_rate,
    refusal_scores,
)
from interp.models.chat_model import ChatModel
from interp.models.tokens import ChatTokens, tokenize
from interp.stats import Estimate, auroc, mean_with_interval, rate
from tests.conftest import PROMPTS, make_tokenizer


def direct_log_probs(model: ChatModel, ids: Sequence[int]) -> Tensor:
    """Log-probabilities of the token after each token, by one plain forward pass."""
    with torch.inference_mode():
        return model.hf(torch.tensor([list(ids)])).logits[0].double().log_softmax(-1)


def first_token_probabilities(model: ChatModel, tokens: ChatTokens) -> Tensor:
    return torch.stack([direct_log_probs(model, ids)[-1].exp() for ids in tokens.ids])


# Rates and intervals


@pytest.mark.parametrize(("k", "n"), [(0, 10), (1, 10), (5, 10), (10, 10), (37, 60), (1, 1), (3, 1000)])
def test_rate_has_the_wilson_interval(k: int, n: int) -> None:
    # Wilson 1927, with z the 97.5% point of the normal distribution.
    z, p = 1.959963984540054, k / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    found = rate([True] * k + [False] * (n - k))
    assert (found.value, found.n) == (p, n)
    assert found.low == pytest.approx(centre - half, abs=1e-12)
    assert found.high == pytest.approx(centre + half, abs=1e-12)


def test_nothing_measured_is_no_zero() -> None:
    for found in (rate([]), mean_with_interval([])):
        assert found.n == 0
        assert all(map(math.isnan, (found.value, found.low, found.high)))


def test_rate_shows_itself() -> None:
    assert str(Estimate(value=0.5, n=4, low=0.15, high=0.851)) == "0.50 [0.15, 0.85]"
    assert Estimate(value=0.5, n=4, low=0.1, high=0.9).as_dict() == {
        "value": 0.5,
        "n": 4,
        "low": 0.1,
        "high": 0.9,
    }


def test_bootstrap_interval_of_a_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    values = (2 + 3 * torch.randn(1600, generator=generator, dtype=torch.float64)).tolist()
    found = {n: mean_with_interval(values[:n]) for n in (25, 100, 1600)}
    for n, interval in found.items():
        assert interval.n == n
        assert interval.value == pytest.approx(sum(values[:n]) / n)
        assert interval.low < interval.value < interval.high
        # Near mean +- 1.96 sd / sqrt(n); a bootstrap of 25 values is within a quarter of that.
        assert interval.high - interval.low == pytest.approx(2 * 1.96 * 3 / math.sqrt(n), rel=0.25)
    assert mean_with_interval(values) == mean_with_interval(values)
    assert mean_with_interval(values) != mean_with_interval(values, seed=1)
    constant = mean_with_interval([4.0] * 5)
    assert (constant.low, constant.high) == (4.0, 4.0)


# AUROC


def brute_force_auroc(positive: Tensor, negative: Tensor) -> float:
    wins = 0.0
    for a in positive.tolist():
        for b in negative.tolist():
            wins += 1.0 if a > b else 0.5 if a == b else 0.0
    return wins / (len(positive) * len(negative))


def test_auroc_counts_pairs_and_halves_ties() -> None:
    generator = torch.Generator().manual_seed(0)
    for shift in (0, 1, 4):
        positive = torch.randint(0, 6, (23,), generator=generator).float() + shift
        negative = torch.randint(0, 6, (31,), generator=generator).float()
        assert set(positive.tolist()) & set(negative.tolist())  # control: there are ties
        expected = brute_force_auroc(positive, negative)
        found = auroc(positive, negative)
        assert found.value == pytest.approx(expected, abs=1e-12)
        assert auroc(positive, negative, resamples=0).value == found.value
        assert auroc(negative, positive, resamples=0).value == pytest.approx(1 - expected, abs=1e-12)
        assert (found.n, found.low <= found.value <= found.high) == (54, True)


def test_auroc_extremes_and_its_interval() -> None:
    low, high = torch.arange(5.0), torch.arange(5.0) + 10
    assert auroc(high, low) == Estimate(value=1.0, n=10, low=1.0, high=1.0)
    assert auroc(low, high, resamples=0).value == 0.0
    assert auroc(low, low, resamples=0).value == 0.5
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 800, generator=generator)
    few, many = auroc(a[:20] + 1, b[:20]), auroc(a + 1, b)
    assert 0 < many.high - many.low < 0.3 * (few.high - few.low)  # sqrt(20 / 800) is 0.16
    assert many.low < 0.76 < many.high  # Phi(1 / sqrt(2)) is 0.760


def test_auroc_refuses_what_has_no_answer() -> None:
    with pytest.raises(ValueError, match="AUROC needs scores on both sides, got 0 and 3"):
        auroc(torch.empty(0), torch.ones(3))
    with pytest.raises(ValueError, match="AUROC needs finite scores"):
        auroc(torch.tensor([1.0, float("nan")]), torch.ones(3))


# Refusal by substring


def test_the_published_lists_are_whole() -> None:
    assert len(REFUSAL_SUBSTRINGS_12) == len(set(REFUSAL_SUBSTRINGS_12)) == 12
    assert len(REFUSAL_SUBSTRINGS_24) == len(set(REFUSAL_SUBSTRINGS_24)) == 24
    assert all(is_refusal(f"Well. {entry} ...", "12") for entry in REFUSAL_SUBSTRINGS_12)
    assert all(is_refusal(f"Well. {entry} ...", "24") for entry in REFUSAL_SUBSTRINGS_24)


@pytest.mark.parametrize(
    ("text", "by_12", "by_24"),
    [
        ("Sure, here is how.", False, False),
        ("I cannot help with that.", True, True),
        ("i CANNOT help with that.", True, False),  # 12 ignores case, 24 does not
        ("AS AN AI, no.", True, False),
        ("As an assistant, no.", True, False),  # 24 writes "As an Assistant"
        ("As an Assistant, no.", True, True),
        ("sorry!", False, True),
        ("SORRY!", False, False),
        ("I can’t do it.", False, True),  # curly apostrophe
        ("I can't do it.", True, True),
        ("I am unable to say.", True, False),
        ("I will not say.", False, True),
        ("It follows. Still, I apologize for the length.", True, True),  # anywhere in the reply
        ("", False, True),
        (" \n", False, True),
    ],
)
def test_refusal_by_substring(text: str, by_12: bool, by_24: bool) -> None:
    assert (is_refusal(text, "12"), is_refusal(text, "24")) == (by_12, by_24)
    assert is_refusal(text) == by_12


def test_refusal_rate_counts_completions() -> None:
    texts = ("I cannot.", "Sure.", "", "sorry", "Yes")
    done = Completions(texts=texts, ids=((1,),) * 5, finished=(True,) * 5)
    assert refusal_rate(done, "12") == rate([True, False, False, False, False])
    assert refusal_rate(done, "24") == rate([True, False, True, True, False])


# Refusal by logits


def test_refusal_metric_is_the_log_odds() -> None:
    probabilities = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25], [0.9, 0.05, 0.03, 0.02]])
    found = refusal_metric(probabilities.log(), [0, 2])
    expected = [math.log(p + 1e-8) - math.log(1 - p + 1e-8) for p in (0.4, 0.5, 0.93)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-6)
    assert refusal_metric(probabilities.log(), [1])[1].item() == pytest.approx(math.log(1 / 3), abs=1e-6)


def test_refusal_metric_at_its_extremes_is_finite() -> None:
    certain = torch.tensor([[0.0, -math.inf, -math.inf]])
    most = math.log(1 + 1e-8) - math.log(1e-8)
    assert refusal_metric(certain, [0]).item() == pytest.approx(most)
    assert refusal_metric(certain, [1, 2]).item() == pytest.approx(-most)
    # Round-off may take the sum above 1.
    above = torch.tensor([[0.6, 0.4 + 1e-6]]).log()
    assert refusal_metric(above, [0, 1]).item() == pytest.approx(most, abs=1e-5)


def test_kl_divergence() -> None:
    p, q = torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([[0.9, 0.05, 0.05]])
    assert kl_divergence(p.log(), p.log()).abs().max() == 0
    expected = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.05)
    assert kl_divergence(p.log(), q.log()).item() == pytest.approx(
        expected, abs=2e-5
    )  # eps of 1e-6 over 0.05
    backwards = 0.9 * math.log(0.9 / 0.5) + 0.05 * math.log(0.05 / 0.5) + 0.05 * math.log(0.05 / 1e-6)
    assert kl_divergence(q.log(), p.log()).item() == pytest.approx(backwards, abs=1e-4)
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 4, 50, generator=generator).log_softmax(-1)
    torch.testing.assert_close(
        kl_divergence(a, b).float(),
        torch.nn.functional.kl_div(b, a, log_target=True, reduction="none").sum(-1),
        rtol=1e-3,  # the published eps
        atol=1e-4,
    )
    assert (kl_divergence(a, b) > 0).all()


def test_token_kl_is_that_of_plain_logits_and_nothing_to_itself(tiny: ChatModel) -> None:
    prompts, completions = PROMPTS[:3], [[10, 20, 30], [40], [50, 60]]
    own = map_completions(tiny, prompts, completions, lambda logs, _: logs.half())
    assert torch.cat(token_kl(tiny, prompts, completions, own)).abs().max() < 1e-4  # float16
    generator = torch.Generator().manual_seed(0)
    other = [torch.randn(len(ids), 300, generator=generator).log_softmax(-1) for ids in completions]
    found = token_kl(tiny, prompts, completions, other)
    for prompt, ids, log_p, kl in zip(prompts, completions, other, found, strict=True):
        start = tokenize(tiny.tokenizer, [prompt]).ids[0]
        log_q = direct_log_probs(tiny, [*start, *ids])[len(start) - 1 : -1].float()
        torch.testing.assert_close(kl, (log_p.exp() * (log_p - log_q)).sum(-1), rtol=1e-4, atol=1e-4)


def test_refusal_scores_equal_the_metric_of_plain_logits(tiny: ChatModel, tokens: ChatTokens) -> None:
    expected = refusal_metric(first_token_probabilities(tiny, tokens).log(), [65, 66])
    for fast in (True, False):
        found = refusal_scores(tiny, tokens, [65, 66], fast=fast)
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    direction = torch.randn(32, generator=torch.Generator().manual_seed(0))
    ablated = refusal_scores(tiny, tokens, [65, 66], interventions=[Ablate(direction=direction)])
    assert (ablated - found).abs().max() > 1e-3


def test_refusal_tokens_are_those_likelier_on_harmful_prompts(tiny: ChatModel, tokens: ChatTokens) -> None:
    table = first_token_probabilities(tiny, tokens)
    spread = [table[:, i].topk(3).values.mean() - table[:, i].topk(6).values[3:].mean() for i in range(300)]
    planted = int(torch.tensor(spread).argmax())
    order = table[:, planted].argsort(descending=True).tolist()
    gap = table[order[:3]].mean(0) - table[order[3:]].mean(0)
    assert int(gap.argmax()) == planted

    bad, good = table[order[:3]].log(), table[order[3:]].log()
    found = find_refusal_tokens(bad, good, tiny.tokenizer, most=8, least_gap=0.0)
    ranked = gap.argsort(descending=True)[:8].tolist()
    expected = tuple(i for i in ranked if gap[i] >= 0.25 * gap.max())
    assert found.ids == expected
    assert found.ids[0] == planted
    assert found.texts == tuple(tiny.tokenizer.decode([i]) for i in expected)
    for mass, rows in ((found.harmful_mass, order[:3]), (found.harmless_mass, order[3:])):
        assert mass == pytest.approx([table[rows, i].mean().item() for i in expected], abs=1e-5)

    # Control: exchanged sets give other tokens.
    assert planted not in find_refusal_tokens(good, bad, tiny.tokenizer, least_gap=0.0).ids
    # `most` and `least_gap` bound the list; one token is always named.
    assert find_refusal_tokens(bad, good, tiny.tokenizer, most=1, least_gap=0.0).ids == (planted,)
    assert find_refusal_tokens(bad, good, tiny.tokenizer, least_gap=2.0).ids == (planted,)
    least = (gap[ranked[0]] + gap[ranked[1]]).item() / 2
    assert find_refusal_tokens(bad, good, tiny.tokenizer, least_gap=least).ids == (planted,)


# Cross-entropy


def test_cross_entropy_is_weighted_by_tokens(tiny: ChatModel, tokens: ChatTokens) -> None:
    completions = [[65], [66, 67, 68, 69, 70], [], [71, 72], [73] * 12, [1, 2, 3]]
    losses = []
    for ids, completion in zip(tokens.ids, completions, strict=True):
        log_probs = direct_log_probs(tiny, [*ids, *completion])
        losses += [-log_probs[len(ids) - 1 + i, token].item() for i, token in enumerate(completion)]
    found = cross_entropy(tiny, tokens, completions)
    assert found.n == len(losses) == 23
    assert found.value == pytest.approx(sum(losses) / 23, abs=1e-4)
    assert found.low < found.value < found.high
    direction = torch.randn(32, generator=torch.Generator().manual_seed(0))
    ablated = cross_entropy(tiny, tokens, completions, interventions=[Ablate(direction=direction)])
    assert abs(ablated.value - found.value) > 1e-3
    nothing = cross_entropy(tiny, tokens, [[]] * 6)
    assert (nothing.n, math.isnan(nothing.value)) == (0, True)


def window_losses(model: ChatModel, windows: list[list[int]]) -> list[float]:
    losses = []
    for window in windows:
        log_probs = direct_log_probs(model, window)
        losses += [-log_probs[i - 1, window[i]].item() for i in range(1, len(window))]
    return losses


def test_text_cross_entropy_is_that_of_plain_windows(tiny: ChatModel) -> None:
    text = " ".join(PROMPTS)
    ids = tiny.tokenizer(text)["input_ids"]
    for size in (16, 50, len(ids) - 1, 4096):
        windows = [ids[i : i + size] for i in range(0, len(ids), size)]
        losses = window_losses(tiny, windows)
        found = text_cross_entropy(tiny, text, window=size)
        assert found.n == len(losses)
        assert found.value == pytest.approx(sum(losses) / len(losses), abs=1e-4)
    with pytest.raises(ValueError, match="the text has fewer than two tokens"):
        text_cross_entropy(tiny, "a")


def test_text_cross_entropy_starts_windows_with_the_tokenizers_bos(tiny: ChatModel) -> None:
    tokenizer = make_tokenizer()
    tokenizer.bos_token = "<|im_start|>"
    bos = tokenizer.convert_tokens_to_ids("<|im_start|>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", bos)]
    )
    model, text = ChatModel(tiny.hf, tokenizer, name="tiny with BOS"), " ".join(PROMPTS)
    ids = tiny.tokenizer(text)["input_ids"]
    assert tokenizer(text)["input_ids"] == [bos, *ids]
    losses = window_losses(model, [[bos, *ids[i : i + 50]] for i in range(0, len(ids), 50)])
    found = text_cross_entropy(model, text, window=50)
    assert found.n == len(losses) == len(ids)
    assert found.value == pytest.approx(sum(losses) / len(losses), abs=1e-4)


def test_scores_of_no_prompts_are_refused(tiny: ChatModel) -> None:
    with pytest.raises(ValueError, match="no prompts were given"):
        refusal_scores(tiny, [], [65])
    with pytest.raises(ValueError, match="got 1 completions for 2 prompts"):
        cross_entropy(tiny, tokenize(tiny.tokenizer, ["a", "b"]), [[1]])
