"""The types that are accepted as prompts everywhere, and the identity of prompts that results carry.

    collect(model, "How do I bake bread?")                      # one instruction
    collect(model, ["How do I bake bread?", "Name a colour."])  # several
    collect(model, prompts["harmful", "test"])                  # a split of a prompt set, with its ids and categories
    collect(model, frame["question"])                           # a pandas column, with its index
    collect(model, frame)                                       # a table (pandas, datasets) with one of `TEXT_COLUMNS`
    collect(model, [[{"role": "user", "content": "Hi"}, ...]])  # conversations, a list of messages each
    collect(model, tokenize(model.tokenizer, ...))              # tokens

Ids are the source's own where it has them, else running numbers from 0. A whole prompt set, a table, bytes or a mapping
is not a list of prompts: the error says what to pass instead.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral
from typing import Any, NamedTuple, Protocol, runtime_checkable

Message = Mapping[str, Any]
"""A chat message: `role` (one of `MESSAGE_ROLES`), `content`, and other keys of a template, such as `tool_calls`."""
Conversation = Sequence[Message]
TEXT_COLUMNS = ("instruction", "prompt", "goal", "question", "query", "text")
"""Column names that are recognised as the prompt when none is given."""
MESSAGE_ROLES = ("system", "user", "assistant", "tool")


@runtime_checkable
class NamedPrompts(Protocol):
    """Prompts with ids and categories, such as `interp.data.prompts.Prompts`."""

    @property
    def texts(self) -> Sequence[str]: ...
    @property
    def ids(self) -> Sequence[str]: ...
    @property
    def categories(self) -> Sequence[str | None]: ...
    @property
    def source(self) -> str: ...


@runtime_checkable
class Column(Protocol):
    """A pandas Series, or another column that can be converted to a list."""

    def tolist(self) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class PromptIdentity:
    """Identity of the prompts of a result, in its order."""

    ids: tuple[str, ...]
    """Ids of the source, or running numbers."""
    categories: tuple[str | None, ...]
    """Harm category of each prompt; None where the source gives none."""
    texts: tuple[str, ...] = field(repr=False)
    """The instructions, conversations as JSON, or token ids where the text is unknown; not shown by default."""
    source: str | None = None
    """Set, kind and split; None where the source has no name."""

    def __post_init__(self) -> None:
        if not len(self.ids) == len(self.categories) == len(self.texts):
            raise ValueError(
                f"got {len(self.ids)} ids and {len(self.categories)} categories for {len(self.texts)} prompts"
            )

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the texts, in order; equal to that of the `Prompts` they come from."""
        return hashlib.sha256("\x00".join(self.texts).encode()).hexdigest()

    @property
    def provenance(self) -> dict[str, Any]:
        """Fields that identify the prompts in a stored result."""
        return {"source": self.source, "n": len(self), "hash": self.hash}

    @classmethod
    def numbered(cls, texts: Sequence[str], *, first: int = 0) -> "PromptIdentity":
        """The identity of prompts without ids, with running numbers."""
        numbers = tuple(str(first + row) for row in range(len(texts)))
        return cls(ids=numbers, categories=(None,) * len(texts), texts=tuple(texts))

    def take(self, rows: Sequence[int]) -> "PromptIdentity":
        """The prompts at these rows, in this order."""
        return PromptIdentity(
            ids=tuple(self.ids[row] for row in rows),
            categories=tuple(self.categories[row] for row in rows),
            texts=tuple(self.texts[row] for row in rows),
            source=self.source,
        )

    def joined(self, other: "PromptIdentity") -> "PromptIdentity":
        """These prompts followed by those of `other`."""
        return PromptIdentity(
            ids=self.ids + other.ids,
            categories=self.categories + other.categories,
            texts=self.texts + other.texts,
            source=self.source if self.source == other.source else None,
        )


class GatheredPrompts(NamedTuple):
    """Prompts ready for rendering, each an instruction or a conversation."""

    items: tuple[str | tuple[Message, ...], ...]
    identity: PromptIdentity


