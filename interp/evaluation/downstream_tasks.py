"""Downstream tasks: what a model is fine-tuned for, with the score that says how well it does it.

    task = downstream_task("query-language")
    task = downstream_task("sql:questions.csv")                        # and the others of the paper's five
    task = downstream_task("rouge-1:hub:owner/name")                   # prompts and completions, and a metric
    score_model(model, task, split="validation", n=48)                 # Estimate, of greedy replies

A method that stops or picks by the score uses `validation`; `test` is for the number that is reported. The score is
that of the task alone, and no evidence on anything else that fine-tuning changes.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import get_args

from interp.data.examples import Example, ExampleSplits, TaskSplit
from interp.data.query_language import query_splits
from interp.data.task_files import TASK_FORMATS, read_task
from interp.engine.generation import generate
from interp.evaluation.task_scores import (
    BinaryF1,
    Metric,
    RowParts,
    command_accuracy,
    exact_match,
    rouge_1,
    row_parts,
    sql_exact_match,
)
from interp.models.chat_model import ChatModel
from interp.stats import Estimate

METRICS: dict[str, Metric] = {
    "exact-match": exact_match,
    "sql-exact-match": sql_exact_match,
    "command-accuracy": command_accuracy,
    "rouge-1": rouge_1,
}
"""Metrics of texts, by the name with which a file of examples is given."""
PAPER_METRICS: dict[str, Metric] = {
    "sql": sql_exact_match,
    "abstract-detection": BinaryF1("machine", "human"),
    "nl2bash": command_accuracy,
    "dialogue-summary": rouge_1,
    "toxicity": BinaryF1("toxic", "harmless"),
}
"""Metric of each task of Yang et al. 2025, arXiv:2504.09757."""


@dataclass(frozen=True, eq=False, kw_only=True)
class DownstreamTask:
    """Examples of a task in three splits, and its score."""

    name: str
    """Name of the task, as `downstream_task` reads it."""
    train: tuple[Example, ...]
    """Examples to fine-tune on."""
    validation: tuple[Example, ...]
    """Examples on which a method stops or picks."""
    test: tuple[Example, ...]
    """Examples whose score is reported."""
    metric: Metric | None
    """Scores replies against references; 1 is best. None is refused as soon as a score is asked for."""
    max_new_tokens: int
    """Length at which replies are cut."""

    def __post_init__(self) -> None:
        splits = {split: {e.prompt for e in self.split(split)} for split in get_args(TaskSplit)}
        for one, other in combinations(splits, 2):
            if common := splits[one] & splits[other]:
                raise ValueError(
                    f"task {self.name}: {len(common)} prompts are both in {one} and in {other}; remove them from one"
                )

    def split(self, name: TaskSplit) -> tuple[Example, ...]:
        """The examples of a split."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]

    @property
    def hash(self) -> str:
        """SHA-256 of all examples."""
        parts = ("\x00".join(map("\x02".join, part)) for part in (self.train, self.validation, self.test))
        return hashlib.sha256("\x01".join(parts).encode()).hexdigest()

    def score(self, replies: Sequence[str], references: Sequence[str]) -> Estimate:
        """Score of replies against the completions that are right, with n and a 95% interval.

        Raises:
            ValueError: a task without a score, or not as many replies as references.
        """
        return self._metric()(replies, references)

    def row_parts(self, replies: Sequence[str], references: Sequence[str]) -> RowParts:
        """What every reply adds to the score above and below the line.

        Raises:
            ValueError: as `score`.
        """
        return row_parts(self._metric(), replies, references)

    def _metric(self) -> Metric:
        if self.metric is None:
            raise ValueError(_no_score(self.name))
        return self.metric


def _no_score(name: str) -> str:
    return (
        f"task {name} has no score, so nothing can stop or pick by it: give it as METRIC:FILE with one of "
        f"{', '.join(METRICS)}, as one of {', '.join(PAPER_METRICS)} (KIND:FILE), or use query-language"
    )


def downstream_task(
    spec: str,
    *,
    text: str | None = None,
    answer: str | None = None,
    n_train: int = 256,
    n_held_out: int = 96,
    seed: int = 0,
) -> DownstreamTask:
    """The task of a specification.

    Args:
        spec: `query-language`; `KIND:SOURCE` with a kind of `PAPER_METRICS`; or `METRIC:SOURCE` with one of `METRICS`
            for a source of prompts and completions. A source is a file, a folder with a file for each split, or
            `hub:owner/name[:config][:split]` (`interp.data.task_files`).
        text: column of the prompt's text in the source.
        answer: column of the completion or label in the source.
        n_train: number of generated training examples; a source is used as it is.
        n_held_out: number of generated examples each for validation and test.
        seed: seed of the generated examples, or of the cut of a file.

    Raises:
        ValueError: an unknown task, one without a score, or a source that cannot be read.
    """
    if not isinstance(spec, str):
        raise ValueError(f"a task is named by a text, such as query-language, got {type(spec).__name__}")
    if spec == "query-language":
        splits = query_splits(n_train=n_train, n_validation=n_held_out, n_test=n_held_out, seed=seed)
        return _task(spec, splits, exact_match, max_new_tokens=48)
    kind, _, source = spec.partition(":")
    if source and (kind in PAPER_METRICS or kind in METRICS):
        form = TASK_FORMATS[kind if kind in PAPER_METRICS else "examples"]
        splits = read_task(form, source, text=text, answer=answer, seed=seed)
        return _task(spec, splits, (PAPER_METRICS | METRICS)[kind], max_new_tokens=form.max_new_tokens)
    raise ValueError(_no_score(spec))


def _task(name: str, splits: ExampleSplits, metric: Metric, *, max_new_tokens: int) -> DownstreamTask:
    return DownstreamTask(
        name=name,
        train=splits.train,
        validation=splits.validation,
        test=splits.test,
        metric=metric,
        max_new_tokens=max_new_tokens,
    )


def score_model(
    model: ChatModel, task: DownstreamTask, *, split: TaskSplit = "validation", n: int | None = None
) -> Estimate:
    """Score of the model's greedy replies to the first n prompts of a split.

    What the model thinks before it answers does not count; a reply that is cut while it thinks is empty.

    Raises:
        ValueError: a task without a score (before anything is generated), or n of another size than the split allows.
    """
    task._metric()
    examples = task.split(split)
    n = len(examples) if n is None else n
    if not 1 <= n <= len(examples):
        raise ValueError(
            f"n must be in 1..{len(examples)}, the {split} examples of task {task.name}; got {n}"
        )
    done = generate(model, [e.prompt for e in examples[:n]], max_new_tokens=task.max_new_tokens)
    return task.score([answer or "" for answer in done.answers], [e.completion for e in examples[:n]])
