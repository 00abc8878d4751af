"""Tables: text left, numbers right, few digits, no index, no missing-value marks; wide ones in parts."""

import math
import re

import pandas as pd
import pytest

from interp.display.cards import Card
from interp.display.frames import shown_frame
from interp.display.tables import MISSING, Table, cell_text, folded, numeric_columns, table_html
from interp.stats import Estimate


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (60.0, "60"),
        (0.123456, "0.123"),
        (12.3456, "12.3"),
        (1234.5, "1234"),
        (0.5, "0.5"),
        (-0.0, "0"),
        (0.00001234, "1.2e-05"),
        (7, "7"),
        (True, "yes"),
        (None, MISSING),
        (math.nan, MISSING),
        ("<NA>", MISSING),
        ("", MISSING),
        (Estimate(value=0.5, n=40, low=0.25, high=0.75, unit="share"), "0.50 [0.25, 0.75], n = 40"),
        (Estimate.unmeasured(), MISSING),
    ],
)
def test_cells(cell: object, text: str) -> None:
    assert cell_text(cell) == text


def test_numbers_stand_right_and_text_left() -> None:
    table = Table(
        header=["name", "rate", "n", "mixed"],
        rows=[["a", "97% [89, 99]", 60.0, 1], ["b", None, 7, "picked"], ["c", "5% [1, 9], n = 40", 8, 2.5]],
    )
    assert numeric_columns(table) == [False, True, True, False]
    html = table_html(table)
    assert '<th>name</th><th class="num">rate</th>' in html and '<td class="num">60</td>' in html
    assert "<td>picked</td>" in html and "NA" not in html and "60.0" not in html
    lines = Card(title="t", tables=[table]).text().splitlines()
    assert [line.index("60") + 2 for line in lines if "60" in line] == [lines[1].index(" n ") + 2]


def test_wide_tables_fold_and_keep_their_first_column() -> None:
    wide = Table(header=["name", *(f"a long column {i}" for i in range(12))], rows=[["x", *range(12)]])
    parts = folded(wide, 80)
    assert len(parts) > 1
    assert all(part.header[0] == "name" and part.rows[0][0] == "x" for part in parts)
    assert [n for part in parts for n in part.header[1:]] == wide.header[1:]  # each column once, in order
    assert [n for part in parts for n in part.rows[0][1:]] == list(range(12))
    assert folded(Table(header=["a", "b"], rows=[["x" * 300, 1]]), 80)[0].header == ["a", "b"]
    assert max(map(len, Card(title="t", tables=[wide]).text().splitlines())) <= 110
    assert table_html(Table(header=["a"], rows=[[i] for i in range(50)])).count("<details>") == 1


def test_a_data_frame_is_shown_without_index() -> None:
    frame = shown_frame(Table(header=["name", "n"], rows=[["a", 60.0], ["b", None]]))
    html = frame._repr_html_()
    assert len(re.findall(r"<th[ >]", html)) == 2 and '<td class="num">60</td>' in html and MISSING in html
    assert type(frame[frame["n"] > 1]) is pd.DataFrame and list(frame["name"]) == ["a", "b"]
