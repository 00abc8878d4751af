"""Files of prompts: every format gives the same texts, and text columns are found."""

import json
from pathlib import Path

import pandas
import pytest

from interp.data.files import TEXT_COLUMNS
from interp.data.prompts import read_prompts
from tests.data.test_prompts import TEXTS, write


def files(folder: Path) -> dict[str, Path]:
    """The same three prompts in every format."""
    rows = [{"goal": text, "category": f"c{i}"} for i, text in enumerate(TEXTS)]
    parquet = folder / "p.parquet"
    pandas.DataFrame(rows).to_parquet(parquet)
    return {
        "jsonl": write(folder / "p.jsonl", "".join(json.dumps(row) + "\n" for row in rows)),
        "json": write(folder / "p.json", json.dumps(rows)),
        "csv": write(
            folder / "p.csv", "goal,category\n" + "".join(f"{t},c{i}\n" for i, t in enumerate(TEXTS))
        ),
        "parquet": parquet,
    }


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_every_table_format_gives_the_same_prompts(tmp_path: Path, kind: str) -> None:
    found = read_prompts(files(tmp_path)[kind])
    assert found.texts == TEXTS
    assert found.categories == ("c0", "c1", "c2")
    assert found.ids == ("p-0", "p-1", "p-2")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.txt", "Bake bread.\n\nWhy is it dark?\r\nName a colour"),
        ("p.json", json.dumps(TEXTS)),
        ("p.jsonl", "\n".join(map(json.dumps, TEXTS)) + "\n\n"),
    ],
)
def test_lists_without_columns(tmp_path: Path, name: str, text: str) -> None:
    found = read_prompts(write(tmp_path / name, text))
    assert found.texts == TEXTS
    assert found.categories == (None, None, None)


def test_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    path = tmp_path / "excel.csv"
    path.write_bytes(b"\xef\xbb\xbfprompt\r\nBake bread.\r\n")
    assert read_prompts(path).texts == ("Bake bread.",)


@pytest.mark.parametrize("mark", ["\u2028", "\x85", "\x0c"])
def test_unicode_line_marks_inside_a_prompt_do_not_split_it(tmp_path: Path, mark: str) -> None:
    text = f"Bake{mark}bread"
    assert read_prompts(write(tmp_path / "p.csv", f"goal,x\n{text},1\n")).texts == (text,)
    assert read_prompts(write(tmp_path / "p.txt", f"{text}\n")).texts == (text,)
    if mark != "\x0c":  # a control character, which JSON wants escaped
        line = json.dumps({"goal": text}, ensure_ascii=False)
        assert read_prompts(write(tmp_path / "p.jsonl", line + "\n")).texts == (text,)


def test_a_quoted_csv_cell_may_hold_lines_and_commas(tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", 'goal\n"First, this.\nThen that."\nBake bread.\n')
    assert read_prompts(path).texts == ("First, this.\nThen that.", "Bake bread.")


@pytest.mark.parametrize("column", TEXT_COLUMNS)
def test_text_columns_are_found(tmp_path: Path, column: str) -> None:
    path = write(tmp_path / "p.jsonl", json.dumps({"id": 3, column: "Bake bread."}))
    assert read_prompts(path).texts == ("Bake bread.",)


def test_a_named_column_goes_before_the_ones_that_are_found(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", json.dumps({"text": "The answer.", "prompt": "Found", "ask": "Named"}))
    assert read_prompts(path).texts == ("Found",)
    assert read_prompts(path, column="ask").texts == ("Named",)
