"""Accuracy, votes, G-Pass and the leaderboard's arithmetic against hand-computed cases."""

import json
from pathlib import Path

import pytest

from interp.evaluation.choice_scores import (
    ChoiceAnswer,
    g_pass,
    leaderboard_row,
    read_outputs,
    released_g_pass,
    score_answers,
    stability,
    voted,
    voted_by_models,
)

GROUPS = (
    "Critical Personal Safety",
    "Property & Living Security",
    "Fundamental Rights",
    "Welfare Protection",
)
SHARES = (0.242, 0.267, 0.369, 0.122)
"""Shares of the groups among the questions, which follow from the printed averages of twenty models."""
LEADERBOARD = {
    "claude-3-5-sonnet-20241022": (82.4, 79.6, 80.0, 79.8, 80.5),
    "gpt-4o": (83.2, 79.9, 79.3, 78.8, 80.3),
    "Qwen2.5-3B-Instruct": (66.3, 60.7, 61.3, 61.9, 62.4),
    "vicuna-13b-v1.5": (33.4, 29.0, 29.2, 28.0, 30.0),
}
"""Accuracy by group and on average, as the front page of SafeLawBench prints them."""


def answer(letters: str, *, right: str = "A", group: str = "g", refused: str = "") -> ChoiceAnswer:
    given = tuple(None if letter == "-" else letter for letter in letters)
    flags = tuple(flag == "r" for flag in refused)
    return ChoiceAnswer(id=letters, group=group, right=right, letters=given, refused=flags)


@pytest.mark.parametrize("model", LEADERBOARD)
def test_outputs_and_keys_give_the_published_averages(tmp_path: Path, model: str) -> None:
    """Outputs in the released format, whose right answers are as many in each group as the leaderboard says."""
    *by_group, average = LEADERBOARD[model]
    rows, topics = [], {}
    for group, share, percent in zip(GROUPS, SHARES, by_group, strict=True):
        n = round(10_000 * share)
        for i in range(n):
            right = i < round(n * percent / 100)
            row = {"id": f"{group}-{i}", "question": f"{group} {i}?", "choices": list("wxyz"), "answer": "D"}
            row |= {"l2": "topic", "source": "s", "region": "Hong Kong"}
            row["generated_answer"] = ["[[ANSWER]] D" if right else ("B" if i % 3 else "I cannot say.")]
            rows.append(row)
            topics[f"topic, {group} {i}?"] = group
    rows.append({**rows[0], "id": "without a topic", "question": "?", "generated_answer": ["D"]})
    (tmp_path / "0.json").write_text(json.dumps([*rows, None]))
    answers = read_outputs(tmp_path / "0.json", topics=topics)
    row = leaderboard_row(answers)
    assert row["Average"] == pytest.approx(average, abs=0.1 + 1e-9)
    for group, percent in zip(GROUPS, by_group, strict=True):
        assert row[group] == pytest.approx(percent, abs=0.1 + 1e-9)
    scores = score_answers(answers)
    assert scores.accuracy.n == len(rows) and "unlabelled" in scores.by_group  # not dropped in silence
    assert scores.refused + scores.unread > 0


def test_accuracy_is_micro_and_refusals_are_their_own_count() -> None:
    answers = [
        answer("A", group="x"),
        answer("A", group="x"),
        answer("B", group="x"),
        answer("-", group="y", refused="r"),
        answer("-", group="y", refused="-"),
    ]
    scores = score_answers(answers, n_choices=[4, 4, 2, 4, 4])
    assert scores.accuracy.value == 2 / 5 and scores.by_group["x"].value == 2 / 3
    assert scores.by_group["y"].value == 0
    assert (scores.refused, scores.unread) == (1, 1)
    assert scores.accuracy_of_answered.value == 2 / 4 and scores.accuracy_of_answered.n == 4
    assert scores.chance == pytest.approx((4 * 0.25 + 0.5) / 5)
    assert scores.accuracy.interval == "Wilson"
    with pytest.raises(ValueError, match="no answers"):
        score_answers([])


def test_votes_over_samples_and_over_models() -> None:
    (one,) = voted([answer("BAA-", refused="---r")])
    assert one.letters == ("A",) and one.correct == (True,) and one.refused == (False,)
    first, second, third = ([answer(letter)] for letter in "ABB")
    for i, part in enumerate((first, second, third)):
        part[0] = ChoiceAnswer(id="q", group="g", right="B", letters=part[0].letters, refused=(i == 0,))
    (together,) = voted_by_models([first, second, third])
    assert together.letters == ("B",) and together.correct == (True,)
    assert voted_by_models([first, second])[0].letters == ("A",)  # a draw
    with pytest.raises(ValueError, match="same questions in the same order"):
        voted_by_models([first, [answer("A")]])
    with pytest.raises(ValueError, match="at least one model"):
        voted_by_models([])


def test_g_pass_by_hand() -> None:
    # Released: floor(0.5 * 5) = 2 right samples pass, one gives its share.
    assert [released_g_pass(r, 5, tau=0.5) for r in range(6)] == [0.0, 0.2, 1.0, 1.0, 1.0, 1.0]
    # Usual, k = n: all or nothing at ceil(tau k).
    assert [g_pass(r, 5, tau=0.5) for r in range(6)] == [0, 0, 0, 1, 1, 1]
    # 4 samples, 2 right, draw 2: both right with 1/6, at least one with 5/6.
    assert g_pass(2, 4, tau=1.0, k=2) == pytest.approx(1 / 6)
    assert g_pass(2, 4, tau=0.5, k=2) == pytest.approx(5 / 6)
    assert g_pass(1, 5, tau=0.2, k=5) == 1.0 and g_pass(0, 5, tau=0.0, k=5) == 0.0
    with pytest.raises(ValueError, match="need 0 <= right <= n"):
        g_pass(6, 5, tau=0.5)


def test_stability_by_hand() -> None:
    steady, torn = answer("AAAA"), answer("ABAB")
    found = stability([steady, torn], tau=0.75)
    assert found.spread == pytest.approx((0 + 0.5) / 2)
    assert found.released_g_pass == pytest.approx((1 + 0.5) / 2) and found.g_pass == pytest.approx(0.5)
    assert found.k == 4
    with pytest.raises(ValueError, match=r"as many samples as the others, got \[1, 4\]"):
        stability([steady, answer("A")])


def test_files_that_are_no_outputs_are_named(tmp_path: Path) -> None:
    path = tmp_path / "o.json"
    for text, message in (
        ("{", "cannot read outputs"),
        ('[{"answer": "A"}]', r"row 1 has no replies in 'generated_answer'"),
        ('[{"generated_answer": "A", "answer": 3}]', "row 1 has no letter in 'answer'"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_outputs(path)
    path.write_text('[{"generated_answer": "So B", "answer": "B", "choices": ["a", "b"]}]')
    assert read_outputs(path)[0].letters == ("B",) and read_outputs(path, rule="strict")[0].letters == (None,)
