"""The generated task: its grammar, one query a request, and splits that share nothing."""

import re

import pytest

from interp.data.query_language import INSTRUCTION, MAX_EXAMPLES, query_examples, query_splits, split_of

CONDITION = r"\w+ (= \w+|[<>] \d+)"
QUERY = re.compile(rf"FROM \w+ WHERE {CONDITION}( AND {CONDITION})? SHOW \w+(, \w+)?( SORT \w+( DESC)?)?")


def test_splits_share_neither_request_nor_query_whatever_their_seeds() -> None:
    first = query_splits(n_train=400, n_validation=100, n_test=100, seed=0)
    other = query_splits(n_train=400, n_validation=100, n_test=100, seed=1)
    for field in ("prompt", "completion"):
        parts = [{getattr(e, field) for e in (*one, *two)} for one, two in zip(first, other, strict=True)]
        assert len(parts[0]) > 700 and len(parts[1]) > 150  # the seeds differ
        assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
    assert all(split_of(e.completion) == "test" for e in first.test)


def test_a_request_determines_its_query_and_every_query_has_the_grammar() -> None:
    examples = [e for seed in range(3) for e in query_examples("train", 2000, seed=seed)]
    queries: dict[str, str] = {}
    for example in examples:
        assert QUERY.fullmatch(example.completion), example.completion
        assert queries.setdefault(example.prompt, example.completion) == example.completion
        assert example.prompt.startswith(INSTRUCTION)
        # The words and numbers that are compared with stand in the request.
        for value in re.findall(r"[=<>] (\w+)", example.completion):
            assert value in example.prompt
        assert ("DESC" in example.completion) == ("top" in example.prompt or "reverse" in example.prompt)
        assert ("SORT" in example.completion) == ("ed by" in example.prompt)
    assert len({e.completion for e in examples[:2000]}) == 2000  # none twice


def test_examples_are_those_of_the_seed_and_a_larger_split_begins_with_a_smaller_one() -> None:
    assert query_examples("validation", 20, seed=3) == query_examples("validation", 50, seed=3)[:20]
    assert query_examples("validation", 20, seed=3) != query_examples("validation", 20, seed=4)
    with pytest.raises(ValueError, match=rf"1\.\.{MAX_EXAMPLES} generated examples, got 0"):
        query_examples("train", 0)
