"""A generated task with one right answer: requests in English, to be written in a small query language.

    splits = query_splits(n_train=256, n_validation=48, n_test=48, seed=0)
    splits.train[0]
    # Example("Write a query: list the emails of clients from Oslo older than 30, sorted by age",
    #         "FROM clients WHERE city = Oslo AND age > 30 SHOW email SORT age")

The grammar of a query, in which a condition compares a column with a word (=) or a number (> or <):

    FROM table WHERE condition [AND condition] SHOW column[, column] [SORT column [DESC]]

A request says the same in one of several wordings, and determines its query. Which split a query belongs to is decided
by its hash alone, so no query and no request of one split is in another, whatever their sizes and seeds; a larger split
begins with the examples of a smaller one.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from interp.data.examples import Example, ExampleSplits, TaskSplit

_T = TypeVar("_T")
INSTRUCTION = "Write a query: "
"""Opening of every prompt."""
MAX_EXAMPLES = 20_000
"""Maximum examples of a split; the grammar has some hundred thousand queries."""


@dataclass(frozen=True)
class _Word:
    """A column of words, and how a request asks for one of them."""

    column: str
    wordings: tuple[str, ...]
    values: tuple[str, ...]


@dataclass(frozen=True)
class _Number:
    """A column of numbers, and how a request asks for larger and for smaller ones."""

    column: str
    above: tuple[str, ...]
    below: tuple[str, ...]
    values: range


@dataclass(frozen=True)
class _Table:
    """A table with the columns that can be shown, compared and sorted by."""

    name: str
    shown: tuple[str, ...]
    words: tuple[_Word, ...]
    numbers: tuple[_Number, ...]


_CITIES = ("Oslo", "Rome", "Paris", "Lima", "Cairo", "Tokyo", "Berlin", "Madrid", "Boston", "Delhi")
_COLOURS = ("red", "blue", "green", "black", "white", "yellow", "grey", "brown")
_TABLES = (
    _Table(
        "clients",
        ("name", "email", "phone"),
        (_Word("city", ("from {}", "who live in {}"), _CITIES),),
        (_Number("age", ("older than {}", "above the age of {}"), ("younger than {}",), range(18, 90)),),
    ),
    _Table(
        "products",
        ("name", "code", "brand"),
        (_Word("colour", ("coloured {}", "in {}"), _COLOURS),),
        (_Number("price", ("dearer than {}", "over {} dollars"), ("cheaper than {}",), range(5, 100)),),
    ),
    _Table(
        "flights",
        ("number", "gate", "airline"),
        (_Word("origin", ("leaving {}", "out of {}"), _CITIES),),
        (
            _Number(
                "delay", ("late by more than {}",), ("late by less than {}", "delayed under {}"), range(5, 90)
            ),
        ),
    ),
    _Table(
        "books",
        ("title", "author", "publisher"),
        (
            _Word(
                "genre",
                ("about {}", "on {}"),
                ("history", "music", "travel", "science", "sport", "art", "food", "poetry"),
            ),
        ),
        (
            _Number(
                "pages",
                ("longer than {} pages", "with more than {} pages"),
                ("shorter than {} pages",),
                range(90, 990, 10),
            ),
        ),
    ),
)
_VERBS = ("show", "list", "find", "give me")
_SORTED = ("sorted by {}", "ordered by {}")
_DESCENDING = ("sorted by {} from the top", "sorted by {} in reverse")
_SPLITS: tuple[TaskSplit, ...] = ("train", "validation", "test")


def query_splits(*, n_train: int, n_validation: int, n_test: int, seed: int = 0) -> ExampleSplits:
    """Training, validation and test examples without a common query or request.

    Raises:
        ValueError: as `query_examples`.
    """
    sizes = zip(_SPLITS, (n_train, n_validation, n_test), strict=True)
    return ExampleSplits(*(query_examples(split, n, seed=seed) for split, n in sizes))


def query_examples(split: TaskSplit, n: int, *, seed: int = 0) -> tuple[Example, ...]:
    """The first n examples of a split, each with another query.

    Raises:
        ValueError: n is not in 1..`MAX_EXAMPLES`.
    """
    if not 1 <= n <= MAX_EXAMPLES:
        raise ValueError(f"a split has 1..{MAX_EXAMPLES} generated examples, got {n}")
    examples: dict[str, Example] = {}
    for request, query in _requests(np.random.default_rng([seed, _SPLITS.index(split)])):
        if split_of(query) == split and query not in examples:
            examples[query] = Example(INSTRUCTION + request, query)
            if len(examples) == n:
                break
    return tuple(examples.values())


def split_of(query: str) -> TaskSplit:
    """The split of a query: by its hash, eight of ten are for training, one for validation and one for the test."""
    bucket = int(hashlib.sha256(query.encode()).hexdigest()[:8], 16) % 10
    return "train" if bucket < 8 else "validation" if bucket == 8 else "test"


def _requests(generator: np.random.Generator) -> Iterator[tuple[str, str]]:
    """Random requests, each with its query."""

    def pick(options: Sequence[_T]) -> _T:
        return options[int(generator.integers(len(options)))]

    while True:
        table = pick(_TABLES)
        word, number = pick(table.words), pick(table.numbers)
        value, bound = pick(word.values), pick(number.values)
        above = bool(generator.integers(2))
        comparison = pick(number.above if above else number.below).format(bound)
        wordings = (pick(word.wordings).format(value), comparison)
        conditions = (f"{word.column} = {value}", f"{number.column} {'>' if above else '<'} {bound}")
        kept = pick(((0,), (1,), (0, 1), (0, 1)))
        columns = list(table.shown)
        generator.shuffle(columns)
        shown = columns[: int(generator.integers(1, 3))]
        order, descending = pick((None, number.column, columns[-1])), bool(generator.integers(2))
        request = [pick(_VERBS), "the", " and ".join(f"{c}s" for c in shown), "of", table.name]
        request += [wordings[i] for i in kept]
        query = f"FROM {table.name} WHERE {' AND '.join(conditions[i] for i in kept)} SHOW {', '.join(shown)}"
        text = " ".join(request)
        if order is not None:
            text += ", " + pick(_DESCENDING if descending else _SORTED).format(order)
            query += f" SORT {order}{' DESC' if descending else ''}"
        yield text, query
