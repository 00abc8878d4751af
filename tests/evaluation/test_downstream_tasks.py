"""The contract of downstream tasks: splits, score, and the score of a model's replies."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from interp.data.examples import Example
from interp.engine.generation import generate
from interp.evaluation.downstream_tasks import (
    METRICS,
    PAPER_METRICS,
    DownstreamTask,
    downstream_task,
    score_model,
)
from interp.evaluation.task_scores import exact_match
from interp.models.chat_model import ChatModel
from interp.stats import rate
from tests.conftest import PROMPTS


def test_the_generated_task_scores_its_own_completions_and_nothing_when_shuffled() -> None:
    task = downstream_task("query-language", n_train=64, n_held_out=48, seed=0)
    assert (len(task.train), len(task.validation), len(task.test)) == (64, 48, 48)
    right = [e.completion for e in task.validation]
    assert task.score(right, right) == rate([True] * 48)
    assert task.score(right[1:] + right[:1], right).value == 0  # control
    assert task.hash == downstream_task("query-language", n_train=64, n_held_out=48, seed=0).hash
    assert task.hash != downstream_task("query-language", n_train=64, n_held_out=48, seed=1).hash


def test_a_model_is_scored_by_its_greedy_replies(tiny: ChatModel) -> None:
    replies = generate(tiny, PROMPTS, max_new_tokens=3).texts
    # The right completion of every other prompt is what the model says.
    examples = tuple(
        Example(p, r if i % 2 else f"{r} and not this")
        for i, (p, r) in enumerate(zip(PROMPTS, replies, strict=True))
    )
    task = DownstreamTask(
        name="planted", train=(), validation=examples, test=examples[:0], metric=exact_match, max_new_tokens=3
    )
    assert score_model(tiny, task) == rate([False, True] * 3)
    assert score_model(tiny, task, n=2) == rate([False, True])
    with pytest.raises(
        ValueError, match=r"n must be in 1\.\.6, the validation examples of task planted; got 7"
    ):
        score_model(tiny, task, n=7)
    with pytest.raises(ValueError, match=r"task planted has no score.*METRIC:FILE with one of exact-match"):
        score_model(tiny, replace(task, metric=None))


def test_a_task_without_a_score_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": f"P{i}", "completion": f"C{i}"}) for i in range(20)))
    with pytest.raises(
        ValueError,
        match=r"pairs\.jsonl has no score.*as METRIC:FILE with one of exact-match, .*or use query-language",
    ):
        downstream_task(str(path))
    task = downstream_task(f"exact-match:{path}")
    assert task.metric is exact_match and len(task.train) == 14
    assert task.score(["C3"], ["C3"]).value == 1


def test_each_kind_of_the_paper_loads_with_its_metric(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"T{i}", "completion": str(i % 2)}) for i in range(20)))
    assert set(PAPER_METRICS) == {"sql", "abstract-detection", "nl2bash", "dialogue-summary", "toxicity"}
    for kind, metric in PAPER_METRICS.items():
        task = downstream_task(f"{kind}:{path}")
        assert task.metric is metric and len(task.test) == 3
        references = [e.completion for e in task.train]
        assert task.score(references, references).value == 1
    assert not set(METRICS) & set(PAPER_METRICS)


def test_splits_with_a_common_prompt_are_refused() -> None:
    one = (Example("P", "C"),)
    with pytest.raises(ValueError, match="1 prompts are both in train and in test"):
        DownstreamTask(name="t", train=one, validation=(), test=one, metric=exact_match, max_new_tokens=4)
