"""Stages of fine-tuning on one path, and everything measured along it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from interp.data.prompts import load_prompts
from interp.data.replies import AFFIRMATION
from interp.evaluation.refusals import is_refusal
from interp.experiments.running import open_run
from interp.experiments.trajectory import EXPERIMENT, STAGES, Config
from interp.experiments.trajectory.run import examples
from interp.models.chat_model import ChatModel
from interp.storage.typed_json import to_plain
from interp.tracking.trajectory import Trajectory
from tests.experiments.counted import assert_planned, counting
from tests.test_imports import loaded_after

SMALL = Config(counts=(8, 16), n=4, n_fit=8, n_documents=2, max_new_tokens=3, answer_tokens=4, rank=2)


def test_every_stage_continues_the_one_before_and_is_measured_against_the_aligned_model(
    tiny: ChatModel, saved_tiny: Path, tmp_path: Path
) -> None:
    before = tiny.weights_hash
    with counting("trajectory", tiny):
        made = EXPERIMENT.run(tiny, load_prompts("builtin"), SMALL, out=tmp_path / "run")
    assert_planned("trajectory", saved_tiny, SMALL)
    found = Trajectory(made.result)
    assert tiny.weights_hash == before
    labels = [checkpoint.label for checkpoint in found.checkpoints]
    assert labels == [
        *(f"1-align/checkpoint-{n}" for n in (0, 8, 16)),
        *(f"2-stubs/checkpoint-{n}" for n in (8, 16)),
    ]
    assert not found.skipped
    assert found.reference.label == "1-align/checkpoint-16"
    change: Any = found.of("weight_change")
    whole = change[change["layer"].isna()].set_index("checkpoint")["value"]
    assert whole["1-align/checkpoint-16"] == 0
    assert 0 < whole["2-stubs/checkpoint-8"] < whole["2-stubs/checkpoint-16"]  # away from where it went on
    fit: Any = found.of("bits_per_byte", "affirmations")
    fit = fit.set_index("checkpoint")["value"]
    assert fit["2-stubs/checkpoint-16"] < fit["1-align/checkpoint-16"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]  # nothing but the run is left
    stored = open_run(tmp_path / "run")
    assert stored.experiment is EXPERIMENT and stored.result.config == SMALL
    assert stored.provenance.model == made.provenance.model
    assert (
        stored.provenance.model is not None and stored.provenance.model.adapter is None
    )  # no path to what is not kept
    assert stored.provenance.model.weights_hash == before
    assert set(stored.figures()) == set(found.figures())
    assert (tmp_path / "run" / "trajectory.csv").read_text().count("\n") == len(found.frame) + 1


def test_an_aligned_model_begins_with_stubs(tiny: ChatModel, tmp_path: Path) -> None:
    config = replace(SMALL, stages=("stubs", "align"), counts=(8,))
    out = tmp_path / "run"
    first = EXPERIMENT.run(tiny, load_prompts("builtin"), config, out=out).result
    assert first.reference.label == "1-stubs/checkpoint-0"
    assert to_plain(open_run(out).result) == to_plain(first)


def test_the_two_kinds_of_examples_share_no_prompt(tiny: ChatModel) -> None:
    config = Config(counts=(48,), answer_tokens=2)
    align, stubs = (examples(tiny, load_prompts("builtin"), stage, config) for stage in STAGES)
    assert len(align) == len(stubs) == 48
    assert {e.completion for e in stubs} == {AFFIRMATION}
    refused = [e for e in align if is_refusal(e.completion)]
    assert 10 < len(refused) < 24
    assert not {e.prompt for e in align} & {e.prompt for e in stubs}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": ("align", "forget")}, "stages must be some of align, stubs, got align, forget"),
        ({"counts": (16, 8)}, "counts must ascend"),
        ({"counts": (12,)}, "multiples of batch_size = 8, got 12"),
    ],
)
def test_mistakes(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config(**changes)


def test_too_few_prompts(tiny: ChatModel) -> None:
    with pytest.raises(ValueError, match="counts go up to 100000; lower counts"):
        examples(tiny, load_prompts("builtin"), "stubs", Config(counts=(100_000,)))


def test_drawing_a_stored_path_needs_no_torch() -> None:
    code = """
from interp.experiments.running import open_run
for name in ("trajectory", "track"):
    run = open_run(f"figures/{name}")
    assert set(run.figures()) == {"trajectory", "shift", "compression", "kl", "weights"}, name
    assert run.verdicts() and "<html" in run.report()
"""
    assert loaded_after(code, "torch", "transformers") == set()
