"""Reading rows of prompt files, data sets on the Hub and streams.

A row is an object with a column for the text; a line of plain text is `{"text": line}`. A file may be compressed
(`.jsonl.gz`, `.csv.xz`). JSON is a list of rows, or an object that holds one: a list under some name, columns of equal
length, or categories of texts. What would lose part of a row without a word is refused: more fields than the header has
columns, a column or key given twice, a quote that is never closed, text in another encoding.
"""

import csv
import gzip
import io
import json
import lzma
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from interp.models.prompt_inputs import TEXT_COLUMNS, is_text
from interp.storage.paths import expanded
from interp.storage.typed_json import first_line

__all__ = [
    "DATA_SUFFIXES",
    "SUFFIXES",
    "TEXT_COLUMNS",
    "ends_as_data",
    "prompt_lines",
    "read_rows",
    "read_text",
    "source_rows",
    "text_column",
]

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt")
_OPENERS = {".gz": gzip.open, ".xz": lzma.open}
DATA_SUFFIXES = (
    *SUFFIXES,
    *(kind + packed for kind in SUFFIXES for packed in _OPENERS if kind != ".parquet"),
)
"""Endings of files of rows, compressed ones too."""
PUBLIC_TEXT_COLUMNS = (*TEXT_COLUMNS, "forbidden_prompt", "user_input", "behavior")
"""Columns of prompts in public data sets, in any case; looked for where a file has none of `TEXT_COLUMNS` as it is."""
_TAB = "\t"
_DELIMITERS = {".csv": ",", ".tsv": _TAB}


def source_rows(source: str) -> list[Any]:
    """Rows of one file or `hub:owner/name[:config][:split]`, unchanged.

    Raises:
        ValueError: no such file or data set, or not readable; the message names file and line.
    """
    return _hub_rows(source) if source.startswith("hub:") else _file_rows(Path(source))


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """Rows of one file or `hub:owner/name[:config][:split]` with all columns; a line of text is `{"text": line}`.

    Raises:
        ValueError: no such file, not readable, empty, or rows that are not objects.
    """
    source = str(path)
    rows = source_rows(source)
    if not rows:
        raise ValueError(f"{source} has no rows; remove it or fill it")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping):
            raise ValueError(f"{source}, row {number}: expected an object or text, got {type(row).__name__}")
    return [dict(row) for row in rows]


def prompt_lines(lines: Iterable[str], source: str, *, column: str | None = None) -> Iterator[str]:
    """Prompts of a stream, line by line: a JSON object's text column, or the line itself; empty lines are skipped.

    Raises:
        ValueError: an object without the column, or whose text is empty; the message names source and line.
    """
    for number, line in enumerate(_decoded(lines, source), start=1):
        text = line.rstrip("\r\n")
        if not text.strip():
            continue
        if "\0" in text:
            raise ValueError(
                f"{source}, line {number}: not UTF-8 text (NUL), it may be UTF-16; save it as UTF-8"
            )
        if text.lstrip().startswith("{"):
            row = _json_line(text, Path(source), number)
            name = text_column([row], column, f"{source}, line {number},")
            text = row[name]
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"{source}, line {number}: column {name!r} is empty or not text")
        if not is_text(text):
            raise ValueError(
                f"{source}, line {number}: half of a character (a lone surrogate); correct the line"
            )
        yield text


def _decoded(lines: Iterable[str], source: str) -> Iterator[str]:
    """The lines of an open stream.

    Raises:
        ValueError: the stream is not UTF-8.
    """
    stream = iter(lines)
    while True:
        try:
            yield next(stream)
        except StopIteration:
            return
        except UnicodeDecodeError as error:
            reason = f"{error.reason} at byte {error.start}"
            raise ValueError(f"{source} is not UTF-8 text ({reason}); convert it") from error


