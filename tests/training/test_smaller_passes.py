"""Training steps that run out of memory: parts of a batch give the weights that the whole gives, or it is said."""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from interp.data.examples import Example, Preference
from interp.models.chat_model import ChatModel
from interp.training.config import TrainConfig
from interp.training.finetune import fine_tune, preference_tune
from interp.training.saving import Trained

CONFIG = TrainConfig(
    epochs=1, batch_size=4, learning_rate=1e-2, warmup_steps=0, dropout=0.0, rank=2, first_token_weight=3.0
)
EXAMPLES = [
    Example("Hi", "no"),
    Example("Bake", "a longer answer"),
    Example("Why?", "yes."),
    Example("A", "b" * 9),
] * 2
PAIRS = [Preference(e.prompt, e.completion, e.completion[::-1] + "!") for e in EXAMPLES]


@pytest.fixture(autouse=True)
def no_telemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "1")


@contextmanager
def little_memory(model: ChatModel, limit: float) -> Iterator[list[int]]:
    """Passes with gradients of more tokens than these run out of memory, as on a small card; gives those of every pass
    that was tried."""
    tried: list[int] = []

    def check(module: Any, args: Any, kwargs: dict[str, Any]) -> None:  # noqa: ARG001 (a hook's signature)
        hidden = args[0] if args else kwargs["hidden_states"]
        if torch.is_grad_enabled():
            tried.append(hidden[..., 0].numel())
            if tried[-1] > limit:
                raise torch.OutOfMemoryError("CUDA out of memory")

    handle = model.blocks[0].module.register_forward_pre_hook(check, with_kwargs=True)
    try:
        yield tried
    finally:
        handle.remove()


def supervised(model: ChatModel, out: Path) -> Trained:
    return fine_tune(model, EXAMPLES, out=out, config=CONFIG)


def constrained(model: ChatModel, out: Path) -> Trained:
    return fine_tune(model, EXAMPLES, out=out, config=replace(CONFIG, constraint=0.1))


def by_preference(model: ChatModel, out: Path) -> Trained:
    return preference_tune(model, PAIRS, out=out, config=CONFIG)


@pytest.mark.parametrize(
    ("train", "share"), [(supervised, 0.9), (supervised, 0.75), (constrained, 0.75), (by_preference, 0.5)]
)
def test_parts_give_the_weights_of_the_whole_batch(
    tiny: ChatModel,
    tmp_path: Path,
    train: Callable[[ChatModel, Path], Trained],
    share: float,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with little_memory(tiny, math.inf) as tokens:
        whole = train(tiny, tmp_path / "whole")
    with little_memory(tiny, share * max(tokens)), caplog.at_level(logging.WARNING, logger="interp"):
        parts = train(tiny, tmp_path / "parts")
    assert "(same gradients)" in caplog.text
    one, other = (load_file(done.folder / "adapter_model.safetensors") for done in (whole, parts))
    moved = 0.0
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-5)
        moved = max(moved, one[name].abs().max().item() if "lora_B" in name else 0.0)
    assert moved > 1e-3  # control: training has moved the weights
    assert [loss for _, loss in parts.losses] == pytest.approx([loss for _, loss in whole.losses], rel=1e-4)


@pytest.mark.parametrize("objective", ["kto", "orpo"])
def test_losses_that_compare_rows_say_what_to_change(tiny: ChatModel, tmp_path: Path, objective: Any) -> None:
    config = replace(CONFIG, objective=objective)
    with (
        little_memory(tiny, 100),
        pytest.raises(MemoryError, match=r"in step 1, with \d rows; take smaller"),
    ):
        preference_tune(tiny, PAIRS, out=tmp_path / "run", config=config)
    assert not (tmp_path / "run").exists()


def test_one_row_that_does_not_fit_is_an_error(tiny: ChatModel, tmp_path: Path) -> None:
    with little_memory(tiny, 0), pytest.raises(MemoryError, match="out of memory in step 1"):
        supervised(tiny, tmp_path / "run")
