"""SynthID marks as transformers does, is found with its keys alone, and is chance without them."""

import math

import pytest
import torch
from scipy import stats
from transformers import SynthIDTextWatermarkLogitsProcessor

from interp.detectors.machine_text.synthid import SynthIdMark, detect_synthid
from interp.engine.generation import generate
from interp.engine.interventions import Add
from interp.models.chat_model import ChatModel
from tests.detectors.machine_text.test_watermark_detection import random_ids
from tests.engine.vectors import vector

KEYS = (654, 400, 836, 123, 340)
MARK = SynthIdMark(keys=KEYS, ngram=3)


def theirs() -> SynthIDTextWatermarkLogitsProcessor:
    return SynthIDTextWatermarkLogitsProcessor(3, list(KEYS), 2**16, 0, 1024, torch.device("cpu"))


def test_logits_are_those_of_transformers_once_the_context_is_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    processor, ids = theirs(), [5, 1, 7, 2, 5, 1, 9, 5, 1, 4]
    for n in range(len(ids)):  # 5, 1 comes again as a context
        logits = torch.randn(1, 12, generator=generator).log_softmax(-1)
        expected = processor(torch.tensor([ids[:n] or [0]]), logits)
        found = MARK([ids[:n]], logits)
        if n < 2:
            assert torch.equal(found, logits)  # transformers takes zeros as context here
        else:
            torch.testing.assert_close(found, expected)
        assert torch.equal(found, logits) == (n in (0, 1, 6, 9))
    cut = logits.clone()
    cut[0, 3] = -math.inf
    assert MARK([ids[:5]], cut)[0, 3] == -math.inf


def test_bits_and_repetitions_are_those_of_transformers() -> None:
    ids = random_ids(60, size=6, seed=1)
    bits = theirs().compute_g_values(torch.tensor([ids]))[0].double()
    new = theirs().compute_context_repetition_mask(torch.tensor([ids]))[0]
    assert MARK.new_contexts(ids) == new.tolist() and 5 < new.sum() < 58
    found = detect_synthid(MARK, ids)
    assert found.n_scored == new.sum() and found.mean == pytest.approx(float(bits[new].mean()))
    weights = torch.tensor([10, 7.75, 5.5, 3.25, 1]).double()
    assert found.weighted_mean == pytest.approx(
        float((bits[new] * weights).sum() / weights.sum() / new.sum())
    )
    assert found.p_value == pytest.approx(stats.norm.sf(found.z))
    padded = detect_synthid(MARK, [0] * 4 + ids, attention_mask=[0] * 4 + [1] * 60)
    assert padded == found
    prompted = detect_synthid(MARK, ids, prompt_tokens=20)
    assert prompted.n_scored == int(new[18:].sum())  # the first scored n-gram ends at token 20


def test_z_is_that_of_fair_coins() -> None:
    """Two layers, weights 10 and 1: the variance of a token's weighted sum is 101 / 4."""
    mark = SynthIdMark(keys=(3, 11), ngram=2)
    ids = [1, 2, 3, 4, 5]
    bits = mark.bits(torch.tensor([[1, 2], [2, 3], [3, 4], [4, 5]])).double()
    total = float(10 * bits[:, 0].sum() + bits[:, 1].sum())
    assert detect_synthid(mark, ids).z == pytest.approx((total - 22) / math.sqrt(4 * 101 / 4))


def test_unmarked_text_is_standard_normal_over_keys() -> None:
    marks = [SynthIdMark(keys=tuple(7 * key + i + 1 for i in range(5)), ngram=3) for key in range(40)]
    z = torch.tensor(
        [detect_synthid(mark, random_ids(80, size=500, seed=i)).z for mark in marks for i in range(4)]
    )
    # Three standard errors of a mean and of a deviation.
    assert abs(float(z.mean())) < 3 / math.sqrt(len(z))
    assert abs(float(z.std()) - 1) < 3 / math.sqrt(2 * len(z))


def test_marked_text_is_found_with_its_keys_alone_and_under_steering(tiny: ChatModel) -> None:
    mark = SynthIdMark(keys=KEYS)
    steer = Add(vector(), coefficient=1.0, layers=1)
    written = generate(
        tiny,
        ["The river rose.", "Four keys"],
        max_new_tokens=120,
        temperature=1.0,
        processors=[mark],
        interventions=[steer],
    )
    for ids in written.ids:
        assert detect_synthid(mark, ids).z > 4
        assert abs(detect_synthid(SynthIdMark(keys=(11, 13, 17, 19, 23)), ids).z) < 4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"keys": ()}, "made and found with secret keys, distinct positive integers"),
        ({"keys": (3, 3)}, "distinct positive integers"),
        ({"keys": (3, 0)}, "distinct positive integers"),
        ({"keys": (3,), "ngram": 1}, "ngram and table_size must be 2 or more"),
    ],
)
def test_settings_are_checked(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SynthIdMark(**given)  # pyright: ignore[reportArgumentType]


def test_a_text_without_a_scored_token_is_refused() -> None:
    with pytest.raises(ValueError, match="the text has 2 tokens, 0 of them the prompt's, and none to score"):
        detect_synthid(MARK, [1, 2])
    with pytest.raises(ValueError, match="got 1 entries of attention_mask for 3 tokens"):
        detect_synthid(MARK, [1, 2, 3], attention_mask=[1])
