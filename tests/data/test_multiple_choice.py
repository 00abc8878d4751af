"""Questions are read in every published layout, and the right choice stays right."""

import csv
import json
from collections import Counter
from pathlib import Path

import pandas
import pytest

from interp.data.multiple_choice import Question, load_questions, read_questions
from tests.data.test_downloads import folders, put

__all__ = ["folders"]

CHOICES = ["wrong one", "right one", "wrong two", "wrong three"]
LAYOUTS = {
    "safelawbench": {"id": "q", "question": "Why?", "choices": CHOICES, "answer": "B", "region": "Hong Kong"},
    "arc": {
        "id": "q",
        "question": "Why?",
        "choices": {"text": CHOICES, "label": list("ABCD")},
        "answerKey": "B",
    },
    "arc with numbers": {
        "question": "Why?",
        "choices": {"text": CHOICES, "label": list("1234")},
        "answerKey": "2",
    },
    "arc as released": {
        "id": "q",
        "question": {
            "stem": "Why?",
            "choices": [{"text": text, "label": name} for text, name in zip(CHOICES, "ABCD", strict=True)],
        },
        "answerKey": "B",
    },
    "mmlu": {"question": "Why?", "choices": CHOICES, "answer": 1, "subject": "law"},
    "mmlu-pro": {"question": "Why?", "options": CHOICES, "answer": "B", "answer_index": 1},
    "truthfulqa": {"question": "Why?", "mc1_targets": {"choices": CHOICES, "labels": [0, 1, 0, 0]}},
    "truthfulqa json": {"question": "Why?", "mc1_targets": dict(zip(CHOICES, [0, 1, 0, 0], strict=True))},
    "table": {"question": "Why?", **dict(zip("ABCD", CHOICES, strict=True)), "answer": "b"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path: Path, layout: str) -> None:
    put(tmp_path / "q.jsonl", json.dumps(LAYOUTS[layout]) + "\n")
    (question,) = read_questions(tmp_path / "q.jsonl")
    assert question.choices[question.answer] == "right one" and sorted(question.choices) == sorted(CHOICES)
    assert question.group == {"mmlu": "law"}.get(layout, "unlabelled")


def test_tables_in_other_files(tmp_path: Path) -> None:
    pandas.DataFrame([LAYOUTS["arc"], LAYOUTS["arc"]]).to_parquet(tmp_path / "q.parquet")
    read = read_questions(tmp_path / "q.parquet")
    assert [q.letter for q in read] == ["B", "B"] and len({q.id for q in read}) == 2
    with (tmp_path / "law_test.csv").open("w", newline="") as stream:
        csv.writer(stream).writerow(["Why, then?", *CHOICES, "B"])
    (question,) = read_questions(tmp_path / "law_test.csv")
    assert question.text == "Why, then?" and question.choices[question.answer] == "right one"


def test_a_question_in_quotes_may_hold_line_breaks_and_commas(tmp_path: Path) -> None:
    """MMLU's files on computer science hold programs."""
    with (tmp_path / "cs_test.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["x = 1\nprint(x), then?", *CHOICES, "B"], ["Why?", *CHOICES, "A"]])
    first, second = read_questions(tmp_path / "cs_test.csv")
    assert first.text == "x = 1\nprint(x), then?" and (first.letter, second.letter) == ("B", "A")
    put(tmp_path / "short.csv", "Why?,a,b,c,d,B\nHow?,a,b,c,B\n")
    with pytest.raises(ValueError, match=r"short\.csv, row 2: 5 fields, and a file without a header has six"):
        read_questions(tmp_path / "short.csv")
    with pytest.raises(ValueError, match=r"no such prompt file: .*absent\.csv"):
        read_questions(tmp_path / "absent.csv")


def test_truthfulqa_has_up_to_thirteen_choices(tmp_path: Path) -> None:
    choices = {f"choice {i}": int(i == 0) for i in range(13)}
    put(tmp_path / "mc_task.json", json.dumps([{"question": "Why?", "mc1_targets": choices}]))
    (question,) = read_questions(tmp_path / "mc_task.json")
    assert len(question.choices) == 13 and question.choices[question.answer] == "choice 0"


def test_truthfulqa_is_shuffled_or_a_would_always_be_right(tmp_path: Path) -> None:
    rows = [
        {
            "question": f"Why {i}?",
            "mc1_targets": {"choices": ["right", "w1", "w2", "w3"], "labels": [1, 0, 0, 0]},
        }
        for i in range(80)
    ]
    put(tmp_path / "q.json", json.dumps(rows))
    read = read_questions(tmp_path / "q.json")
    assert all(q.choices[q.answer] == "right" for q in read)
    assert min(Counter(q.letter for q in read)[letter] for letter in "ABCD") > 8
    assert read == read_questions(tmp_path / "q.json") != read_questions(tmp_path / "q.json", seed=1)


def test_a_folder_has_questions_examples_and_topics(tmp_path: Path) -> None:
    first = {**LAYOUTS["safelawbench"], "l2": "Adoption"}
    put(tmp_path / "s/test.json", json.dumps([first, {**first, "id": "r", "question": "How?"}]))
    put(tmp_path / "s/mc_dev.json", json.dumps([first]))
    topic = {"first_level_topic": "Welfare Protection", "second_level_topic": "Family"}
    put(tmp_path / "s/x_label_map.json", json.dumps({"Adoption, Why?": topic, "Adoption, How?": {}}))
    questions = load_questions(tmp_path / "s")
    assert [q.group for q in questions.questions] == ["Welfare Protection", "unlabelled"]
    assert len(questions.examples) == 1 and questions.questions[0].region == "Hong Kong"
    shown = repr(questions)
    assert "Welfare Protection" in shown and "right one" not in shown and "wrong" not in shown


def test_a_named_set(folders: Path) -> None:
    put(folders / "safelawbench/mc_dev.json", json.dumps([LAYOUTS["safelawbench"]]))
    assert len(load_questions("safelawbench")) == 1  # the examples alone are here
    put(folders / "safelawbench/test.json", json.dumps([LAYOUTS["safelawbench"]] * 3))
    questions = load_questions("safelawbench")
    assert (len(questions), len(questions.examples), questions.name) == (3, 1, "safelawbench")
    with pytest.raises(ValueError, match="alpaca is a set of kind harmless, not multiple choice"):
        load_questions("alpaca")


def test_the_builtin_questions_are_balanced() -> None:
    questions = load_questions("builtin")
    assert len(questions) == 48 and len(questions.examples) == 4 and len(questions.groups) == 4
    assert set(Counter(q.letter for q in questions.questions).values()) == {12}
    assert set(Counter(q.group for q in questions.questions).values()) == {12}
    texts = [q.text for q in (*questions.questions, *questions.examples)]
    assert len(set(texts)) == 52
    few = questions.first(6)
    assert [q.group for q in few.questions[:4]] == list(questions.groups) and len(few) == 6
    assert questions.first(None) is questions and questions.first(10).hash != questions.hash


def test_rotation_moves_the_choices_and_keeps_the_right_one() -> None:
    question = Question(id="q", text="?", choices=tuple("wxyz"), answer=1)
    assert question.rotated(1).choices == ("z", "w", "x", "y") and question.rotated(1).letter == "C"
    assert question.rotated(4) == question
    assert {question.rotated(s).letter for s in range(4)} == set("ABCD")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "Why?"}, r"q\.json, row 1 has no text in column 'question'; it has text"),
        ({"question": "Why?"}, "row 1 has no choices"),
        ({"question": "Why?", "choices": ["a", "b"], "answer": "C"}, "the answer 'C' is none of A, B"),
        (
            {"question": "Why?", "choices": ["a", "b"], "answer": 2},
            "row 1: .* must be one of its 2 choices, got 2",
        ),
        ({"question": "Why?", "choices": ["a"], "answer": 0}, "has 1 choices; 2 to 26 are read"),
        ({"question": "Why?", "choices": "ab", "answer": 0}, "row 1: choices must be a list, got str"),
        ({"question": "Why?", "choices": ["a", None], "answer": 0}, "row 1: choice 2 is empty"),
        (
            {"question": "Why?", "choices": {"text": ["a"]}, "answer": 0},
            "row 1: choices must have text and label",
        ),
        (
            {"question": "Why?", "choices": {"text": ["a", "b"], "label": ["A"]}, "answerKey": "A"},
            "row 1 has 2 choices and 1 labels",
        ),
        ({"question": "Why?", "A": "a", "B": "", "C": "c", "answer": "B"}, "column B is empty and C is not"),
        ({"question": "Why?", "mc1_targets": "a"}, "row 1: mc1_targets must be an object, got str"),
        (
            {"question": "Why?", "mc1_targets": {"choices": ["a", "b"], "labels": [1, 1]}},
            "must have one right choice, it has 2",
        ),
    ],
)
def test_rows_in_no_layout_are_named(tmp_path: Path, row: dict[str, object], message: str) -> None:
    put(tmp_path / "q.json", json.dumps([row]))
    with pytest.raises(ValueError, match=message):
        read_questions(tmp_path / "q.json")


def test_a_source_that_is_not_there() -> None:
    with pytest.raises(ValueError, match=r"no such prompt file: absent\.json"):
        load_questions("absent.json")
