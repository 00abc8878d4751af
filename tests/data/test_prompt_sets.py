"""Prompt sets: endings are applied everywhere and recorded, hashes follow the texts, rows stay together."""

import pytest

from interp.data.prompt_sets import Prompts, PromptSet, with_held_out
from interp.data.prompts import load_prompts
from tests.conftest import PROMPTS, prompts_of


@pytest.fixture(scope="module")
def builtin() -> PromptSet:
    return load_prompts("builtin")


# --- endings


def test_endings() -> None:
    texts = ("Bake bread.", "Why?!", "Name a colour", "Wait… ", "Use version 2.0", "为什么？")
    part = Prompts(texts, tuple("abcdef"), (None,) * 6, source="s")
    assert part.with_ending("as-is") == part
    bare = ("Bake bread", "Why", "Name a colour", "Wait", "Use version 2.0", "为什么")
    assert part.with_ending("strip").texts == bare
    assert part.with_ending("period").texts == tuple(text + "." for text in bare)
    assert part.texts == texts
    assert part.with_ending("period").with_ending("strip").texts == bare


def test_ending_of_a_set_is_applied_everywhere_and_recorded(builtin: PromptSet) -> None:
    ended = load_prompts("builtin", ending="period")
    assert ended.ending == ended.provenance["ending"] == "period"
    for key, part in ended.parts.items():
        assert all(text.endswith(".") and not text.endswith("?.") for text in part)
        assert part.texts == builtin[key].with_ending("period").texts
    assert builtin.provenance["ending"] == "as-is"
    hashes = [s.provenance["splits"]["harmful/train"]["hash"] for s in (builtin, ended)]
    assert hashes[0] != hashes[1]


def test_endings_that_are_gone_cannot_be_had_back(builtin: PromptSet) -> None:
    with pytest.raises(ValueError, match="builtin has ending='period'; load it again for ending='as-is'"):
        builtin.with_ending("period").with_ending("as-is")
    assert builtin.with_ending("as-is").provenance == builtin.provenance


def test_a_prompt_of_punctuation_only_cannot_be_stripped() -> None:
    part = Prompts(("Hi.", "?!"), ("p-0", "p-1"), (None, None), source="s")
    with pytest.raises(ValueError, match="s: prompt p-1 is punctuation only; remove it"):
        part.with_ending("strip")


# --- Prompts


def test_hash_changes_with_the_text_and_its_order() -> None:
    part = Prompts(("a", "b"), ("0", "1"), (None, None), source="s")
    same = Prompts(("a", "b"), ("x", "y"), ("c", "d"), source="other")
    assert part.hash == same.hash
    others = [("a", "c"), ("b", "a"), ("a",), ("ab",), ("a b",), ("a", "b", "")]
    assert len({Prompts(t, t, (None,) * len(t), source="s").hash for t in others} | {part.hash}) == 7


def test_first_take_and_shuffled_keep_rows_together(builtin: PromptSet) -> None:
    part = builtin["harmful", "test"]
    rows = dict(zip(part.ids, zip(part.texts, part.categories, strict=True), strict=True))
    mixed = part.shuffled(3)
    assert mixed.texts != part.texts and sorted(mixed.texts) == sorted(part.texts)
    assert mixed == part.shuffled(3) != part.shuffled(4)
    for some in (mixed, part.first(7), part.take([5, 2])):
        assert (
            dict(zip(some.ids, zip(some.texts, some.categories, strict=True), strict=True)).items()
            <= rows.items()
        )
    assert part.first(7).texts == part.texts[:7]
    assert part.take([5, 2]).texts == (part.texts[5], part.texts[2])
    assert len(part.first(10_000)) == len(part) == len(list(part))


def test_held_out_prompts_are_no_copies_of_those_fitted_on() -> None:
    given = prompts_of(PROMPTS)
    fit, held_out = with_held_out(given, share=0.34, seed=1)
    assert (len(fit), len(held_out)) == (4, 2) and set(fit.texts) | set(held_out.texts) == set(PROMPTS)
    assert len({with_held_out(given, share=0.34, seed=seed)[1].texts for seed in range(5)}) > 1
    fit, held_out = with_held_out(prompts_of(["a", "b", "a", "b", "a", "c"]))
    assert not set(fit.texts) & set(held_out.texts) and len(fit) + len(held_out) == 3
    with pytest.raises(ValueError, match="must lie between 0 and 1, got 1"):
        with_held_out(given, share=1.0)
    with pytest.raises(ValueError, match="has 1 different prompts"):
        with_held_out(prompts_of(["a", "a"]))
