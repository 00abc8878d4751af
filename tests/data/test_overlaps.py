"""Overlap of two lists: planted copies and near copies are found, others are not; the index is that of sets."""

import random

import pytest

from interp.data.overlaps import overlap
from tests.conftest import prompts_of

WORDS = (
    "river stone bread lamp window garden pencil cloud market bridge winter silver dance orange paper".split()
)


def sentence(rng: random.Random, n: int = 12) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(n))


def brute_force(one: list[str], other: list[str], threshold: float) -> int:
    """Prompts of `other` with a Jaccard index of 5-grams of at least the threshold with any of `one`."""

    def grams(text: str) -> set[str]:
        plain = " ".join(text.lower().split()).rstrip(".?! ")
        return {plain[i : i + 5] for i in range(len(plain) - 4)}

    return sum(
        any(len(grams(a) & grams(b)) / len(grams(a) | grams(b)) >= threshold for a in one) for b in other
    )


def test_the_index_of_two_sentences_by_hand() -> None:
    # 5-grams: abcde bcdef cdefg | bcdef cdefg defgh: 2 in both of 4.
    first, second = prompts_of(["abcdefg"]), prompts_of(["bcdefgh"])
    assert overlap(first, second, threshold=0.5).pairs == (("p0", "p0", 0.5),)
    assert overlap(first, second, threshold=0.51).pairs == ()


def test_planted_copies_are_found_and_counted_as_brute_force_counts_them() -> None:
    rng = random.Random(0)
    train = [sentence(rng) for _ in range(150)]
    exact = [f"  {text.upper()}?" for text in train[:7]]
    near = [" ".join([*text.split()[:-1], "violin"]) for text in train[20:31]]
    test = [*exact, *near, *(sentence(rng) for _ in range(80))]
    found = overlap(prompts_of(train), prompts_of(test))
    assert found.exact == 7 and found.exact + found.near == brute_force(train, test, 0.7) == 18
    assert {(b, a) for a, b, _ in found.pairs[:7]} == {(f"p{i}", f"p{i}") for i in range(7)}
    assert found.share == 18 / 98
    assert "7 of 98 prompts of test are in test (150), 11 more nearly" in str(found)
    assert not overlap(prompts_of(train), prompts_of([sentence(rng) for _ in range(80)])).pairs  # control


def test_a_list_has_all_of_itself() -> None:
    part = prompts_of(["a", "a.", "bb"])
    assert overlap(part, part).exact == 3
    with pytest.raises(ValueError, match="a Jaccard index above 0 and at most 1, got 0"):
        overlap(part, part, threshold=0)
