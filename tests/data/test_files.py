"""Files of prompts: every format gives the same texts, and text columns are found."""

import json
from pathlib import Path

import pandas
import pytest

from interp.data.files import TEXT_COLUMNS
from interp.data.prompts import read_answered, read_prompts
from tests.data.test_prompts import TEXTS, write

LFS_POINTER = "version https://git-lfs.github.com/spec/v1"


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


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "p.csv",
            "prompt\nBake bread.\nHow do I bake bread, cake, and pie?\n",
            r"row 2 \(line 3\) has 3 fields for 1",
        ),
        ("p.csv", "category,prompt\nfood,Bread, cake\n", r"row 1 \(line 2\) has 3 fields for 2 columns"),
        ("p.csv", 'prompt\n"Bread,\ncake"\nA, b\n', r"row 2 \(line 4\).*in double quotes"),
        ("p.tsv", "prompt\tkind\nBread\tfood\tmore\n", r"row 1 \(line 2\) has 3 fields.*holds a tab"),
        ("p.csv", "category,prompt\nfood,Bread\nfood\n", r"row 2: column 'prompt' is empty"),
        ("p.csv", "prompt,prompt\nBread,Cake\n", "column 'prompt' twice"),
        ("p.csv", 'prompt\n"Bread\nCake\nPie\n', "unexpected end of data"),
        ("p.csv", 'prompt\n"Bread" and cake\n', "line 2"),
        ("p.jsonl", '{"prompt": "Bread", "prompt": "Cake"}', "line 1: an object has the key 'prompt' twice"),
        ("p.json", '[{"prompt": "Bread"}, {"prompt": "A", "prompt": "B"}]', "key 'prompt' twice"),
        ("p.json", '[{"prompt": "Bread"}, {"ask": "Cake"}]', "row 2: column 'prompt' is empty"),
        ("p.json", "[" * 20_000 + "]" * 20_000, "nested too deeply"),
        ("p.jsonl", '{"prompt": "\\ud800 bread"}', "row 1: half of a character"),
        ("p.csv", "id;prompt\n1;Bread\n", "separates its columns by semicolons; save it with commas"),
        ("p.csv", "id\tprompt\n1\tBread\n", "separates its columns by tabs; name it .tsv"),
        ("p.csv", "<!DOCTYPE html>\n<html><body>Sign in, please</body></html>", "is a web page"),
        ("p.json", "<html><body>Not found</body></html>", "is a web page"),
        ("p.parquet", f"{LFS_POINTER}\noid sha256:06\nsize 3\n", "is a pointer of Git LFS"),
        ("p.txt", f"{LFS_POINTER}\noid sha256:06\nsize 3\n", "is a pointer of Git LFS"),
    ],
)
def test_what_would_lose_part_of_a_row_is_refused(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_prompts(write(tmp_path / name, content))
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.json", '{"prompt": "Bread"}\n{"prompt": "Cake"}\n'),
        ("p.json", '"Bread"\n\n"Cake"'),
        ("p.jsonl", '[{"prompt": "Bread"}, {"prompt": "Cake"}]'),
        ("p.jsonl", '[\n {"prompt": "Bread"},\n {"prompt": "Cake"}\n]\n'),
    ],
)
def test_json_lines_and_lists_are_read_under_either_ending(tmp_path: Path, name: str, content: str) -> None:
    assert read_prompts(write(tmp_path / name, content)).texts == ("Bread", "Cake")


@pytest.mark.parametrize("name", ["p.csv", "p.txt", "p.jsonl", "p.json"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-16"])
def test_other_encodings_are_refused_with_and_without_a_mark(
    tmp_path: Path, name: str, encoding: str
) -> None:
    path = tmp_path / name
    path.write_bytes('"prompt"\n"Bake bread."\n'.encode(encoding))
    with pytest.raises(ValueError, match=r"is not UTF-8 text"):
        read_prompts(path)


def test_a_tab_separated_table_and_a_short_row_that_has_its_text(tmp_path: Path) -> None:
    path = write(tmp_path / "p.tsv", "prompt\tcategory\nBread, cake\tfood\n\nPie\n")
    found = read_prompts(path)
    assert found.texts == ("Bread, cake", "Pie") and found.categories == ("food", None)


def test_a_row_without_an_answer_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", "instruction,output\nBread?,Flour.\nCake?\n")
    with pytest.raises(ValueError, match="row 2: no column 'output'"):
        read_answered(path)
    empty = write(tmp_path / "q.csv", "instruction,output\nBread?,Flour.\nCake?,\n")
    assert read_answered(empty)[1] == ("Flour.",)


def test_a_header_behind_empty_lines_and_with_spaces_names_its_columns(tmp_path: Path) -> None:
    """The category under ` category` was lost, and an empty cell was a category of its own."""
    found = read_prompts(write(tmp_path / "p.csv", "\n\nprompt , category\nBread?,food\nTea?,\n"))
    assert found.texts == ("Bread?", "Tea?") and found.categories == ("food", None)
