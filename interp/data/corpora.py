"""Named corpora and how well a model compresses them, in bits per byte.

    gamma = - sum log2 p(text | prompt) / (bytes of text)

Lower is a better fit. The unit is bytes, not tokens, so that models with different tokenizers are comparable; for chat
data only the responses are scored, given their prompts. A rate measures how well a corpus is predicted, not what the
model would generate.

Source: Ji et al. 2025, arXiv:2406.06144, definition 3.3 and theorem 3.4 ("compression rate"), measured as the ideal
code length of an arithmetic coder, which is the cross-entropy.

    prose = read_corpus("prose", "text.txt")
    bits(model, prose, n_documents=16)  # bits and bytes of each document
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from interp.data.files import read_text
from interp.data.prompt_sets import PromptSet
from interp.data.prompts import ANSWER_COLUMNS, HELD_OUT_TEXT, read_answered, read_prompts
from interp.data.replies import AFFIRMATION, REFUSALS


@dataclass(frozen=True)
class Corpus:
    """A named list of texts, plain or as responses to prompts."""

    name: str
    """Name in results."""
    texts: tuple[str, ...]
    """Plain texts, or responses."""
    prompts: tuple[str, ...] | None = None
    """Prompt of each response; None for plain text."""

    def __post_init__(self) -> None:
        if not self.texts or not all(text.strip() for text in self.texts):
            raise ValueError(f"corpus {self.name} is empty or holds an empty text; remove it or fill it")
        if self.prompts is not None and len(self.prompts) != len(self.texts):
            raise ValueError(
                f"corpus {self.name} has {len(self.prompts)} prompts for {len(self.texts)} responses"
            )

    @cached_property
    def hash(self) -> str:
        """SHA-256 of prompts and texts, in order."""
        return hashlib.sha256("\x00".join((*(self.prompts or ()), "\x01", *self.texts)).encode()).hexdigest()

    @property
    def provenance(self) -> dict[str, Any]:
        """Size, kind and hash."""
        return {
            "n": len(self.texts),
            "kind": "plain" if self.prompts is None else "responses",
            "hash": self.hash,
        }


def read_corpus(name: str, path: str | Path) -> Corpus:
    """Read a corpus from a file or `hub:owner/name[:config][:split]`.

    `.txt` is one plain text; rows with a column of answers (`prompts.ANSWER_COLUMNS`) are prompts and responses, others
    plain texts.

    Raises:
        ValueError: no such file, unreadable, or empty.
    """
    if str(path).endswith(".txt"):
        file = Path(path)
        if not file.is_file():
            raise ValueError(f"no such corpus file: {path}")
        text = read_text(file)
        if not text.strip():
            raise ValueError(f"{path} is empty; fill it, or leave the corpus out")
        return Corpus(name, (text,))
    try:
        prompts, answers = read_answered(path)
    except ValueError as error:
        if "no column of answers" not in str(error):
            raise
        return Corpus(name, read_prompts(path).texts)
    if not answers:
        raise ValueError(f"{path} has no row with an answer ({', '.join(ANSWER_COLUMNS)}); fill it")
    return Corpus(name, tuple(answers), prompts.texts)


def default_corpora(prompts: PromptSet) -> Mapping[str, Corpus]:
    """Prose (like pre-training), refusals of harmful test prompts (alignment) and affirmative stubs (its reverse)."""
    harmful = prompts["harmful", "test"].texts
    refusals = tuple(REFUSALS[i % len(REFUSALS)] for i in range(len(harmful)))
    return {
        "prose": Corpus("prose", (HELD_OUT_TEXT.read_text(),)),
        "refusals": Corpus("refusals", refusals, harmful),
        "affirmations": Corpus("affirmations", (AFFIRMATION,) * len(harmful), harmful),
    }
