"""Perturbers change the share of words that they say, keep the rest, and draw again with another seed."""

import itertools
import random
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from interp.detectors.machine_text.perturbers import (
    MaskedPerturber,
    WordPerturber,
    masked_spans,
    replaced,
)
from tests.conftest import make_tokenizer

TEXT = "The  river rose in the night,\nand by morning the lower road was gone as far as the second bridge."


def test_spans_cover_the_published_share_and_do_not_touch() -> None:
    for n_words in (2, 10, 100, 400):
        spans = masked_spans(n_words, generator=random.Random(n_words))
        assert len(spans) == max(1, int(0.3 * n_words / 4))
        assert all(stop - start == 2 and 0 <= start and stop <= n_words for start, stop in spans)
        assert all(after[0] - before[1] >= 1 for before, after in itertools.pairwise(spans))
    with pytest.raises(ValueError, match="a text of 1 word has no span of 2"):
        masked_spans(1, generator=random.Random(0))


def test_words_are_dropped_or_swapped_and_nothing_else_changes() -> None:
    words = TEXT.split()
    dropped = WordPerturber(drop=1.0)(TEXT, 5, seed=0)
    swapped = WordPerturber(drop=0.0)(TEXT, 5, seed=0)
    assert all(len(version.split()) == len(words) - 1 for version in dropped)
    assert all(sorted(version.split()) == sorted(words) and version != TEXT for version in swapped)
    assert all("\n" in version for version in swapped)  # white space stays
    assert len(set(swapped)) > 1
    assert WordPerturber()(TEXT, 3, seed=4) == WordPerturber()(TEXT, 3, seed=4)
    with pytest.raises(ValueError, match=r"share must lie between 0 and 1, got 2\.0"):
        WordPerturber(share=2.0)
    assert WordPerturber()(TEXT, 3, seed=4) != WordPerturber()(TEXT, 3, seed=5)
    assert replaced(TEXT, words) == TEXT


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("masked")
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"mask_token": "<|mask|>"})
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=128,
    )
    BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_masked_model_fills_the_masked_words_alone(masked: Path) -> None:
    perturb = MaskedPerturber.load(str(masked))
    assert isinstance(perturb.tokenizer, PreTrainedTokenizerFast)
    versions = perturb(TEXT, 6, seed=1)
    words = TEXT.split()
    for version in versions:
        changed = [i for i, (a, b) in enumerate(zip(words, version.split(), strict=True)) if a != b]
        assert len(changed) <= 2 and (len(changed) < 2 or changed[1] == changed[0] + 1)
        assert "<|" not in version  # no special token is written
    assert len(set(versions)) > 1 and perturb(TEXT, 6, seed=1) == versions


def test_what_cannot_be_perturbed_is_said(masked: Path, tmp_path: Path) -> None:
    perturb = MaskedPerturber.load(str(masked))
    with pytest.raises(ValueError, match="the masked model takes 128; cut it"):
        perturb(TEXT * 4, 1, seed=0)
    with pytest.raises(ValueError, match=r"cannot load .* as a masked language model .* WordPerturber\(\)"):
        MaskedPerturber.load(str(tmp_path / "absent"))
    with pytest.raises(ValueError, match="has no mask token"):
        MaskedPerturber(hf=perturb.hf, tokenizer=make_tokenizer())
