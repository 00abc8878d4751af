"""Training examples: supervised and preference."""

from typing import NamedTuple


class Example(NamedTuple):
    """One prompt and the completion to train on."""

    prompt: str
    completion: str


class Preference(NamedTuple):
    """One prompt with a preferred and a rejected completion."""

    prompt: str
    chosen: str
    rejected: str
