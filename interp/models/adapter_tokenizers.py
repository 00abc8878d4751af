"""The tokenizer and chat template that stand beside an adapter.

Trainers save them with the adapter, and they are what it was trained with: a folder's own template is used instead of
the base model's, and its own tokenizer where it has one.
"""

import copy
import logging
from pathlib import Path

from transformers import PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from interp.models.tokenizer_files import read_tokenizer

logger = logging.getLogger(__name__)

_TOKENIZER = "tokenizer_config.json"
_TEMPLATE = "chat_template.jinja"


def adapter_tokenizer(
    base: PreTrainedTokenizerBase, adapter: str, *, n_embeddings: int, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer that an adapter was trained with; that of the base model where the adapter has none.

    Args:
        adapter: PEFT folder or Hub id.
        n_embeddings: rows of the model's input embedding.

    Raises:
        ValueError: an unreadable tokenizer, one that gives other ids to the base model's tokens, or one with tokens
            that the model has no embedding for.
    """
    if _file(adapter, _TOKENIZER) is None:
        template = _file(adapter, _TEMPLATE)
        own = base if template is None else copy.copy(base)
        if template is not None:
            try:
                own.chat_template = template.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"the chat template of adapter {adapter} is not UTF-8 text: {template}"
                ) from error
        return _used(base, own, adapter)
    try:
        own = read_tokenizer(adapter, trust_remote_code=trust_remote_code)
    except Exception as error:  # readers of JSON, of tokenizers and of the Hub, each with errors of its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"cannot read the tokenizer of adapter {adapter}: {reason}; it is what the adapter was trained with, so "
            "save it again, or remove its files to use the base model's"
        ) from error
    ours, theirs = base.get_vocab(), own.get_vocab()
    moved = sorted(token for token, i in ours.items() if theirs.get(token) != i)
    if moved:
        raise ValueError(
            f"the tokenizer of adapter {adapter} gives {len(moved)} tokens of the base model another id or none, first "
            f"{moved[0]!r}; it belongs to another base model"
        )
    if without := sorted(token for token, i in theirs.items() if i >= n_embeddings):
        raise ValueError(
            f"the tokenizer of adapter {adapter} adds {len(without)} tokens that the model has no embedding for, first "
            f"{without[0]!r} (the model has {n_embeddings}); merge it into a base with resized embeddings, and load "
            "that folder"
        )
    if not own.chat_template:
        own.chat_template = base.chat_template
    return _used(base, own, adapter)


def _used(
    base: PreTrainedTokenizerBase, own: PreTrainedTokenizerBase, adapter: str
) -> PreTrainedTokenizerBase:
    if own is base or (own.chat_template == base.chat_template and own.get_vocab() == base.get_vocab()):
        return base
    if own.chat_template != base.chat_template:
        logger.warning(
            "prompts are rendered with the chat template of adapter %s, not with the base model's", adapter
        )
    return own


def _file(adapter: str, name: str) -> Path | None:
    if Path(adapter).is_dir():
        path = Path(adapter) / name
        return path if path.is_file() else None
    try:
        found = cached_file(adapter, name, _raise_exceptions_for_missing_entries=False)
    except OSError:  # no connection, and not in the cache: the adapter's own files say so
        return None
    return None if found is None else Path(found)
