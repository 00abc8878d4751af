"""Examples to train on: supervised and preference."""

from typing import NamedTuple


class Example(NamedTuple):
    """One prompt and the completion to be learned."""

    prompt: str
    completion: str


class Preference(NamedTuple):
    """One prompt, the completion to prefer and the one to disprefer."""

    prompt: str
    chosen: str
    rejected: str
