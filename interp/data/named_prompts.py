"""Prompts of named data sets, read from their downloaded files.

    named_parts("advbench+alpaca")         # {("harmful", None): Prompts, ("harmless", None): Prompts}
    named_rows("pku-saferlhf", "train")    # rows with all columns, of sets without a label of prompts

Of several sets of one kind the prompts stand one after the other. A set's own splits are kept where every set of that
kind has the same ones; otherwise its rows are one list, of which the loader cuts splits.
"""

import ast
import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

from interp.data.downloads import Files, checked_files
from interp.data.files import read_rows, read_text
from interp.data.prompt_sets import KINDS, Kind, Prompts, Split
from interp.data.registry import DataSet, SetPart, belongs, column_of, data_set

Parts = dict[tuple[Kind, Split | None], Prompts]


def named_parts(source: str) -> Parts:
    """Prompts of `a`, `a:kind` or `a+b:kind` by kind and split.

    Raises:
        ValueError: an unknown set or kind, a set without labels of prompts, one that is not on this machine, one whose
            files changed, or a set given twice.
    """
    members = [member.strip() for member in source.split("+")]
    if twice := [member for member, count in Counter(members).items() if count > 1]:
        raise ValueError(f"{source!r} names {twice[0]} twice; name it once")
    read: dict[Kind, list[Parts]] = {}
    for member in members:
        for kind, parts in _member(member).items():
            read.setdefault(kind, []).append(parts)
    joined: Parts = {}
    for kind, several in read.items():
        same = len({frozenset(parts) for parts in several}) == 1
        pooled: tuple[Kind, Split | None] = (kind, None)
        for key in several[0] if same else [pooled]:
            lists = [parts[key] for parts in several] if same else [p for ps in several for p in ps.values()]
            joined[key] = _joined(lists, f"{source}/{'/'.join(filter(None, key))}")
    return joined


def named_rows(name: str, split: Split | None = None) -> Iterator[dict[str, Any]]:
    """Rows of a set with all their columns, of one split or of all.

    Raises:
        ValueError: as `named_parts`, or no such split.
    """
    found = data_set(name)
    files = checked_files(found)
    wanted = [part for part in files if split is None or part.split == split]
    if not wanted:
        have = ", ".join(part.label for part in files)
        raise ValueError(f"{found.name} has no files of its {split} split on this machine; it has {have}")
    for file in dict.fromkeys(file for part in wanted for file in files[part]):
        yield from _rows(file, lines=wanted[0].lines)


def all_prompts(found: DataSet) -> list[Prompts]:
    """The prompts of every part of a set that is on this machine; none of a set without labels of prompts.

    Raises:
        ValueError: as `named_parts`.
    """
    return [
        part_prompts(found, part, files)
        for part, files in checked_files(found).items()
        if part.kind is not None
    ]


def check_readable(found: DataSet, files: Files) -> None:
    """Read every part of a set from these files, wherever they are.

    Raises:
        ValueError: a file that cannot be read, has no column of prompts, or no row of its part.
    """
    for part, of_part in files.items():
        if part.kind is not None:
            part_prompts(found, part, of_part)
        else:
            for file in of_part:
                _rows(file, lines=part.lines)


def _member(member: str) -> dict[Kind, Parts]:
    """Prompts of one set by kind, each by kind and split."""
    name, _, asked = member.partition(":")
    found = data_set(name)
    if not found.kinds:
        raise ValueError(
            f"{found.name} has no label of prompts (it is a set of kind {found.kind}); its rows are read by "
            "interp.data.named_rows, questions by interp.data.load_questions"
        )
    if asked and asked not in found.kinds:
        raise ValueError(f"{found.name} has no {asked} prompts; it has {', '.join(found.kinds)}")
    files = checked_files(found)
    kinds: dict[Kind, Parts] = {}
    for part, of_part in files.items():
        if part.kind is not None and asked in ("", part.kind):
            kinds.setdefault(part.kind, {})[part.kind, part.split] = part_prompts(found, part, of_part)
    if not kinds:
        raise ValueError(f"no file of the {asked} prompts of {found.name} is on this machine")
    return dict(sorted(kinds.items(), key=lambda entry: KINDS.index(entry[0])))


