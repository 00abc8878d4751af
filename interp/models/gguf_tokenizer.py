"""The tokenizer of a GGUF file against the one that was built from it.

A byte-level vocabulary splits text before it merges bytes, and the file names the rules (`tokenizer.ggml.pre`).
transformers knows some names and splits as GPT-2 does under all others; here the rules that single out digits are
added, and a name that stands for other rules is refused, since its tokens would not be those of training.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerBase
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

logger = logging.getLogger(__name__)

_AS_GPT2 = frozenset(
    {"gpt-2", "gpt2", "phi-2", "mpt", "olmo", "jais", "trillion", "gigachat", "a.x-4.0", "mellum"}
)
_DIGITS_APART = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})
"""Rules that split as GPT-2 does, after every digit is set apart."""
_CONTROL, _USER_DEFINED = 3, 4
_PREFIX = "tokenizer.ggml."


def set_splits(tokenizer: Any, keys: Mapping[str, Any]) -> None:
    """Split text by the rules that the file names.

    Raises:
        ValueError: rules that are not known here.
    """
    if keys.get(f"{_PREFIX}model") != "gpt2":
        return
    rules = keys.get(f"{_PREFIX}pre")
    if rules in (None, "default"):
        logger.warning("the file does not say how its tokenizer splits text; it splits as that of GPT-2 does")
    elif rules in _DIGITS_APART:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    elif rules not in _AS_GPT2 and rules not in GGUF_PRE_TOKENIZER_SPLITS:
        raise ValueError(
            f"{_PREFIX}pre is {rules!r}, rules of splitting text that are not known here, so that the tokens would be "
            "others than those of training; use the model's folder or Hub id"
        )


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, keys: Mapping[str, Any]) -> None:
    """Check the vocabulary, the special tokens and what is put before a text.

    Raises:
        ValueError: a difference from the file.
    """
    texts: Sequence[str] = keys.get(f"{_PREFIX}tokens") or ()
    found = tokenizer.convert_ids_to_tokens(list(range(min(len(texts), len(tokenizer)))))
    if len(found) < len(texts):
        raise ValueError(f"the file has {len(texts)} tokens, and the tokenizer {len(found)}")
    kinds = keys.get(f"{_PREFIX}token_type") or [1] * len(texts)
    for i, (text, kind) in enumerate(zip(texts, kinds, strict=False)):
        # Tokens of spaces are stored as spaces; byte-level tokens of other characters are spelled anew.
        if kind == _CONTROL and found[i] != text:
            raise ValueError(f"token {i} is {text!r} in the file and {found[i]!r} in the tokenizer")
    for name in ("bos", "eos", "unknown", "padding"):
        wanted = keys.get(f"{_PREFIX}{name}_token_id")
        has = getattr(tokenizer, {"unknown": "unk", "padding": "pad"}.get(name, name) + "_token_id")
        if wanted is not None and has != wanted:
            raise ValueError(f"{_PREFIX}{name}_token_id is {wanted}, and the tokenizer has {has}")
    adds = keys.get(f"{_PREFIX}add_bos_token")
    begins = list(tokenizer("")["input_ids"])[:1] == [tokenizer.bos_token_id]  # pyright: ignore[reportArgumentType]
    if adds is not None and bool(adds) != begins:
        logger.warning(
            "%sadd_bos_token is %s, and the tokenizer %s; chat templates are not affected",
            _PREFIX,
            bool(adds),
            "adds it" if begins else "does not",
        )
    if keys.get(f"{_PREFIX}model") == "llama":
        space = tokenizer.tokenize("a")[0].startswith("\u2581")
        wanted = bool(keys.get(f"{_PREFIX}add_space_prefix", True))
        if space != wanted:
            raise ValueError(f"{_PREFIX}add_space_prefix is {wanted}, and the tokenizer does otherwise")
    for key in keys:
        if key.startswith("tokenizer.chat_template."):
            logger.warning(
                "the file's further chat template %s is not used",
                key.removeprefix("tokenizer.chat_template."),
            )
