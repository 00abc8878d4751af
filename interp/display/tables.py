"""Tables: text left, numbers right, two to three significant digits, estimates with interval and n in one cell.

A column is numeric when all its cells are numbers, estimates or texts that begin with a number. Nothing is shown as
`60.0`, `nan` or `<NA>`: a whole number has no decimals, what was not measured is a dash. Wide tables fold: in a
terminal their columns go below each other, each part with the first column again; in HTML cells wrap.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

MISSING = "–"
"""What stands in a cell without a value."""
_NUMBER = re.compile(r"[-−+<>≤≥~]?\s?\d[\d,]*(\.\d+)?(e[-+]?\d+)?%?( \[.*\])?(, n = \d+)?( \(.*\))?$")
_ROWS_AT_ONCE = 40


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows under a header."""

    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    title: str = "refusal rate"
    """Title of the table in the command's output."""


def cell_text(cell: Any) -> str:
    """A cell's text: three significant digits, an estimate with its interval and n, a dash for no value."""
    if cell is None or (isinstance(cell, float) and not math.isfinite(cell)):
        return MISSING
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, float):
        return _number(cell)
    if hasattr(cell, "measurable") and hasattr(cell, "n"):
        return f"{cell}, n = {cell.n}" if cell.measurable else MISSING
    text = str(cell)
    return MISSING if text in ("", "<NA>", "nan", "None", "NaT") else text


def _number(value: float) -> str:
    """Three significant digits without exponent between 0.001 and a million; whole numbers whole."""
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    if 1e-3 <= abs(value) < 1e6:
        digits = max(0, 2 - math.floor(math.log10(abs(value))))
        text = f"{value:.{digits}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    return f"{value:.2g}"


def numeric_columns(table: Table) -> list[bool]:
    """Which columns hold numbers."""
    columns = [[cell_text(row[i]) for row in table.rows if i < len(row)] for i in range(len(table.header))]
    return [
        any(c != MISSING for c in cells) and all(c == MISSING or _NUMBER.match(c) for c in cells)
        for cells in columns
    ]


def table_html(table: Table) -> str:
    """A table as HTML; everything in it is escaped, rows beyond the fortieth are folded away."""
    numeric = numeric_columns(table)

    def line(row: Sequence[Any]) -> str:
        return f"<tr>{''.join(_cell(cell, right) for cell, right in zip(row, numeric, strict=True))}</tr>"

    head = "".join(
        f'<th class="num">{escape(str(cell))}</th>' if right else f"<th>{escape(str(cell))}</th>"
        for cell, right in zip(table.header, numeric, strict=True)
    )
    start = f"<table><thead><tr>{head}</tr></thead><tbody>"
    first, rest = table.rows[:_ROWS_AT_ONCE], table.rows[_ROWS_AT_ONCE:]
    whole = f"{start}{''.join(map(line, first))}</tbody></table>"
    if not rest:
        return whole
    folded = f"{start}{''.join(map(line, rest))}</tbody></table>"
    return f"{whole}<details><summary>{len(rest)} more rows</summary>{folded}</details>"


def _cell(cell: Any, right: bool) -> str:
    text = escape(cell_text(cell))
    return f'<td class="num">{text}</td>' if right else f"<td>{text}</td>"


def folded(table: Table, width: int) -> list[Table]:
    """The table in parts of at most `width` characters where it can be, each with the first column."""
    if not table.rows:
        return [table]
    texts = [[cell_text(cell) for cell in row] for row in table.rows]
    sizes = [
        min(max([len(str(name)), *(len(row[i]) for row in texts)]), width // 2) + 4
        for i, name in enumerate(table.header)
    ]
    if sum(sizes) <= width or len(sizes) < 3:
        return [table]
    parts, columns, used = list[list[int]](), list[int](), sizes[0]
    for i, size in enumerate(sizes[1:], start=1):
        if columns and used + size > width:
            parts.append(columns)
            columns, used = [], sizes[0]
        columns.append(i)
        used += size
    parts.append(columns)
    return [
        Table(
            header=[table.header[0], *(table.header[i] for i in part)],
            rows=[[row[0], *(row[i] for i in part)] for row in table.rows],
            title=table.title,
        )
        for part in parts
    ]
