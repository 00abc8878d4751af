"""Model cards: paired losses, rows in the order of their labels, numbers read back."""

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from interp.data.prompts import HELD_OUT_TEXT
from interp.engine.log_probs import completion_log_probs
from interp.evaluation.losses import text_windows
from interp.models.chat_model import ChatModel
from interp.stats import Estimate, rate
from interp.training.model_cards import (
    compared_losses,
    number_rows,
    perplexity_change,
    text_losses,
    write_card,
    write_numbers,
)
from tests.conftest import tiny_config


def test_losses_are_paired_over_windows(tiny: ChatModel) -> None:
    torch.manual_seed(1)
    hf = AutoModelForCausalLM.from_config(tiny_config()).float()
    other = ChatModel(hf, tiny.tokenizer, name="other")
    losses = compared_losses(text_losses(tiny), text_losses(other), "other")
    starts, windows = text_windows(tiny, HELD_OUT_TEXT.read_text(), window=64)
    by_window = [
        [-scores.double().mean().item() for scores in completion_log_probs(model, starts, windows)]
        for model in (tiny, other)
    ]
    base, changed = (sum(values) / len(values) for values in by_window)
    assert losses["base"].value == pytest.approx(base) and losses["other"].value == pytest.approx(changed)
    assert losses["change"].value == pytest.approx(changed - base) and losses["change"].n == len(windows)
    assert abs(losses["change"].value) > 0
    same = compared_losses(by_window[0], by_window[0], "same")["change"]
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_a_card_shows_every_number_and_keeps_its_tables(tmp_path: Path) -> None:
    found = {"refused": {"base": rate([True, False]), "x": rate([True, True])}, "n": {"base": rate([False])}}
    table = number_rows({"refused": found["refused"]}, {"refused": "refuses"}, {"base": "plain", "x": "mine"})
    assert table.splitlines()[0] == "| | n | plain | mine |"
    assert table.splitlines()[2] == "| refuses | 2 | 0.50 [0.09, 0.91] | 1.00 [0.34, 1.00] |"
    write_card(tmp_path, "mine: an adapter", [table, "word " * 60])
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("# mine: an adapter\n") and table in card
    assert all(len(line) <= 118 for line in card.splitlines() if not line.startswith("|"))
    assert write_numbers(tmp_path, found) == json.loads((tmp_path / "measured.json").read_text())


def test_perplexity_is_the_exponential_of_the_change() -> None:
    change = Estimate(value=math.log(2), n=5, low=0.0, high=math.log(4), unit="nats")
    assert "by a factor of 2.000 [1.000, 4.000]" in perplexity_change(change)