def part_prompts(found: DataSet, part: SetPart, files: Sequence[Path]) -> Prompts:
    """Prompts of a part of a set, in file order.

    Rows of other parts, without text, or with a further input that belongs to the prompt, are left out.

    Raises:
        ValueError: files without the column of prompts, or without rows of the part.
    """
    columns, texts, ids, categories = found.columns, list[str](), list[str](), list[str | None]()
    number = 0
    for file in files:
        rows = _rows(file, lines=part.lines)
        first = next(iter(rows))
        prompt = column_of(first, columns.prompt)
        if prompt is None:
            raise ValueError(
                f"{file} has no column {' or '.join(columns.prompt)}, which {found.name} has its prompts in; it has "
                f"{', '.join(map(str, first))}"
            )
        others = [column_of(first, names) for names in (columns.id, columns.category, columns.further_input)]
        own_id, category, further = others
        for row in rows:
            number += 1
            text = _text(row.get(prompt))
            if not text or not belongs(row, part.where) or (further and _text(row.get(further))):
                continue
            texts.append(text)
            # A set's own ids may repeat from file to file; the running number never does.
            label = _text(row.get(own_id)) if own_id else None
            ids.append(f"{found.name}-{label or number - 1}")
            categories.append(_text(row.get(category)) if category else None)
    if not texts:
        where = ", ".join(str(file) for file in files)
        if not part.where:
            raise ValueError(
                f"no row of {where} has a text in the column of {found.name}'s prompts; download it again"
            )
        raise ValueError(
            f"no row of {where} is one of {found.name}, {part.label}; the columns that say so are "
            f"{', '.join(column for condition in part.where for column in condition)}"
        )
    return Prompts(
        texts=tuple(texts),
        ids=tuple(_distinct(ids)),
        categories=tuple(categories),
        source=f"{found.name}/{part.label}",
    )


def _distinct(ids: Sequence[str]) -> list[str]:
    """Ids of which repeated ones have their place among each other added."""
    counts, seen = Counter(ids), Counter[str]()
    named = []
    for name in ids:
        seen[name] += 1
        named.append(f"{name}.{seen[name]}" if counts[name] > 1 else name)
    return named


def _joined(lists: Sequence[Prompts], source: str) -> Prompts:
    return lists[0] if len(lists) == 1 else replace(reduce(Prompts.joined, lists), source=source)


def _rows(file: Path, *, lines: bool) -> list[dict[str, Any]]:
    """Rows of a file; of one without a header, each first field is a prompt and the file's name its category."""
    if not lines or file.suffix == ".parquet" or ".json" in file.name:
        return read_rows(file)
    # A text in quotes may hold line breaks, which a reader of single lines would drop.
    table = csv.reader(io.StringIO(read_text(file), newline=""))
    try:
        fields = [row[0] for row in table if row and row[0].strip()]
    except csv.Error as error:
        raise ValueError(f"cannot read {file}: {error} (line {table.line_num})") from error
    known = {"prompt", "instruction", "text"}
    prompts = fields[1:] if fields and fields[0].strip().lower() in known else fields
    if not prompts:
        raise ValueError(f"{file} has no rows; remove it or fill it")
    return [{"prompt": text, "category": file.stem} for text in prompts]


def _text(value: Any) -> str | None:
    """A cell as text: the first turn of a list of turns, None for an empty cell."""
    if isinstance(value, str) and value.startswith("[") and value.rstrip().endswith("]"):
        try:  # lists of turns are written into CSV as Python writes them
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            return value
    if isinstance(value, Mapping):
        return ", ".join(str(key) for key, flag in value.items() if flag) or None
    if hasattr(value, "tolist"):
        value = value.tolist()  # pyright: ignore[reportAttributeAccessIssue] (an array of a parquet file)
    if isinstance(value, (list, tuple)):
        value = value[0] if value else None
    if value is None or (isinstance(value, float) and value != value):
        return None
    text = str(value)
    return text if text.strip() else None
