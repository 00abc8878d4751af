"""Damaged versions of files: bytes cut, flipped and re-encoded; JSON with values of other types, sizes and depths."""

import copy
import json
import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor

DEEP: Any = "[" * 5000 + "]" * 5000
"""JSON text nested beyond any reader's depth."""
_SWAPS: tuple[Any, ...] = (
    None,
    "x",
    "",
    -1,
    10**30,
    1.5,
    True,
    [],
    {},
    [None],
    {"a": 1},
    float("nan"),
    "\ud800",
)


class Damaged(NamedTuple):
    """One damaged version of a file."""

    how: str
    data: bytes


def damaged_bytes(data: bytes, *, seed: int, n: int = 8) -> Iterator[Damaged]:
    """A file emptied, cut, flipped bit by bit, overwritten and in other encodings."""
    rng = random.Random(seed)
    yield Damaged("empty", b"")
    yield Damaged("noise", rng.randbytes(max(64, min(len(data), 4096))))
    yield Damaged("zeros", bytes(len(data)))
    yield Damaged("NUL before", b"\0" * 16 + data)
    yield Damaged("cut by one byte", data[:-1])
    for _ in range(n):
        end = rng.randrange(1, max(2, len(data)))
        yield Damaged(f"cut at {end}", data[:end])
    for _ in range(2 * n):
        # Headers are where a flip matters most: half of them within the first 2 kB.
        at = rng.randrange(min(len(data), 2048)) if rng.random() < 0.5 else rng.randrange(len(data))
        flipped = bytearray(data)
        flipped[at] ^= 1 << rng.randrange(8)
        yield Damaged(f"bit flipped at {at}", bytes(flipped))
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return
    yield Damaged("UTF-16", text.encode("utf-16"))
    yield Damaged("UTF-16 without a mark", text.encode("utf-16-le"))
    yield Damaged("Latin-1", b"\xe9" + data)
    yield Damaged("deep", DEEP.encode())


def damaged_json(value: Any, *, seed: int, n: int = 40) -> Iterator[Damaged]:
    """A JSON value with one place removed, renamed, or of another type or size."""
    rng = random.Random(seed)
    places = list(_places(value))
    for _ in range(n):
        place = rng.choice(places)
        if place and rng.random() < 0.3:
            yield Damaged(f"without {place}", json.dumps(_without(value, place)).encode())
            continue
        swap = rng.choice(_SWAPS)
        yield Damaged(f"{swap!r} at {place}", json.dumps(_with(value, place, swap)).encode())
    for place in rng.sample(places, min(4, len(places))):
        text = json.dumps(_with(value, place, "DEEP"))
        yield Damaged(f"deep at {place}", text.replace('"DEEP"', DEEP).encode())
    yield Damaged(
        "number of 5,000 digits",
        json.dumps(_with(value, rng.choice(places), "N")).replace('"N"', "9" * 5000).encode(),
    )


def damaged_tensors(
    tensors: dict[str, Tensor], metadata: dict[str, str] | None, *, seed: int
) -> Iterator[Damaged]:
    """A safetensors file with tensors missing, of other shapes and types, or not finite, and metadata changed."""
    rng = random.Random(seed)
    for name, tensor in tensors.items():
        rest = {key: value for key, value in tensors.items() if key != name}
        yield Damaged(f"without {name}", save(rest, metadata))
        yield Damaged(f"{name} renamed", save({**rest, "other": tensor}, metadata))
        for how, other in (
            ("NaN", torch.full_like(tensor, float("nan"))),
            ("shape []", torch.zeros(())),
            ("no values", torch.zeros(0)),
            ("three axes", tensor[None, None].contiguous()),
            ("shorter", tensor[..., :-1].contiguous()),
            ("integers", tensor.long()),
            ("booleans", tensor > 0),
        ):
            yield Damaged(f"{name}: {how}", save({**rest, name: other}, metadata))
    for key in metadata or {}:
        yield Damaged(
            f"metadata without {key}", save(tensors, {k: v for k, v in (metadata or {}).items() if k != key})
        )
        for value in rng.sample(
            ["", "None", "null", "-1", "x", "nan", "1e999", "9" * 5000, "[]", "{}", DEEP], 6
        ):
            yield Damaged(f"metadata {key} {value[:9]!r}", save(tensors, {**(metadata or {}), key: value}))


def _places(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield before
    entries: Sequence[tuple[Any, Any]] = []
    if isinstance(value, dict):
        entries = list(value.items())
    elif isinstance(value, list):
        entries = list(enumerate(value))[:4]
    for key, item in entries:
        yield from _places(item, (*before, key))


def _with(value: Any, place: tuple[Any, ...], item: Any) -> Any:
    if not place:
        return item
    changed = copy.deepcopy(value)
    at = changed
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = item
    return changed


def _without(value: Any, place: tuple[Any, ...]) -> Any:
    changed = copy.deepcopy(value)
    at = changed
    for key in place[:-1]:
        at = at[key]
    del at[place[-1]]
    return changed
