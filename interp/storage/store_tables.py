"""One table of the activation store: a Lance dataset whose rows are prompt tokens and whose columns are layers.

Every append is one commit of Lance: it is there whole or not at all, whichever process is killed when. Nothing is ever
changed in place. A row that was written with some layers only is completed by a later row of the same name, and where
two hold the same cell the later one counts.

Every vector is checked against its hash whenever it is read (`interp.storage.store_cells`). One that does not match, or
that cannot be read at all, counts as missing.
"""

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from interp.storage.store_cells import DTYPES, HASH_BYTES, Place, TableKey, cell_hashes, row_names

logger = logging.getLogger(__name__)

Address = tuple[int, int]
"""Fragment and place in it."""
_KEY = b"interp-activations"
_ARROW = {"float32": pa.float32(), "float16": pa.float16(), "bfloat16": pa.uint16()}
_CHUNK = 2**25
"""Bytes that are read or written at a time."""


@cache
def lance() -> Any:
    """Lance, which says on standard error what goes wrong only where it is an error of its own."""
    os.environ.setdefault("LANCE_LOG", "error")
    return import_module("lance")


class Damaged(NamedTuple):
    """A cell that does not hold what was written, or a fragment that cannot be read (`layer` is None)."""

    table: str
    fragment: int
    place: int
    layer: int | None


@dataclass(frozen=True, kw_only=True)
class TableContent:
    """What a table holds."""

    key: TableKey
    """What its activations have in common."""
    rows: int
    """Rows, those that a later one completes included."""
    cells: int
    """Vectors."""
    size: int
    """Bytes of the vectors."""
    appends: int
    """Fragments: appends since the table was last compacted."""


