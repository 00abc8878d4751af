"""Resistance on a tiny model, and its statements on planted losses."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from interp.data.prompts import load_prompts
from interp.experiments.resistance import EXPERIMENT as RESISTANCE
from interp.experiments.resistance import Config, Result, TrainedArm
from interp.experiments.resistance import run as method
from interp.experiments.resistance.figures import figures
from interp.experiments.resistance.gaps import gap, overall_gap
from interp.experiments.resistance.report import kl_table, verdicts
from interp.models.adapted_models import with_adapter
from interp.models.chat_model import ChatModel
from interp.models.tokens import tokenize
from tests.experiments.counted import assert_planned, counting

SMALL = Config(
    slices=2, slice_size=4, n_targets=8, max_new_tokens=4, seeds=2, batch_size=4, learning_rate=1e-2
)


@pytest.fixture(scope="module")
def finished(tiny: ChatModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A run that was killed in its third arm and continued."""
    out = tmp_path_factory.mktemp("resistance") / "run"
    measured: list[Path] = []
    plain = method._kl_change

    def interrupted(base: Any, start: Path, trained: Path, task: Any, answers: Any) -> float:
        measured.append(trained)
        if len(measured) == 3:
            raise KeyboardInterrupt
        return plain(base, start, trained, task, answers)

    with pytest.MonkeyPatch.context() as patch, counting("resistance", tiny):
        patch.setattr(method, "_kl_change", interrupted)
        with pytest.raises(KeyboardInterrupt):
            RESISTANCE.run(tiny, load_prompts("builtin"), SMALL, out=out)
        result = RESISTANCE.run(tiny, load_prompts("builtin"), SMALL, out=out).result
    assert len(measured) == 3 + 4 - 2  # two seeds of two arms; the two finished arms were not trained again
    return out, result


def test_every_pair_has_both_arms_and_training_lowers_their_loss(finished: tuple[Path, Result]) -> None:
    arms = finished[1].arms
    assert {(a.seed, a.pair, a.arm) for a in arms} == {
        (s, p, a) for s in (0, 1) for p in ("1-2",) for a in ("forward", "inverse")
    }
    assert np.mean([a.final - a.before for a in arms]) < 0
    for a in arms:
        assert a.excess == pytest.approx(a.final - a.self_entropy)
        assert a.change == pytest.approx(a.final - a.before)
    # The arms fit different targets, so their self-entropies differ.
    own = {a.arm: a.self_entropy for a in arms if a.seed == 0}
    assert own["forward"] != own["inverse"]


def test_the_run_is_stored_and_drawn(finished: tuple[Path, Result]) -> None:
    out, made = finished
    stored = RESISTANCE.read(out)
    assert stored.result == made
    drawn = stored.figures()
    assert [t.name for t in drawn["losses"].data] == [
        "inverse: to the earlier checkpoint", "forward: to the later checkpoint",
    ] * 2  # fmt: skip
    assert len(drawn["gaps"].data[0].x) == 2  # the pair and the mean of pairs
    assert [t.name for t in drawn["kl_change"].data] == [
        "inverse: to the earlier checkpoint",
        "forward: to the later checkpoint",
    ]
    assert drawn["kl_change"].data[1].y[0] == pytest.approx(
        np.mean([a.kl_change for a in made.arms if a.arm == "forward"])
    )
    page = (out / "report.html").read_text()
    assert "0.4568" in page and "does not define its KL change" in page
    assert "0.1719" in page or "0.172" in page
    assert "not a disposition" in page
    assert not out.with_name("run.parts").exists()


