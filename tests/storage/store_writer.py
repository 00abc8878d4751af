"""Rows with known content, and processes that write them; imports no torch, so that a process starts at once."""

import resource
from typing import Any

import numpy as np

from interp.storage.activation_store import ActivationStore
from interp.storage.store_cells import DTYPES, Place, TableKey, row_names

LAYERS, WIDTH = 4, 8


def key_of(**changes: Any) -> TableKey:
    fields: dict[str, Any] = {
        "weights_hash": "w",
        "structure": "s",
        "site": "resid_pre",
        "dtype": "float32",
        "n_layers": LAYERS,
        "d_model": WIDTH,
    }
    return TableKey(**fields | changes)


def places_of(numbers: range) -> list[Place]:
    return [Place(tokens=(7, n, 9), position=n % 3, role="t_inst", text=f"prompt {n}") for n in numbers]


def vectors_of(numbers: range, dtype: str = "float32") -> np.ndarray:
    """Vectors [layer, row, d_model] that follow from the number of their row."""
    grid = (
        np.arange(WIDTH)[None, None]
        + 10 * np.array(numbers)[None, :, None]
        + 0.5 * np.arange(LAYERS)[:, None, None]
    )
    return (grid % 2**15).astype(DTYPES[dtype])


def write(store: ActivationStore, numbers: range, layers: range = range(LAYERS), **changes: Any) -> None:
    key = key_of(**changes)
    table = store.table(key)
    if not table.exists:
        store.register(key, {"model": "tiny"})
    table.append(places_of(numbers), list(layers), vectors_of(numbers, key.dtype)[list(layers)])


def held(store: ActivationStore, numbers: range, layers: range = range(LAYERS), **changes: Any) -> list[int]:
    """Which of these rows are in the store; asserts that each is what `write` writes."""
    key = key_of(**changes)
    table, rows = store.table(key), row_names(places_of(numbers))
    addresses = table.addresses(rows, list(layers))
    there = np.flatnonzero((addresses >= 0).all((1, 2)))
    values, sound = table.read([rows[n] for n in there], list(layers), addresses[there])
    assert sound.all()
    assert (values == vectors_of(numbers, key.dtype)[list(layers)][:, there]).all()
    return there.tolist()


def write_many(store: str, first: str, count: str) -> None:
    """Write rows one by one, and say so after the first."""
    for number in range(int(first), int(first) + int(count)):
        write(ActivationStore(store), range(number, number + 1))
        print(number, flush=True)  # noqa: T201 (the parent reads it)


def write_much(store: str) -> None:
    """Write more than a small disk takes, and say what happens."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    try:
        write(ActivationStore(store), range(10, 2000))
    except OSError as error:
        print(error)  # noqa: T201 (the parent reads it)
