"""Cells of the activation store: what a row is named by, and the hash that proves each of its vectors.

A row is one token of one rendered prompt, named by a hash of all of the prompt's token ids and the token's position. A
cell is the vector of one layer in that row. Its hash covers the table, the row, the layer and every byte of the vector,
so that a vector can only be read as what it was written as:

    cell = SHA-256(table | row | layer | bytes), its first 16 bytes

Vectors are numpy arrays of the model's dtype; bfloat16, which numpy lacks, is held as its 16 bits.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

FORMAT_VERSION = 1
"""Version of the layout of a table; part of every key."""
HASH_BYTES = 16
DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
}
"""How numpy holds the vectors of each dtype."""


@dataclass(frozen=True, kw_only=True)
class TableKey:
    """What all activations of a table have in common and, with a row's name, what determines them."""

    weights_hash: str
    """SHA-256 of the model's weights."""
    structure: str
    """SHA-256 of the model's configuration and modules."""
    site: str
    """Site that is read."""
    dtype: str
    """Dtype of the activations."""
    n_layers: int
    """Layers of the model."""
    d_model: int
    """Width of the residual stream."""
    interventions: str = ""
    """SHA-256 of what is in force while reading; empty where nothing is."""
    numerics: Mapping[str, str] = field(default_factory=dict)
    """What else decides rounding: path, precision of products, kernels, device, versions of the libraries."""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(
                f"activations of {self.dtype} cannot be stored; load the model in {', '.join(DTYPES)}"
            )

    @property
    def text(self) -> str:
        """The key as canonical JSON."""
        return json.dumps({"format": FORMAT_VERSION, **asdict(self)}, sort_keys=True)

    @property
    def id(self) -> str:
        """Name of the table: the first 32 digits of the key's SHA-256."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:32]

    @classmethod
    def from_text(cls, text: str) -> "TableKey":
        """The key that was written.

        Raises:
            ValueError: not a key of this format.
        """
        try:
            fields = dict(json.loads(text))
            version = fields.pop("format")
            key = cls(**fields)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"this is no key of an activation store ({error})") from error
        if version != FORMAT_VERSION:
            raise ValueError(f"the store has format {version!r}, this interp reads {FORMAT_VERSION}")
        return key


@dataclass(frozen=True, eq=False, kw_only=True)
class Place:
    """One token of one rendered prompt."""

    tokens: tuple[int, ...]
    """Token ids of the whole prompt."""
    position: int
    """Index of the token."""
    scope: str = ""
    """What interventions limited to some tokens depend on; empty without them."""
    role: str = ""
    """Role it was read as first; not part of its name."""
    text: str = ""
    """The prompt, for a reader; not part of its name."""

    @property
    def row(self) -> bytes:
        """Name of the row, 16 bytes."""
        return row_names([self])[0]


def row_names(places: Sequence[Place]) -> list[bytes]:
    """Names of the rows of these places; a prompt's tokens are hashed once for all its places."""
    digests: dict[tuple[int, ...], bytes] = {}
    names = []
    for place in places:
        known = digests.get(place.tokens)
        if known is None:
            data = np.asarray(place.tokens, dtype="<i8").tobytes()
            known = digests[place.tokens] = hashlib.sha256(data).digest()
        name = known + place.position.to_bytes(8, "little", signed=True) + place.scope.encode()
        names.append(hashlib.sha256(name).digest()[:HASH_BYTES])
    return names


def cell_hashes(table: str, rows: Sequence[bytes], layer: int, vectors: np.ndarray) -> np.ndarray:
    """The hash of every row's vector at one layer.

    Args:
        table: name of the table.
        vectors: [row, d_model], contiguous.

    Returns:
        [row, 16] bytes.
    """
    prefix = table.encode() + layer.to_bytes(4, "little")
    data: Any = memoryview(np.ascontiguousarray(vectors).view(np.uint8).reshape(-1))  # pyright: ignore
    width = len(data) // max(1, len(rows))
    digests = []
    for row, name in enumerate(rows):
        digest = hashlib.sha256(prefix + name)
        digest.update(data[row * width : (row + 1) * width])
        digests.append(digest.digest()[:HASH_BYTES])
    return np.frombuffer(b"".join(digests), np.uint8).reshape(len(rows), HASH_BYTES)
