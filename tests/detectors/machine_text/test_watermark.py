"""The watermark is transformers' own where transformers has one, and holds where it has none."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TopPLogitsWarper, WatermarkLogitsProcessor

from interp.detectors.machine_text.watermark import Seeding, Watermark
from interp.detectors.machine_text.watermark_detection import detect_watermark
from interp.engine.generation import generate, stream
from interp.engine.interventions import Add
from interp.models.chat_model import ChatModel
from interp.storage.sealed_json import write_sealed
from tests.conftest import PROMPTS
from tests.engine.vectors import vector

KEY = 7919
CASES: list[tuple[Seeding, int]] = [("lefthash", 1), ("lefthash", 2), ("selfhash", 1), ("selfhash", 4)]


@pytest.mark.parametrize(("seeding", "width"), CASES)
def test_logits_are_those_of_transformers_processor(seeding: Seeding, width: int) -> None:
    watermark = Watermark(key=KEY, vocab_size=120, gamma=0.5, seeding=seeding, context_width=width)
    theirs = WatermarkLogitsProcessor(120, "cpu", 0.5, 2.0, KEY, seeding, width)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(120, (5, 9), generator=generator)
    logits = torch.randn(5, 120, generator=generator)
    expected = theirs(ids, logits)  # pyright: ignore[reportArgumentType]
    assert torch.equal(watermark(ids.tolist(), logits), expected)
    assert not torch.equal(expected, logits)
    short = ids[:, : width - 1]
    assert torch.equal(watermark(short.tolist(), logits), logits)  # no context yet


@pytest.mark.parametrize(("seeding", "width"), CASES)
def test_marked_completions_are_those_of_transformers_generate(
    tiny: ChatModel, seeding: Seeding, width: int
) -> None:
    """Greedy, over the model's own vocabulary, as transformers takes it."""
    watermark = Watermark(
        key=KEY, vocab_size=tiny.d_vocab, delta=4.0, seeding=seeding, context_width=width, gamma=0.3
    )
    ours = generate(tiny, PROMPTS[:3], max_new_tokens=12, processors=[watermark])
    hf: Any = tiny.hf
    for prompt, ids in zip(PROMPTS[:3], ours.ids, strict=True):
        chat = tiny.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt"
        )
        given = chat["input_ids"] if hasattr(chat, "keys") else chat  # pyright: ignore
        theirs = hf.generate(
            given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=12,
            do_sample=False,
            watermarking_config=watermark.config,
            pad_token_id=256,
        )[0, given.shape[1] :]
        assert list(ids) == theirs.tolist()[: len(ids)]
    plain = generate(tiny, PROMPTS[:3], max_new_tokens=12)
    assert plain.ids != ours.ids  # control


@pytest.mark.parametrize("delta", [6.0, math.inf])
def test_a_mark_is_found_with_its_key_alone_also_under_steering(tiny: ChatModel, delta: float) -> None:
    # Over the model's own vocabulary: random weights also write padding rows.
    watermark = Watermark(key=KEY, vocab_size=tiny.d_vocab, delta=delta, gamma=0.25)
    for interventions in ([], [Add(vector(), coefficient=1.0, layers=1)]):
        marked = generate(
            tiny,
            PROMPTS[:4],
            interventions=interventions,
            max_new_tokens=60,
            temperature=1.0,
            processors=[watermark],
        )
        longest = max(marked.ids, key=len)
        found = detect_watermark(watermark, longest)
        other = detect_watermark(Watermark(key=KEY + 2, vocab_size=tiny.d_vocab), longest)
        assert found.z > 4 and found.p_value < 1e-5
        assert abs(other.z) < 3.5
        if math.isinf(delta):
            assert found.n_green == found.n_scored  # not a single red token


def test_no_delta_is_no_mark(tiny: ChatModel) -> None:
    watermark = Watermark.of_model(tiny, key=KEY, delta=0)
    plain = generate(tiny, PROMPTS[:3], max_new_tokens=8, temperature=1.0)
    assert (
        generate(tiny, PROMPTS[:3], max_new_tokens=8, temperature=1.0, processors=[watermark]).ids
        == plain.ids
    )


