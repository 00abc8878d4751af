"""Downstream tasks from files: columns, labels, splits, and what is refused."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from interp.data.task_files import TASK_FORMATS, read_task


def write(path: Path, rows: Sequence[Mapping[str, object]]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_a_file_is_cut_into_disjoint_splits_of_its_rows(tmp_path: Path) -> None:
    rows = [
        {"question": f"Q{i}?", "context": f"CREATE TABLE t{i}", "answer": f"SELECT {i}"} for i in range(40)
    ]
    source = write(tmp_path / "sql.jsonl", [*rows, rows[0]])  # a repeated prompt counts once
    splits = read_task(TASK_FORMATS["sql"], source, seed=1)
    assert [len(part) for part in splits] == [28, 6, 6]
    examples = {e.prompt: e.completion for part in splits for e in part}
    assert len(examples) == 40
    assert examples[f"{TASK_FORMATS['sql'].instruction}CREATE TABLE t7\nQ7?"] == "SELECT 7"
    assert read_task(TASK_FORMATS["sql"], source, seed=1) == splits
    assert read_task(TASK_FORMATS["sql"], source, seed=2) != splits


def test_each_of_the_five_finds_its_columns_and_reads_its_labels(tmp_path: Path) -> None:
    made = {
        "abstract-detection": (
            [{"abstract": f"A {i}", "label": i % 2} for i in range(10)],
            {"human", "machine"},
        ),
        "nl2bash": ([{"invocation": f"list {i}", "cmd": f"ls {i}"} for i in range(10)], None),
        "dialogue-summary": ([{"dialogue": f"A: {i}", "summary": f"They say {i}."} for i in range(10)], None),
        "toxicity": (
            [{"comment_text": f"T {i}", "toxic": bool(i % 2)} for i in range(10)],
            {"harmless", "toxic"},
        ),
    }
    answers: dict[str, str] = {}
    for name, (rows, labels) in made.items():
        splits = read_task(TASK_FORMATS[name], write(tmp_path / f"{name}.jsonl", rows))
        answers = {e.prompt: e.completion for part in splits for e in part}
        assert len(answers) == 10
        assert labels is None or set(answers.values()) == labels
    form = TASK_FORMATS["toxicity"]
    assert answers[f"{form.instruction}T 3"] == "toxic" and answers[f"{form.instruction}T 4"] == "harmless"


def test_columns_can_be_named_and_tables_read(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("said,verdict\n" + "\n".join(f"text {i},{i % 2}" for i in range(12)))
    splits = read_task(TASK_FORMATS["toxicity"], str(path), text="said", answer="verdict")
    assert sum(map(len, splits)) == 12
    with pytest.raises(
        ValueError,
        match=r"no column for the text of toxicity \(comment_text, .* has said, verdict: name one with text=",
    ):
        read_task(TASK_FORMATS["toxicity"], str(path))
    with pytest.raises(ValueError, match=r"no column 'word'; it has said, verdict"):
        read_task(TASK_FORMATS["toxicity"], str(path), text="said", answer="word")


def test_a_folder_and_a_pattern_have_a_file_for_each_split(tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        write(
            tmp_path / f"{split}.jsonl", [{"prompt": f"{split} {i}", "completion": str(i)} for i in range(3)]
        )
    splits = read_task(TASK_FORMATS["examples"], str(tmp_path))
    assert [part[0].prompt for part in splits] == ["train 0", "validation 0", "test 0"]
    assert read_task(TASK_FORMATS["examples"], str(tmp_path / "{split}.jsonl")) == splits
    write(tmp_path / "test.jsonl", [{"prompt": "train 1", "completion": "1"}])
    with pytest.raises(
        ValueError, match=r"a prompt is both in train and in test; remove it from one: 'train 1'"
    ):
        read_task(TASK_FORMATS["examples"], str(tmp_path))
    (tmp_path / "test.jsonl").unlink()
    with pytest.raises(
        ValueError, match=r"has no test\.jsonl; give one file each for train, validation and test"
    ):
        read_task(TASK_FORMATS["examples"], str(tmp_path))


def test_rows_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    form = TASK_FORMATS["toxicity"]
    rows: list[dict[str, object]] = [{"text": f"T {i}", "label": i % 2} for i in range(10)]
    with pytest.raises(
        ValueError, match=r"few\.jsonl has 5 rows with different prompts; at least 8 are needed"
    ):
        read_task(form, write(tmp_path / "few.jsonl", rows[:5]))
    with pytest.raises(
        ValueError, match=r"row 11: column 'label' holds the label 'odd'; toxicity knows toxic, 1"
    ):
        read_task(form, write(tmp_path / "odd.jsonl", [*rows, {"text": "T", "label": "odd"}]))
    with pytest.raises(ValueError, match=r"row 11: column 'text' is empty or not text"):
        read_task(form, write(tmp_path / "empty.jsonl", [*rows, {"text": " ", "label": 1}]))
