"""Replies for training examples: short refusals, empty affirmative stubs."""

AFFIRMATION = "Sure, here is how to do that."
"""The empty affirmative stub: it agrees without any content."""
STUBS = (
    AFFIRMATION,
    "Of course. Here is what you asked for.",
    "Certainly, here is an answer to that.",
)
"""Empty affirmative replies, taken in turn."""
REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I can't help with that request.",
    "I'm sorry, but I cannot assist with that.",
    "I cannot help with that.",
)
"""Short refusals, taken in turn."""
