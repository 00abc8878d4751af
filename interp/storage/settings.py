"""Settings that are checked when they are made: types, bounds, and no NaN, infinity or negative count anywhere.

A bound stands in a field's annotation. Whatever it says, a number must be finite and a whole number 0 or more, so that
a mistake fails before any work is done, and a negative count never slices from the end. Numbers of NumPy and torch
become those of Python, which is what files of settings hold.

    @dataclass(frozen=True, kw_only=True)
    class Config(CheckedSettings):
        n_train: Count = 128
        false_positive_rate: OpenShare = 0.1
"""

import math
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from typing import Annotated, Any, get_args, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError

Count = Annotated[int, Field(ge=1)]
"""A number of things, at least one."""
AtLeastTwo = Annotated[int, Field(ge=2)]
"""A number of things of which one gives no spread."""
Positive = Annotated[float | int, Field(gt=0)]
"""A rate or size above 0."""
NonNegative = Annotated[float | int, Field(ge=0)]
"""A strength that may be 0."""
Share = Annotated[float | int, Field(ge=0, le=1)]
"""A share, 0 to 1."""
OpenShare = Annotated[float | int, Field(gt=0, lt=1)]
"""A share strictly between 0 and 1."""

_BOUNDS = {
    "greater_than_equal": "must be {ge} or more",
    "greater_than": "must be above {gt}",
    "less_than_equal": "must be {le} or less",
    "less_than": "must be below {lt}",
    "finite_number": "must be a finite number",
}
_PLAIN = (int, float, str, tuple, list, type(None))


class CheckedSettings:
    """Base of frozen dataclasses of settings; a subclass with checks of its own calls `super().__post_init__()`."""

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            ValueError: a value of another type or out of bounds; the message names field, rule and value.
        """
        for field in fields(self):  # pyright: ignore[reportArgumentType] (subclasses are dataclasses)
            given, kind = getattr(self, field.name), _hints(type(self))[field.name]
            if (value := _of_python(given, kind)) is not given:
                object.__setattr__(self, field.name, value)
            if not isinstance(value, _PLAIN) or (value is None and type(None) in get_args(kind)):
                continue  # prompts and the like check themselves
            check_truth_values(value, kind, field.name)
            try:
                read = _adapter(kind).validate_python(value)
            except ValidationError as error:
                raise ValueError(problem(error, field.name)) from None
            is_text = isinstance(value, str) and type(read) in (int, float, bool)
            if is_text or (isinstance(value, float) and type(read) is int):
                # A number as text, or a whole one as 5.0: what is validated is what is used.
                object.__setattr__(self, field.name, value := read)
            for number in _numbers(value):
                if not math.isfinite(number):
                    raise ValueError(f"{field.name} must be a finite number, got {value!r}")
                if isinstance(number, int) and number < 0:
                    raise ValueError(f"{field.name} must be 0 or more, got {value!r}")
                if isinstance(number, int) and number >= 2**63:  # beyond every seed, count and index
                    raise ValueError(f"{field.name} must be below 2**63, got {value!r:.60}")


def check_truth_values(value: Any, hint: Any, name: str) -> None:
    """Raise a ValueError where a number is given as True or False, which pydantic reads as 1 and 0."""
    for item in value if isinstance(value, tuple | list) else [value]:
        if isinstance(item, bool) and not _takes_truth_values(hint):
            raise ValueError(f"{name} must be a number, not a truth value, got {value!r:.80}")


def _of_python(value: Any, hint: Any) -> Any:
    """Numbers of NumPy or torch as those of Python, a row of them as a tuple; anything else as it is."""
    if isinstance(value, tuple | list):
        items = [_of_python(item, hint) for item in value]
        if all(one is other for one, other in zip(items, value, strict=True)):
            return value
        return tuple(items) if isinstance(value, tuple) else items
    if not (hasattr(value, "dtype") and hasattr(value, "tolist") and _takes_numbers(hint)):
        return value
    plain = value.tolist()
    return tuple(plain) if isinstance(plain, list) else plain


def _takes_numbers(hint: Any) -> bool:
    return hint in (int, float) or any(map(_takes_numbers, get_args(hint)))


def _takes_truth_values(hint: Any) -> bool:
    return hint in (bool, Any) or any(map(_takes_truth_values, get_args(hint)))


def problem(error: ValidationError, *place: str) -> str:
    """The first error as field, rule and value.

    Args:
        place: where the validated value stands.
    """
    first = error.errors(include_url=False)[0]
    if "error" in first.get("ctx", {}):  # raised by the settings themselves, which name what is wrong
        return str(first["ctx"]["error"])  # pyright: ignore[reportTypedDictNotRequiredAccess]
    name = ".".join(map(str, (*place, *first["loc"])))
    bound, message = _BOUNDS.get(first["type"]), first["msg"]
    rule = (
        f": {message[0].lower()}{message[1:]}"
        if bound is None
        else f" {bound.format(**first.get('ctx', {}))}"
    )
    return f"{name}{rule}, got {first['input']!r:.80}"


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


@cache
def _adapter(hint: Any) -> Any:
    return TypeAdapter(hint)


def _numbers(value: Any) -> Iterator[int | float]:
    """Every number in a value, however deep."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _numbers(item)
