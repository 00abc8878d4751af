"""How objects look in a notebook cell and in a terminal: cards, a progress bar, errors of one line.

A class that inherits `Shown` says what it is in a `Card`; the notebook gets it as HTML, the terminal as text. Under
IPython a user's mistake (a `ValueError` or `OSError` that interp itself raised) is one line; `%tb` still prints all.

    model                      # ChatModel: layers, width, parameters, ...
    result.figures()           # the figures' names are on the result's card
"""

import io
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from types import TracebackType
from typing import Any

_PACKAGE = Path(__file__).parents[1]
_CELL = "text-align:left;padding:.15em .8em .15em 0;vertical-align:top"


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows under a header; numbers are set right."""

    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    title: str = "refusal rate"
    """What the cells are, for the command's output."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """What an object says of itself."""

    title: str
    """What it is, in a few words."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Name → value, in the order of importance."""
    tables: Sequence[Table] = ()
    """Its main numbers."""
    notes: Sequence[str] = ()
    """Sentences: what the numbers say, what to call next."""

    def html(self) -> str:
        """The card for a notebook cell; colours are left to the notebook's theme."""
        facts = "".join(
            f'<tr><th style="{_CELL};font-weight:normal;opacity:.65">{escape(name)}</th>'
            f'<td style="{_CELL}">{escape(str(value))}</td></tr>'
            for name, value in self.facts.items()
        )
        notes = "".join(f'<p style="margin:.3em 0">{escape(note)}</p>' for note in self.notes)
        return (
            f'<div class="interp-card"><p style="margin:.2em 0"><b>{escape(self.title)}</b></p>'
            + (f'<table style="margin:.2em 0">{facts}</table>' if facts else "")
            + "".join(table_html(table) for table in self.tables)
            + f"{notes}</div>"
        )

    def text(self) -> str:
        """The card for a terminal."""
        from rich.console import Console
        from rich.table import Table as Grid

        out = io.StringIO()
        # In a kernel Rich would show what it prints in the cell instead of writing it to the file.
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
            console.print(f"  {name}: {value}")
        for table in self.tables:
            grid = Grid(*map(str, table.header), box=None, padding=(0, 2, 0, 2), pad_edge=True)
            for row in table.rows:
                grid.add_row(*map(cell_text, row))
            console.print(grid)
        for note in self.notes:
            console.print(f"  {note}")
        return "\n".join(line.rstrip() for line in out.getvalue().rstrip().splitlines())


class Shown:
    """Base of what is shown as a card: `_card` is all that a class writes.

    A dataclass that wants the card in the terminal too is declared with `repr=False`.
    """

    def _card(self) -> Card:
        raise NotImplementedError

    def _repr_html_(self) -> str:
        return self._card().html()

    def __repr__(self) -> str:
        return self._card().text()


def result_card(numbers: Mapping[str, Any], experiment: Any) -> Card:
    """Card of a run's numbers; what its provenance does not have, such as prompts, is left out.

    Args:
        experiment: the experiment's module (`figures`, `rate_table`, `verdicts`, `SUMMARY`).
    """
    where, seconds = numbers["provenance"], numbers.get("seconds", {}).get("total")
    facts = {
        "model": where.get("model"),
        "prompts": where.get("prompts", {}).get("name"),
        "took": None if seconds is None else f"{seconds:.0f} s on {where['device']}",
        "figures()": ", ".join(experiment.figures(numbers)),
    }
    return Card(
        title=f"{numbers['experiment']}: {experiment.SUMMARY}",
        facts={name: value for name, value in facts.items() if value},
        tables=[experiment.rate_table(numbers)],
        notes=experiment.verdicts(numbers),
    )


