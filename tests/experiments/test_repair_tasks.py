"""The task on the repair scoreboard: F1 is no mean of examples, and a file may hold fewer than are asked for."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from interp.data.prompts import load_prompts
from interp.evaluation.downstream_tasks import PAPER_METRICS, DownstreamTask
from interp.experiments.repair import Config
from interp.experiments.repair import run as method
from interp.experiments.repair.scoreboard import over_examples, over_prompts, task_score
from tests.experiments.test_repair import trial


def test_f1_of_a_trial_and_of_all_seeds_is_that_of_their_counts() -> None:
    task = DownstreamTask(
        name="toxicity",
        train=(),
        validation=(),
        test=(),
        metric=PAPER_METRICS["toxicity"],
        max_new_tokens=8,
    )
    wanted = ["toxic", "toxic", "harmless", "harmless", "toxic"]
    replies = [
        ["toxic", "harmless", "harmless", "toxic", "what?"],
        ["toxic", "toxic", "toxic", "harmless", "toxic"],
    ]
    parts = [task.row_parts(each, wanted) for each in replies]
    assert parts[0] == ((2, 0, 0, 0, 0), (2, 1, 0, 1, 1))  # a hit, nothing, and three errors
    each = [
        replace(trial(5), task=one.gained, task_possible=one.possible, cross_entropy=(3.0,)) for one in parts
    ]
    for one, said in zip(each, replies, strict=True):
        score = task.score(said, wanted)
        assert task_score(one) == over_examples([one]).value == pytest.approx(score.value)
        assert (over_examples([one]).low, over_examples([one]).high) == (score.low, score.high)
    both = over_examples(each)
    assert (both.n, both.value) == (5, pytest.approx(2 * 4 / (2 * 4 + 4)))
    none = replace(trial(5), task=(0.0,) * 5, task_possible=(0.0,) * 5)
    assert math.isnan(task_score(none)) and not over_examples([none]).measurable
    wrong = replace(trial(5), task=(0.0,) * 5)  # each row an error: as a mean of 0
    assert over_examples([each[1], wrong]).value == pytest.approx(2 * 3 / (2 * 3 + 1 + 5))


def test_a_score_of_the_task_is_as_before_where_it_is_a_mean() -> None:
    trials = [replace(trial(5), task=(1.0, 0.0, 0.5)), replace(trial(5), task=(0.0, 0.0, 1.0))]
    assert over_examples(trials) == over_prompts([t.task for t in trials], unit="share")
    assert task_score(trials[0]) == 0.5


def test_held_out_examples_are_counted_as_they_are(tmp_path: Path) -> None:
    rows = [{"comment": f"text {i}", "toxic": i % 2} for i in range(20)]
    path = tmp_path / "comments.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    held = method._held_out(load_prompts(), Config(task=f"toxicity:{path}", n_task_test=48))
    assert held.n_task == len(held.task.test) == 3