def test_the_kl_change_is_from_start_to_trained_on_the_answers_of_both(
    tiny: ChatModel, finished: tuple[Path, Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[tuple[Path, Path, list[list[str]]]] = []
    plain = method._kl_change

    def watched(base: Any, start: Path, trained: Path, task: Any, answers: Any) -> float:
        found = plain(base, start, trained, task, answers)
        measured.append((start, trained, answers))
        if len(measured) > 2:  # the first seed is enough
            return found
        assert plain(base, start, start, task, answers) == pytest.approx(0, abs=1e-4)  # control; float16
        texts = [pair for each in answers for pair in zip(task.prompts, each, strict=True)]
        logs: dict[Path, list[torch.Tensor]] = {start: [], trained: []}
        for adapter, into in logs.items():  # the definition, by plain forward passes
            with with_adapter(base, str(adapter)) as model, torch.no_grad():
                for prompt, answer in texts:
                    ids = base.tokenizer(answer, add_special_tokens=False)["input_ids"]
                    first = tokenize(base.tokenizer, [prompt]).ids[0]
                    logits = model.hf(torch.tensor([[*first, *ids]])).logits[0, len(first) - 1 : -1]
                    into.append(logits.double().log_softmax(-1))
        p, q = (torch.cat(rows) for rows in logs.values())
        expected = (p.exp() * (p - q)).sum(-1).mean().item()
        assert found == pytest.approx(expected, rel=0.02)  # float16
        return found

    monkeypatch.setattr(method, "_kl_change", watched)
    arms = RESISTANCE.run(tiny, load_prompts("builtin"), SMALL).result.arms
    assert arms == finished[1].arms  # a run that was killed in between gives the same numbers
    assert min(a.kl_change for a in arms) > 1e-3
    forward, inverse = measured[:2]
    assert [arm[1].name.split("-")[0] for arm in (forward, inverse)] == ["forward", "inverse"]
    assert forward[2] == inverse[2] and len(forward[2]) == 2  # the same tokens for both arms
    assert [arm[0].name for arm in (forward, inverse)] == ["checkpoint-4", "checkpoint-8"]


def planted(result: Result, *, pull: float, entropy: float, moved: float = 0.0) -> Result:
    """Losses with a planted excess gap, difference in the targets' entropy and in KL change, over eight seeds."""
    generator, other = np.random.default_rng(0), np.random.default_rng(1)
    arms = []
    for seed in range(8):
        for pair in ("1-2", "2-3", "1-3"):
            shared = float(generator.normal() * 0.2)
            for arm in ("forward", "inverse"):
                forward = arm == "forward"
                own = 1.0 + shared + entropy * forward
                arms.append(
                    TrainedArm(
                        seed=seed,
                        pair=pair,
                        arm=arm,
                        self_entropy=own,
                        final=own + 0.3 + pull * forward + float(0.01 * generator.normal()),
                        before=own + 0.5 + float(0.01 * generator.normal()),
                        kl_change=0.3 + shared**2 + moved * forward + float(0.01 * other.normal()),
                    )
                )
    return dataclasses.replace(result, arms=tuple(arms))


def with_arms(result: Result, change: Callable[[TrainedArm], TrainedArm]) -> Result:
    return dataclasses.replace(result, arms=tuple(change(arm) for arm in result.arms))


def test_planted_resistance_is_found_and_entropy_alone_is_not_it(finished: tuple[Path, Result]) -> None:
    pulled = planted(finished[1], pull=0.05, entropy=0.0)
    found = overall_gap(pulled, "excess")
    assert found.difference.low <= 0.05 <= found.difference.high
    assert gap(pulled, "1-3", "excess").p_value < 0.01
    said = verdicts(pulled)
    assert sum("consistent with resistance;" in line and "not con" not in line for line in said) == 2
    assert said[2].startswith("Training widened the gap between the arms: by 0.05")
    there = with_arms(
        pulled, lambda arm: dataclasses.replace(arm, before=arm.before + 0.05 * (arm.arm == "forward"))
    )
    said = verdicts(there)
    assert sum("inverse ends lower, but training did not make the gap;" in line for line in said) == 2
    assert said[2].startswith("Training did not resolvably change the gap")
    confounded = planted(finished[1], pull=0.0, entropy=0.1)
    assert overall_gap(confounded, "final").difference.positive
    assert not overall_gap(confounded, "excess").difference.positive
    assert "The gap in final loss is not there in excess loss" in verdicts(confounded)[3]


def test_a_planted_kl_change_is_said_either_way_or_not_resolved(finished: tuple[Path, Result]) -> None:
    for moved, reading in (
        (0.1, "further forward than inverse"),
        (-0.1, "further inverse than forward"),
        (0.0, "KL change: not resolved"),
    ):
        result = planted(finished[1], pull=0.0, entropy=0.0, moved=moved)
        said = verdicts(result)[-1]
        assert reading in said and "0.4568 forward, 0.2796 inverse" in said
        difference = overall_gap(result, "kl_change").difference
        assert difference.low <= moved <= difference.high
        table = kl_table(result)
        assert [row[1] for row in table.rows] == ["1-2", "2-3", "1-3", "mean of pairs", "1-2"]
        assert all(len(row) == len(table.header) for row in table.rows)
        bars = figures(result)["kl_change"].data
        assert np.mean(bars[1].y) - np.mean(bars[0].y) == pytest.approx(difference.value)


def test_wrong_settings_are_refused(tiny: ChatModel) -> None:
    with pytest.raises(ValueError, match=r"slices must be 2 or more, got 1"):
        Config(slices=1)
    with pytest.raises(ValueError, match=r"slice_size must be a multiple of batch_size = 8, got 9"):
        Config(slice_size=9)
    with pytest.raises(ValueError, match=r"3 slices of 8000 need 24000 examples, the task has \d+"):
        RESISTANCE.run(tiny, load_prompts("builtin"), Config(slice_size=8000))


def test_a_plan_counts_the_tokens_of_a_run(finished: tuple[Path, Result], saved_tiny: Path) -> None:
    assert finished[1].arms
    assert_planned("resistance", saved_tiny, SMALL)
