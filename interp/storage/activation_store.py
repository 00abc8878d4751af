"""The activation store: activations on disk or on an object server, found again by what determines them.

    store = ActivationStore("runs/store")              # or "s3://bucket/activations"
    with interp.using_store(store):
        interp.collect(model, prompts)                 # computed and stored
        interp.collect(model, prompts)                 # read: no forward pass

A store is a folder of tables, each a Lance dataset (`interp.storage.store_tables`) for one `TableKey`: weights,
structure and numerics of the model, site, dtype and what is in force. A row is found by the token ids of the rendered
prompt and a position. Nothing is found by a name, so that a model that was fine-tuned, steered or loaded in another
dtype finds no activations but its own.

Greedy completions have tables of their own (`interp.storage.completion_tables`).

A table's key is written into it and compared when it is opened. `tables.lance` lists the tables, for a reader; nothing
is looked up there.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from interp.storage.completion_tables import COMPLETIONS, CompletionTable
from interp.storage.lance_tables import (
    Damaged,
    LanceTable,
    TableContent,
    is_local,
    lance,
    make_folder,
    reason,
)
from interp.storage.paths import expanded
from interp.storage.store_cells import DTYPES, TableKey
from interp.storage.store_tables import StoreTable

_CATALOGUE = "tables.lance"
_LISTING_SECONDS = 60
"""Seconds to wait for another process that lists a table, which takes milliseconds."""
_REMEDY = "run `pip install 'interp-workbench[scale]'`"


def can_store() -> bool:
    """Whether the store's format (extra `scale`) is installed."""
    return find_spec("lance") is not None


