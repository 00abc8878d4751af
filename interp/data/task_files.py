"""Downstream tasks read from files or the Hub: prompts with the completion that is right, in three splits.

    read_task(TASK_FORMATS["sql"], "questions.csv", seed=0)
    read_task(TASK_FORMATS["toxicity"], "hub:owner/name::train", text="comment", answer="is_toxic", seed=0)
    read_task(TASK_FORMATS["nl2bash"], "folder", seed=0)    # train.jsonl, validation.jsonl, test.jsonl

A format says under which names the columns of a task are known, and what stands before a text in the prompt. The five
are the tasks of Yang et al. 2025, arXiv:2504.09757, whose own prompts are not given here.

A folder, or a source with `{split}` in its name, has a file for each split. One file is cut: its rows are shuffled by
the seed, 70% are for training, 15% for validation and 15% for the test. Of rows with one prompt the first is used, so
no prompt is in two splits.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np

from interp.data.examples import Example, ExampleSplits, TaskSplit
from interp.data.files import SUFFIXES, read_rows
from interp.storage.paths import expanded

logger = logging.getLogger(__name__)

HELD_OUT_SHARE = 0.15
"""Share of one file's rows that is cut off for validation, and again for the test."""
MIN_ROWS = 8
"""Minimum rows of one file that is cut."""


@dataclass(frozen=True, kw_only=True)
class TaskFormat:
    """Columns of a task's rows, and the prompt made of a text."""

    name: str
    """Name of the task."""
    instruction: str
    """Text before a row's own in the prompt."""
    text_columns: tuple[str, ...]
    """Names under which the text is looked for, in this order."""
    answer_columns: tuple[str, ...]
    """Names under which the completion is looked for, in this order."""
    context_columns: tuple[str, ...] = ()
    """Names of a column that is added to the text where there is one, such as the tables of a database."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Completion by a label as it stands in files; empty where the column holds the completion itself."""
    max_new_tokens: int = 64
    """Length at which replies are cut."""


_TRUE, _FALSE = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no")


def _labels(positive: str, negative: str, also_positive: Sequence[str], also_negative: Sequence[str]) -> dict:
    return dict.fromkeys((positive, *_TRUE, *also_positive), positive) | dict.fromkeys(
        (negative, *_FALSE, *also_negative), negative
    )


_FORMATS = (
    TaskFormat(
        name="sql",
        instruction="Write an SQL query that answers the question.\n",
        text_columns=("question", "instruction", "prompt", "input", "text"),
        answer_columns=("answer", "sql", "query", "output", "completion", "response"),
        context_columns=("context", "schema", "create_table"),
    ),
    TaskFormat(
        name="abstract-detection",
        instruction="Was this abstract written by a human or by a machine? Answer with one word.\n",
        text_columns=("abstract", "text", "prompt", "input"),
        answer_columns=("label", "generated", "completion", "answer", "output"),
        labels=_labels("machine", "human", ("chatgpt", "gpt", "ai", "generated"), ("original", "real")),
        max_new_tokens=8,
    ),
    TaskFormat(
        name="nl2bash",
        instruction="Write a bash command that does this.\n",
        text_columns=("nl", "invocation", "description", "instruction", "prompt", "input", "text"),
        answer_columns=("bash", "cmd", "command", "output", "completion", "response"),
    ),
    TaskFormat(
        name="dialogue-summary",
        instruction="Summarise this dialogue.\n",
        text_columns=("dialogue", "conversation", "prompt", "input", "text"),
        answer_columns=("summary", "output", "completion", "response"),
    ),
    TaskFormat(
        name="toxicity",
        instruction="Is this text toxic or harmless? Answer with one word.\n",
        text_columns=("comment_text", "user_input", "comment", "text", "prompt", "input"),
        answer_columns=("toxicity", "toxic", "is_toxic", "label", "completion", "answer", "output"),
        labels=_labels("toxic", "harmless", ("hateful",), ("clean", "normal", "neutral", "non-toxic")),
        max_new_tokens=8,
    ),
    TaskFormat(
        name="examples",
        instruction="",
        text_columns=("prompt", "instruction", "question", "input", "text"),
        answer_columns=("completion", "output", "response", "answer"),
    ),
)
TASK_FORMATS = {form.name: form for form in _FORMATS}
"""The formats by name: the paper's five tasks, and `examples`, whose prompts are used as they are."""


