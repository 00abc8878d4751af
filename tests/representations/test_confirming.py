"""Picks screened with rounded products are those of exact products, with the exact scores."""

import math

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from interp.engine import prepacked_weights
from interp.models import precision
from interp.models.adapted_models import with_precision
from interp.models.chat_model import ChatModel
from interp.models.tokens import tokenize
from interp.representations.confirming import MARGIN, MIN_CONFIRMED, confirmation, confirmed_pick, slack
from interp.representations.picks import choose, scored_candidates
from interp.representations.selection import NothingSurvives, Rule
from interp.representations.sweeps import Place, Sweep
from tests.families import COVERED, build
from tests.representations.sweep_cases import HARMFUL, HARMLESS, OPEN, REFUSAL_IDS

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    reason="this CPU has no bfloat16 products by oneDNN",
)


@pytest.fixture(scope="module")
def exact(tokenizer: PreTrainedTokenizerFast) -> ChatModel:
    return ChatModel(build(*COVERED["llama"]), tokenizer, name="llama")


@pytest.fixture
def fast(exact: ChatModel, monkeypatch: pytest.MonkeyPatch) -> ChatModel:
    monkeypatch.setattr(precision, "bfloat16_speedup", lambda _threads: 7.0)
    monkeypatch.setattr(prepacked_weights, "_packing_pays", lambda _dtype, _threads: True)
    return with_precision(exact, "fast")


def near_ties(model: ChatModel, seed: int, noise: float) -> dict[Place, torch.Tensor]:
    """One direction with some noise at layer 1, and with more at layer 2, which the rule excludes."""
    generator = torch.Generator().manual_seed(seed)
    common = 2 * torch.randn(model.d_model, generator=generator)
    return {
        (position, layer): common + scale * torch.randn(model.d_model, generator=generator)
        for position in range(-6, 0)
        for layer, scale in ((1, noise), (2, 1.0))
    }


def sweep_of(model: ChatModel, seed: int, noise: float = 0.02) -> Sweep:
    harmful, harmless = (tokenize(model.tokenizer, texts) for texts in (HARMFUL, HARMLESS))
    directions = near_ties(model, seed, noise)
    return Sweep(model, directions, harmful=harmful, harmless=harmless, refusal_ids=REFUSAL_IDS)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_pick_is_the_exact_one_where_rounding_would_pick_another(
    exact: ChatModel, fast: ChatModel, seed: int
) -> None:
    whole, screened = sweep_of(exact, seed), sweep_of(fast, seed)
    early = [whole.complete(place) for place in whole.directions if place[1] == 1]
    best = min(early, key=lambda c: c.bypass)
    # Limits that the best candidate just meets: rounding moves its kl by three times as much.
    rule = Rule(kl_threshold=best.kl + 2e-4, induce_threshold=best.induce - 2e-4)
    found, admitted = choose(screened, [rule])
    assert admitted == rule and (found.position, found.layer) == (best.position, best.layer)
    for score in ("bypass", "induce", "kl"):
        assert getattr(found, score) == pytest.approx(getattr(best, score), abs=1e-5)
    rounded = screened.candidate((best.position, 1))
    assert rule.reason(rounded, n_layers=3) == "kl too large"  # control: rounded scores alone pick another
    table = {(row.position, row.layer): row for row in scored_candidates(screened, rule)}
    row = table[found.position, found.layer]
    assert row.kept and (row.bypass, row.induce, row.kl) == (found.bypass, found.induce, found.kl)
    rests_on = confirmation(screened)
    assert rests_on is not None and MIN_CONFIRMED <= rests_on.confirmed < rests_on.screened == 12
    assert 1e-5 < rests_on.kl < 1e-2 and slack(screened).kl == MARGIN * rests_on.kl


def test_what_is_not_confirmed_cannot_win_by_the_largest_difference(fast: ChatModel) -> None:
    screened = sweep_of(fast, 0, noise=2.0)
    picked = confirmed_pick(screened, OPEN)
    assert picked is not None
    others = {place for place in screened.directions if place[1] < 2} - screened.confirmed
    assert len(screened.confirmed) >= MIN_CONFIRMED and others
    for place in others:
        assert screened.candidate(place).bypass - slack(screened).bypass > picked.bypass
    gaps = [
        (screened.induced[place] - screened.exact.induced[place]).abs().mean().item()
        for place in screened.confirmed
    ]
    assert slack(screened).induce == pytest.approx(MARGIN * max(gaps))


def test_exact_products_are_not_measured_twice(exact: ChatModel) -> None:
    sweep = sweep_of(exact, 0)
    choose(sweep, [OPEN])
    assert sweep.exact is sweep and not sweep.confirmed and confirmation(sweep) is None


def test_scores_that_are_no_numbers_are_looked_at_twice_and_dropped(fast: ChatModel) -> None:
    sweep = sweep_of(fast, 1)
    broken = (-3, 1)
    sweep.directions[broken] = sweep.directions[broken] * math.nan
    found, _ = choose(sweep, [OPEN])
    assert broken in sweep.confirmed and (found.position, found.layer) != broken
    row = next(r for r in scored_candidates(sweep, OPEN) if (r.position, r.layer) == broken)
    assert (row.kept, row.reason) == (False, "not finite")


def test_near_misses_are_named_with_exact_scores(exact: ChatModel, fast: ChatModel) -> None:
    impossible, messages = Rule(kl_threshold=-1.0), []
    for model in (exact, fast):
        with pytest.raises(NothingSurvives) as caught:
            choose(sweep_of(model, 2), [impossible])
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
