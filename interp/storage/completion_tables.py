"""Greedy completions in the activation store: a Lance dataset whose rows are prompts with what the model said.

A row holds the first tokens of a completion and whether the turn ended there. It answers every request that asks for no
more: a shorter one, and one that stops earlier of itself. A longer completion of the same prompt is a later row.

Every row has a hash over the table, its name, its tokens and its end, checked at every read. One that does not match,
or that cannot be read at all, counts as missing.
"""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from interp.storage.lance_tables import (
    Damaged,
    LanceTable,
    TableContent,
    binary,
    bytes_of,
    raise_unless_damage,
    reason,
)
from interp.storage.store_cells import HASH_BYTES, Place, row_names

logger = logging.getLogger(__name__)

COMPLETIONS = "completions"
"""What stands in a key in place of a site."""


class StoredCompletion(NamedTuple):
    """What is known of the completion of a prompt."""

    ids: tuple[int, ...]
    """Its first tokens, the end-of-turn token included where it was reached."""
    ended: bool
    """Whether the model ended the turn there."""


@dataclass(frozen=True, eq=False, kw_only=True)
class CompletionRow:
    """A completion on its way to the store."""

    prompt: tuple[int, ...]
    """Token ids of the whole rendered prompt."""
    scope: str
    """What interventions limited to some tokens depend on; empty without them."""
    text: str
    """The prompt, for a reader."""
    completion: StoredCompletion
    """What the model said."""


class CompletionTable(LanceTable):
    """Completions of one model under one set of interventions."""

    def read(self, names: Sequence[bytes]) -> dict[bytes, StoredCompletion]:
        """The longest sound completion of each prompt that has one, by name (`completion_names`)."""
        wanted, found = set(names), dict[bytes, StoredCompletion]()
        for fragment in self._fragments():
            rows, _ = self._known(fragment)
            places = [place for place, name in enumerate(rows) if name in wanted]
            if not places:
                continue
            for name, completion in self._take(fragment, places):
                known = found.get(name)
                if completion is not None and (known is None or _says_more(completion, known)):
                    found[name] = completion
        return found

    def append(self, rows: Sequence[CompletionRow]) -> None:
        """Write completions in one commit.

        Raises:
            OSError: the disk is full, or the server does not answer; nothing was written.
        """
        names = completion_names([row.prompt for row in rows], [row.scope for row in rows])
        hashes = [self._hash(name, row.completion) for name, row in zip(names, rows, strict=True)]
        self._write(
            {
                "row": pa.array(names, pa.binary(HASH_BYTES)),
                "hash": binary(np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, HASH_BYTES)),
                "length": pa.array([len(row.completion.ids) for row in rows], pa.int64()),
                "ids": pa.array([row.completion.ids for row in rows], pa.list_(pa.int64())),
                "ended": pa.array([row.completion.ended for row in rows], pa.bool_()),
                "tokens": pa.array([row.prompt for row in rows], pa.list_(pa.int64())),
                "scope": pa.array([row.scope for row in rows], pa.string()),
                "text": pa.array([row.text for row in rows], pa.string()),
            }
        )

    def content(self) -> TableContent:
        """How much the table holds; completions are not read."""
        known = [self._known(fragment) for fragment in self._fragments()]
        n_rows = sum(len(rows) for rows, _ in known)
        return TableContent(
            key=self.key,
            rows=n_rows,
            cells=n_rows,
            size=8 * sum(tokens for _, tokens in known),
            appends=len(known),
        )

    def damaged(self) -> Iterator[Damaged]:
        """Every row that is not what was written, or whose name is not that of its prompt; reads everything."""
        for fragment in self._fragments():
            number = fragment.fragment_id
            try:
                read = fragment.to_table(columns=["row", "tokens", "scope"]).to_pylist()
                named = completion_names([tuple(r["tokens"]) for r in read], [r["scope"] for r in read])
                sound = self._take(fragment, list(range(len(read))))
            except BaseException as error:
                raise_unless_damage(error)
                logger.warning("%s cannot be read (%s)", self.url, reason(error))
                yield Damaged(self.id, number, -1, None)
                continue
            for place, (row, name, (_, completion)) in enumerate(zip(read, named, sound, strict=True)):
                if row["row"] != name or completion is None:
                    yield Damaged(self.id, number, place, None)

    def _known(self, fragment: Any) -> tuple[list[bytes], int]:
        """Names of a fragment's rows, and how many tokens they hold."""
        number = fragment.fragment_id
        if number not in self._index:
            try:
                read = fragment.to_table(columns=["row", "length"])
                names = [name.tobytes() for name in bytes_of(read["row"])]
                self._index[number] = names, sum(read["length"].to_pylist())
            except BaseException as error:
                raise_unless_damage(error)
                logger.warning("%s: fragment %d cannot be read (%s)", self.url, number, reason(error))
                self._index[number] = [], 0
        return self._index[number]

    def _take(self, fragment: Any, places: list[int]) -> list[tuple[bytes, StoredCompletion | None]]:
        """Names and completions at these places of a fragment; None for one that is not what was written."""
        names, _ = self._known(fragment)
        try:
            read = fragment.take(places, columns=["hash", "ids", "ended"]).to_pylist()
        except BaseException as error:
            raise_unless_damage(error)
            logger.warning(
                "%s: fragment %d cannot be read (%s)", self.url, fragment.fragment_id, reason(error)
            )
            return [(names[place], None) for place in places]
        found: list[tuple[bytes, StoredCompletion | None]] = []
        for place, row in zip(places, read, strict=True):
            ids = row["ids"] or ()
            known = all(isinstance(token, int) for token in ids) and isinstance(row["ended"], bool)
            completion = StoredCompletion(tuple(ids), row["ended"]) if known else None
            if completion is not None and self._hash(names[place], completion) != row["hash"]:
                completion = None
            found.append((names[place], completion))
        return found

    def _hash(self, name: bytes, completion: StoredCompletion) -> bytes:
        made = hashlib.sha256(self.id.encode() + name + bytes([completion.ended]))
        made.update(np.asarray(completion.ids, dtype="<i8").tobytes())
        return made.digest()[:HASH_BYTES]

    def _fields(self) -> list[Any]:
        tokens = pa.list_(pa.int64())
        return [
            pa.field("row", pa.binary(HASH_BYTES)),
            pa.field("hash", pa.binary(HASH_BYTES)),
            pa.field("length", pa.int64()),
            pa.field("ids", tokens),
            pa.field("ended", pa.bool_()),
            pa.field("tokens", tokens),
            pa.field("scope", pa.string()),
            pa.field("text", pa.string()),
        ]


def completion_names(prompts: Sequence[tuple[int, ...]], scopes: Sequence[str]) -> list[bytes]:
    """Names of the rows of these prompts, 16 bytes each."""
    return row_names(
        [Place(tokens=ids, position=-1, scope=scope) for ids, scope in zip(prompts, scopes, strict=True)]
    )


def _says_more(one: StoredCompletion, other: StoredCompletion) -> bool:
    return (one.ended, len(one.ids)) > (other.ended, len(other.ids))
