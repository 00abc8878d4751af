"""Multiple-choice questions: one form for the layouts in which public sets are published.

    questions = load_questions("builtin")              # 48 questions of this project, in four groups
    questions = load_questions("arc_challenge.jsonl")  # a file in any layout below
    questions = load_questions("safelawbench")         # a named set (`interp data ls`), or a folder of its files

| layout | columns |
|---|---|
| SafeLawBench | `question`, `choices` (list), `answer` (letter), `region`, `l1`, `l2` |
| ARC | `question`, `choices` (`text`, `label`), `answerKey`; or as released, `question` (`stem`, `choices`) |
| MMLU | `question`, `choices` (list), `answer` (number from 0), `subject`; or a CSV without a header |
| MMLU-Pro | `question`, `options` (list), `answer` (letter) |
| TruthfulQA | `question`, `mc1_targets` (`choices`, `labels`, or an object of choice to label), shuffled by the seed |
| tables | `question`, `A`, `B`, ..., `answer` (letter) |

TruthfulQA writes the right choice first in every question; its choices are shuffled, or a model that says A would be
right. Answers are in the object and are never shown.
"""

import csv
import hashlib
import io
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from interp.data.downloads import checked_files
from interp.data.files import read_rows, read_text
from interp.data.registry import data_set, names_sets
from interp.display.cards import Card, Shown, Table
from interp.storage.paths import expanded

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""Letters of the choices, in their order; SafeLawBench has up to six, MMLU-Pro ten, TruthfulQA thirteen."""
UNLABELLED = "unlabelled"
"""Group of questions that the source puts into none."""

_BUILTIN = Path(__file__).parent / "assets" / "choices" / "safety_law.jsonl"
_GROUP_COLUMNS = ("group", "t1", "first_level_topic", "subject", "category", "type")


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question with its choices."""

    id: str
    text: str
    choices: tuple[str, ...]
    """The choices, two or more, one for each letter at most."""
    answer: int
    """Index of the right choice."""
    group: str = UNLABELLED
    """What accuracy is reported by: a risk group, a subject."""
    region: str | None = None
    """Legal system that the question is about; None where it is about none."""

    def __post_init__(self) -> None:
        if not 2 <= len(self.choices) <= len(LETTERS):
            raise ValueError(
                f"question {self.id} has {len(self.choices)} choices; 2 to {len(LETTERS)} are read"
            )
        if not 0 <= self.answer < len(self.choices):
            raise ValueError(
                f"question {self.id}: the answer must be one of its {len(self.choices)} choices, got {self.answer}"
            )

    @property
    def letter(self) -> str:
        """Letter of the right choice."""
        return LETTERS[self.answer]

    @property
    def letters(self) -> str:
        """Letters of all choices."""
        return LETTERS[: len(self.choices)]

    def rotated(self, shift: int) -> "Question":
        """The same question with its choices moved on by `shift` places, the last ones first."""
        n = len(self.choices)
        places = [(i - shift) % n for i in range(n)]
        return replace(self, choices=tuple(self.choices[i] for i in places), answer=(self.answer + shift) % n)


