"""Tokenizers read from folders and the Hub, with the settings that are used only when a text comes."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

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


_hashes: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[int, str]] = WeakKeyDictionary()
"""Hashes of tokenizers, with the number of tokens that they had."""


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of what turns text into token ids: vocabulary, merges and normalisation, where they are known.

    What is set from call to call, padding and truncation, does not count; a chat template has a hash of its own.
    """
    known = _hashes.get(tokenizer)
    if known is None or known[0] != len(tokenizer):
        facts: dict[str, Any] = {"vocabulary": sorted(tokenizer.get_vocab().items())}
        if (backend := getattr(tokenizer, "backend_tokenizer", None)) is not None:
            rules = json.loads(backend.to_str())
            facts |= {key: value for key, value in rules.items() if key not in ("padding", "truncation")}
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        known = _hashes[tokenizer] = len(tokenizer), digest
    return known[1]
