"""Typed results as JSON: nested frozen dataclasses written and read by pydantic, with errors that name the path.

NaN and infinity are written as null; a field of type `interp.stats.Measured` reads null as NaN. A field that is
missing or of another type raises a `ValueError` that names the file and the path inside it.

    from_json(Selection, data, source="runs/demo/result.json")
"""

import gzip
import json
import zlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from interp.storage.paths import expanded

if TYPE_CHECKING:  # pydantic takes a tenth of a second to load, and help and lists read no JSON
    from pydantic import ValidationError

T = TypeVar("T")

_LARGEST = 512 << 20
"""Bytes that a compressed file may hold: a small file can stand for any number of them."""


@cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def to_json(value: Any, kind: Any = Any) -> bytes:
    """A value as indented JSON; dataclasses become objects, tuples and tensors arrays, NaN and infinity null."""
    return _adapter(kind).dump_json(value, indent=1, fallback=_listed)


def _listed(value: Any) -> Any:
    """A tensor or array as nested lists, without importing torch.

    Raises:
        TypeError: a value that JSON cannot hold.
    """
    if not hasattr(value, "tolist"):
        raise TypeError(f"{type(value).__name__} cannot be written as JSON")
    return value.tolist()


def to_plain(value: Any, kind: Any = Any) -> Any:
    """A value as it is after a round trip through JSON: dicts, lists, strings, numbers, booleans and None."""
    return json.loads(to_json(value, kind))


def from_json(kind: "type[T] | Any", data: bytes | str, *, source: str) -> "T | Any":
    """Read a value of the given type from JSON.

    Args:
        source: name in errors, such as the file's path.

    Raises:
        ValueError: invalid JSON, or a value of another shape; the message names the source and the path inside it.
    """
    from pydantic import ValidationError

    try:
        return _adapter(kind).validate_json(data)
    except ValidationError as error:
        raise ValueError(f"{source}: {_first(error)}") from None


def from_plain(kind: "type[T] | Any", value: Any, *, source: str) -> "T | Any":
    """Convert the output of `to_plain` or `json.loads` to a value of the given type.

    Raises:
        ValueError: a value of another shape; the message names the source and the path inside it.
    """
    try:
        text = json.dumps(value)
    except (
        ValueError,
        RecursionError,
    ) as error:  # numbers of thousands of digits, nesting of thousands of levels
        raise ValueError(f"{source}: {error}") from None
    return from_json(kind, text, source=source)


def read_json(path: str | Path, kind: "type[T] | Any" = Any, *, remedy: str) -> "T | Any":
    """Read a JSON file as a value of the given type; one reader for every kind of damage.

    Covers text that is not UTF-8, is cut, nests too deeply or holds half a surrogate pair, and values of another shape.
    A file whose name ends in `.gz` is decompressed first.

    Args:
        remedy: what to do about a damaged file, as the end of the message.

    Raises:
        ValueError: damaged; the message is one line with file, reason and remedy.
        OSError: no such file, or not readable.
    """
    from pydantic import ValidationError

    try:
        data = read_compressed(path)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({first_line(error)}); {remedy}") from None
    try:
        return _adapter(kind).validate_json(data)
    except ValidationError as error:
        raise ValueError(f"{path} is damaged ({_first(error)}); {remedy}") from None


def read_compressed(path: str | Path) -> bytes:
    """Content of a file, decompressed where its name ends in `.gz`.

    Raises:
        EOFError, gzip.BadGzipFile, zlib.error: damaged compression.
        ValueError: more than half a gigabyte when decompressed, which no result is.
    """
    path = expanded(path)
    if path.suffix != ".gz":
        return path.read_bytes()
    with gzip.open(path) as file:
        data = file.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise ValueError(f"{path} is damaged (over {_LARGEST >> 20} MiB when decompressed)")
    return data


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says something; its class where there is none.

    A line that announces the next one is joined with it, and a key that is missing is said to be one.
    """
    lines = [" ".join(line.split()) for line in str(error).splitlines()]
    said = [line for line in lines if line.strip("-=* ")]
    if not said:
        return type(error).__name__
    if isinstance(error, KeyError):
        return f"{said[0]} is missing or not known"[:300]
    announced = said[0].endswith(":") and len(said) > 1
    return (f"{said[0]} {said[1]}" if announced else said[0])[:300]


def _first(error: "ValidationError") -> str:
    """The first validation error, and the number of further ones."""
    first, more = error.errors(include_url=False)[0], error.error_count() - 1
    path = ".".join(str(part) for part in first["loc"])
    shown = repr(first["input"]) if not isinstance(first["input"], (dict, list, bytes)) else ""
    got = f", got {shown[:80]}" if shown and first["type"] not in ("missing", "json_invalid") else ""
    rest = f" ({more} more like it)" if more else ""
    return f"{path + ': ' if path else ''}{first['msg'][0].lower()}{first['msg'][1:]}{got}{rest}"