@dataclass(frozen=True, kw_only=True, repr=False)
class Questions(Shown):
    """Multiple-choice questions, and examples to be shown before them."""

    name: str
    questions: tuple[Question, ...]
    examples: tuple[Question, ...] = ()
    """Questions to be shown with their answers, in file order; none of `questions`."""

    def __post_init__(self) -> None:
        if not self.questions:
            raise ValueError(f"{self.name} has no questions")

    def __len__(self) -> int:
        return len(self.questions)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of all questions and examples."""
        parts = [
            [q.text, *q.choices, q.letter, q.group, q.region or ""] for q in (*self.questions, *self.examples)
        ]
        return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()

    @property
    def groups(self) -> tuple[str, ...]:
        """Groups in order of appearance."""
        return tuple(dict.fromkeys(question.group for question in self.questions))

    def first(self, n: int | None) -> "Questions":
        """At most the first n questions, taken from the groups in turn; all when None."""
        if n is None or n >= len(self):
            return self
        by_group = {group: [q for q in self.questions if q.group == group] for group in self.groups}
        turns = [q for rank in range(len(self)) for qs in by_group.values() for q in qs[rank : rank + 1]]
        return replace(self, questions=tuple(turns[:n]))

    def _card(self) -> Card:
        counts = Counter(question.group for question in self.questions)
        sizes = Counter(len(question.choices) for question in self.questions)
        return Card(
            title=f"{len(self)} multiple-choice questions of {self.name}",
            facts={
                "choices": ", ".join(f"{n} in {count}" for n, count in sorted(sizes.items())),
                "examples": len(self.examples),
                "regions": ", ".join(dict.fromkeys(q.region for q in self.questions if q.region)) or "none",
            },
            tables=[Table(header=["group", "questions"], rows=[[g, n] for g, n in counts.items()])],
            notes=["Answers are in .questions and are not shown unasked."],
        )


def load_questions(
    source: str | Path = "builtin", *, labels: str | Path | None = None, seed: int = 0
) -> Questions:
    """Load multiple-choice questions.

    Args:
        source: `builtin`; a named set whose files are on this machine; a folder with `test.*` and, for examples,
            `dev.*`; or a file.
        labels: a JSON file of topics by `l1, l2, question` (SafeLawBench), whose first-level topic becomes the group;
            in a folder, files that end in `label_map.json` are taken.
        seed: seed of the order of choices where the source has the right one always first.

    Raises:
        ValueError: unknown source, or rows in none of the layouts; the message names file and row.
    """
    source = str(source)
    if source == "builtin":
        rows = [json.loads(line) for line in _BUILTIN.read_text(encoding="utf-8").splitlines()]
        read = [_question(row, number, "builtin", seed) for number, row in enumerate(rows)]
        shown = {row["id"] for row in rows if row["split"] == "dev"}
        return Questions(
            name="builtin",
            questions=tuple(q for q in read if q.id not in shown),
            examples=tuple(q for q in read if q.id in shown),
        )
    given = expanded(source)
    if not given.exists() and names_sets(source):
        files, name = _set_files(source)
    elif given.is_dir():
        files, name = _folder_files(given), source
    else:
        files, name = {"test": [given]}, source
    maps = [Path(labels)] if labels else sorted(next(iter(files.values()))[0].parent.glob("*label_map.json"))
    topics = {key: value for path in maps for key, value in _topics(path).items()}
    parts = {
        part: tuple(q for path in paths for q in read_questions(path, topics=topics, seed=seed))
        for part, paths in files.items()
    }
    if "test" not in parts:
        return Questions(name=name, questions=parts["dev"])
    return Questions(name=name, questions=parts["test"], examples=parts.get("dev", ()))


def read_questions(
    path: str | Path, *, topics: Mapping[str, str] | None = None, seed: int = 0
) -> tuple[Question, ...]:
    """The questions of one file, in any of the layouts.

    Raises:
        ValueError: no such file, or a row in none of the layouts; the message names file and row.
    """
    path = expanded(path)
    rows = _table_rows(path) if path.suffix == ".csv" else read_rows(path)
    read = []
    for number, row in enumerate(rows):
        question = _question(row, number, str(path), seed)
        topic = (topics or {}).get(_topic_key(row))
        read.append(question if topic is None else replace(question, group=topic))
    if twice := [name for name, count in Counter(q.id for q in read).items() if count > 1]:
        read = [replace(q, id=f"{q.id}.{i}" if q.id in twice else q.id) for i, q in enumerate(read)]
    return tuple(read)


def _set_files(source: str) -> tuple[dict[str, list[Path]], str]:
    found = data_set(source)
    if found.kind != "multiple choice":
        raise ValueError(f"{found.name} is a set of kind {found.kind}, not multiple choice")
    parts = {
        ("dev" if part.split == "train" else "test"): list(paths)
        for part, paths in checked_files(found).items()
    }
    return parts, found.name


def _folder_files(folder: Path) -> dict[str, list[Path]]:
    files: dict[str, list[Path]] = {}
    for part in ("test", "dev"):
        matching = sorted(p for p in folder.iterdir() if p.is_file() and p.stem.lower().endswith(part))
        if len(matching) > 1:
            raise ValueError(f"{folder} has both {matching[0].name} and {matching[1].name}; keep one")
        if matching:
            files[part] = matching
    if not files:
        raise ValueError(f"{folder} has no test.* or dev.* of questions; give a file, or name them so")
    return files


def _topics(path: Path) -> dict[str, str]:
    """First-level topic by `l1, l2, question`; entries without one are left out."""
    try:
        table = json.loads(read_text(path))
        return {
            key: entry["first_level_topic"]
            for key, entry in table.items()
            if isinstance(entry, Mapping) and entry.get("first_level_topic")
        }
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"cannot read topics from {path}: {error}") from error


def _topic_key(row: Mapping[str, Any]) -> str:
    return ", ".join(str(row[name]) for name in ("l1", "l2", "question") if row.get(name)).strip()


def _table_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a CSV; one without a header is MMLU's: question, four choices, answer."""
    rows: list[list[str]] = []
    if path.is_file():
        with suppress(csv.Error):  # which reading it as a table with a header says
            lines = io.StringIO(read_text(path), newline="")  # a question in quotes may hold line breaks
            rows = [fields for fields in csv.reader(lines, strict=True) if fields]
    names = ("question", "A", "B", "C", "D", "answer")
    if not rows or len(rows[0]) != len(names) or rows[0][-1].strip() not in ("A", "B", "C", "D"):
        return read_rows(path)
    if short := next((i for i, fields in enumerate(rows, 1) if len(fields) != len(names)), None):
        raise ValueError(
            f"{path}, row {short}: {len(rows[short - 1])} fields, and a file without a header has six: question, four "
            "choices, answer; put text that holds a comma in double quotes"
        )
    return [dict(zip(names, fields, strict=True)) for fields in rows]


