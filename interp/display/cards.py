"""Display of objects in a notebook cell and in a terminal as cards.

A class that inherits `Shown` describes itself in a `Card`, which a notebook shows as HTML and a terminal as text. Under
IPython a user's mistake (a `ValueError` or `OSError` that interp itself raised) is one line; `%tb` still prints all.

    model                      # ChatModel: layers, width, parameters, ...
    result.figures()           # the figures' names are on the result's card
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from interp.display.tables import Table, cell_text, folded, numeric_columns, table_html

_STYLE = (
    "<style>.interp-card td,.interp-card th{text-align:left;vertical-align:top}.interp-card .num{text-align:right;"
    "font-variant-numeric:tabular-nums}</style>"
)
_CELL = "text-align:left;padding:.15em .8em .15em 0;vertical-align:top"


@dataclass(frozen=True, kw_only=True, repr=False)
class Card:
    """An object's description of itself for display, or any few numbers that belong together."""

    title: str
    """What the object is, in a few words."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Values by name, most important first."""
    tables: Sequence[Table] = ()
    """Tables of its main numbers."""
    notes: Sequence[str] = ()
    """Sentences on what the numbers mean and what to call next."""

    def _repr_html_(self) -> str:
        return self.html()

    def __repr__(self) -> str:
        return self.text()

    def html(self) -> str:
        """The card for a notebook cell; colours follow the notebook's theme."""
        facts = "".join(
            f'<tr><th style="{_CELL};font-weight:normal;opacity:.65">{escape(name)}</th>'
            f'<td style="{_CELL}">{escape(cell_text(value))}</td></tr>'
            for name, value in self.facts.items()
        )
        notes = "".join(f'<p style="margin:.3em 0">{escape(note)}</p>' for note in self.notes)
        return (
            f'<div class="interp-card">{_STYLE}<p style="margin:.2em 0"><b>{escape(self.title)}</b></p>'
            + (f'<table style="margin:.2em 0">{facts}</table>' if facts else "")
            + "".join(table_html(table) for table in self.tables)
            + f"{notes}</div>"
        )

    def text(self) -> str:
        """The card for a terminal."""
        from rich.console import Console
        from rich.table import Table as Grid

        out = io.StringIO()
        # In a kernel Rich would display its output in the cell instead of writing it to the file.
        console = Console(
            file=out,
            width=110,
            color_system=None,
            highlight=False,
            markup=False,
            emoji=False,
            force_jupyter=False,
        )
        console.print(self.title)
        for name, value in self.facts.items():
            console.print(f"  {name}: {cell_text(value)}")
        for table in (part for whole in self.tables for part in folded(whole, console.width)):
            grid = Grid(box=None, padding=(0, 2, 0, 2), pad_edge=True)
            for name, right in zip(table.header, numeric_columns(table), strict=True):
                # A path is never cut.
                grid.add_column(str(name), overflow="fold", justify="right" if right else "left")
            for row in table.rows:
                grid.add_row(*map(cell_text, row))
            console.print(grid)
        for note in self.notes:
            console.print(f"  {note}")
        return "\n".join(line.rstrip() for line in out.getvalue().rstrip().splitlines())


class Shown:
    """Base class of objects that are shown as a card; subclasses implement `_card`.

    A dataclass that is also shown as a card in the terminal is declared with `repr=False`.
    """

    def _card(self) -> Card:
        raise NotImplementedError

    def _repr_html_(self) -> str:
        return self._card().html()

    def __repr__(self) -> str:
        return self._card().text()


def shortened(text: str, max_length: int = 160) -> str:
    """The text on one line, cut to `max_length` characters."""
    flat = " ".join(text.split())
    return flat if len(flat) <= max_length else f"{flat[: max_length - 1]}…"
