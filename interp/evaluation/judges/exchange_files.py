"""Prompts with their answers from a file, and human labels of them.

read_exchanges("answers.jsonl")                                    # columns prompt and answer, or their usual names
read_labels("answers.jsonl", "human_majority")                     # True, False or None, in file order
read_labels("answers.jsonl", "!is_safe")                           # the opposite of a column
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interp.data.files import read_rows, text_column
from interp.data.prompts import ANSWER_COLUMNS
from interp.evaluation.judges.judgements import Exchange

_YES = ("1", "yes", "true", "unsafe", "harmful", "refusal", "2_full_refusal", "3_partial_refusal")
_NO = ("0", "no", "false", "safe", "harmless", "unharmful", "compliance", "1_full_compliance")


def read_exchanges(
    path: str | Path, *, prompt_column: str | None = None, answer_column: str | None = None
) -> list[Exchange]:
    """The prompts of a file with their answers; ids are those of a column `id`, or row numbers.

    An answer of null is one that is not there; an empty text is an empty answer.

    Raises:
        ValueError: no such file, no such column, a prompt or answer that is not text, or ids that occur twice.
    """
    rows = read_rows(path)
    asked = text_column(list(rows), prompt_column, str(path))
    said = answer_column or next((name for name in ANSWER_COLUMNS if name in rows[0]), None)
    if said is None or said not in rows[0]:
        raise ValueError(
            f"{path} has no column of answers ({answer_column or ', '.join(ANSWER_COLUMNS)}); it has "
            f"{', '.join(map(str, rows[0]))}: name one with answer_column (--answer-column)"
        )
    exchanges, seen = list[Exchange](), set[str]()
    for number, row in enumerate(rows, start=1):
        prompt, answer = row.get(asked), row.get(said)
        if not isinstance(prompt, str) or not (answer is None or isinstance(answer, str)):
            raise ValueError(f"{path}, row {number}: columns {asked!r} and {said!r} must hold text")
        name = str(row.get("id", number - 1))
        if name in seen:
            raise ValueError(f"{path}, row {number}: id {name!r} occurs twice")
        seen.add(name)
        group = row.get("category", row.get("group", ""))
        exchanges.append(
            Exchange(id=name, prompt=prompt, answer=answer, group=group if isinstance(group, str) else "")
        )
    return exchanges


def read_labels(path: str | Path, column: str) -> list[bool | None]:
    """A column of human labels as yes, no, or None where it is empty.

    Read are true and false, 1 and 0, yes and no, shares from 0 to 1 (yes from 0.5 on), the words of WildGuardMix, and
    the labels of XSTest, in which a partial refusal counts as a refusal.

    Args:
        column: name of the column; `!is_safe` takes yes for no in it.

    Raises:
        ValueError: no such column, or another label.
    """
    rows = read_rows(path)
    opposite, column = column.startswith("!"), column.removeprefix("!")
    if column not in rows[0]:
        raise ValueError(f"{path} has no column {column!r}; it has {', '.join(map(str, rows[0]))}")
    labels = [_label(row, column, f"{path}, row {number}") for number, row in enumerate(rows, start=1)]
    return [label if label is None else label != opposite for label in labels]


def _label(row: Mapping[str, Any], column: str, where: str) -> bool | None:
    given = row.get(column)
    if given is None or given == "" or given != given:  # tables write an empty cell as NaN
        return None
    if isinstance(given, bool):
        return given
    text = str(given).strip().lower()
    if text in (*_YES, *_NO):
        return text in _YES
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ValueError(f"{where}: column {column!r} must hold yes or no (or a share), got {given!r:.40}")
    return share >= 0.5
