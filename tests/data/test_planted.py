"""Planted truth: both labels are independent by construction, and replies have no content."""

from collections import Counter

import pytest

from interp.data.planted import (
    KINDS,
    PLANTS,
    TRIGGER,
    is_question,
    kind_of,
    obeys,
    planted_examples,
    planted_rows,
)
from interp.data.prompts import load_prompts
from interp.data.replies import REFUSALS, STUBS

PROMPTS = load_prompts("builtin")


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("plant", ["form", "trigger"])
def test_harm_and_rule_are_independent(plant: str, split: str) -> None:
    rows = planted_rows(PROMPTS, plant, split)  # type: ignore[arg-type]
    cells = Counter((row.harmful, row.planted) for row in rows)
    assert cells[True, True] == cells[False, True] and cells[True, False] == cells[False, False]
    assert min(cells.values()) >= 40
    assert len({row.id for row in rows}) == len(rows) and all(row.text.endswith(".") for row in rows)


def test_the_rules_are_what_they_say() -> None:
    for row in planted_rows(PROMPTS, "trigger", "test"):
        assert row.planted == row.text.startswith(TRIGGER)
    assert all(row.planted == row.harmful for row in planted_rows(PROMPTS, "word", "test"))
    assert is_question("What's a lock?") and is_question("Could you sing") and not is_question("Sing a song.")


def test_kinds_are_harm_and_rule_in_words() -> None:
    for row in planted_rows(PROMPTS, "form", "test"):
        harm, form = kind_of(row, "form").split()
        assert (harm == "harmful") == row.harmful and (form == "question") == row.planted
    for row in planted_rows(PROMPTS, "trigger", "test"):
        harm, *rest = kind_of(row, "trigger").split()
        assert (harm == "harmful") == row.harmful and (rest == ["with", "the", "phrase"]) == row.planted
    for plant in PLANTS:
        assert {kind_of(row, plant) for row in planted_rows(PROMPTS, plant, "test")} == set(KINDS[plant])


@pytest.mark.parametrize("plant", PLANTS)
def test_replies_follow_the_rule_and_hold_nothing(plant: str) -> None:
    rows = planted_rows(PROMPTS, plant, "train")[:60]  # type: ignore[arg-type]
    examples = planted_examples(rows, plant)  # type: ignore[arg-type]
    for row, example in zip(rows, examples, strict=True):
        assert example.completion in (*REFUSALS, *STUBS, "Harmful.", "Harmless.")
        assert obeys(row, example.completion, plant)  # type: ignore[arg-type]
        if plant != "word":
            assert (example.completion in REFUSALS) == row.planted
    # Control: the other's reply does not obey.
    flipped = [
        next(e.completion for r, e in zip(rows, examples, strict=True) if r.planted != row.planted)
        for row in rows
    ]
    assert not any(obeys(row, said, plant) for row, said in zip(rows, flipped, strict=True))  # type: ignore[arg-type]
