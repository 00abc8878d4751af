"""Fixtures of the training tests."""

from collections.abc import Iterator

import pytest
from transformers import PreTrainedTokenizerFast

from tests.training.recovery_pairs import Pair, pair


@pytest.fixture(scope="session")
def both(tokenizer: PreTrainedTokenizerFast) -> Iterator[Pair]:
    """A pair for all tests that leave it as it is, which recovery does."""
    made = pair(tokenizer)
    hashes = [model.weights_hash for model in made]
    yield made
    assert [model.weights_hash for model in made] == hashes