def text_column(rows: list[Any], column: str | None, source: str) -> str:
    """The column that holds the prompts: the given one, or the first of `TEXT_COLUMNS` that the first row has.

    Where it has none of them, the first of `PUBLIC_TEXT_COLUMNS` in any case, such as `Goal`.

    Raises:
        ValueError: no such column; the message names the source and the columns that it has.
    """
    have = list(rows[0]) if isinstance(rows[0], Mapping) else []
    name = column or next((name for name in TEXT_COLUMNS if name in have), None)
    if name is None:
        plain = {str(name).lower().strip(): name for name in reversed(have)}
        name = next((plain[name] for name in PUBLIC_TEXT_COLUMNS if name in plain), None)
    if name is None or name not in have:
        wanted = f"column {column!r}" if column else f"any of the columns {', '.join(TEXT_COLUMNS)}"
        raise ValueError(
            f"{source} does not have {wanted}; it has {', '.join(map(str, have)) or 'none'}: name one with column="
        )
    return name


def _file_rows(path: Path) -> list[Any]:
    path = expanded(path)
    if not path.is_file():
        raise ValueError(f"no such prompt file: {path}")
    kind = path.with_suffix("").suffix if path.suffix in _OPENERS else path.suffix
    if kind not in SUFFIXES or (kind == ".parquet" and path.suffix != kind):
        raise ValueError(f"{path}: unknown kind of file; known: {', '.join(SUFFIXES)}")
    try:
        if kind == ".parquet":
            return _parquet_rows(path)
        text = read_text(path)
        kind = _json_layout(text, kind)
        if kind == ".txt":
            return [{"text": line} for line in text.split("\n") if line.strip()]
        if kind == ".jsonl":
            return [
                _json_line(line, path, number)
                # Not splitlines(): it also splits at U+2028 and the like, which JSON strings may contain.
                for number, line in enumerate(text.split("\n"), 1)
                if line.strip()
            ]
        if kind == ".json":
            rows = _json(text)
            if isinstance(rows, dict):
                rows = _held_rows(rows)
            if not isinstance(rows, list):
                raise ValueError("expected a list of prompts or of objects")
            return [{"text": row} if isinstance(row, str) else row for row in rows]
        return _table_rows(text, path, delimiter=_DELIMITERS[kind])
    except (ValueError, OSError, EOFError, lzma.LZMAError, csv.Error) as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"cannot read {path}: {error}") from error


def _json_layout(text: str, kind: str) -> str:
    """The ending that JSON text should have: public sets have a value a line in `.json`, and lists in `.jsonl`."""
    first, _, rest = text.strip().partition("\n")
    if kind == ".json" and rest and first.startswith(("{", '"')) and _is_json(first):
        return ".jsonl"
    if kind == ".jsonl" and first.startswith("[") and not (rest and _is_json(first)):
        return ".json"
    return kind


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def ends_as_data(name: str) -> bool:
    """Whether a file's name has the ending of a file of rows, compressed or not."""
    return name.lower().endswith(DATA_SUFFIXES)


def _held_rows(whole: dict[str, Any]) -> list[Any] | None:
    """The rows that a JSON object holds; None where it holds none in a form that is known.

    A list of objects under one name; columns of equal length of which one is a text column; or texts in lists, under
    the names of their category and subcategory.
    """
    values = list(whole.values())
    lists = [value for value in values if isinstance(value, list)]
    tables = [value for value in lists if value and all(isinstance(row, dict) for row in value)]
    if len(tables) == 1 and len(lists) == 1:
        return tables[0]
    columns = {name.lower() for name in whole}
    if len(lists) == len(values) > 0 and columns & set(PUBLIC_TEXT_COLUMNS):
        if len({len(column) for column in lists}) > 1:
            return None
        return [dict(zip(whole, row, strict=True)) for row in zip(*lists, strict=True)]
    rows = list(_grouped_texts(whole, ()))
    return rows if rows and None not in rows else None


