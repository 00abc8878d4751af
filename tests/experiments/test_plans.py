"""Plans against the runs that they plan: stored ones by their seconds, and the tokens that the engine runs."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from interp.data.prompts import load_prompts
from interp.engine.costs import MachineSpeed
from interp.engine.prefix_trees import pack
from interp.experiments import EXPERIMENTS
from interp.experiments.plans import planned, with_plans
from interp.experiments.sizes import Sizes, as_part, common_prefix, distinct, prefilled
from interp.models.chat_model import ChatModel
from interp.models.model_sizes import ModelSize
from interp.models.sources import ModelSource
from interp.models.token_counts import TokenCounter
from interp.models.tokens import tokenize
from tests.conftest import PROMPTS, prompts_of

FIGURES = Path(__file__).parents[2] / "figures"
TWO_CORES = MachineSpeed(reading=90e9, decoding=45e9, training=80e9)
"""One set of speeds for all stored runs of the bundled model: that of docs/scaling.md."""
STORED = [
    "demo",
    "guard",
    "refusal-direction",
    "harmfulness",
    "method-elasticity",
    "rebound",
    "recovery",
    "repair",
]
"""Some of the stored runs of the bundled model; docs/scaling.md has all of them."""
OLD_STAGES = ("rebound",)
"""Stored before their stages had the names of today."""


def stored(name: str) -> dict[str, Any]:
    return json.loads(gzip.decompress((FIGURES / name / "result.json.gz").read_bytes()))


@pytest.mark.parametrize("name", STORED)
def test_one_set_of_speeds_gives_the_seconds_of_stored_runs(name: str) -> None:
    run = stored(name)
    source = ModelSource(run["provenance"]["model"]["model"])
    plan = planned(run["experiment"], model=source, settings=run["config"], speed=TWO_CORES)
    assert 1 / 1.5 < sum(plan.seconds.values()) / run["seconds"]["total"] < 1.5
    if name not in OLD_STAGES:
        assert set(plan.seconds) <= set(run["seconds"])  # the stages have the names that the run has
    assert plan.size.weights == 134_479_872


def test_a_series_is_planned_by_its_checkpoints_and_takes_what_the_stored_one_took() -> None:
    run = stored("track")
    source, settings = ModelSource("smollm2"), {**run["settings"], "checkpoints": len(run["checkpoints"])}
    plan = planned("track", model=source, settings=settings, speed=TWO_CORES)
    assert 1 / 1.5 < sum(plan.seconds.values()) / run["seconds"]["total"] < 1.5
    half = planned("track", model=source, settings={**settings, "checkpoints": 6}, speed=TWO_CORES)
    assert plan.seconds["checkpoints"] == pytest.approx(2 * half.seconds["checkpoints"])
    assert plan.seconds["reference"] == half.seconds["reference"] > 0
    few = planned("track", model=source, settings={"measures": ("weights",)}, speed=TWO_CORES)
    assert few.seconds["checkpoints"] == 0  # no pass at all
    with pytest.raises(ValueError, match="no plan for the measures knowledge; leave them out"):
        planned("track", model=source, settings={"measures": ("knowledge",)}, speed=TWO_CORES)


def test_tokens_are_those_that_the_engine_runs(saved_tiny: Path, tiny: ChatModel) -> None:
    source = ModelSource(str(saved_tiny))
    sizes = Sizes(
        ModelSize.from_config(tiny.hf.config.to_dict()),
        TokenCounter.read(saved_tiny, source),
        load_prompts("builtin"),
    )
    part = prompts_of(PROMPTS)
    tokens = tokenize(tiny.tokenizer, PROMPTS)
    nodes = {tuple(ids[:end]) for ids in tokens.ids for end in range(1, len(ids) + 1)}
    assert sizes.read(part).read_tokens == len(nodes)
    assert sizes.read(part, roles=3).held_numbers == len(PROMPTS) * 3 * 3 * 32
    replies = sizes.replies(part, 5, arms=2)
    assert (replies.decoded_tokens, replies.decoding_steps) == (len(PROMPTS) * 2 * 4, 2 * 4)
    shared = common_prefix(tokens.ids)
    lengths = [len(ids) for ids in tokens.ids]
    assert replies.read_tokens == 2 * (shared + sum(length - shared for length in lengths))
    assert sizes.scored(part, 7).read_tokens == sum(lengths) + 7  # whole prompts
    ends = [1] * len(PROMPTS)
    n_nodes = len(pack(tokens.ids).ids)
    assert sizes.ended(part, ends).read_tokens == n_nodes + 2 * len(PROMPTS)
    twice = as_part([*PROMPTS, *PROMPTS])  # the second reply to a prompt runs no prompt
    assert sizes.ended(twice, [*ends, *ends]).read_tokens == n_nodes + 4 * len(PROMPTS)
    assert sizes.replies(part, 5, arms=2, together=True).decoding_steps == 4
    assert sizes.replies(part.first(0), 5).decoded_tokens == 0


def test_what_prompts_begin_with_alike_is_prefilled_once() -> None:
    rows = [(1, 2, 3, row) for row in range(100)] * 2
    few = [*rows[:10], (1, 2, 5)]
    assert prefilled(few) == 2 + 10 * 2 + 1  # after what all begin with
    assert prefilled([rows[0]]) == 4
    assert prefilled([rows[0]] * 2) == 3 + 2  # every prompt runs its last token
    assert prefilled(rows[:100]) == 3 + 100  # many run packed
    assert prefilled(rows) == 2 * (3 + 100)  # 100 decode together


def test_distinct_beginnings_count_once() -> None:
    rows = [(1, 2, 3), (1, 2), (1, 2, 3), (1, 4), (5,)]
    assert distinct(rows) == len({row[:end] for row in rows for end in range(1, len(row) + 1)}) == 5
    assert common_prefix(rows[:4]) == 1
    assert common_prefix(rows) == 0
    assert distinct([]) == 0


def test_more_work_takes_more(saved_tiny: Path) -> None:
    def seconds(name: str, **settings: object) -> float:
        plan = planned(name, model=ModelSource(str(saved_tiny)), settings=settings, speed=TWO_CORES)
        return sum(plan.seconds.values())

    assert seconds("demo", n_test=60) > seconds("demo", n_test=20) > 0
    assert seconds("refusal-direction", sweep="exhaustive") > seconds("refusal-direction")
    assert seconds("harmfulness", least_gap=0.0) > 1.1 * seconds("harmfulness")
    assert seconds("guard", n_wrapped=0) < seconds("guard")
    assert seconds("endings", sets=("builtin",)) > seconds("endings") > 0
    assert seconds("collect") > 0


def test_what_has_no_plan_is_refused_by_name(saved_tiny: Path) -> None:
    model = ModelSource(str(saved_tiny))
    with pytest.raises(
        ValueError, match=r"no plan for elasticity-theory: it needs neither .* collect, demo, "
    ):
        planned("elasticity-theory", model=model, speed=TWO_CORES)
    with pytest.raises(ValueError, match=r"no plan for a search for suffixes .*; set n_found to 0"):
        planned("jailbreaks", model=model, settings={"n_found": 1}, speed=TWO_CORES)
    with pytest.raises(ValueError, match="unknown experiment 'nothing'"):
        planned("nothing", model=model, speed=TWO_CORES)
    with pytest.raises(ValueError, match="collect has no setting 'n'"):
        planned("collect", model=model, settings={"n": 1}, speed=TWO_CORES)
    assert set(EXPERIMENTS) - set(with_plans()) == {"elasticity-theory"}  # it runs no chat model


def test_the_disk_of_a_collection_is_that_of_its_numbers(saved_tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS))
    plan = planned(
        "collect",
        model=ModelSource(str(saved_tiny)),
        prompts=str(path),
        settings={"roles": 2, "layers": 2},
        speed=TWO_CORES,
    )
    assert plan.work.stored_bytes == len(PROMPTS) * 2 * 2 * 32 * 4
    assert plan.memory_bytes > plan.work.stored_bytes
