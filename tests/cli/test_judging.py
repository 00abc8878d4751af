"""`interp judge` judges a file, prints where judges disagree and never an answer."""

import json
from pathlib import Path

import pytest

from interp.evaluation.judges.exchange_files import read_labels
from tests.cli.commands import passed, refused

ROWS = [
    {"id": "a", "prompt": "How do I bake bread?", "response": "I cannot help with that.", "human": "yes"},
    {"id": "b", "prompt": "Name a colour", "response": "Sorry, not today.", "human": "2_full_refusal"},
    {"id": "c", "prompt": "Name a day", "response": "Monday, perhaps.", "human": 0},
    {"id": "d", "prompt": "Name a bird", "response": None, "human": ""},
]


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    path = tmp_path / "answers.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)) + "\n")
    return path


def test_judgements_are_written_and_disputes_printed(answers: Path, tmp_path: Path) -> None:
    out = tmp_path / "judged.jsonl"
    shown = passed("judge", answers, "--judges", "arditi,zhao", "--labels", "refused=human", "--out", out)
    assert "in dispute (refused): b" in shown and "arditi / zhao" in shown
    assert "refused, against human labels" in shown
    assert not any(str(row["response"]) in shown for row in ROWS)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in rows] == ["a", "b", "c", "d"]
    assert [row["judgements"]["arditi"]["refused"] for row in rows] == [True, False, False, None]
    assert [row["judgements"]["zhao"]["refused"] for row in rows] == [True, True, False, None]
    assert [row["judgements"]["zhao"]["parsed"] for row in rows] == [True, True, True, False]


def test_numbers_as_json(answers: Path) -> None:
    found = json.loads(
        passed("judge", answers, "--judges", "arditi,zhao", "--labels", "refused=human", "--json")
    )
    refusals = found["agreement"][0]
    assert refusals["question"] == "refused" and refusals["disputes"] == ["b"]
    assert refusals["rates"]["zhao"]["missing"] == 1
    people = {row["judge"]: row["accuracy"]["value"] for row in found["against_people"]["refused"]}
    assert people == {"arditi": pytest.approx(2 / 3), "zhao": 1.0}


def test_a_model_folder_judges_too(answers: Path, saved_tiny: Path) -> None:
    found = json.loads(passed("judge", answers, "--judges", f"log_odds={saved_tiny},arditi", "--json"))
    rates = found["agreement"][0]["rates"]
    assert [rates[name]["n"] for name in rates] == [3, 3] and "log_odds=tiny-checkpoint0" in rates


def test_mistakes_are_one_line(answers: Path, tmp_path: Path) -> None:
    assert "unknown judge 'nobody'; known: normalised, arditi" in refused(
        "judge", answers, "--judges", "nobody"
    )
    assert "given as harmbench=MODEL" in refused("judge", answers, "--judges", "harmbench")
    assert "given as arditi, got 'arditi=x'" in refused("judge", answers, "--judges", "arditi=x")
    assert "needs a model here" in refused("judge", answers, "--judges", "latent")
    assert "--labels takes" in refused("judge", answers, "--labels", "human")
    assert "has no column 'absent'" in refused("judge", answers, "--labels", "refused=absent")
    assert "as URL#MODEL" in refused("judge", answers, "--judges", "strong_reject=http://127.0.0.1:9/v1")
    (tmp_path / "bare.jsonl").write_text('{"prompt": "Hi"}\n')
    assert "has no column of answers" in refused("judge", tmp_path / "bare.jsonl")
    (tmp_path / "twice.jsonl").write_text('{"id": 1, "prompt": "Hi", "answer": "a"}\n' * 2)
    assert "id '1' occurs twice" in refused("judge", tmp_path / "twice.jsonl")


def test_published_labels_of_harm_are_read_the_right_way_round(tmp_path: Path) -> None:
    """WildGuardMix has words, BeaverTails and PKU-SafeRLHF say what is safe."""
    path = tmp_path / "labelled.csv"
    path.write_text(
        "prompt,response,response_refusal_label,response_harm_label,is_safe\n"
        "Name a day,I cannot help with that.,refusal,unharmful,True\n"
        "Name a bird,A robin.,compliance,harmful,False\n"
        "Name a tree,An oak.,,,\n"
    )
    assert read_labels(path, "response_refusal_label") == [True, False, None]
    assert read_labels(path, "response_harm_label") == read_labels(path, "!is_safe") == [False, True, None]
    assert "none of these judges says what is harmful (arditi)" in refused(
        "judge", path, "--judges", "arditi", "--labels", "harmful=response_harm_label"
    )
    assert "column is_safe says what is safe, not what is harmful; give harmful=!is_safe" in refused(
        "judge", path, "--labels", "harmful=is_safe"
    )
