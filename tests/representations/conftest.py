"""Scores of the small sweep by the plain procedure."""

import pytest

from interp.models.chat_model import ChatModel
from interp.representations.selection import Candidate
from tests.representations.sweep_cases import plain_scores


@pytest.fixture(scope="module")
def published(tiny: ChatModel) -> list[Candidate]:
    """Every candidate of `sweep_of` with its scores."""
    return plain_scores(tiny)
