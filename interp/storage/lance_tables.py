"""A table of the activation store as a Lance dataset: opening, appending, compacting, and what its failures are.

Every append is one commit of Lance: it is there whole or not at all, whichever process is killed when. Nothing is ever
changed in place. What a table holds, and how it is found and checked, is said by `store_tables` (activations) and
`completion_tables`.
"""

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from interp.storage.store_cells import TableKey

_KEY = b"interp-activations"


@cache
def lance() -> Any:
    """Lance, which says on standard error what goes wrong only where it is an error of its own."""
    os.environ.setdefault("LANCE_LOG", "error")
    return import_module("lance")


class Damaged(NamedTuple):
    """What is not as it was written: a cell, a row (`layer` is None), or a fragment that cannot be read (-1)."""

    table: str
    fragment: int
    place: int
    layer: int | None


@dataclass(frozen=True, kw_only=True)
class TableContent:
    """What a table holds."""

    key: TableKey
    """What its rows have in common."""
    rows: int
    """Rows, those that a later one completes included."""
    cells: int
    """Vectors, or completions."""
    size: int
    """Bytes of the vectors, or of the completions' tokens."""
    appends: int
    """Fragments: appends since the table was last compacted."""


class LanceTable(ABC):
    """The rows of one key, as they were when it was opened; `refresh` sees what others have written since."""

    def __init__(self, url: str, key: TableKey, options: Mapping[str, str]) -> None:
        self.url, self.key, self.id = url, key, key.id
        self._options = dict(options) or None
        self._data: Any = None
        self._index: dict[int, Any] = {}
        self.refresh()

    @abstractmethod
    def _fields(self) -> list[Any]:
        """The columns."""

    @abstractmethod
    def content(self) -> TableContent:
        """How much the table holds; what it holds is not read."""

    @abstractmethod
    def damaged(self) -> Iterator[Damaged]:
        """Everything that is not what was written; reads everything."""

    @property
    def exists(self) -> bool:
        """Whether the table has been made."""
        return self._data is not None

    def refresh(self) -> None:
        """See what has been written since."""
        # Opened again, not moved on: other threads go on with the version that they have.
        self._data = self._open()
        fragments = {f.fragment_id for f in self._fragments()}
        self._index = {number: known for number, known in self._index.items() if number in fragments}

    def _open(self) -> Any:
        if is_local(self.url) and not _is_made(Path(self.url)):
            return None  # Lance looks for it for seconds
        try:
            data = lance().dataset(self.url, storage_options=self._options)
        except (OSError, ValueError, RuntimeError) as error:
            if not is_local(self.url) and "not found" in str(error).lower():
                return None
            raise ValueError(f"{self.url} cannot be opened ({reason(error)})") from error
        written = (data.schema.metadata or {}).get(_KEY, b"").decode()
        if written != self.key.text:
            raise ValueError(f"{self.url} holds activations of another key: it was moved or changed")
        return data

    def _fragments(self) -> list[Any]:
        return [] if self._data is None else self._data.get_fragments()

    def _write(self, columns: Mapping[str, Any]) -> None:
        """Append rows in one commit.

        Raises:
            OSError: the disk is full, or the server does not answer; nothing was written.
        """
        table = pa.table(dict(columns))
        if self._data is None:
            self._create()
        try:
            lance().write_dataset(
                table.cast(pa.schema([self._schema.field(name) for name in table.column_names])),
                self.url,
                mode="append",
                storage_options=self._options,
            )
        except BaseException as error:
            raise_unless_damage(error)
            raise OSError(f"{self.url} could not be written to ({reason(error)})") from error

    @property
    def _schema(self) -> Any:
        return pa.schema(self._fields(), metadata={_KEY: self.key.text.encode()})

    def _create(self) -> None:
        """Make the table, unless another process has made it meanwhile."""
        make_folder(self.url)
        try:
            lance().write_dataset(
                self._schema.empty_table(), self.url, mode="create", storage_options=self._options
            )
        except BaseException as error:
            raise_unless_damage(error)
            self._data = self._open()
            if self._data is None:
                raise OSError(f"{self.url} could not be made ({reason(error)})") from error
        self._data = self._open()

    def compact(self) -> None:
        """Join small appends and forget old versions; a reader whose rows were moved computes them again.

        Raises:
            ValueError: a part of it cannot be read.
        """
        if self._data is None:
            return
        try:
            self._data.optimize.compact_files()
            self._data.cleanup_old_versions(older_than=timedelta(0))
        except BaseException as error:
            raise_unless_damage(error)
            raise ValueError(
                f"{self.url} cannot be compacted ({reason(error)}); `interp store verify`"
            ) from error
        self.refresh()


def binary(rows: np.ndarray) -> Any:
    """Rows of bytes as one array of fixed width."""
    width = rows.shape[1]
    return pa.Array.from_buffers(
        pa.binary(width), len(rows), [None, pa.py_buffer(np.ascontiguousarray(rows))]
    )


def bytes_of(column: Any) -> np.ndarray:
    """A column of fixed width as [row, byte]."""
    joined = column.combine_chunks()
    width = joined.type.byte_width
    data = np.frombuffer(joined.buffers()[1], np.uint8)
    return data[joined.offset * width : (joined.offset + len(joined)) * width].reshape(-1, width)


def reason(error: BaseException) -> str:
    """What an error of Lance says, without the place in its source."""
    return re.sub(r", \S+\.rs:\d+(:\d+)?", "", str(error).strip().partition("\n")[0])[:240]


def raise_unless_damage(error: BaseException) -> None:
    """Raise again what is no failure of reading or writing; Lance's panics are no `Exception`."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error


def _is_made(folder: Path) -> bool:
    """Whether a table stands in a folder: one that is being made, or whose making was killed, has folders alone."""
    for part in ("_versions", "data"):
        if (folder / part).is_dir():
            with os.scandir(folder / part) as entries:
                if any(not entry.name.startswith(".") for entry in entries):
                    return True
    return False


def is_local(url: str | Path) -> bool:
    """Whether it is a folder."""
    return "://" not in str(url)


def make_folder(url: str) -> None:
    """Make the folder that holds a table, where it is a local one.

    Raises:
        OSError: it cannot be made; Lance tries for seconds before it says so.
    """
    if is_local(url):
        try:
            Path(url).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(f"{url} could not be written to ({error.strerror})") from None
