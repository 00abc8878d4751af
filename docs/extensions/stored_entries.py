"""One number that the pages quote: where it stands in a stored result, and how it is written.

at("n", "harmful", form="d")        # 40
percent("aligned", "refusal_rate", "harmful")      # 95% [83, 99]
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from interp.stats import Estimate
from interp.storage.typed_json import from_plain

Step = str | int | Mapping[str, Any]


@dataclass(frozen=True)
class Stored:
    """Where one number is, and how it is written."""

    where: tuple[Step, ...] | Callable[[Any], Any]
    """Path inside the result, or a function of the result."""
    form: str = ".2f"
    """`percent`, or a format of the value and both ends of its interval."""
    bare: bool = False
    """Without the interval."""


def at(*where: Step, form: str = ".2f", bare: bool = False) -> Stored:
    """A number by its path."""
    return Stored(where, form, bare)


def percent(*where: Step, bare: bool = False) -> Stored:
    """A share by its path, in percent."""
    return Stored(where, "percent", bare)


def peak(*where: Step) -> Stored:
    """The largest share of a list, in percent."""
    return Stored(lambda result: max(follow(result, where), key=lambda entry: entry["value"]), "percent")


def follow(result: Any, where: tuple[Step, ...]) -> Any:
    """What stands at a path.

    Raises:
        KeyError: a step that is not there, or a picked row that is not exactly one.
    """
    here = result
    for step in where:
        if isinstance(step, Mapping):
            rows = [entry for entry in here if all(entry.get(key) == value for key, value in step.items())]
            if len(rows) != 1:
                raise KeyError(f"{dict(step)} picks {len(rows)} rows, not one")
            here = rows[0]
            continue
        try:
            here = here[step]
        except (KeyError, IndexError, TypeError) as error:
            there = ", ".join(map(str, here)) if isinstance(here, Mapping) else f"{len(here)} entries"
            raise KeyError(f"no {step!r} at {'/'.join(map(str, where))}; there is {there}") from error
    return here


def formatted(entry: Any, stored: Stored) -> str:
    """An estimate with its interval, or a plain value, in the form of its entry."""
    if isinstance(entry, Mapping):  # as JSON has it
        entry = from_plain(Estimate, dict(entry), source="a stored estimate")
    if not isinstance(entry, Estimate):
        return _one(entry, stored.form)
    if not entry.measurable:
        raise ValueError("the stored number was not measurable")
    value, low, high = entry.value, entry.low, entry.high
    if stored.bare or not math.isfinite(low):
        return _one(value, stored.form)
    if stored.form == "percent":
        return f"{100 * value:.0f}% [{100 * low:.0f}, {100 * high:.0f}]"
    ends = stored.form.lstrip("+")
    return f"{value:{stored.form}} [{low:{ends}}, {high:{ends}}]"


def _one(value: Any, form: str) -> str:
    return f"{100 * value:.0f}%" if form == "percent" else f"{value:{form}}"
