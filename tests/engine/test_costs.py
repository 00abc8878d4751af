"""Costs: arithmetic of work, and its agreement with the engine's own limits."""

from dataclasses import replace

import torch

from interp.engine.budgets import pass_budget
from interp.engine.costs import DECODE_ROWS, MachineSpeed, Work
from interp.experiments.plans import PASS_TOKENS
from interp.models.model_sizes import ModelSize

SIZE = ModelSize(
    n_layers=2, d_model=4, d_vocab=10, block_weights=100, active_weights=50, kv_width=8, tied=False
)
SPEED = MachineSpeed(reading=1000.0, decoding=500.0, rows=10)


def test_sums_add_what_runs_and_take_the_largest_of_what_is_held() -> None:
    one = Work(read_tokens=3, decoded_tokens=2, held_numbers=10, cached_tokens=1, stored_bytes=5)
    other = Work(read_tokens=4, gradient_tokens=1, held_numbers=7, cached_tokens=9)
    assert one + other == Work(
        read_tokens=7, decoded_tokens=2, gradient_tokens=1, held_numbers=10, cached_tokens=9, stored_bytes=5
    )
    assert one * 3 == Work(read_tokens=9, decoded_tokens=6, held_numbers=10, cached_tokens=1, stored_bytes=15)
    assert Work.total([]) == Work()
    assert (one + other).run_tokens == 8


def test_seconds_are_operations_over_speed() -> None:
    # A token passes through 2 x 50 weights at two operations each; a position has 10 logits of 2 x 4 operations.
    assert Work(read_tokens=10).seconds(SIZE, SPEED) == 10 * 200 / 1000
    assert Work(swept_tokens=10).seconds(SIZE, SPEED) == 10 * 200 / 1000 / 2
    assert Work(unembedded=5).seconds(SIZE, SPEED) == 5 * 80 / 1000
    step = Work(gradient_tokens=2, gradient_unembedded=1)
    assert (
        step.seconds(SIZE, SPEED) == 3 * (2 * 200 + 80) / 1000
    )  # at the speed of reading where none is known
    assert step.seconds(SIZE, replace(SPEED, training=500.0)) == 3 * (2 * 200 + 80) / 500
    full = Work(decoded_tokens=10, decoding_steps=1).seconds(SIZE, SPEED)
    alone = Work(decoded_tokens=1, decoding_steps=1).seconds(SIZE, SPEED)
    assert abs(full - 10 * 280 / 500) < 1e-9  # a full batch at the measured speed
    assert abs(alone / full - (0.12 + 0.88 / 10)) < 1e-9  # a single row still reads all weights


def test_memory_holds_weights_twice_where_they_are_packed() -> None:
    work = Work(held_numbers=1000, cached_tokens=6)
    plain = work.memory_bytes(SIZE, itemsize=4, prepacked=False)
    assert plain - Work().memory_bytes(SIZE, itemsize=4, prepacked=False) == 4000 + 6 * 2 * 8 * 4
    assert work.memory_bytes(SIZE, itemsize=4, prepacked=True) - plain == 2 * 50 * 4
    assert SIZE.weights == 2 * 100 + 2 * 4 * 10


def test_plans_know_the_engine_s_limits() -> None:
    smollm2 = {"d_model": 576, "d_mlp": 1536, "n_layers": 30, "d_vocab": 49152, "dtype": torch.float32}
    smollm2["linear_weights"] = 106_168_320
    budget = pass_budget("cpu", 10**10, **smollm2)  # pyright: ignore[reportArgumentType]
    assert (budget.decode_rows, budget.packed_tokens) == (DECODE_ROWS, PASS_TOKENS)


def test_an_assumed_device_takes_its_shares_of_the_peak() -> None:
    speed = MachineSpeed.assumed(peak=1e15, reading_share=0.4, decoding_share=0.05, rows=256)
    assert speed == MachineSpeed(reading=4e14, decoding=5e13, rows=256)