class StoreTable:
    """The rows of one key, as they were when it was opened; `refresh` sees what others have written since."""

    def __init__(self, url: str, key: TableKey, options: Mapping[str, str]) -> None:
        self.url, self.key, self.id = url, key, key.id
        self._options = dict(options) or None
        self._data: Any = None
        self._index: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.refresh()

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
        try:
            data = lance().dataset(self.url, storage_options=self._options)
        except (OSError, ValueError, RuntimeError) as error:
            if _is_absence(self.url, error):
                return None
            raise ValueError(f"{self.url} cannot be opened ({reason(error)})") from error
        written = (data.schema.metadata or {}).get(_KEY, b"").decode()
        if written != self.key.text:
            raise ValueError(f"{self.url} holds activations of another key: it was moved or changed")
        return data

    def _fragments(self) -> list[Any]:
        return [] if self._data is None else self._data.get_fragments()

    # Finding

    def addresses(self, rows: Sequence[bytes], layers: Sequence[int]) -> np.ndarray:
        """Where the cells of these rows and layers are.

        Returns:
            Fragment and place of each cell as [row, layer, 2], -1 where there is none.
        """
        found = np.full((len(rows), len(layers), 2), -1, dtype=np.int64)
        if not len(rows) or self._data is None:
            return found
        wanted: dict[bytes, list[int]] = {}
        for number, row in enumerate(rows):
            wanted.setdefault(row, []).append(number)
        heads = np.unique(np.frombuffer(b"".join(row[:8] for row in wanted), np.uint64))
        for fragment in self._fragments():  # in the order of commits, so that a later row wins
            names, have = self._known(fragment)
            for place in np.flatnonzero(np.isin(names[:, 0], heads)):
                held = [k for k, layer in enumerate(layers) if have[place, layer]]
                for number in wanted.get(names[place].tobytes(), ()):
                    found[number, held] = fragment.fragment_id, place
        return found

    def _known(self, fragment: Any) -> tuple[np.ndarray, np.ndarray]:
        """Names of a fragment's rows [row, 2] as two words each, and which layers each has [row, layer]."""
        number = fragment.fragment_id
        if number not in self._index:
            try:
                read = fragment.to_table(columns=["row", "have"])
                names = _bytes_of(read["row"]).view(np.uint64).reshape(-1, HASH_BYTES // 8)
                have = np.unpackbits(_bytes_of(read["have"]), axis=1, bitorder="little").astype(bool)
            except BaseException as error:
                _raise_unless_damage(error)
                logger.warning("%s: fragment %d cannot be read (%s)", self.url, number, reason(error))
                names, have = np.empty((0, 2), np.uint64), np.empty((0, self.key.n_layers), bool)
            self._index[number] = names, have
        return self._index[number]

    # Reading

    def read(
        self, rows: Sequence[bytes], layers: Sequence[int], addresses: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The vectors at these addresses, all of which exist, and which of them are what was written.

        Returns:
            [layer, row, d_model] in the table's dtype, and [row] where every vector is sound.
        """
        values = np.empty((len(layers), len(rows), self.key.d_model), DTYPES[self.key.dtype])
        sound = np.ones(len(rows), bool)
        by_fragment: dict[int, dict[tuple[int, ...], list[int]]] = {}
        for number in range(len(rows)):
            for fragment in np.unique(addresses[number, :, 0]):
                held = tuple(np.flatnonzero(addresses[number, :, 0] == fragment).tolist())
                by_fragment.setdefault(int(fragment), {}).setdefault(held, []).append(number)
        fragments = {f.fragment_id: f for f in self._fragments()}
        for fragment, groups in by_fragment.items():
            for held, numbers in groups.items():
                if fragment not in fragments:  # compacted since the addresses were found
                    sound[numbers] = False
                    continue
                places = addresses[numbers, held[0], 1]
                names, of = [rows[n] for n in numbers], [layers[k] for k in held]
                part, good = self._take(fragments[fragment], places, names, of)
                values[np.ix_(held, numbers)] = part
                sound[numbers] &= good
        return values, sound

    def _take(
        self, fragment: Any, places: np.ndarray, names: Sequence[bytes], layers: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Vectors at these places of one fragment, [layer, row, d_model], and which rows are sound."""
        values = np.zeros((len(layers), len(places), self.key.d_model), DTYPES[self.key.dtype])
        sound = np.zeros(len(places), bool)
        order = np.argsort(places, kind="stable")
        step = max(1, _CHUNK // (values.itemsize * len(layers) * self.key.d_model))
        for start in range(0, len(order), step):
            some = order[start : start + step]
            try:
                read = fragment.take(places[some].tolist(), columns=["hashes", *map(_column, layers)])
                hashes = _bytes_of(read["hashes"]).reshape(len(some), self.key.n_layers, HASH_BYTES)
                good = np.ones(len(some), bool)
                for k, layer in enumerate(layers):
                    vectors = self._vectors(read[_column(layer)])
                    made = cell_hashes(self.id, [names[n] for n in some], layer, vectors)
                    good &= (made == hashes[:, layer]).all(1)
                    values[k, some] = vectors
                sound[some] = good
            except BaseException as error:
                _raise_unless_damage(error)
                logger.warning(
                    "%s: fragment %d cannot be read (%s)", self.url, fragment.fragment_id, reason(error)
                )
        return values, sound

    def _vectors(self, column: Any) -> np.ndarray:
        """A column of vectors as [row, d_model]."""
        joined = column.combine_chunks()
        if joined.null_count:
            raise ValueError("a vector that should be there is null")
        flat = joined.flatten().to_numpy(zero_copy_only=False)
        return flat.reshape(-1, self.key.d_model).astype(DTYPES[self.key.dtype], copy=False)

    # Writing

    def append(self, places: Sequence[Place], layers: Sequence[int], values: np.ndarray) -> None:
        """Write vectors in one commit.

        Args:
            values: [layer, row, d_model] in the table's dtype.

        Raises:
            OSError: the disk is full, or the server does not answer; nothing was written.
        """
        rows = row_names(places)
        hashes = np.zeros((len(rows), self.key.n_layers, HASH_BYTES), np.uint8)
        columns: dict[str, Any] = {}
        for layer, vectors in zip(layers, values, strict=True):
            vectors = np.ascontiguousarray(vectors, dtype=DTYPES[self.key.dtype])
            hashes[:, layer] = cell_hashes(self.id, rows, layer, vectors)
            flat = pa.array(vectors.reshape(-1), type=_ARROW[self.key.dtype])
            columns[_column(layer)] = pa.FixedSizeListArray.from_arrays(flat, self.key.d_model)
        have = np.zeros((len(rows), self.key.n_layers), bool)
        have[:, list(layers)] = True
        facts = {
            "row": pa.array(rows, pa.binary(HASH_BYTES)),
            "have": _binary(np.packbits(have, axis=1, bitorder="little")),
            "hashes": _binary(hashes.reshape(len(rows), -1)),
            "tokens": pa.array([place.tokens for place in places], pa.list_(pa.int64())),
            "position": pa.array([place.position for place in places], pa.int64()),
            "scope": pa.array([place.scope for place in places], pa.string()),
            "role": pa.array([place.role for place in places], pa.string()),
            "text": pa.array([place.text for place in places], pa.string()),
        }
        table = pa.table(facts | columns)
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
            _raise_unless_damage(error)
            raise OSError(f"{self.url} could not be written to ({reason(error)})") from error

    @property
    def _schema(self) -> Any:
        key = self.key
        facts = [
            pa.field("row", pa.binary(HASH_BYTES)),
            pa.field("have", pa.binary(-(-key.n_layers // 8))),
            pa.field("hashes", pa.binary(key.n_layers * HASH_BYTES)),
            pa.field("tokens", pa.list_(pa.int64())),
            *(pa.field(name, pa.int64() if name == "position" else pa.string()) for name in _PLACE[1:]),
        ]
        vector = pa.list_(_ARROW[key.dtype], key.d_model)
        layers = [pa.field(_column(layer), vector) for layer in range(key.n_layers)]
        return pa.schema([*facts, *layers], metadata={_KEY: key.text.encode()})

    def _create(self) -> None:
        """Make the table, unless another process has made it meanwhile."""
        try:
            lance().write_dataset(
                self._schema.empty_table(), self.url, mode="create", storage_options=self._options
            )
        except BaseException as error:
            _raise_unless_damage(error)
            self._data = self._open()
            if self._data is None:
                raise OSError(f"{self.url} could not be made ({reason(error)})") from error
        self._data = self._open()

    # The whole table

    def content(self) -> TableContent:
        """How much the table holds; vectors are not read."""
        masks = [self._known(fragment)[1] for fragment in self._fragments()]
        cells = sum(int(mask.sum()) for mask in masks)
        return TableContent(
            key=self.key,
            rows=sum(len(mask) for mask in masks),
            cells=cells,
            size=cells * self.key.d_model * DTYPES[self.key.dtype].itemsize,
            appends=len(masks),
        )

    def places(self) -> Iterator[tuple[int, list[Place], list[bytes], np.ndarray]]:
        """Of each fragment: its number, its places, the names of its rows as stored, and [row, layer] what it has."""
        for fragment in self._fragments():
            names, have = self._known(fragment)
            if not len(names):
                continue
            read = fragment.to_table(columns=list(_PLACE)).to_pylist()
            places = [Place(**{**row, "tokens": tuple(row["tokens"])}) for row in read]
            yield fragment.fragment_id, places, [name.tobytes() for name in names], have

    def damaged(self) -> Iterator[Damaged]:
        """Every cell that is not what was written, every row whose name is not that of its tokens; reads everything."""
        fragments = {f.fragment_id: f for f in self._fragments()}
        readable = set()
        try:
            for number, places, rows, have in self.places():
                readable.add(number)
                for place, (name, stored) in enumerate(zip(row_names(places), rows, strict=True)):
                    if name != stored:
                        yield Damaged(self.id, number, place, None)
                for layer in range(self.key.n_layers):
                    held = np.flatnonzero(have[:, layer])
                    if len(held):
                        _, good = self._take(fragments[number], held, [rows[n] for n in held], [layer])
                        for place in held[~good]:
                            yield Damaged(self.id, number, int(place), layer)
        except BaseException as error:
            _raise_unless_damage(error)
            logger.warning("%s cannot be read (%s)", self.url, reason(error))
        for number in sorted(set(fragments) - readable):
            yield Damaged(self.id, number, -1, None)

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
            _raise_unless_damage(error)
            raise ValueError(
                f"{self.url} cannot be compacted ({reason(error)}); `interp store verify`"
            ) from error
        self.refresh()


_PLACE = ("tokens", "position", "scope", "role", "text")


def _column(layer: int) -> str:
    return f"layer_{layer:03d}"


def _binary(rows: np.ndarray) -> Any:
    """Rows of bytes as one array of fixed width."""
    width = rows.shape[1]
    return pa.Array.from_buffers(
        pa.binary(width), len(rows), [None, pa.py_buffer(np.ascontiguousarray(rows))]
    )


def _bytes_of(column: Any) -> np.ndarray:
    """A column of fixed width as [row, byte]."""
    joined = column.combine_chunks()
    width = joined.type.byte_width
    data = np.frombuffer(joined.buffers()[1], np.uint8)
    return data[joined.offset * width : (joined.offset + len(joined)) * width].reshape(-1, width)


def reason(error: BaseException) -> str:
    """What an error of Lance says, without the place in its source."""
    return re.sub(r", \S+\.rs:\d+(:\d+)?", "", str(error).strip().partition("\n")[0])[:240]


def _raise_unless_damage(error: BaseException) -> None:
    """Raise again what is no failure of reading or writing; Lance's panics are no `Exception`."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error


def _is_absence(url: str, error: BaseException) -> bool:
    """Whether opening failed because there is no table."""
    if "://" not in url:
        return not (Path(url) / "_versions").is_dir()
    return "not found" in str(error).lower()
