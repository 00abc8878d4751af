"""Packed rows have the losses and gradients of padded ones; where they cannot, rows run padded."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from interp.data.examples import Example
from interp.engine.packing import can_pack
from interp.models.adapted_models import with_adapter
from interp.models.chat_model import ChatModel, load
from interp.models.tokens import tokenize
from interp.training.config import TrainConfig
from interp.training.finetune import _collate, _rows, _token_losses, fine_tune
from interp.training.packed_losses import PackedLosses, can_pack_training
from interp.training.runner import trainable_module
from tests.conftest import PROMPTS
from tests.families import COVERED, build

CONFIG = TrainConfig(epochs=2.0, batch_size=4, warmup_steps=0, learning_rate=2e-3, dropout=0.0, rank=4)
EXAMPLES = [
    Example(prompt, "yes " * (1 + i % 3) + "of course") for i, prompt in enumerate([*PROMPTS, *PROMPTS])
]
FULL = replace(CONFIG, method="full")


def batch_of(model: ChatModel) -> tuple[dict[str, Tensor], Tensor]:
    inputs = _collate(_rows(model, EXAMPLES[:5], 64), 0)
    return inputs, inputs.pop("labels")


def padded(module: Any) -> Any:
    return lambda inputs, labels: _token_losses(module, inputs, labels)[0]


@contextmanager
def counted(model: ChatModel) -> Iterator[list[int]]:
    """Tokens, padding included, of every pass that computes gradients."""
    counts: list[int] = []

    def count(_module: Any, args: Any, options: Any) -> None:
        hidden = args[0] if args else options["hidden_states"]
        if torch.is_grad_enabled():
            counts.append(hidden[..., 0].numel())

    handle = model.blocks[0].module.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield counts
    finally:
        handle.remove()


def test_losses_and_every_gradient_are_those_of_padded_rows(family: ChatModel) -> None:
    inputs, labels = batch_of(family)
    with trainable_module(family, FULL, None) as module:
        if not can_pack(family, tokenize(family.tokenizer, list(PROMPTS))):  # its rows run padded
            assert not can_pack_training(family, module, [[5] * 100], FULL)
            return
        parameters = list(module.parameters())
        packed = PackedLosses(family, parameters, padded(module))
        ours, plain = packed.packed(inputs, labels), padded(module)(inputs, labels)
        torch.testing.assert_close(ours, plain, atol=2e-5, rtol=2e-5)
        found = torch.autograd.grad(ours.sum(), parameters, allow_unused=True)
        expected = torch.autograd.grad(plain.sum(), parameters, allow_unused=True)
        for one, other, parameter in zip(found, expected, parameters, strict=True):
            zero = torch.zeros_like(parameter)
            one, other = (zero if value is None else value for value in (one, other))
            torch.testing.assert_close(one, other, atol=2e-5 * (1 + float(other.norm())), rtol=0)
        packed(inputs, labels)
        assert packed.agree


@pytest.mark.parametrize("constraint", [0.0, 0.1])
def test_training_runs_fewer_tokens_to_the_same_weights(
    tiny: ChatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, constraint: float
) -> None:
    config = replace(CONFIG, constraint=constraint, first_token_weight=3.0)

    def train(name: str) -> tuple[list[int], dict[str, Tensor], float]:
        with counted(tiny) as tokens:
            trained = fine_tune(tiny, EXAMPLES, out=tmp_path / name, config=config)
        with with_adapter(tiny, str(trained.folder)) as model:
            return tokens, {n: p.detach().clone() for n, p in model.hf.named_parameters()}, trained.loss

    tokens, packed, loss = train("packed")
    monkeypatch.setattr("interp.training.finetune.can_pack_training", lambda *_: False)
    tokens_padded, plain, loss_padded = train("padded")
    steps = len(tokens_padded)
    assert len(tokens) == steps + 2  # both ways are compared once
    assert sum(tokens[-steps:]) < 0.8 * sum(tokens_padded)
    assert loss == pytest.approx(loss_padded, rel=1e-4)
    moved = max(float((plain[n] - p.detach()).norm()) for n, p in tiny.hf.named_parameters())
    for name, value in packed.items():
        assert float((value - plain[name]).norm()) < 0.01 * moved, name


@pytest.mark.parametrize("change", [{"dropout": 0.1}, {"embedding_noise": 5.0}])
def test_what_a_row_draws_by_itself_keeps_rows_padded(
    tiny: ChatModel, tmp_path: Path, change: dict[str, float]
) -> None:
    with counted(tiny) as tokens:
        fine_tune(tiny, EXAMPLES, out=tmp_path, config=replace(CONFIG, epochs=1.0, **change))
    assert len(tokens) == 3  # no comparison
    inputs, _ = batch_of(tiny)
    assert tokens[0] >= 4 * int(inputs["attention_mask"].sum(1).min())


def test_rows_that_outgrow_a_window_run_padded(tokenizer: PreTrainedTokenizerFast) -> None:
    windows = dict[str, int]()
    for name, kind in COVERED.items():
        model = ChatModel(build(*kind), tokenizer, name=name)
        window = getattr(model.hf.config.get_text_config(), "sliding_window", None)
        with trainable_module(model, FULL, None) as module:
            if window and can_pack_training(model, module, [[5] * 4], FULL):
                windows[name] = window
                assert not can_pack_training(model, module, [[5] * 4, [5] * window], FULL)
    assert windows


def test_a_model_that_mixes_tokens_of_a_pass_is_found_and_runs_padded(
    saved_tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, config = load(str(saved_tiny)), replace(CONFIG, epochs=1.0)
    # As an architecture does that sees more of a pass than earlier tokens of the same row.
    model.blocks[0].module.register_forward_hook(lambda _module, _args, out: out + out.mean((0, 1)))
    with caplog.at_level(logging.WARNING), counted(model) as tokens:
        fine_tune(model, EXAMPLES, out=tmp_path / "compared", config=config)
    assert "other gradients than padded ones" in caplog.text
    monkeypatch.setattr("interp.training.finetune.can_pack_training", lambda *_: False)
    with counted(model) as padded_tokens:
        fine_tune(model, EXAMPLES, out=tmp_path / "padded", config=config)
    assert tokens[2:] == padded_tokens
