"""How prompts are cut into batches, and what happens where one does not fit."""

import random

import pytest

from interp.engine.batching import plan_batches, run_batches


def test_batches_hold_every_row_once_within_budget() -> None:
    lengths = [7, 3, 3, 50, 9, 9, 9, 1, 200]
    batches = plan_batches(lengths, budget=60, max_rows=128, overhead=48)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= 60
    assert max(map(len, plan_batches([3] * 20, budget=60, max_rows=6, overhead=48))) == 6


def test_thousands_of_prompts_are_cut_in_fewer_ways_and_nearly_as_well() -> None:
    """A card takes passes of thousands of prompts; comparing every cut of them would take minutes."""
    draw = random.Random(0)
    lengths = [draw.randrange(20, 120) for _ in range(6000)]

    def padded(batches: list[list[int]]) -> int:
        return sum(len(batch) * max(lengths[row] for row in batch) + 2048 for batch in batches)

    batches = plan_batches(lengths, budget=131072, max_rows=32768, overhead=2048)
    assert sorted(row for batch in batches for row in batch) == list(range(6000))
    assert all(len(batch) * max(lengths[row] for row in batch) <= 131072 for batch in batches)
    assert padded(batches) < 1.15 * sum(lengths)
    whole = [list(range(start, start + 1000)) for start in range(0, 6000, 1000)]
    assert padded(whole) > 1.5 * sum(lengths)  # control: unsorted batches are mostly padding


def test_out_of_memory_halves_the_batch() -> None:
    def run(rows: list[int]) -> int:
        if len(rows) > 3:
            raise RuntimeError("CUDA out of memory")
        return sum(rows)

    done = list(run_batches([list(range(10)), [10, 11, 12, 13]], run, max_rows=128))
    assert [row for rows, _ in done for row in rows] == list(range(14))
    assert max(len(rows) for rows, _ in done) <= 3
    with pytest.raises(RuntimeError, match="other"):
        list(run_batches([[0, 1]], lambda _: (_ for _ in ()).throw(RuntimeError("other")), max_rows=128))


def test_batches_grow_again_once_there_is_memory() -> None:
    """What took the memory, another process on the card for instance, may be gone after a while."""
    sizes: list[int] = []

    def run(rows: list[int]) -> None:
        if len(rows) > 8 and len(sizes) < 12:
            raise MemoryError
        sizes.append(len(rows))

    done = list(run_batches([list(range(200)), list(range(200, 400))], run, max_rows=64))
    assert [row for rows, _ in done for row in rows] == list(range(400))
    assert set(sizes[:12]) == {8}
    assert max(sizes) == 64
