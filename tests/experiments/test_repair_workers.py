"""The repair scoreboard over workers: the result of one process to the bit, and no stage is computed twice."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from interp.data.prompts import load_prompts
from interp.engine.ray_cluster import Workers
from interp.evaluation.downstream_tasks import DownstreamTask, downstream_task
from interp.experiments.repair import (
    ALIGNED,
    ALL_STEPS,
    EXPERIMENT,
    FAMILIES,
    Result,
    repairs,
    shared_rows,
)
from interp.experiments.repair import run as repair_run
from interp.experiments.repair.shared_rows import GROUPS, Rows
from interp.experiments.repair.trials import Measured, trial_stage
from interp.models.chat_model import ChatModel, load
from interp.stats import Estimate, rate
from interp.storage.stages import StageCache
from interp.training import runner
from tests.experiments.test_repair import TINY
from tests.two_nodes import TwoNodes

SHARED = replace(
    TINY,
    repairs=("system prompt", "fine-tuned on refusals", ALL_STEPS),
    attacked=(ALIGNED, ALL_STEPS, "system prompt"),
    attack_poison=(0.5,),
    n_test=2,
    n_borderline=2,
    seeds=2,
)
PROMPTS = load_prompts()
STAGES = 20
"""Ordinary replies, seven rows at the first seed, six at the second, and three rows before and after one attack."""


def measured(result: Result) -> list[object]:
    """All of a result but times and provenance; as text, since NaN differs from itself."""
    trials = {
        name: [replace(trial, seconds=0.0, extra_milliseconds=0.0) for trial in trials]
        for name, trials in result.trials.items()
    }
    rows = {name: replace(row, minutes=0.0, extra_milliseconds=0.0) for name, row in result.rows.items()}
    return [str(each) for each in (result.config, result.n, rows, trials, result.attacks)]


@pytest.fixture(scope="module")
def model(saved_tiny: Path) -> ChatModel:
    return load(str(saved_tiny))


@pytest.fixture(scope="module", autouse=True)
def easy_task() -> Iterator[None]:
    """The downstream task, of which the tiny model can say two tokens and is right with any other than the answer."""

    def easy(*given: Any, **n: Any) -> DownstreamTask:
        def metric(replies: Sequence[str], references: Sequence[str]) -> Estimate:
            return rate([reply != wanted for reply, wanted in zip(replies, references, strict=True)])

        return replace(downstream_task(*given, **n), max_new_tokens=2, metric=metric)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repair_run, "downstream_task", easy)  # workers are sent the task
        yield


@pytest.fixture(scope="module")
def alone(model: ChatModel) -> Result:
    """The run of one process."""
    return EXPERIMENT.run(model, PROMPTS, SHARED).result


class Watched:
    """Names of the stages that this process stores, which a run may be killed after, and of what it trains."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.stored, self.trained, self.killed_after = list[str](), list[str](), 10**6
        put, train = StageCache.put, runner._train

        def stored(cache: StageCache, name: str, *rest: object) -> None:
            put(cache, name, *rest)
            self.stored.append(name)
            if len(self.stored) == self.killed_after:
                raise KeyboardInterrupt

        def trained(model: ChatModel, examples: Any, make: Any, out: Path, *rest: Any) -> dict[str, Any]:
            self.trained.append(out.name)
            return train(model, examples, make, out, *rest)

        patch.setattr(StageCache, "put", stored)
        patch.setattr(runner, "_train", trained)

    def killed(self, after: int, run: Callable[[], object]) -> None:
        """Kill a run after so many stages."""
        self.killed_after = len(self.stored) + after
        with pytest.raises(KeyboardInterrupt):
            run()


def test_every_row_is_in_one_part() -> None:
    assert sorted(name for group in GROUPS for name in group) == sorted(FAMILIES)


def test_a_model_in_memory_cannot_be_sent_to_workers(tiny: ChatModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^tiny is in this process's memory alone, or was changed"):
        EXPERIMENT.run(tiny, PROMPTS, SHARED, workers=Workers(count=2), out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_run_continues_with_parts_and_without(
    model: ChatModel, alone: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched, parts, out, other = Watched(monkeypatch), list[Rows](), tmp_path / "out", tmp_path / "other"
    compute = shared_rows._measured

    def computed(worker: Any, part: Rows, **adapters: Any) -> Any:
        parts.append(part)
        return compute(worker, part, **adapters)

    def run(out: Path, method: Callable[..., Measured]) -> Result:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(repair_run, "_measured", method)
            return EXPERIMENT.run(model, PROMPTS, SHARED, out=out).result

    monkeypatch.setattr(shared_rows, "_measured", computed)
    here = repair_run._measured
    by_parts = shared_rows.shared_rows  # without workers this process computes them
    watched.killed(5, lambda: run(out, here))
    assert watched.trained.count("broken") == 1 and trial_stage(0, ALIGNED) in watched.stored
    watched.killed(STAGES - 6, lambda: run(out, by_parts))
    assert watched.trained.count("broken") == 2  # once a seed
    shutil.copytree(f"{out}.parts", f"{other}.parts")

    watched.trained.clear()
    parts.clear()
    assert measured(run(other, by_parts)) == measured(alone)
    assert parts == [Rows(1, ("system prompt",), ())] and not watched.trained
    assert watched.stored.pop() == trial_stage(1, "system prompt")

    monkeypatch.setattr(repairs, "recover", None)  # all that is made of it is stored
    assert measured(run(out, here)) == measured(alone)
    assert not watched.trained
    assert len(watched.stored) == len(set(watched.stored)) == STAGES


@pytest.mark.checkpoint
def test_rows_over_two_nodes_give_the_result_of_one_process(
    model: ChatModel, alone: Result, tmp_path: Path, nodes: TwoNodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched, workers = Watched(monkeypatch), Workers(address=nodes.address)
    out, other = tmp_path / "out", tmp_path / "other"
    watched.killed(8, lambda: EXPERIMENT.run(model, PROMPTS, SHARED, workers=workers, out=out))
    shutil.copytree(f"{out}.parts", f"{other}.parts")
    begun = list(watched.stored)
    shared = EXPERIMENT.run(model, PROMPTS, SHARED, workers=workers, out=out).result
    assert not watched.trained  # here
    assert measured(shared) == measured(alone)
    assert len(watched.stored) == len(set(watched.stored)) == STAGES
    watched.stored[:] = begun
    without = EXPERIMENT.run(model, PROMPTS, SHARED, out=other).result
    assert "broken" not in watched.trained
    assert measured(without) == measured(alone)
    assert len(watched.stored) == len(set(watched.stored)) == STAGES
    assert not out.with_name("out.parts").exists()
