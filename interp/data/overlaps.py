"""How many prompts of one list stand in another, exactly or nearly: a test set that does has been trained on.

    found = overlap(train, test)
    found.exact, found.near                # prompts of `test` that are in `train`; those that are nearly
    found.pairs[:3]                        # ids, not texts

Two prompts are the same when they differ in case, white space and closing punctuation alone. They are nearly the same
when the Jaccard index of their character 5-grams is at least the threshold: J(A, B) = |A & B| / |A | B|. MinHash finds
the candidates (Broder 1997, "On the resemblance and containment of documents"; `datasketch`), the exact index decides,
so that no pair is counted wrongly and one just above the threshold may be missed. Paraphrases are not found.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from interp.data.prompt_sets import CLOSING, Prompts
from interp.display.cards import Card, Shown, Table

THRESHOLD = 0.7
"""Jaccard index from which two prompts are nearly the same."""
_PERMUTATIONS = 128
_LETTERS = 5


@dataclass(frozen=True, kw_only=True, repr=False)
class Overlap(Shown):
    """Prompts of a second list that a first one has as well."""

    first: str
    """Name of the first list, such as the one that is fitted on."""
    second: str
    """Name of the second list, such as the one that is tested on."""
    n_first: int
    n_second: int
    exact: int
    """Prompts of the second list that the first one has, case, white space and closing punctuation aside."""
    near: int
    """Prompts of the second list that the first one has nearly; those of `exact` are not among them."""
    threshold: float
    """Jaccard index from which two prompts are nearly the same."""
    pairs: tuple[tuple[str, str, float], ...]
    """Id in the first list, id in the second, Jaccard index, of every prompt of the second that is found."""

    @property
    def share(self) -> float:
        """Share of the second list that the first one has, exactly or nearly."""
        return (self.exact + self.near) / self.n_second

    def __str__(self) -> str:
        return (
            f"{self.exact} of {self.n_second} prompts of {self.second} are in {self.first} ({self.n_first}), "
            f"{self.near} more nearly (Jaccard index {self.threshold:g} of 5-grams)"
        )

    def _card(self) -> Card:
        rows = [[a, b, f"{index:.2f}"] for a, b, index in self.pairs[:8]]
        return Card(
            title=str(self),
            tables=[Table(header=[f"id in {self.first}", f"id in {self.second}", "Jaccard"], rows=rows)],
        )


def overlap(first: Prompts, second: Prompts, *, threshold: float | int = THRESHOLD) -> Overlap:
    """Prompts of the second list that the first one has, exactly or nearly.

    Raises:
        ValueError: a threshold that is not above 0 and at most 1.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"the threshold is a Jaccard index above 0 and at most 1, got {threshold}")
    one, other = ([_plain(text) for text in part.texts] for part in (first, second))
    places = {text: row for row, text in reversed(list(enumerate(one)))}
    pairs: list[tuple[str, str, float]] = []
    exact = 0
    for row, best, index in _found(one, other, places, float(threshold)):
        exact += other[row] in places
        pairs.append((first.ids[best], second.ids[row], index))
    return Overlap(
        first=first.source,
        second=second.source,
        n_first=len(first),
        n_second=len(second),
        exact=exact,
        near=len(pairs) - exact,
        threshold=float(threshold),
        pairs=tuple(pairs),
    )


def _found(
    one: Sequence[str], other: Sequence[str], places: dict[str, int], threshold: float
) -> Iterator[tuple[int, int, float]]:
    """Row in `other`, the most similar row in `one`, and their index, of every text that is found."""
    from datasketch import MinHash, MinHashLSH

    grams = [_grams(text) for text in one]
    # Weights: a candidate too many costs one comparison, a candidate too few is an overlap that nobody sees.
    index = MinHashLSH(threshold=threshold, num_perm=_PERMUTATIONS, weights=(0.1, 0.9))
    distinct = sorted(places.values())
    hashes = MinHash.bulk(([g.encode() for g in grams[row]] for row in distinct), num_perm=_PERMUTATIONS)
    for row, signature in zip(distinct, hashes, strict=True):
        index.insert(row, signature)
    asked = [row for row, text in enumerate(other) if text not in places]
    own = {row: _grams(other[row]) for row in asked}
    signatures = MinHash.bulk(([g.encode() for g in own[row]] for row in asked), num_perm=_PERMUTATIONS)
    candidates = {row: index.query(signature) for row, signature in zip(asked, signatures, strict=True)}
    for row, text in enumerate(other):
        if text in places:
            yield row, places[text], 1.0
            continue
        scored = [(_jaccard(grams[int(k)], own[row]), int(k)) for k in candidates[row]]  # pyright: ignore[reportArgumentType]
        best, place = max(scored, default=(0.0, 0))
        if best >= threshold:
            yield row, place, best


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(CLOSING)


def _grams(text: str) -> frozenset[str]:
    return frozenset(text[i : i + _LETTERS] for i in range(max(1, len(text) - _LETTERS + 1)))


def _jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    return len(a & b) / len(a | b)
