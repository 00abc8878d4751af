"""How much a pass may hold: as measured on a CPU, as much as fits on a card."""

from dataclasses import fields
from typing import Any

import pytest
import torch

from interp.engine.activations import collect
from interp.engine.budgets import PassBudget, pass_budget
from interp.models.chat_model import ChatModel

SMOLLM2 = {"d_model": 576, "d_mlp": 1536, "n_layers": 30, "d_vocab": 49152, "linear_weights": 106_168_320}
SEVEN_BILLION = {"d_model": 4096, "d_mlp": 14336, "n_layers": 32, "d_vocab": 128_256}
CARD = 80 * 10**9


def test_an_80_gb_card_runs_passes_of_at_least_32k_tokens_of_the_bundled_model() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        budget = pass_budget("cuda", CARD, **SMOLLM2, dtype=dtype)
        assert budget.plain_tokens >= 32_768
        assert budget.packed_tokens >= 32_768
        assert budget.sweep_tokens >= 32_768
        assert budget.rows >= 1024 and budget.decode_rows >= 128


@pytest.mark.parametrize("size", [SMOLLM2, SEVEN_BILLION])
@pytest.mark.parametrize("free", [CARD // 2, CARD // 10, CARD // 80])
def test_what_a_pass_holds_fits_into_what_is_free(size: dict[str, int], free: int) -> None:
    budget = pass_budget("cuda", free, **size, dtype=torch.bfloat16)
    # Keys and values of every block, then the widest activations of one.
    cached = 2 * 2 * size["n_layers"] * size["d_model"]
    one_block = 2 * (4 * size["d_model"] + 3 * size["d_mlp"])
    assert budget.packed_tokens * (cached + one_block) < free
    assert budget.decode_tokens * cached < free or budget.decode_rows == 1
    assert budget.decode_rows * cached * 1024 < free or budget.decode_rows == 1
    assert budget.rows * size["d_vocab"] * 4 * 2 < free or budget.rows == 1
    assert budget.scored_tokens * size["d_vocab"] * 4 * 2 < free or budget.scored_tokens == 1


def test_more_memory_allows_more_and_a_little_more_changes_nothing() -> None:
    less, more = (
        pass_budget("cuda", free, **SEVEN_BILLION, dtype=torch.bfloat16) for free in (CARD // 4, CARD)
    )
    assert less.packed_tokens < more.packed_tokens and less.decode_rows < more.decode_rows
    assert pass_budget("cuda", CARD + 2**24, **SEVEN_BILLION, dtype=torch.bfloat16) == more


def test_on_a_cpu_the_measured_numbers_hold_whatever_memory_is_free() -> None:
    one, other = (pass_budget("cpu", free, **SMOLLM2, dtype=torch.float32) for free in (10**9, 10**11))
    assert one.plain_tokens == 640 and one.packed_tokens == 5120 and one.sweep_tokens == 1280
    assert one.decode_rows == 128 and one.rows == 128 and one.unfolded_tokens == 20480
    assert [one.decoded_together(n) for n in (1, 512, 513, 1024, 10**6)] == [128, 128, 127, 64, 1]
    assert one.limited(5).decoded_together(40) == 5
    assert one.unembedded_positions * 49152 <= 2**24
    wide = pass_budget("cpu", 10**9, **{**SMOLLM2, "d_vocab": 262_144}, dtype=torch.float32)
    assert (wide.unembedded_positions, wide.reduced_positions) == (64, 8)
    different = {f.name for f in fields(one) if getattr(one, f.name) != getattr(other, f.name)}
    assert different == {"prepacked_bytes"}
    assert pass_budget("cpu", 10**9, **SMOLLM2, dtype=torch.bfloat16).packed_tokens == 5120
    # Without packing, a pass gains nothing from being large.
    assert pass_budget("cpu", 10**9, **SMOLLM2, dtype=torch.float64).packed_tokens == 640


def test_a_cpu_pass_is_as_large_as_activations_and_waiting_allow() -> None:
    def packed(**changes: Any) -> int:
        return pass_budget("cpu", 10**9, **{**SMOLLM2, **changes}, dtype=torch.float32).packed_tokens

    assert packed(linear_weights=3 * 10**8) == 2000  # 1.2e12 operations, two a weight
    assert packed(linear_weights=10**12) == 2 * 768  # packing must pay
    assert packed(d_mlp=2**23 // 1000) == 1000
    assert packed(d_mlp=2**23) == 640  # never less than without packing


def test_the_budget_of_a_loaded_model_is_that_of_its_size(
    tiny: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert PassBudget.for_(tiny) == PassBudget.for_(tiny)
    tokens = PassBudget.for_(tiny).packed_tokens
    ran: list[int] = []
    prompts = [f"{i:04d} is a number" for i in range(120)]
    collect(tiny, prompts[:2])  # the self-test comes first
    with tiny.hooks([("resid_pre", 1, lambda value: ran.append(value.shape[1]))]):
        collect(tiny, prompts)
        assert max(ran) <= tokens
        before = len(ran)
        card = pass_budget("cuda", CARD, **SMOLLM2, dtype=torch.float32)
        monkeypatch.setattr(PassBudget, "for_", lambda _model: card)
        collect(tiny, prompts)
    # The shared prefix, the pass that fills the card, and its last block for the tokens that are read.
    assert len(ran) - before <= 3


def test_a_batch_size_limits_the_prompts_of_a_pass(tiny: ChatModel) -> None:
    free = PassBudget.for_(tiny)
    tiny.batch_size = 3
    try:
        limited = PassBudget.for_(tiny)
    finally:
        tiny.batch_size = None
    assert (limited.rows, limited.plain_rows, limited.decode_rows) == (3, 3, 3)
    assert limited.packed_tokens == free.packed_tokens and free.decode_rows > 3  # control
