"""Tokenizers read from folders and the Hub, with the settings that are used only when a text comes."""

from collections.abc import Mapping
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase


def read_tokenizer(
    source: str, *, trust_remote_code: bool = False, options: Mapping[str, Any] | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or Hub id.

    Args:
        options: further arguments of `AutoTokenizer.from_pretrained`, such as the revision.

    Raises:
        ValueError: a longest length that is no number; other damage raises the errors of its readers.
    """
    tokenizer: Any = AutoTokenizer.from_pretrained(
        source, trust_remote_code=trust_remote_code, **(options or {})
    )
    longest = tokenizer.model_max_length
    if not isinstance(longest, (int, float)):
        raise ValueError(f"model_max_length in tokenizer_config.json must be a number, got {longest!r:.60}")
    return tokenizer
