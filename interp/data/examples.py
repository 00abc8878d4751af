"""Training examples: supervised and preference."""

from typing import Literal, NamedTuple

TaskSplit = Literal["train", "validation", "test"]
"""A part of a downstream task's examples."""


class Example(NamedTuple):
    """One prompt and the completion to train on."""

    prompt: str
    completion: str


class ExampleSplits(NamedTuple):
    """Examples of one task without a common prompt."""

    train: tuple[Example, ...]
    """Examples to train on."""
    validation: tuple[Example, ...]
    """Examples on which a method stops or picks."""
    test: tuple[Example, ...]
    """Examples whose score is reported, and that nothing else sees."""


class Preference(NamedTuple):
    """One prompt with a preferred and a rejected completion."""

    prompt: str
    chosen: str
    rejected: str