def read_task(
    form: TaskFormat, source: str, *, text: str | None = None, answer: str | None = None, seed: int = 0
) -> ExampleSplits:
    """Examples of a task from a file, a folder or `hub:owner/name[:config][:split]`.

    Args:
        text: column of the text; by default the first of the format's that is there.
        answer: column of the completion or label; likewise.
        seed: seed of the shuffle before one file is cut.

    Raises:
        ValueError: no such source, a column that is not there, a text or label that cannot be used, too few rows, or a
            prompt in two of three files.
    """
    if "{split}" in source or expanded(source).is_dir():
        return _from_splits(form, source, text, answer)
    examples = _examples(form, source, text, answer)
    if len(examples) < MIN_ROWS:
        raise ValueError(
            f"{source} has {len(examples)} rows with different prompts; at least {MIN_ROWS} are needed to cut "
            "training, validation and test from: give more, or a folder with a file for each"
        )
    held = max(1, round(HELD_OUT_SHARE * len(examples)))
    order = np.random.default_rng(seed).permutation(len(examples))
    rows = [examples[i] for i in order]
    return ExampleSplits(tuple(rows[2 * held :]), tuple(rows[:held]), tuple(rows[held : 2 * held]))


def _from_splits(form: TaskFormat, source: str, text: str | None, answer: str | None) -> ExampleSplits:
    splits: tuple[TaskSplit, ...] = get_args(TaskSplit)
    parts: dict[TaskSplit, list[Example]] = {}
    for split in splits:
        path = source.replace("{split}", split) if "{split}" in source else _split_file(source, split)
        parts[split] = _examples(form, path, text, answer)
    owner: dict[str, str] = {}
    for split, examples in parts.items():
        for example in examples:
            if owner.setdefault(example.prompt, split) != split:
                raise ValueError(
                    f"{source}: a prompt is both in {owner[example.prompt]} and in {split}; remove it from one: "
                    f"{example.prompt[:80]!r}"
                )
    return ExampleSplits(*(tuple(parts[split]) for split in splits))


def _split_file(folder: str, split: str) -> str:
    root = expanded(folder)
    found = [path for suffix in SUFFIXES if (path := root / f"{split}{suffix}").is_file()]
    if len(found) != 1:
        have = f"has {' and '.join(path.name for path in found)}" if found else f"has no {split}.jsonl"
        raise ValueError(
            f"{folder} {have}; give one file each for train, validation and test ({', '.join(SUFFIXES)})"
        )
    return str(found[0])


def _examples(form: TaskFormat, source: str, text: str | None, answer: str | None) -> list[Example]:
    """Examples of one file, the first of each prompt."""
    rows = read_rows(source)
    text_column = _column(rows, text, form.text_columns, f"the text of {form.name}", "text", source)
    answer_column = _column(
        rows, answer, form.answer_columns, f"the answer of {form.name}", "answer", source, other=text_column
    )
    context = next((name for name in form.context_columns if name in rows[0] and name != text_column), None)
    examples: dict[str, Example] = {}
    for number, row in enumerate(rows, start=1):
        place = f"{source}, row {number}"
        parts = [_text(row, text_column, place)]
        if context is not None and str(row.get(context) or "").strip():
            parts.insert(0, str(row[context]).strip())
        prompt = form.instruction + "\n".join(parts)
        examples.setdefault(prompt, Example(prompt, _completion(form, row, answer_column, place)))
    if len(examples) < len(rows):
        logger.warning("%d of %d rows of %s repeat a prompt", len(rows) - len(examples), len(rows), source)
    return list(examples.values())


def _column(
    rows: Sequence[Mapping[str, Any]],
    given: str | None,
    known: Sequence[str],
    what: str,
    keyword: str,
    source: str,
    *,
    other: str | None = None,
) -> str:
    have = list(rows[0])
    if given is not None and given not in have:
        raise ValueError(f"{source} has no column {given!r}; it has {', '.join(map(str, have))}")
    name = given or next((name for name in known if name in have and name != other), None)
    if name is None:
        raise ValueError(
            f"{source} has no column for {what} ({', '.join(known)}); it has {', '.join(map(str, have))}: "
            f"name one with {keyword}="
        )
    return name


def _text(row: Mapping[str, Any], column: str, place: str) -> str:
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{place}: column {column!r} is empty or not text; correct or remove the row")
    return value.strip()


def _completion(form: TaskFormat, row: Mapping[str, Any], column: str, place: str) -> str:
    if not form.labels:
        return _text(row, column, place)
    label = str(row.get(column)).strip().lower()
    if label not in form.labels:
        raise ValueError(
            f"{place}: column {column!r} holds the label {row.get(column)!r}; {form.name} knows "
            f"{', '.join(form.labels)}"
        )
    return form.labels[label]
