"""Typed results as JSON: nested frozen dataclasses written and read by pydantic, with errors that name the path.

NaN and infinity are written as null; a field of type `interp.stats.Measured` reads null as NaN. A field that is
missing or of another type raises a `ValueError` that names the file and the path inside it.

    from_json(Selection, data, source="runs/demo/result.json")
"""

import json
from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")


@cache
def _adapter(kind: Any) -> Any:
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
    try:
        return _adapter(kind).validate_json(data)
    except ValidationError as error:
        raise ValueError(f"{source}: {_first(error)}") from None


def from_plain(kind: "type[T] | Any", value: Any, *, source: str) -> "T | Any":
    """Convert the output of `to_plain` or `json.loads` to a value of the given type.

    Raises:
        ValueError: a value of another shape; the message names the source and the path inside it.
    """
    return from_json(kind, json.dumps(value), source=source)


def _first(error: ValidationError) -> str:
    """The first validation error, and the number of further ones."""
    first, more = error.errors(include_url=False)[0], error.error_count() - 1
    path = ".".join(str(part) for part in first["loc"])
    shown = repr(first["input"]) if not isinstance(first["input"], (dict, list, bytes)) else ""
    got = f", got {shown[:80]}" if shown and first["type"] not in ("missing", "json_invalid") else ""
    rest = f" ({more} more like it)" if more else ""
    return f"{path + ': ' if path else ''}{first['msg'][0].lower()}{first['msg'][1:]}{got}{rest}"
