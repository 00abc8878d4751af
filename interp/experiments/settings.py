"""The settings of an experiment as a table: name, type, default, meaning, and where it comes from in the paper.

Meanings are the strings that stand under the fields of its `Config`.
"""

import ast
import inspect
import re
from collections.abc import Iterable
from dataclasses import MISSING, Field, fields
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from interp.display.cards import Table

_SOURCE = re.compile(
    r"\b(?:sections?|appendix|equations?|figures?|tables?) [A-Z\d][\w.]*\d?(?:(?:,| and) \d[\d.]*\d)*"
)


class Setting(NamedTuple):
    """One setting of an experiment."""

    name: str
    """Name, as `--set name=value` takes it."""
    values: str
    """What it takes, in words: `whole number, at least 1`."""
    default: Any
    """Value when it is not given."""
    meaning: str
    """What it does."""
    source: str
    """Section, table, figure or equation of the paper; empty where it names none."""


def settings_of(config: type[Any]) -> list[Setting]:
    """The settings of a `Config`, in its order.

    Args:
        config: a dataclass with a default for every field and a string under it.
    """
    meanings, hints = _meanings(config), get_type_hints(config, include_extras=True)
    found = []
    for field in fields(config):
        meaning = meanings.get(field.name, "")
        source = _SOURCE.search(meaning)
        values = _in_words(hints[field.name])
        found.append(
            Setting(
                field.name, values, _default(field), meaning, "" if source is None else source[0].rstrip(".")
            )
        )
    return found


def settings_table(config: type[Any]) -> Table:
    """The settings of a `Config` as a table."""
    rows = [[s.name, s.values, str(s.default), s.meaning, s.source] for s in settings_of(config)]
    return Table(header=["setting", "values", "default", "meaning", "source"], rows=rows)


_NAMES: dict[Any, str] = {
    int: "whole number",
    float: "number",
    float | int: "number",
    str: "text",
    bool: "True or False",
    type(None): "None",
}


def _in_words(hint: Any) -> str:
    """The values that an annotation admits."""
    if hint in _NAMES:
        return _NAMES[hint]
    kind, parts = get_origin(hint), get_args(hint)
    if kind is Annotated:
        return _in_words(parts[0]) + _bounds(parts[1:])
    if kind is Literal:
        *first, last = map(str, parts)
        return f"{', '.join(first)} or {last}" if first else last
    if kind is tuple:
        inside = list(dict.fromkeys(_in_words(part) for part in parts if part is not ...))
        return (
            f"list of {' and '.join(inside)}"
            if parts[-1] is ...
            else f"list of {len(parts)}: {', '.join(inside)}"
        )
    if kind in (Union, UnionType):
        others = [part for part in parts if part not in (int, float)]
        numbers = [float | int] if float in parts else [int] if int in parts else []
        return " or ".join(map(_in_words, [*numbers, *others]))
    return getattr(hint, "__name__", str(hint))


def _bounds(notes: Iterable[Any]) -> str:
    """Pydantic's bounds in words, behind the type."""
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    rules = [rule for note in notes for rule in getattr(note, "metadata", ())]
    said = [
        f"{word} {getattr(rule, name)}"
        for rule in rules
        for name, word in words.items()
        if hasattr(rule, name)
    ]
    return f", {' and '.join(said)}" if said else ""


def _default(field: Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


def _meanings(config: type[Any]) -> dict[str, str]:
    """The string under each field, of the class and of those it extends."""
    found: dict[str, str] = {}
    for kind in reversed(config.__mro__[:-1]):
        (body,) = ast.parse(inspect.cleandoc("\n" + inspect.getsource(kind))).body
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
                continue
            if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                found[field.target.id] = " ".join(str(text.value.value).split())
    return found