def gather_prompts(prompts: Any) -> GatheredPrompts:
    """Convert any prompt input to a list of instructions or conversations with their identity.

    Raises:
        ValueError: no prompts, or something that is not a list of prompts; the message says what to pass.
    """
    if isinstance(prompts, str):
        return _numbered([prompts])
    if isinstance(prompts, NamedPrompts):
        items = getattr(prompts, "conversations", ()) or tuple(prompts.texts)
        texts = tuple(_text(item) for item in items)
        return _not_empty(
            GatheredPrompts(
                items,
                PromptIdentity(
                    ids=tuple(prompts.ids),
                    categories=tuple(prompts.categories),
                    texts=texts,
                    source=prompts.source,
                ),
            )
        )
    if (table := _table(prompts)) is not None:
        return table
    _refuse(prompts)
    if isinstance(prompts, Column):
        listed = prompts.tolist()
        if isinstance(listed, str):  # an array without an axis, whose text is no list of letters
            return _numbered([listed])
        gathered = _numbered(_list(listed))
        if getattr(prompts, "index", None) is None:  # of a pandas Series
            return gathered
        ids = _index_labels(prompts)
        known = PromptIdentity(
            ids=ids, categories=gathered.identity.categories, texts=gathered.identity.texts
        )
        return gathered._replace(identity=known)
    entries = _list(prompts)
    if entries and all(isinstance(entry, Mapping) for entry in entries):
        return _numbered([entries])  # one conversation
    return _numbered(entries)


def _table(prompts: Any) -> GatheredPrompts | None:
    """The prompts of a table with a text column, with its ids (or index) and categories; None for anything else."""
    have = _column_names(prompts) or []
    column = next((name for name in TEXT_COLUMNS if name in have), None)
    if column is None:
        return None
    if twice := [name for name in (column, "id", "category") if have.count(name) > 1]:
        raise ValueError(f"the table has the column {twice[0]!r} twice; rename one")
    gathered = _numbered(_values(prompts[column]))
    ids = tuple(map(str, _values(prompts["id"]))) if "id" in have else _index_labels(prompts)
    if repeated := next((label for label, n in Counter(ids).items() if n > 1), None):
        rows = [row for row, label in enumerate(ids) if label == repeated]
        raise ValueError(
            f"id {repeated!r} stands in rows {rows[0]} and {rows[1]} of the table; give each prompt its own id"
        )
    kinds = _values(prompts["category"]) if "category" in have else [None] * len(ids)
    identity = PromptIdentity(
        ids=ids,
        categories=tuple(map(category_name, kinds)),
        texts=gathered.identity.texts,
    )
    return gathered._replace(identity=identity)


def _column_names(prompts: Any) -> list[str] | None:
    """Names of the columns of a pandas table or a data set of `datasets`; None for anything else."""
    for attribute in ("columns", "column_names"):
        names = getattr(prompts, attribute, None)
        if names is not None and not isinstance(names, Mapping):
            return [str(name) for name in names]
    return None


def _values(column: Any) -> list[Any]:
    return _list(column.tolist() if isinstance(column, Column) else column)


def category_name(value: Any) -> str | None:
    """A category as text: numbers are names as well, and what is missing is None."""
    if isinstance(value, str):
        return value.strip() or None
    return str(value) if isinstance(value, Integral) and not isinstance(value, bool) else None


def _index_labels(prompts: Any) -> tuple[str, ...]:
    """Labels of the rows of a table or Series; running numbers where labels repeat, as those of joined tables do."""
    labels = tuple(map(str, getattr(prompts, "index", range(len(prompts)))))
    return labels if len(set(labels)) == len(labels) else tuple(map(str, range(len(labels))))


def _list(prompts: Any) -> list[Any]:
    if not isinstance(prompts, Iterable):
        raise ValueError(
            f"prompts must be a string, a list of strings, Prompts, a pandas Series, conversations or ChatTokens; got "
            f"{type(prompts).__name__}"
        )
    return list(prompts)