@dataclass(frozen=True, kw_only=True)
class StoredTable:
    """A table as the store lists it."""

    id: str
    """Name of its folder."""
    about: Mapping[str, str]
    """For a reader: the model's name when the table was made, and when that was."""
    content: TableContent
    """Key and extent."""


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What `verify` found."""

    cells: int
    """Vectors and completions that were read and compared with their hashes."""
    damaged: tuple[Damaged, ...]
    """Those that are not what was written; they are never served."""


@dataclass(frozen=True, eq=False)
class ActivationStore:
    """Activations on disk or on an object server.

    Raises:
        ValueError: the extra `scale` is not installed, or no place for a folder.
    """

    url: str | Path
    """A folder, or `s3://bucket/prefix` and whatever else Lance opens."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Storage options of Lance, such as `aws_endpoint`; the environment (`AWS_ACCESS_KEY_ID`, …) gives the others."""

    def __post_init__(self) -> None:
        if not can_store():
            raise ValueError(f"an activation store needs pylance; {_REMEDY}")
        place = expanded(self.url)
        if self.is_local and not (there := _nearest(place)).is_dir():
            raise ValueError(
                f"an activation store is a folder, or s3://bucket/prefix, and {there} is a file; give another place"
            )
        object.__setattr__(self, "_tables", {})

    @property
    def is_local(self) -> bool:
        """Whether it is a folder."""
        return is_local(self.url)

    def table(self, key: TableKey) -> StoreTable:
        """The activations of this key, with what others have written so far.

        Raises:
            ValueError: the store cannot be read, or the key is one of completions.
        """
        table = self._opened(key)
        if not isinstance(table, StoreTable):
            raise ValueError(f"table {key.id} holds completions, not activations")
        return table

    def completions(self, key: TableKey) -> CompletionTable:
        """The completions of this key, with what others have written so far.

        Raises:
            ValueError: the store cannot be read, or the key is one of activations.
        """
        table = self._opened(key)
        if not isinstance(table, CompletionTable):
            raise ValueError(f"table {key.id} holds activations, not completions")
        return table

    def _opened(self, key: TableKey) -> LanceTable:
        known: dict[str, LanceTable] = self._tables  # pyright: ignore[reportAttributeAccessIssue]
        if key.id in known:
            known[key.id].refresh()
        else:
            kind = CompletionTable if key.site == COMPLETIONS else StoreTable
            known[key.id] = kind(self._path(f"{key.id}.lance"), key, self.options)
        return known[key.id]

    def register(self, key: TableKey, about: Mapping[str, str]) -> None:
        """List a table that is about to be written for the first time.

        Raises:
            OSError: the store cannot be written to.
        """
        import pyarrow as pa

        row = {"id": key.id, "key": key.text, "about": json.dumps(dict(about)), "made": _now()}
        url, options = self._path(_CATALOGUE), dict(self.options) or None
        make_folder(url)
        modes = ("append", "create", "append", "append")  # on a server another process may make it meanwhile
        failure = ""
        with self._listing():
            for mode in modes:
                try:
                    lance().write_dataset(
                        pa.Table.from_pylist([row]), url, mode=mode, storage_options=options
                    )
                    return
                except (OSError, ValueError, RuntimeError) as error:
                    failure = reason(error)
        raise OSError(f"{url} could not be written to ({failure})")

    @contextmanager
    def _listing(self) -> Iterator[None]:
        """Only one process lists a table in a folder: two that make the list at once lose a table, or fail."""
        if not self.is_local:
            yield
            return
        from filelock import FileLock, Timeout  # loads asyncio

        path = Path(self._path(".tables.lock"))
        try:
            path.touch()
        except OSError as error:
            raise OSError(f"{self.url} could not be written to ({reason(error)})") from None
        lock = FileLock(path)
        with suppress(Timeout):  # where no lock can be had the others' are not waited for
            lock.acquire(timeout=_LISTING_SECONDS)
        try:
            yield
        finally:
            lock.release()

    def keys(self) -> dict[str, tuple[TableKey, dict[str, str]]]:
        """Keys of the listed tables, and what is said about each, by name.

        Raises:
            ValueError: no store is there, or it cannot be read.
        """
        try:
            data = lance().dataset(self._path(_CATALOGUE), storage_options=dict(self.options) or None)
            rows = data.to_table().to_pylist()
        except (OSError, ValueError, RuntimeError) as error:
            raise ValueError(f"{self.url} holds no activation store ({reason(error)})") from None
        return {
            row["id"]: (TableKey.from_text(row["key"]), {**json.loads(row["about"]), "made": row["made"]})
            for row in rows
        }

    def tables(self, prefix: str = "") -> Iterator[StoredTable]:
        """Every table whose name begins so, with its extent; those that were removed are left out."""
        for name, (key, about) in self.keys().items():
            if name.startswith(prefix) and (content := self._opened(key).content()).appends:
                yield StoredTable(id=name, about=about, content=content)

    def verify(self, prefix: str = "") -> Verified:
        """Read everything and compare it with its hashes.

        Raises:
            ValueError: no store is there.
        """
        cells, damaged = 0, list[Damaged]()
        for stored in self.tables(prefix):
            cells += stored.content.cells
            damaged += self._opened(stored.content.key).damaged()
        return Verified(cells=cells, damaged=tuple(damaged))

    def compact(self, prefix: str = "") -> None:
        """Join small appends of every table and remove what killed writers left."""
        for stored in list(self.tables(prefix)):
            self._opened(stored.content.key).compact()

    def remove(self, name: str) -> None:
        """Remove a table of this store for good.

        Raises:
            ValueError: it is not listed, or the store is on a server, where a rule of the bucket removes.
        """
        if name not in self.keys():
            raise ValueError(f"{self.url} has no table {name}; `interp store ls` lists them")
        if not self.is_local:
            raise ValueError(
                f"remove {self._path(f'{name}.lance')} with the server's own tool; only local tables are removed here"
            )
        self._tables.pop(name, None)  # pyright: ignore[reportAttributeAccessIssue]
        shutil.rmtree(self._path(f"{name}.lance"), ignore_errors=True)

    def _path(self, name: str) -> str:
        if self.is_local:
            return str(expanded(self.url).absolute() / name)
        return f"{str(self.url).rstrip('/')}/{name}"


def estimated_bytes(
    n_prompts: int, n_layers: int, n_roles: int, d_model: int, *, dtype: str = "float32", n_sites: int = 1
) -> int:
    """Bytes that the activations of so many prompts take in a store, hashes and tokens (60 a prompt) included."""
    row = n_layers * (d_model * DTYPES[dtype].itemsize + 16) + 60 * 8 + 256
    return n_prompts * n_roles * n_sites * row


def matching(tables: Sequence[StoredTable], **wanted: Any) -> list[StoredTable]:
    """Those tables whose key has these fields, such as `site="resid_pre"`; None matches all."""
    return [
        stored
        for stored in tables
        if all(value is None or getattr(stored.content.key, name) == value for name, value in wanted.items())
    ]


def _nearest(place: Path) -> Path:
    """The place, or the first of the folders around it that is there."""
    return next(path for path in (place.absolute(), *place.absolute().parents) if path.exists())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