def table_html(table: Table) -> str:
    """A table as HTML; everything in it is escaped."""
    head = "".join(f"<th>{escape(str(cell))}</th>" for cell in table.header)
    rows = "".join("<tr>" + "".join(_cell_html(cell) for cell in row) + "</tr>" for row in table.rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def cell_text(cell: Any) -> str:
    """A cell's text: floats with three digits."""
    return f"{cell:.3g}" if isinstance(cell, float) else str(cell)


def shortened(text: str, most: int = 160) -> str:
    """The text on one line, cut where it is too long."""
    flat = " ".join(text.split())
    return flat if len(flat) <= most else f"{flat[: most - 1]}…"


def _cell_html(cell: Any) -> str:
    numeric = isinstance(cell, (int, float)) and not isinstance(cell, bool)
    text = escape(cell_text(cell))
    return f'<td class="num">{text}</td>' if numeric else f"<td>{text}</td>"


@dataclass(frozen=True, kw_only=True)
class StripToken:
    """One token of a strip."""

    text: str
    """As the tokenizer decodes it."""
    colour: str
    """Background, a CSS colour light enough for dark letters."""
    hover: str
    """What is said when the pointer rests on it."""
    marked: bool = False
    """Drawn with a frame."""


def strip_html(tokens: Sequence[StripToken]) -> str:
    """Tokens side by side on their colours, white space made visible."""
    spans = []
    for token in tokens:
        text = escape(token.text.replace("\n", "↵").replace("\t", "⇥")) or "∅"
        frame = "outline:2px solid #222;outline-offset:-2px;" if token.marked else ""
        spans.append(
            f'<span class="interp-token" title="{escape(token.hover, quote=True)}" style="background:{token.colour};'
            f"color:#222;{frame}padding:.1em .15em;margin:1px;border-radius:3px;white-space:pre-wrap;"
            f'display:inline-block">{text}</span>'
        )
    return f'<div style="font-family:monospace;line-height:1.7">{"".join(spans)}</div>'


# Work that takes long


def in_notebook() -> bool:
    """Whether this runs in a Jupyter kernel."""
    shell = _shell()
    return shell is not None and type(shell).__name__ == "ZMQInteractiveShell"


class NotebookBar:
    """A progress bar in a notebook cell that leaves nothing in the saved output.

    It first shows after `patience` seconds, so that quick work does not flicker.
    """

    def __init__(self, label: str, total: int, *, patience: float = 0.5, every: float = 0.2) -> None:
        self.label, self.total, self.done = label, total, 0
        self._begun = time.monotonic()
        self._next, self._every = self._begun + patience, every
        self._handle: Any = None

    def advance(self, size: int) -> None:
        """Count work as done; draws at most five times a second."""
        self.done += size
        if (now := time.monotonic()) < self._next:
            return
        self._next = now + self._every
        seconds = now - self._begun
        left = seconds * (self.total / self.done - 1) if self.done else 0.0
        words = f"{self.label} {self.done}/{self.total}, {seconds:.0f} s, {left:.0f} s left"
        bar = f'<progress value="{self.done}" max="{self.total}" style="width:16em"></progress>'
        self._show({"text/plain": words, "text/html": f"{bar} {escape(words)}"})

    def close(self) -> None:
        """Empty the bar's place."""
        if self._handle is not None:
            self._show({"text/plain": "", "text/html": ""})

    def _show(self, bundle: dict[str, str]) -> None:
        from IPython.display import DisplayHandle

        if self._handle is None:
            self._handle = DisplayHandle()
            self._handle.display(bundle, raw=True)
        else:
            self._handle.update(bundle, raw=True)


# Mistakes


def short_errors() -> None:
    """Let a user's mistake be one line in this IPython session; `%tb` prints the whole traceback.

    Does nothing outside IPython, or where a handler of the user's own is in place.
    """
    shell = _shell()
    if shell is not None and not shell.custom_exceptions:
        shell.set_custom_exc((ValueError, OSError), _show_error)


def is_users_mistake(error: BaseException) -> bool:
    """Whether interp itself raised this to say that its input is wrong: the innermost frame is one of its own."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    raised_by_us = trace is not None and _PACKAGE in Path(trace.tb_frame.f_code.co_filename).parents
    return isinstance(error, (ValueError, OSError)) and raised_by_us


def error_line(error: BaseException) -> str:
    """An error as one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _show_error(
    shell: Any,
    kind: type[BaseException],
    error: BaseException,
    trace: TracebackType | None,
    tb_offset: int | None = None,
) -> None:
    if not is_users_mistake(error):
        shell.showtraceback((kind, error, trace), tb_offset=tb_offset)
        return
    # IPython asks an exception for its own rendering; taken away again, so that %tb shows everything.
    render: Callable[[], list[str]] = lambda: [f"\x1b[31m{error_line(error)}\x1b[0m"]  # noqa: E731
    error._render_traceback_ = render  # pyright: ignore[reportAttributeAccessIssue]
    try:
        shell.showtraceback((kind, error, trace), tb_offset=tb_offset)
    finally:
        del error._render_traceback_  # pyright: ignore[reportAttributeAccessIssue]


def _shell() -> Any:
    ipython = sys.modules.get("IPython")
    return None if ipython is None else ipython.get_ipython()