def test_processors_see_each_rows_own_tokens_in_batches_and_streams(tiny: ChatModel) -> None:
    """A hard mark on rows that end at different times, in one batch and token by token."""
    watermark = Watermark.of_model(tiny, key=KEY, delta=math.inf, context_width=3)
    together = generate(tiny, PROMPTS, max_new_tokens=20, processors=[watermark])
    for prompt, ids in zip(PROMPTS, together.ids, strict=True):
        alone = generate(tiny, [prompt], max_new_tokens=20, processors=[watermark])
        assert alone.ids[0] == ids
    rows: list[list[int]] = [[] for _ in PROMPTS]
    for step in stream(tiny, PROMPTS, max_new_tokens=20, processors=[watermark]):
        for row, token in zip(step.rows, step.ids, strict=True):
            rows[row].append(token)
    assert [tuple(row) for row in rows] == list(together.ids)


def test_transformers_warpers_fit_before_a_mark(tiny: ChatModel) -> None:
    narrow = TopPLogitsWarper(1e-6)
    greedy = generate(tiny, PROMPTS[:2], max_new_tokens=6)
    sampled = generate(tiny, PROMPTS[:2], max_new_tokens=6, temperature=1.0, processors=[narrow])
    assert sampled.ids == greedy.ids  # only the likeliest token is left
    watermark = Watermark.of_model(tiny, key=KEY, delta=50.0)
    both = generate(tiny, PROMPTS[:2], max_new_tokens=6, temperature=1.0, processors=[narrow, watermark])
    assert both.ids == greedy.ids  # what is excluded stays excluded
    both = generate(tiny, PROMPTS[:2], max_new_tokens=6, temperature=1.0, top_p=1e-6, processors=[watermark])
    assert both.ids == greedy.ids


def test_padding_rows_of_the_vocabulary_are_never_green(tiny: ChatModel) -> None:
    watermark = Watermark.of_model(tiny, key=KEY, gamma=0.99)
    assert watermark.vocab_size == 259 < tiny.d_vocab
    logits = torch.zeros(1, tiny.d_vocab)
    changed = watermark([[65]], logits)
    assert (changed[0, 259:] == 0).all() and (changed[0, :259] > 0).sum() == int(0.99 * 259)
    hard = Watermark.of_model(tiny, key=KEY, gamma=0.99, delta=math.inf)([[65]], logits)
    assert torch.isinf(hard[0, 259:]).all()


def test_a_list_is_the_same_on_every_device() -> None:
    """Logits of another device get the CPU's list: here the meta device, whose generator draws nothing."""
    watermark = Watermark(key=KEY, vocab_size=50)
    before = watermark._lists.mask((3,)).clone()
    assert watermark([[3]], torch.zeros(1, 50, device="meta")).device.type == "meta"
    assert torch.equal(watermark._lists.mask((3,)), before)
    assert before.device.type == "cpu" and int(before.sum()) == 12


def test_a_file_keeps_everything(tmp_path: Path) -> None:
    for watermark in (
        Watermark(key=KEY, vocab_size=300, delta=math.inf),
        Watermark(key=5, vocab_size=99, gamma=0.5, seeding="selfhash", context_width=4, delta=1.5),
    ):
        assert Watermark.load(watermark.save(tmp_path / "mark.json")) == watermark
        assert "key" not in repr(watermark)  # a notebook's output is no place for a secret
    about = {**asdict(watermark)}
    for changes, message in (
        ({"key": None}, "has no key; a watermark is found only with the key"),
        ({"gamma": "x"}, "gamma"),
    ):
        write_sealed(tmp_path / "bad.json", "interp-watermark", 1, {**about, **changes})
        with pytest.raises(ValueError, match=message):
            Watermark.load(tmp_path / "bad.json")
    with pytest.raises(ValueError, match="no such file of a watermark"):
        Watermark.load(tmp_path / "absent.json")


def test_a_missing_key_and_values_out_of_range_are_refused(tiny: ChatModel) -> None:
    with pytest.raises(
        ValueError, match=r"secret key, a positive integer below 2\*\*63, got None; give key="
    ):
        Watermark.of_model(tiny, key=None)
    for changes, message in (
        ({"key": 0}, r"positive integer below 2\*\*63, got 0"),
        ({"key": 2**63}, "positive integer below"),
        ({"gamma": 1.0}, "gamma must lie between 0 and 1"),
        ({"delta": -1.0}, "delta must be 0 or more"),
        ({"context_width": 0}, "context_width must be 1 or more"),
        ({"vocab_size": 2}, "no green token"),
    ):
        with pytest.raises(ValueError, match=message):
            Watermark(**{"key": KEY, "vocab_size": 100, **changes})
    with pytest.raises(ValueError, match="transformers has no hard watermark"):
        Watermark(key=KEY, vocab_size=100, delta=math.inf).config  # noqa: B018