def _numbered(entries: Sequence[Any]) -> GatheredPrompts:
    items = tuple(_item(entry, row) for row, entry in enumerate(entries))
    return _not_empty(GatheredPrompts(items, PromptIdentity.numbered([_text(item) for item in items])))


def _not_empty(gathered: GatheredPrompts) -> GatheredPrompts:
    if not gathered.items:
        raise ValueError("no prompts were given; pass at least one")
    return gathered


def _item(entry: Any, row: int) -> str | tuple[Message, ...]:
    if isinstance(entry, str):
        return _whole(entry, row)
    if isinstance(entry, Sequence) and not isinstance(entry, (bytes, bytearray)):
        return tuple(_message(message, row) for message in entry)
    raise ValueError(
        f"prompt {row} is of type {type(entry).__name__}, {entry!r:.40}; a prompt is a string, or a list of messages "
        "with role and content"
    )


def _message(message: Any, row: int) -> Message:
    if not isinstance(message, Mapping) or "role" not in message:
        raise ValueError(
            f"prompt {row} holds {message!r:.60}, which is no message; a conversation is a list of "
            '{"role": ..., "content": ...} (of rows of a table, pass one column)'
        )
    if message["role"] not in MESSAGE_ROLES:
        raise ValueError(
            f"prompt {row} has a message of role {message['role']!r}; known: {', '.join(MESSAGE_ROLES)}"
        )
    content = message.get("content")
    if not isinstance(content, str) and not (content is None and message["role"] == "assistant"):
        raise ValueError(
            f"prompt {row}: the content of a {message['role']} message must be text, got {type(content).__name__}"
        )
    _whole(content or "", row)
    return message


def is_text(text: str) -> bool:
    """Whether a string is text that can be encoded: JSON and command lines may hold halves of surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _whole(text: str, row: int) -> str:
    if not is_text(text):
        raise ValueError(
            f"prompt {row} holds half of a character (a lone surrogate), {text!r:.60}; correct it"
        )
    return text


def _text(item: str | tuple[Message, ...]) -> str:
    if isinstance(item, str):
        return item
    return json.dumps([dict(message) for message in item], sort_keys=True, ensure_ascii=False, default=str)


def _refuse(prompts: Any) -> None:
    """Raise a ValueError for inputs that resemble prompts but are not accepted."""
    kind = type(prompts).__name__
    named = _column_names(prompts)
    if named is not None:
        first = named[0] if named else "prompt"
        raise ValueError(
            f"the table has no column {', '.join(TEXT_COLUMNS)}; pass its column of prompts, such as table[{first!r}]; "
            f"it has {', '.join(named)}"
        )
    if hasattr(prompts, "__fspath__"):
        raise ValueError(f"prompts must be text, got a path; read it first: read_prompts({str(prompts)!r})")
    if hasattr(prompts, "parts"):
        known = [f"[{', '.join(repr(name) for name in part)}]" for part in prompts.parts]
        raise ValueError(
            f"{prompts!r} holds several lists of prompts; pass one of them, such as prompts{known[0]}"
        )
    if isinstance(prompts, Mapping) and hasattr(prompts, "column_names"):
        raise ValueError(
            f"prompts must be a list, got several splits ({', '.join(map(str, prompts))}); pass one of them"
        )
    if isinstance(prompts, Mapping):
        hint = "put it in a list of messages" if "role" in prompts else "pass its values, list(d.values())"
        raise ValueError(f"prompts must be a list, got a {kind}; {hint}")
    if isinstance(prompts, (bytes, bytearray)):
        raise ValueError("prompts must be text, got bytes; decode them first: prompts.decode()")
    if isinstance(prompts, (set, frozenset)):
        raise ValueError("prompts must have an order, got a set; pass sorted(prompts)")
    if hasattr(prompts, "requires_grad"):
        raise ValueError(f"prompts must be text, got a {kind}; token ids go into ChatTokens")
