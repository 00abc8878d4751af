"""Activations in the store: a Lance dataset whose rows are prompt tokens and whose columns are layers.

A row that was written with some layers only is completed by a later row of the same name, and where two hold the same
cell the later one counts.

Every vector is checked against its hash whenever it is read (`interp.storage.store_cells`). One that does not match, or
that cannot be read at all, counts as missing.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

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
from interp.storage.store_cells import DTYPES, HASH_BYTES, Place, cell_hashes, row_names

logger = logging.getLogger(__name__)

Address = tuple[int, int]
"""Fragment and place in it."""
_ARROW = {"float32": pa.float32(), "float16": pa.float16(), "bfloat16": pa.uint16()}
_CHUNK = 2**25
"""Bytes that are read or written at a time."""


class StoreTable(LanceTable):
    """The rows of one key, as they were when it was opened; `refresh` sees what others have written since."""

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
                names = bytes_of(read["row"]).view(np.uint64).reshape(-1, HASH_BYTES // 8)
                have = np.unpackbits(bytes_of(read["have"]), axis=1, bitorder="little").astype(bool)
            except BaseException as error:
                raise_unless_damage(error)
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
                hashes = bytes_of(read["hashes"]).reshape(len(some), self.key.n_layers, HASH_BYTES)
                good = np.ones(len(some), bool)
                for k, layer in enumerate(layers):
                    vectors = self._vectors(read[_column(layer)])
                    made = cell_hashes(self.id, [names[n] for n in some], layer, vectors)
                    good &= (made == hashes[:, layer]).all(1)
                    values[k, some] = vectors
                sound[some] = good
            except BaseException as error:
                raise_unless_damage(error)
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
            "have": binary(np.packbits(have, axis=1, bitorder="little")),
            "hashes": binary(hashes.reshape(len(rows), -1)),
            "tokens": pa.array([place.tokens for place in places], pa.list_(pa.int64())),
            "position": pa.array([place.position for place in places], pa.int64()),
            "scope": pa.array([place.scope for place in places], pa.string()),
            "role": pa.array([place.role for place in places], pa.string()),
            "text": pa.array([place.text for place in places], pa.string()),
        }
        self._write(facts | columns)

    def _fields(self) -> list[Any]:
        key = self.key
        facts = [
            pa.field("row", pa.binary(HASH_BYTES)),
            pa.field("have", pa.binary(-(-key.n_layers // 8))),
            pa.field("hashes", pa.binary(key.n_layers * HASH_BYTES)),
            pa.field("tokens", pa.list_(pa.int64())),
            *(pa.field(name, pa.int64() if name == "position" else pa.string()) for name in _PLACE[1:]),
        ]
        vector = pa.list_(_ARROW[key.dtype], key.d_model)
        return [*facts, *(pa.field(_column(layer), vector) for layer in range(key.n_layers))]

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
            raise_unless_damage(error)
            logger.warning("%s cannot be read (%s)", self.url, reason(error))
        for number in sorted(set(fragments) - readable):
            yield Damaged(self.id, number, -1, None)


_PLACE = ("tokens", "position", "scope", "role", "text")


def _column(layer: int) -> str:
    return f"layer_{layer:03d}"
