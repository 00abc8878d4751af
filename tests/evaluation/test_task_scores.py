"""Metrics of downstream tasks, against values computed by hand."""

import numpy as np
import pytest

from interp.evaluation.task_scores import (
    BinaryF1,
    command_accuracy,
    exact_match,
    rouge_1,
    sql_exact_match,
    sql_tokens,
    utilities,
)
from interp.stats import rate


def test_exact_match_counts_white_space_once_and_case_always() -> None:
    found = exact_match(["FROM a  SHOW b\n", "from a SHOW b", ""], ["FROM a SHOW b"] * 3)
    assert found == rate([True, False, False])
    with pytest.raises(ValueError, match="each reply needs its reference, got 1 and 2"):
        exact_match(["a"], ["a", "b"])


def test_sql_keeps_case_and_spaces_inside_quotes_alone() -> None:
    wanted = "SELECT name FROM users WHERE city = 'Oslo  A' AND age>=30"
    same = "select  Name from users\nwhere city='Oslo  A' and age >= 30 ;"
    for other in (
        wanted.replace("Oslo", "oslo"),
        wanted.replace("  A", " A"),
        wanted.replace("30", "31"),
        "",
    ):
        assert sql_exact_match([other], [wanted]).value == 0
    assert sql_exact_match([same], [wanted]).value == 1
    assert sql_tokens("COUNT(*) > 't''s' \"It") == ["count", "(", "*", ")", ">", "'t'", "'s'", '"', "it"]


def test_utilities_of_pipelines_lists_and_substitutions() -> None:
    for command, names in {
        "find . -name '*.py' | xargs grep -n 'a | b' > out.txt": ["find", "xargs"],
        "cd /tmp && sudo rm -rf x; ls 2>&1 || echo no": ["cd", "rm", "ls", "echo"],
        r"find . -exec rm {} \; -print": ["find"],
        "LANG=C sort a | uniq -c &": ["sort", "uniq"],
        "echo $(date +%s) `hostname`": ["echo", "date", "hostname"],
        "ls\nwc -l f # not a comment here": ["ls", "wc"],
        "echo 'open": [],
        "": [],
    }.items():
        assert utilities(command) == names, command
    replies = ["grep x f | wc -l", "wc f | grep x", "echo 'open", "grep y g|wc"]
    assert command_accuracy(replies, ["grep -c a b | wc"] * 4).value == 0.5
    assert command_accuracy(["'"], ["'"]).value == 0  # what cannot be read is not right


def test_rouge_1_is_the_harmonic_mean_of_both_shares() -> None:
    # The, cat, sat: 3 common words of 4 and of 6: P = 3/4, R = 3/6, F = 0.6. "the" is twice in one alone.
    assert rouge_1(["The cat sat down."], ["the cat sat on the mat"]).value == pytest.approx(0.6)
    assert rouge_1(["the the the"], ["the dog"]).value == pytest.approx(
        2 * 1 / 5
    )  # each as often as both have it
    assert rouge_1(["It's 3-4"], ["its 34"]).value == 0  # it, s, 3, 4 against its, 34
    found = rouge_1(["a b", "c", ""], ["a b", "d", "e"])
    assert (found.value, found.n, found.unit) == (pytest.approx(1 / 3), 3, "ROUGE-1 F")
    assert found.low < found.value < found.high


def test_f1_counts_hits_and_errors_of_the_positive_label() -> None:
    f1 = BinaryF1("toxic", "harmless")
    wanted = ["toxic"] * 4 + ["harmless"] * 4
    given = ["Toxic.", "toxic", "It is toxic", "harmless", "harmless", "toxic", "harmless", "Harmless"]
    found = f1(given, wanted)  # 3 hits, 1 missed, 1 false alarm: F1 = 6 / (6 + 1 + 1)
    assert found.value == pytest.approx(0.75) and found.n == 8 and found.missing == 0
    assert 0.2 < found.low < 0.75 < found.high <= 1
    assert f1(wanted, wanted).value == 1
    # A reply that says neither or both is wrong, and counted: 2 hits, 2 missed, 1 false alarm.
    unclear = f1(["?", *given[1:4], "harmless", "toxic, not harmless", "harmless", "harmless"], wanted)
    assert unclear.value == pytest.approx(2 * 2 / (2 * 2 + 3)) and unclear.missing == 2
    nothing = f1(["harmless"] * 3, ["harmless"] * 3)
    assert not nothing.measurable and nothing.n == 3
    with pytest.raises(ValueError, match="every reference must be 'toxic' or 'harmless', got 'bad'"):
        f1(["toxic"], ["bad"])


def test_an_interval_of_f1_holds_the_true_value_as_often_as_it_says() -> None:
    generator, inside = np.random.default_rng(0), 0
    for _ in range(60):
        actual = generator.random(150) < 0.5
        given = actual ^ (generator.random(150) < 0.2)  # precision and recall 0.8: F1 = 0.8
        words = (
            [["harmless", "toxic"][int(x)] for x in given],
            [["harmless", "toxic"][int(x)] for x in actual],
        )
        found = BinaryF1("toxic", "harmless", resamples=400)(*words)
        inside += found.low <= 0.8 <= found.high
    assert 51 <= inside <= 60  # 95% of 60 is 57; 51 and below has probability 0.005


def test_shuffled_references_score_near_nothing() -> None:
    commands = [f"tool{i} -a | sort{i}" for i in range(40)]
    moved = commands[1:] + commands[:1]
    for metric in (exact_match, sql_exact_match, command_accuracy):
        assert metric(commands, commands).value == 1
        assert metric(commands, moved).value == 0
    texts = [f"alpha{i} beta{i} gamma{i}" for i in range(40)]
    assert rouge_1(texts, texts).value == 1
    assert rouge_1(texts, texts[1:] + texts[:1]).value == 0
