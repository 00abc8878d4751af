"""The settings of an experiment as a table: name, type, default, meaning, and where it comes from in the paper.

Meanings are the strings that stand under the fields of its `Config`.
"""

import ast
import inspect
import re
from dataclasses import MISSING, Field, fields
from typing import Any, NamedTuple

from interp.display.cards import Table

_SOURCE = re.compile(
    r"\b(?:sections?|appendix|equations?|figures?|tables?) [A-Z\d][\w.]*\d?(?:(?:,| and) \d[\d.]*\d)*"
)


class Setting(NamedTuple):
    """One setting of an experiment."""

    name: str
    """Name, as `--set name=value` takes it."""
    kind: str
    """Type, as it is annotated."""
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
    meanings = _meanings(config)
    found = []
    for field in fields(config):
        meaning = meanings.get(field.name, "")
        source = _SOURCE.search(meaning)
        kind = field.type if isinstance(field.type, str) else inspect.formatannotation(field.type)
        kind = kind.replace("typing.", "")
        found.append(
            Setting(
                field.name, kind, _default(field), meaning, "" if source is None else source[0].rstrip(".")
            )
        )
    return found


def settings_table(config: type[Any]) -> Table:
    """The settings of a `Config` as a table."""
    rows = [[s.name, s.kind, str(s.default), s.meaning, s.source] for s in settings_of(config)]
    return Table(header=["setting", "type", "default", "meaning", "source"], rows=rows)


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
