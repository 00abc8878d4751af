"""Scores equal the hand-computed vectors and the formulas of the papers, and do not move where they must not."""

import math

import pytest
import torch

from interp.detectors.machine_text.scores import SCORES, TextScores, TokenScores, text_scores

P = torch.tensor([[0.5, 0.25, 0.15, 0.1], [0.6, 0.2, 0.15, 0.05]])
Q = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.45, 0.3, 0.15, 0.1]])
IDS = torch.tensor([1, 0])


def scores(logits: torch.Tensor, ids: torch.Tensor, reference: torch.Tensor | None = None) -> TextScores:
    return text_scores(TokenScores.of_logits(logits, ids, reference))


def test_one_model_gives_the_hand_computed_numbers() -> None:
    tokens = TokenScores.of_logits(P.log(), IDS)
    found = text_scores(tokens)
    expected = {
        "likelihood": -0.94856,
        "rank": 1.5,
        "log_rank": 0.346574,
        "entropy": 1.135356,
        "lrr": 2.736966,
        "fast_detect_gpt": 0.401613,
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=6e-7), name  # six digits
    assert found["perplexity"] == pytest.approx(math.exp(0.94856), abs=3e-6)
    ratios = (tokens.log_probs - tokens.top_log_probs).exp()
    assert ratios.tolist() == pytest.approx([0.5, 1.0])
    assert found["burstiness"] == pytest.approx((math.log(0.6) - math.log(0.25)) / 2, abs=1e-6)


def test_two_models_give_the_hand_computed_numbers() -> None:
    found = scores(Q.log(), IDS, P.log())
    assert found["fast_detect_gpt"] == pytest.approx(0.543405, abs=6e-7)
    assert found["binoculars"] == pytest.approx(0.851971, abs=6e-7)
    assert found["binoculars_observer"] == pytest.approx(0.807145, abs=6e-7)
    with pytest.raises(ValueError, match="no score 'binoculars'; it needs a reference model"):
        scores(Q.log(), IDS)["binoculars"]
    with pytest.raises(ValueError, match="no score 'curvature'; known: likelihood"):
        found["curvature"]


def test_constants_added_to_logits_change_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, other = torch.randn(2, 30, 50, generator=generator)
    ids = torch.randint(50, (30,), generator=generator)
    before, after = scores(logits, ids, other), scores(logits + 7.25, ids, other - 3.5)
    assert list(before.values) == [name for name in SCORES if name != "intrinsic_dimension"]
    for name in before.values:
        assert after[name] == pytest.approx(before[name], rel=1e-4), name  # float32
    assert scores(logits * 2, ids, other)["likelihood"] != pytest.approx(before["likelihood"])  # control


def test_a_distribution_compared_with_itself_is_that_of_one_model() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(40, 60, generator=generator) * 3
    ids = torch.randint(60, (40,), generator=generator)
    one, two = scores(logits, ids), scores(logits, ids, logits)
    assert two["fast_detect_gpt"] == pytest.approx(one["fast_detect_gpt"], rel=1e-5)
    assert two["binoculars"] == pytest.approx(one["likelihood"] / -one["entropy"], rel=1e-5)


def test_peaked_distributions_keep_their_variance() -> None:
    """E[l^2] - E[l]^2 in float32 loses it: both are near 0.1 here, their difference is of the last digits."""
    logits = torch.zeros(4, 50_000)
    logits[:, 0] = 30.0
    exact = logits.double().log_softmax(-1)
    mean = (exact.exp() * exact).sum(-1, keepdim=True)
    variance = (exact.exp() * (exact - mean) ** 2).sum(-1)
    tokens = TokenScores.of_logits(logits, torch.zeros(4, dtype=torch.long))
    torch.testing.assert_close(tokens.variances.double(), variance, rtol=1e-3, atol=0)


def test_ties_are_not_ahead_and_undefined_scores_are_nan() -> None:
    tied = TokenScores.of_logits(torch.zeros(3, 5), torch.tensor([0, 2, 4]))
    assert tied.ranks.tolist() == [1, 1, 1]
    found = text_scores(tied)
    assert math.isnan(found["lrr"])  # every rank is 1
    assert math.isnan(found["fast_detect_gpt"])  # a flat distribution has no variance
    assert found["entropy"] == pytest.approx(math.log(5), abs=1e-6)


def test_scores_are_oriented_towards_machine_text() -> None:
    """Text that a model wrote scores higher than random tokens in every direction that the table gives."""
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(400, 100, generator=generator) * 3
    own = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
    alien = torch.randint(100, (400,), generator=generator)
    written, strange = scores(logits, own), scores(logits, alien)
    for name in ("likelihood", "perplexity", "rank", "log_rank", "lrr", "fast_detect_gpt", "burstiness"):
        assert written.oriented(name) > strange.oriented(name), name
    assert abs(written["fast_detect_gpt"]) < 4 < -strange["fast_detect_gpt"]  # N(0, 1) for the model's own


def test_the_card_says_which_side_is_the_machines() -> None:
    shown = repr(scores(P.log(), IDS))
    assert "Scores of a text of 2 tokens" in shown and "Fast-DetectGPT" in shown and "lower" in shown