def _question(row: Mapping[str, Any], number: int, source: str, seed: int) -> Question:
    """One row as a question.

    Raises:
        ValueError: none of the layouts, or an answer that is none of the choices.
    """
    where = f"{source}, row {number + 1}"
    if isinstance(stem := row.get("question"), Mapping):  # ARC as released: text and choices in one object
        row = {**row, "question": stem.get("stem"), "choices": stem.get("choices")}
    text = row.get("question")
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{where} has no text in column 'question'; it has {', '.join(map(str, row))}")
    choices, answer = _choices(row, where)
    group = next((str(row[name]) for name in _GROUP_COLUMNS if row.get(name)), UNLABELLED)
    region = row.get("region")
    try:
        question = Question(
            id=str(row.get("id") or number),
            text=text,
            choices=tuple(choices),
            answer=answer,
            group=group,
            region=str(region) if region else None,
        )
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if "mc1_targets" not in row:
        return question
    order = list(range(len(choices)))
    random.Random(f"{seed}/{text}").shuffle(order)
    return replace(question, choices=tuple(choices[i] for i in order), answer=order.index(answer))


def _choices(row: Mapping[str, Any], where: str) -> tuple[list[str], int]:
    """Choices of a row and the index of the right one."""
    if (targets := row.get("mc1_targets")) is not None:
        pairs = _targets(targets, where)
        right = [i for i, (_, label) in enumerate(pairs) if str(label).strip() in ("1", "1.0", "True")]
        if len(right) != 1:
            raise ValueError(f"{where}: mc1_targets must have one right choice, it has {len(right)}")
        return [choice for choice, _ in pairs], right[0]
    held = next((row[name] for name in ("choices", "options") if row.get(name) is not None), None)
    answer = row.get("answer", row.get("answerKey"))
    if isinstance(held, Mapping):
        if not {"text", "label"} <= set(held):
            raise ValueError(
                f"{where}: choices must have text and label, they have {', '.join(map(str, held))}"
            )
        labels = [str(label) for label in _list(held["label"], where)]
        return _texts(_list(held["text"], where), where, len(labels)), _index(
            row.get("answerKey", answer), labels, where
        )
    if held is not None:
        listed = _list(held, where)
        if listed and all(isinstance(choice, Mapping) for choice in listed):  # ARC as released
            labels = [str(choice.get("label")) for choice in listed]
            texts = _texts([choice.get("text") for choice in listed], where)
            return texts, _index(row.get("answerKey", answer), labels, where)
        choices = _texts(listed, where)
    else:
        choices = _columns(row, where)
    if not choices:
        raise ValueError(
            f"{where} has no choices; the layouts are in the help of interp.data.multiple_choice"
        )
    return choices, _index(answer, list(LETTERS[: len(choices)]), where)


def _targets(targets: Any, where: str) -> list[tuple[str, Any]]:
    """Choices with their labels, of which 1 is right."""
    if not isinstance(targets, Mapping):
        raise ValueError(f"{where}: mc1_targets must be an object, got {type(targets).__name__}")
    if set(targets) != {"choices", "labels"}:
        return [(str(choice), label) for choice, label in targets.items()]
    labels = _list(targets["labels"], where)
    texts = _texts(_list(targets["choices"], where), where, len(labels))
    return list(zip(texts, labels, strict=True))


def _columns(row: Mapping[str, Any], where: str) -> list[str]:
    """Choices in columns A, B and so on; the last columns may be empty."""
    filled = [row.get(letter) not in (None, "") for letter in LETTERS]
    n = filled.index(False) if False in filled else len(filled)
    if n and (later := [letter for letter, there in zip(LETTERS[n:], filled[n:], strict=True) if there]):
        raise ValueError(f"{where}: column {LETTERS[n]} is empty and {later[0]} is not; fill it")
    return [str(row[letter]) for letter in LETTERS[:n]]


def _texts(choices: Sequence[Any], where: str, n_labels: int | None = None) -> list[str]:
    if n_labels is not None and n_labels != len(choices):
        raise ValueError(f"{where} has {len(choices)} choices and {n_labels} labels; each needs one")
    if empty := [place for place, choice in enumerate(choices, 1) if choice is None]:
        raise ValueError(f"{where}: choice {empty[0]} is empty")
    return [str(choice) for choice in choices]


def _list(value: Any, where: str) -> list[Any]:
    value = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ValueError(f"{where}: choices must be a list, got {type(value).__name__}")
    return list(value)


def _index(answer: Any, labels: Sequence[str], where: str) -> int:
    """Index of an answer given by its label, or by a number from 0."""
    text = str(answer).strip()
    if text in labels:
        return labels.index(text)
    if text.upper() in labels:
        return labels.index(text.upper())
    if hasattr(answer, "__index__") or text.isdigit():
        return int(text)
    raise ValueError(f"{where}: the answer {text!r:.20} is none of {', '.join(labels)}")
