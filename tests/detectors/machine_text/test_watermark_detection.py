"""Counts, z and p-values are those computed by hand and by transformers; unmarked text is N(0, 1)."""

import math
from collections.abc import Sequence

import pytest
import torch
from scipy import stats
from transformers import LlamaConfig, WatermarkDetector

from interp.detectors.machine_text.reading import map_texts
from interp.detectors.machine_text.watermark import Seeding, Watermark
from interp.detectors.machine_text.watermark_detection import (
    Counted,
    WatermarkEvidence,
    best_window,
    count_green,
    detect_watermark,
    exact_p_value,
    expected_detection,
    find_watermark,
    green_mass,
    mean_spike_entropies,
    spike_entropies,
    spike_modulus,
    window_threshold,
    z_score,
)
from interp.engine.generation import generate
from interp.models.chat_model import ChatModel
from interp.models.tokens import ChatTokens
from tests.detectors.machine_text.test_watermark import CASES, KEY


def random_ids(n: int, *, size: int, seed: int) -> list[int]:
    return torch.randint(size, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def test_hand_computed_numbers() -> None:
    assert z_score(28, 36, 0.25) == pytest.approx(7.31310, abs=5e-6)
    assert stats.norm.sf(z_score(28, 36, 0.25)) == pytest.approx(1.305e-13, rel=5e-4)
    assert exact_p_value(28, 36, 0.25) == pytest.approx(4.623e-11, rel=5e-4)
    assert z_score(16, 16, 0.5) == 4
    assert stats.norm.sf(4) == pytest.approx(3.167e-5, rel=5e-4)
    assert green_mass(0.25, 2) == pytest.approx(0.71123, abs=5e-6)
    assert green_mass(0.5, 2) == pytest.approx(0.88080, abs=5e-6)
    assert spike_modulus(0.25, 2) == pytest.approx(1.84494, abs=5e-6)
    assert spike_modulus(0.5, 2) == pytest.approx(0.76159, abs=5e-6)


def test_the_published_power() -> None:
    """Kirchenbauer et al. 2023, table 2: bound 142.2 with standard deviation 6.41 against 128.3; 98.4% detected."""
    found = expected_detection(200, 0.807, gamma=0.5, delta=2.0, z=4)
    assert found.n_green == pytest.approx(142.16, abs=0.01)
    assert found.deviation == pytest.approx(6.41, abs=0.005)
    assert found.threshold == pytest.approx(128.28, abs=0.005)
    assert found.power == pytest.approx(0.984, abs=0.002)
    powers = [expected_detection(n, 0.807).power for n in (10, 30, 100, 300)]
    assert powers == sorted(powers) and powers[0] < 0.2 < 0.999 < powers[-1]
    assert expected_detection(200, 0.01).power < 0.01  # text without entropy cannot carry the mark


def test_spike_entropy_of_flat_and_certain_distributions() -> None:
    flat, certain = torch.full((1, 1000), 1e-3), torch.eye(4)[:1]
    assert spike_entropies(flat, 1.8).item() == pytest.approx(1 / 1.0018)
    assert spike_entropies(certain, 1.8).item() == pytest.approx(1 / 2.8)


@pytest.mark.parametrize(("seeding", "width"), CASES)
@pytest.mark.parametrize("counted", ["distinct n-grams", "tokens"])
def test_unpadded_text_is_judged_as_by_transformers(seeding: Seeding, width: int, counted: Counted) -> None:
    watermark = Watermark(key=KEY, vocab_size=12, gamma=0.5, seeding=seeding, context_width=width)
    config = LlamaConfig(vocab_size=12, bos_token_id=99)
    theirs = WatermarkDetector(config, "cpu", watermark.config, counted == "distinct n-grams")
    for seed in range(4):
        ids = random_ids(40, size=12, seed=seed)
        expected = theirs(torch.tensor([ids]), return_dict=True)  # pyright: ignore[reportArgumentType]
        found = detect_watermark(watermark, ids, counted=counted)
        assert found.n_scored == expected.num_tokens_scored[0]  # pyright: ignore
        assert found.n_green == expected.num_green_tokens[0]  # pyright: ignore
        assert found.z == pytest.approx(expected.z_score[0])  # pyright: ignore
        assert found.normal_p_value == pytest.approx(expected.p_value[0])  # pyright: ignore
    repeated = [1, 2, 3] * 10
    scored = {c: detect_watermark(watermark, repeated, counted=c).n_scored for c in ("tokens", counted)}
    assert scored["tokens"] > 20 and (counted == "tokens" or scored[counted] == 3)


@pytest.mark.parametrize(("seeding", "width"), CASES)
def test_many_texts_are_counted_as_each_by_itself(seeding: Seeding, width: int) -> None:
    watermark = Watermark(key=KEY, vocab_size=12, gamma=0.5, seeding=seeding, context_width=width)
    texts = [random_ids(n, size=12, seed=n) for n in (9, 40, 80)]
    for prompt in (0, 7):
        alone = [detect_watermark(watermark, ids, prompt_tokens=prompt) for ids in texts]
        together = count_green(watermark, texts, prompt_tokens=prompt)
        assert together == [(one.n_green, one.n_scored) for one in alone]
        assert together[2].n_scored <= 80 - prompt and together[2].n_green > 0
    with pytest.raises(ValueError, match="text 0 has 9 tokens, 9 of them the prompt's, and none to score"):
        count_green(watermark, texts, prompt_tokens=9)


def test_padding_and_prompt_are_left_out() -> None:
    watermark = Watermark(key=KEY, vocab_size=200)
    ids = random_ids(60, size=200, seed=1)
    plain = detect_watermark(watermark, ids)
    left = detect_watermark(watermark, [0] * 9 + ids, attention_mask=[0] * 9 + [1] * 60)
    right = detect_watermark(watermark, ids + [0] * 9, attention_mask=[1] * 60 + [0] * 9)
    assert (left.z, left.z_along) == (right.z, right.z_along) == (plain.z, plain.z_along)
    assert left.green[:9] == (None,) * 9 and left.green[9:] == plain.green
    assert detect_watermark(watermark, [0] * 9 + ids).z != plain.z  # control: padding scored like text
    prompted = detect_watermark(watermark, ids, prompt_tokens=20)
    # The prompt's last token is context, so that the first generated one is scored.
    assert prompted.n_scored == 40 and prompted.green[:20] == (None,) * 20
    assert prompted.green[20:] == plain.green[20:]
    assert len(plain.z_along) == plain.n_scored and plain.z_along[-1] == pytest.approx(plain.z)


@pytest.mark.parametrize(("seeding", "width"), [("lefthash", 1), ("selfhash", 4)])
def test_unmarked_text_is_standard_normal(seeding: Seeding, width: int) -> None:
    # Several keys: what the lists of one key have in common does not average out over texts.
    z = torch.tensor(
        [
            detect_watermark(
                Watermark(key=KEY + 2 * number, vocab_size=1000, seeding=seeding, context_width=width),
                random_ids(60, size=1000, seed=10 * number + i),
            ).z
            for number in range(10)
            for i in range(8)
        ]
    )
    # Three standard errors of a mean and of a deviation.
    assert abs(float(z.mean())) < 3 / math.sqrt(len(z))
    assert abs(float(z.std()) - 1) < 3 / math.sqrt(2 * len(z))


def test_a_marked_stretch_in_unmarked_text_is_found_by_the_window() -> None:
    generator = torch.Generator().manual_seed(3)
    green = (torch.rand(300, generator=generator) < 0.25).tolist()
    green[120:160] = [True] * 36 + [False] * 4
    found = best_window(green, 0.25)
    assert abs(found.start - 120) < 6 and abs(found.stop - 156) < 6
    assert found.z > z_score(sum(green), 300, 0.25) + 3
    exhaustive = max(z_score(sum(green[a:b]), b - a, 0.25) for a in range(110, 135) for b in range(140, 170))
    assert found.z == pytest.approx(exhaustive)
    threshold = window_threshold(300, 0.25, draws=300)
    assert 2.5 < threshold < found.z
    limit = window_threshold(80, 0.25, false_positive_rate=0.2, draws=300)
    unmarked = [best_window(row, 0.25).z for row in (torch.rand(60, 80, generator=generator) < 0.25).tolist()]
    assert 2 < sum(z > limit for z in unmarked) < 24  # 12 are expected
    with pytest.raises(ValueError, match=r"100 draws cannot tell a false-positive rate of 0.001"):
        window_threshold(10, 0.25, false_positive_rate=0.001, draws=100)


def test_marked_completions_hold_the_bound_of_the_theory(tiny: ChatModel) -> None:
    watermark = Watermark.of_model(tiny, key=KEY, delta=2.0)

    def without_padding(_so_far: object, logits: torch.Tensor) -> torch.Tensor:
        """Random weights also write padding rows of the vocabulary, which are no tokens."""
        return logits.index_fill(1, torch.arange(259, tiny.d_vocab), -math.inf)

    n = 24
    starts = ChatTokens(
        ids=tuple((65 + i,) for i in range(n)), starts=(0,) * n, ends=(1,) * n, tokenizer=tiny.tokenizer
    )
    marked = generate(
        tiny, starts, max_new_tokens=40, temperature=1.0, processors=[without_padding, watermark]
    )
    whole: list[list[int]] = []
    found: list[WatermarkEvidence] = []
    for start, ids in zip(starts.ids, marked.ids, strict=True):
        whole.append([*start, *ids])
        found.append(detect_watermark(watermark, whole[-1], prompt_tokens=1, counted="tokens"))

    def entropies(logits: Sequence[torch.Tensor], _ids: torch.Tensor) -> torch.Tensor:
        return spike_entropies(logits[0].softmax(-1), spike_modulus(0.25, 2.0))

    parts = map_texts([tiny], whole, entropies)
    entropy = float(torch.cat([part.values for part in parts]).mean())
    green, scored = sum(f.n_green for f in found), sum(f.n_scored for f in found)
    bound = expected_detection(scored, entropy)
    assert scored > 200 and green > bound.n_green - 3 * bound.deviation
    assert bound.n_green > 0.25 * scored + 3 * bound.deviation  # the bound says something


def test_spike_entropies_of_texts_are_those_of_plain_logits(tiny: ChatModel) -> None:
    watermark = Watermark.of_model(tiny, key=KEY)
    (found,) = mean_spike_entropies(tiny, ["Rain again."], watermark)
    ids = torch.tensor([tiny.tokenizer("Rain again.")["input_ids"]])
    with torch.no_grad():
        p = tiny.hf(ids).logits[0, :-1, :259].softmax(-1)
    m = spike_modulus(0.25, 2.0)
    assert found == pytest.approx(float((p / (1 + m * p)).sum(-1).mean()), rel=1e-5)


def test_texts_are_cut_by_the_tokenizer_and_mistakes_are_named(tiny: ChatModel) -> None:
    watermark = Watermark.of_model(tiny, key=KEY)
    (found,) = find_watermark(tiny, ["A plain sentence, which nobody marked."], watermark)
    assert found.n_scored > 20 and found.z < 4
    assert "no proof of authorship" in repr(found)
    with pytest.raises(ValueError, match="the text has 1 tokens, 0 of them the prompt's, and none to score"):
        detect_watermark(watermark, [5])
    with pytest.raises(ValueError, match="token 300 is not in the watermark's vocabulary of 259"):
        detect_watermark(watermark, [5, 300])
    with pytest.raises(ValueError, match="got 2 entries of attention_mask for 3 tokens"):
        detect_watermark(watermark, [1, 2, 3], attention_mask=[1, 1])