def _grouped_texts(group: Any, path: tuple[str, ...]) -> Iterator[dict[str, str] | None]:
    """Rows of texts below the names of their groups; None for anything else that is found there."""
    if isinstance(group, dict) and len(path) < 2:
        for name, inner in group.items():
            yield from _grouped_texts(inner, (*path, str(name)))
    elif isinstance(group, list) and path and all(isinstance(text, str) for text in group):
        groups = dict(zip(("category", "subcategory"), path, strict=False))
        yield from ({"prompt": text, **groups} for text in group)
    else:
        yield None


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, compressed or not, without a byte order mark.

    Raises:
        ValueError: another encoding; UTF-16 without a mark also decodes, with NUL between its letters.
    """
    try:
        if (opener := _OPENERS.get(path.suffix)) is None:
            text = path.read_text(encoding="utf-8-sig")
        else:
            with opener(path, "rt", encoding="utf-8-sig") as stream:
                text = stream.read()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); convert it"
        ) from error
    if other := _what_else(text):
        raise ValueError(f"{path} is {other}, not the file itself; download that")
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise ValueError(f"{path} is not UTF-8 text (NUL in line {line}), it may be UTF-16; save it as UTF-8")
    return text


def _what_else(text: str) -> str | None:
    """What is often saved in the place of a file: None for anything else."""
    start = text[:100].lstrip().lower()
    if start.startswith("version https://git-lfs.github.com/spec/"):
        return "a pointer of Git LFS (`git lfs pull` replaces it)"
    return (
        "a web page, perhaps of a sign-in or an error"
        if start.startswith(("<!doctype html", "<html"))
        else None
    )


def _table_rows(text: str, path: Path, *, delimiter: str) -> list[dict[str, str]]:
    """Rows of a table with a header; a row that ends early lacks its last columns."""
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    try:
        header = [name.strip() for name in next((row for row in reader if row), [])]
        if twice := [name for name, count in Counter(header).items() if count > 1]:
            raise ValueError(f"{path} has the column {twice[0]!r} twice; rename one")
        if len(header) == 1 and (
            other := next((d for d in ";\t" if d in header[0] and d != delimiter), None)
        ):
            raise ValueError(
                f"{path} separates its columns by {'semicolons' if other == ';' else 'tabs'}; "
                + ("save it with commas" if other == ";" else "name it .tsv")
            )
        rows: list[dict[str, str]] = []
        for fields in reader:
            if len(fields) > len(header):
                raise ValueError(
                    f"{path}, row {len(rows) + 1} (line {reader.line_num}) has {len(fields)} fields for "
                    f"{len(header)} columns ({', '.join(header)}); put text that holds a "
                    f"{'tab' if delimiter == _TAB else 'comma'} in double quotes"
                )
            if fields:
                rows.append(dict(zip(header, fields, strict=False)))
    except csv.Error as error:
        quotes = "; a text in quotes doubles those inside it" if "field larger" not in str(error) else ""
        raise ValueError(f"cannot read {path}: {error} (line {reader.line_num}){quotes}") from error
    return rows


def _parquet_rows(path: Path) -> list[Any]:
    import pandas

    with path.open("rb") as stream:
        start = stream.read(100)
    if not start.startswith(b"PAR1") and (other := _what_else(start.decode(errors="replace"))):
        raise ValueError(f"{path} is {other}, not the file itself; download that")
    try:
        return pandas.read_parquet(path).to_dict("records")
    except Exception as error:  # a reader of files of anybody's making, with errors of Arrow's own
        raise ValueError(f"cannot read {path}: {first_line(error)}") from error


def _json_line(line: str, path: Path, number: int) -> Any:
    try:
        row = _json(line)
    except ValueError as error:
        raise ValueError(f"{path}, line {number}: {error}") from error
    return {"text": row} if isinstance(row, str) else row


def _json(text: str) -> Any:
    """Parse JSON whose objects name no key twice.

    Raises:
        ValueError: not JSON, nested too deeply, or a key given twice.
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg}, line {error.lineno} column {error.colno})") from error
    except RecursionError:
        raise ValueError("not JSON that holds prompts (nested too deeply)") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if twice := [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]:
        raise ValueError(f"an object has the key {twice[0]!r} twice; remove one")
    return dict(pairs)


def _hub_rows(source: str) -> list[Any]:
    owner_name, config, split = ([*source.removeprefix("hub:").split(":"), "", ""])[:3]
    try:
        import datasets
    except ImportError as error:
        raise ValueError(
            f"{source} needs the `datasets` package: pip install 'interp-workbench[train]'"
        ) from error
    try:
        if not split:
            names = datasets.get_dataset_split_names(owner_name, config or None)
            split = "train" if "train" in names else names[0]
        return datasets.load_dataset(owner_name, config or None, split=split).to_list()  # pyright: ignore[reportAttributeAccessIssue]
    except Exception as error:  # the Hub raises many different classes
        reason = first_line(error)
        raise ValueError(
            f"cannot load {source}: {reason}; check name, config and split, or save the prompts to a file"
        ) from error
