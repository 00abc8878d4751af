"""Alignment recovery: planted results are judged rightly, and a run on the tiny model is whole and can be resumed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from interp.data.prompts import load_prompts
from interp.experiments.recovery import (
    ALIGNED,
    EVERYTHING,
    EXPERIMENT,
    FINE_TUNED,
    RANDOM,
    RECOVERED,
    Config,
    plan,
)
from interp.experiments.recovery import run as method
from interp.experiments.recovery.run import plane, profiles
from interp.experiments.training_work import task_splits
from interp.models.chat_model import ChatModel, load
from interp.stats import Estimate, rate
from tests.conftest import make_tokenizer
from tests.experiments.counted import assert_planned, counting
from tests.training.recovery_pairs import pair

SMALL = Config(
    stubs=(0, 4),
    n_task_train=8,
    n_ordinary=2,
    epochs=3,
    learning_rate=1e-2,
    rank=2,
    n_recovery=4,
    rate=0.01,
    steps=4,
    warmup=2,
    save_every=2,
    batch_size=4,
    ablations=(RANDOM, EVERYTHING),
    cuts=(2 / 6,),
    rates=(0.05,),
    n_val=2,
    n_test=4,
    n_task_test=2,
    max_new_tokens=2,
)


@pytest.fixture(scope="module")
def run(tiny: ChatModel, tmp_path_factory: pytest.TempPathFactory):
    """A run in which the task always scores 0.8: the tiny model cannot learn it."""
    out = tmp_path_factory.mktemp("runs") / "recovery"
    before = tiny.weights_hash

    def score(model: ChatModel, task: Any, *, split: str, n: int) -> Estimate:  # noqa: ARG001
        return replace(rate([True] * n), value=0.8)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(method, "score_model", score)
        with counting("recovery", tiny):
            finished = EXPERIMENT.run(tiny, load_prompts(), SMALL, out=out)
    assert tiny.weights_hash == before
    return finished, out


def test_every_model_is_recovered_and_measured_at_every_saved_step(run) -> None:
    result = EXPERIMENT.read(run[1]).result
    assert result == run[0].result
    assert list(result.cases) == ["0 stubs", "4 stubs"]
    assert result.compared == "4 stubs"
    for case in result.cases.values():
        assert list(case.recovery.saved) == [0, 2, 4]
        assert case.finetuned == case.recovery.saved[0]
        assert case.recovery.picked == 4  # the score never falls
        assert case.recovery.behaviour == case.recovery.saved[4]
        assert case.recovery.share > 0
    assert set(result.ablations) == {RANDOM, EVERYTHING}
    assert result.all_steps.picked == 4 and not result.all_steps.used_rollback
    assert result.ablations[EVERYTHING].share > result.cases["4 stubs"].recovery.share
    assert list(result.cuts) == ["0.3333"]
    assert result.rates["0.05"].share > result.cases["4 stubs"].recovery.share


def test_bounds_are_measured_whatever_the_task_and_a_result_without_them_is_read(run) -> None:
    result = run[0].result
    assert result.all_below is not None and result.all_above is not None
    # The task never loses here, so that everything below the cut is picked.
    assert result.all_below.refused == result.ablations[EVERYTHING].behaviour.refused
    lines = EXPERIMENT.verdicts(result)
    assert lines[-1].startswith("Bounds on 4 stubs")
    older = replace(result, all_below=None, all_above=None)
    assert EXPERIMENT.verdicts(older) == lines[:-1]
    assert len(EXPERIMENT.table(older).rows) == len(EXPERIMENT.table(result).rows) - 2


def test_an_interrupted_run_goes_on_inside_a_recovery_with_an_equal_result(
    run, tiny: ChatModel, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[str] = []

    def score(model: ChatModel, task: Any, *, split: str, n: int) -> Estimate:  # noqa: ARG001
        scored.append(split)
        if split == "validation" and scored.count("validation") == 3:
            raise KeyboardInterrupt  # at the last saved step of the first recovery
        return replace(rate([True] * n), value=0.8)

    monkeypatch.setattr(method, "score_model", score)
    small = replace(SMALL, ablations=(), cuts=(), rates=())
    with pytest.raises(KeyboardInterrupt):
        EXPERIMENT.run(tiny, load_prompts(), small, out=tmp_path / "run")
    kept = list((tmp_path / "run.parts" / "deltas").iterdir())
    assert [path.name for path in kept] == ["0-stubs.progress.safetensors"]
    found = EXPERIMENT.run(tiny, load_prompts(), small, out=tmp_path / "run").result
    ours, theirs = found.cases["0 stubs"].recovery, run[0].result.cases["0 stubs"].recovery
    assert repr(replace(ours, seconds=0.0)) == repr(replace(theirs, seconds=0.0))


def test_the_recovered_states_are_nearer_to_the_aligned_ones(run) -> None:
    profiles = run[0].result.profiles
    cut = run[0].result.cut_layer - 1
    assert profiles[ALIGNED].harmful[cut] == pytest.approx(1.0, abs=1e-5)
    assert profiles[FINE_TUNED].task[cut] == pytest.approx(1.0, abs=1e-5)
    assert profiles[RECOVERED].harmful[cut] > profiles[FINE_TUNED].harmful[cut]


def test_profiles_and_plane_of_planted_states() -> None:
    def at(x: float, y: float) -> torch.Tensor:
        return torch.tensor([x, y]).expand(3, 2, 2) + 0.0

    read = {
        ALIGNED: {"harmful": at(2, 1), "harmless": at(1, 2), "task": at(0, 1)},
        FINE_TUNED: {"harmful": at(0, 1), "harmless": at(1, 2), "task": at(0, 1)},
        RECOVERED: {"harmful": at(2, 1), "harmless": at(1, 2), "task": at(0, 1)},
    }
    found = profiles(read)
    assert found[ALIGNED].harmful_centred == pytest.approx((1.0, 1.0))
    assert found[FINE_TUNED].harmful_centred == pytest.approx((-1.0, -1.0))  # on the other side of the centre
    assert found[RECOVERED].harmful == pytest.approx((1.0, 1.0))
    drawn = plane(read, 2)
    assert drawn.points[ALIGNED]["harmful"][0] == pytest.approx(drawn.points[RECOVERED]["harmful"][0])
    assert sum(drawn.explained) == pytest.approx(1.0)


def test_stubs_and_recovery_prompts_are_apart_and_few_prompts_are_refused() -> None:
    prompts = load_prompts()
    parts = method._training_prompts(prompts, SMALL)
    assert not set(parts["stubs"].ids) & set(parts["harmful"].ids)
    with pytest.raises(ValueError, match="lower either"):
        method._training_prompts(prompts, replace(SMALL, n_recovery=9999))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ablations": ("magic",)}, "unknown ablation 'magic'"),
        ({"stubs": (10, 0)}, "stubs must ascend"),
        ({"warmup": 30}, "warmup must be at most steps"),
        ({"rate": float("nan")}, "rate"),
    ],
)
def test_settings_are_checked(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config(**given)


def test_a_model_that_is_the_aligned_one_is_refused(tiny: ChatModel, tmp_path) -> None:
    tiny.hf.save_pretrained(tmp_path / "same")
    tiny.tokenizer.save_pretrained(tmp_path / "same")
    with pytest.raises(ValueError, match="nothing to recover"):
        EXPERIMENT.run(tiny, load_prompts(), replace(SMALL, finetuned=str(tmp_path / "same")))


def test_every_figure_and_the_page_are_drawn(run) -> None:
    figures = EXPERIMENT.figures(run[0].result)
    assert [name for name in figures if name.startswith("fig")] == [
        "fig01_steps",
        "fig02_restored_weights",
        "fig03_cosines",
        "fig04_pareto",
        "fig05_sweeps",
        "fig06_states",
    ]
    assert "Alignment, put back" in EXPERIMENT.report(run[0].result)
    assert len(EXPERIMENT.table(run[0].result).rows) == 1 + 2 * 2 + 1 + 2 + 2
    assert EXPERIMENT.verdicts(run[0].result)


@pytest.mark.usefixtures("run")
def test_a_plan_counts_the_tokens_of_a_run(saved_tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = task_splits(SMALL.task, n_train=SMALL.n_task_train, n_held_out=2)[0]
    unscored = splits._replace(validation=(), test=())  # the run is told its score
    monkeypatch.setattr(plan, "task_splits", lambda *_, **__: (unscored, 2))
    assert_planned("recovery", saved_tiny, replace(SMALL, max_task_drop=1.0))


def test_a_given_model_takes_the_template_that_was_asked_for(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, model in zip(("finetuned", "aligned"), pair(tokenizer), strict=True):
        model.hf.save_pretrained(tmp_path / name)
        make_tokenizer(template=None).save_pretrained(tmp_path / name)
    aligned = load(tmp_path / "aligned", chat_template="plain")
    monkeypatch.setattr(method, "score_model", lambda *_, **__: replace(rate([True]), value=0.8))
    given = replace(SMALL, finetuned=str(tmp_path / "finetuned"), ablations=(), cuts=(), rates=())
    result = EXPERIMENT.run(aligned, load_prompts(), given, out=tmp_path / "run").result
    assert result.cases["given model"].recovery.share > 0
