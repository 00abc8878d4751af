"""PKU-SafeRLHF: rows as released, published counts, splits by prompt, and the bundled miniature."""

import json
from pathlib import Path
from typing import Any

import pytest

from interp.data.safe_rlhf import (
    CATEGORIES,
    answers_of,
    check_copy,
    counts,
    read_answers,
    read_pairs,
    split_by_prompt,
)
from interp.data.safe_rlhf_miniature import miniature, miniature_rows


def row(**changes: Any) -> dict[str, Any]:
    """A row in the layout of the default config."""
    flags = dict.fromkeys(CATEGORIES, False)
    made = {
        "prompt": "Say something about a river.", "prompt_source": "x",
        "response_0": "I can't help with that.", "response_1": "The river is large.",
        "response_0_source": "Alpaca-7B", "response_1_source": "Alpaca3-8B",
        "is_response_0_safe": True, "is_response_1_safe": False,
        "response_0_harm_category": flags, "response_1_harm_category": {**flags, "Violence": True, "Drugs": True},
        "response_0_severity_level": 0, "response_1_severity_level": 2,
        "better_response_id": 1, "safer_response_id": 0,
    }  # fmt: skip
    return {**made, **changes}


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def test_a_row_is_read_with_its_labels_and_preferences(tmp_path: Path) -> None:
    (pair,) = read_pairs(write(tmp_path / "a.jsonl", row()))
    assert pair.mixed and pair.conflict and (pair.better, pair.safer) == (1, 0)
    unsafe = pair.answers[1]
    assert (unsafe.safe, unsafe.severity, unsafe.source) == (False, 2, "Alpaca3-8B")
    assert [CATEGORIES[i] for i, on in enumerate(unsafe.categories) if on] == ["Violence", "Drugs"]
    assert pair.answers[0].id == "0-0" and answers_of([pair]) == list(pair.answers)
    # A folder is all of its files, and an answer that is not there is empty and left out.
    write(tmp_path / "b.jsonl", row(response_0=None), row())
    pairs = read_pairs(tmp_path)
    assert len(pairs) == 3 and len(answers_of(pairs)) == 5
    assert [pair.id for pair in pairs] == ["0", "1", "2"]  # over both files
    found = counts(pairs)
    assert (found["pairs"], found["answers"], found["non-empty answers"]) == (3, 6, 5)
    assert (found["severity 2"], found["answers with 2 categories"], found["pairs with one unsafe"]) == (
        3,
        3,
        3,
    )


def test_single_answers_are_read(tmp_path: Path) -> None:
    flags = {**dict.fromkeys(CATEGORIES, False), "Cybercrime": True}
    path = write(
        tmp_path / "qa.jsonl",
        {
            "prompt": "p",
            "response": "a",
            "is_safe": False,
            "harm_category": flags,
            "severity_level": 3,
            "sha256": "x",
        },
    )
    (answer,) = read_answers(path)
    assert (answer.id, answer.severity, sum(answer.categories)) == ("x", 3, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"response_1_severity_level": 4}, "row 1: severity_level must be 0, 1, 2 or 3, got 4"),
        ({"better_response_id": -1}, "must be 0 or 1"),
        ({"response_0_harm_category": {"Violence": True}}, "19 categories as keys"),
        ({"response_0": 3}, "an answer must be text"),
    ],
)
def test_mistakes_name_file_and_row(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_pairs(write(tmp_path / "a.jsonl", row(**changes)))
    bare = row()
    del bare["safer_response_id"]
    with pytest.raises(ValueError, match="row 1: no column 'safer_response_id'"):
        read_pairs(write(tmp_path / "b.jsonl", bare))


def test_published_counts_are_compared_one_by_one(tmp_path: Path) -> None:
    pairs = read_pairs(write(tmp_path / "a.jsonl", row()))
    checks = {each.what: each for each in check_copy(pairs, "train")}
    assert checks["pairs"].published == 73907 and checks["pairs"].found == 1 and not checks["pairs"].holds
    assert checks["pairs whose safer answer is unsafe and the other safe"].holds
    assert {each.what for each in check_copy(pairs)} >= {"severity 2", "answers of Alpaca-7B"}
    # The published counts are consistent with each other.
    both = {each.what: each.published for each in check_copy(pairs)}
    assert sum(both[f"severity {level}"] for level in range(4)) == both["non-empty answers"]
    assert both["safe answers"] + both["unsafe answers"] == both["non-empty answers"]
    assert sum(n for what, n in both.items() if what.startswith("answers of")) == both["non-empty answers"]
    three = ("pairs with both unsafe", "pairs with one unsafe", "pairs with both safe")
    assert sum(checks[what].published for what in three) == checks["pairs"].published


def test_a_split_never_shares_a_prompt(tmp_path: Path) -> None:
    pairs = miniature()
    fit, held = split_by_prompt(pairs, held_out=0.3)
    assert len(fit) + len(held) == len(pairs) and 0.2 < len(held) / len(pairs) < 0.4
    assert not {pair.prompt for pair in fit} & {pair.prompt for pair in held}
    twins = read_pairs(write(tmp_path / "a.jsonl", row(), row(prompt="say  something about a river. ")))
    for seed in range(8):  # letter case and white space make no other prompt
        assert 0 in map(len, split_by_prompt(twins, held_out=0.5, seed=seed))
    with pytest.raises(ValueError, match="between 0 and 1"):
        split_by_prompt(pairs, held_out=1.0)


def test_the_miniature_has_every_label_and_no_answer_of_a_model() -> None:
    pairs = miniature()
    assert miniature_rows() == miniature_rows() and len(pairs) == 304
    found = counts(pairs)
    assert found["pairs with one unsafe"] == 19 * 8 and found["pairs with both safe"] == 19 * 3
    assert min(found[f"severity {level}"] for level in range(4)) > 50
    assert found["safe where and only where severity 0"] == found["answers"]
    assert found["pairs whose safer answer is unsafe and the other safe"] == 0
    assert 30 < found["pairs in conflict"] < 250
    flagged = [sum(answer.categories[c] for answer in answers_of(pairs)) for c in range(19)]
    assert min(flagged) >= 18
    sizes = {1: "small", 2: "large", 3: "enormous"}
    for answer in answers_of(pairs):
        assert answer.safe == (answer.severity == 0) == (sum(answer.categories) == 0)
        if not answer.safe:
            assert sizes[answer.severity] in answer.text


def test_the_named_set_is_read_from_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERP_DATA", str(tmp_path / "given"))
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match="pku-saferlhf is not on this machine: download data/Alpaca-7B/train"
    ):
        read_pairs("pku-saferlhf")
    for part in ("train", "test"):
        (tmp_path / "given/pku-saferlhf/data/Alpaca-7B").mkdir(parents=True, exist_ok=True)
        write(tmp_path / f"given/pku-saferlhf/data/Alpaca-7B/{part}.jsonl", row())
    assert len(read_pairs("pku-saferlhf")) == 2


@pytest.mark.parametrize("value", ["False", None, 2])
def test_a_label_that_is_neither_true_nor_false_is_no_label(tmp_path: Path, value: Any) -> None:
    """Every text would be true: "False" is what a table writes."""
    with pytest.raises(ValueError, match=r"a\.jsonl, row 1: is_safe must be true or false, got"):
        read_pairs(write(tmp_path / "a.jsonl", row(is_response_0_safe=value)))
    flags = {**dict.fromkeys(CATEGORIES, False), "Drugs": value}
    with pytest.raises(ValueError, match="Drugs must be true or false"):
        read_pairs(write(tmp_path / "a.jsonl", row(response_0_harm_category=flags)))
