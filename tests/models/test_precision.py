"""`precision="fast"`: where it can be had, where it pays, and that it belongs to one model."""

import logging

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from interp.models import precision
from interp.models.adapted_models import with_precision
from interp.models.chat_model import ChatModel, load
from interp.models.sources import ModelSource
from tests.families import COVERED, build


def test_it_belongs_to_the_model_and_is_part_of_its_provenance(
    tiny: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "bfloat16_speedup", lambda _threads: 7.0)
    fast = load(tiny.hf, tokenizer=tiny.tokenizer, precision="fast")
    assert fast.precision == fast.provenance["precision"] == "fast"
    assert tiny.precision == tiny.provenance["precision"] == "exact"
    twin = with_precision(tiny, "fast")
    assert (twin.precision, tiny.precision) == ("fast", "exact") and twin.lock is tiny.lock


def test_where_bfloat16_is_no_faster_a_model_stays_exact(
    tiny: ChatModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(precision, "bfloat16_speedup", lambda _threads: 0.6)
    with caplog.at_level(logging.WARNING):
        assert with_precision(tiny, "fast").precision == "exact"
    assert "0.6 times as fast" in caplog.text


def test_what_was_measured_is_a_ratio_of_times() -> None:
    slow, quick = torch.ones(400, 400), torch.ones(4, 4)
    seconds = precision.fastest_of(lambda: slow @ slow, lambda: quick @ quick)
    assert seconds[0] > seconds[1] > 0
    assert precision.bfloat16_speedup(torch.get_num_threads()) >= 0


def test_mistakes_are_named(tiny: ChatModel, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="precision must be exact or fast, got 'quick'"):
        ModelSource(precision="quick").check()
    with pytest.raises(ValueError, match="precision must be 'exact' or 'fast', got 'quick'"):
        ChatModel(tiny.hf, tiny.tokenizer, name="tiny", precision="quick")
    half = build(*COVERED["llama"]).to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"is for float32 models on the CPU, but half is in bfloat16 on cpu"):
        ChatModel(half, tokenizer, name="half", precision="fast")
