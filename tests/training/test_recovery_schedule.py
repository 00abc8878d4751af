"""The schedule of a recovery: what the task score decides, and that an interrupted one goes on where it was."""

import math
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from interp.models.chat_model import ChatModel
from interp.stats import Estimate
from interp.training.recovery import Recovered, RecoveryConfig, pick_step
from tests.storage.test_run_folders import small_disk
from tests.training.recovery_pairs import CONFIG, Pair, Scores, run, weights


def test_a_failed_warm_up_is_thrown_away_and_every_step_rolls_back(
    both: Pair,
) -> None:
    finetuned, aligned = both
    fine = run(finetuned, aligned, score=Scores(1.0, 0.95, 0.96, 0.97))  # at the floor is not below it
    assert not fine.used_rollback and fine.discarded == () and fine.floor == pytest.approx(0.95)
    assert [step.step for step in fine.steps] == [0, 1, 2, 3, 4]
    assert [step.n_returned for step in fine.steps] == [0] * 5
    assert [s.task_score is not None for s in fine.steps] == [True, False, True, False, True]
    assert [math.isfinite(s.harmful_cosine) for s in fine.steps] == [True, False, True, False, True]
    rolled = run(finetuned, aligned, score=Scores(1.0, 0.94, 0.96, 0.97))
    assert rolled.used_rollback and [step.step for step in rolled.discarded] == [1, 2]
    assert [step.step for step in rolled.steps] == [0, 1, 2, 3, 4] and rolled.picked_step == 4
    assert all(step.n_returned > 0 for step in rolled.steps[1:])
    assert rolled.steps[1].loss == pytest.approx(rolled.discarded[0].loss, abs=1e-6)  # from the start again
    assert rolled.delta.n_changed < fine.steps[-1].n_aligned


def test_the_picked_step_is_the_last_before_the_first_at_or_below_the_floor(
    both: Pair,
) -> None:
    def scores(*values: float) -> dict[int, Estimate]:
        return {5 * (i + 1): Estimate(value=value, n=1) for i, value in enumerate(values)}

    assert pick_step(scores(1.0, 0.99, 0.98, 0.97), 0.95) == 20
    assert pick_step(scores(1.0, 0.95, 1.0, 1.0), 0.95) == 5  # later ones do not count
    assert pick_step(scores(0.9, 1.0), 0.95) == 0
    finetuned, aligned = both
    config = replace(CONFIG, steps=6)
    recovered = run(finetuned, aligned, config, Scores(1.0, 1.0, 0.9, 1.0))
    assert recovered.picked_step == 2
    assert recovered.delta.n_changed == recovered.steps[2].n_aligned < recovered.steps[6].n_aligned
    nothing = run(finetuned, aligned, config, Scores(1.0, 0.5))
    assert nothing.picked_step == 0 and nothing.delta.n_changed == 0
    assert nothing.delta.result_hash == finetuned.weights_hash
    every = run(finetuned, aligned, replace(config, max_task_drop=1.0), Scores(1.0, 0.5, 0.1, 0.0))
    assert every.picked_step == 6 and not every.used_rollback and every.floor == -math.inf


@pytest.fixture
def _one_thread() -> Iterator[None]:
    """A forked process must not use threads of its parent's pool; so that both compute alike, the parent uses none."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Interrupted:
    """A task score of these numbers that ends its process, or raises, at one of its calls."""

    def __init__(self, scores: Scores, *, at: int, kill: bool = False) -> None:
        self.scores, self._at, self._kill = scores, at, kill

    def __call__(self, model: ChatModel) -> Estimate:
        if self.scores.calls == self._at:
            if self._kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyboardInterrupt
        return self.scores(model)


def same(one: Recovered, other: Recovered) -> None:
    """Two recoveries are equal in every number and weight."""
    assert one.delta.result_hash == other.delta.result_hash
    # By their text, since NaN is not equal to itself.
    assert repr((one.steps, one.discarded)) == repr((other.steps, other.discarded))
    assert (one.picked_step, one.used_rollback, one.floor) == (
        other.picked_step,
        other.used_rollback,
        other.floor,
    )
    assert one.saved.keys() == other.saved.keys()
    for step, places in one.saved.items():
        assert places.keys() == other.saved[step].keys()
        assert all(torch.equal(places[name], other.saved[step][name]) for name in places)


SCORES = {
    "without rollback": (1.0, 0.99, 0.98, 0.97, 0.96),
    "with rollback": (1.0, 0.1, 0.99, 0.98, 0.97),
}


@pytest.mark.parametrize(
    ("kind", "accumulate", "calls"),
    [
        ("without rollback", "released", (0, 2, 3)),
        ("without rollback", "cleared", (3,)),
        ("with rollback", "released", (1, 2, 4)),
    ],
)
def test_an_interrupted_recovery_goes_on_from_its_last_saved_step(
    both: Pair, tmp_path: Path, kind: str, accumulate: Any, calls: tuple[int, ...]
) -> None:
    finetuned, aligned = both
    config = replace(CONFIG, steps=6, accumulate=accumulate)
    expected = run(finetuned, aligned, config, Scores(*SCORES[kind]))
    assert expected.used_rollback == (kind == "with rollback")
    digest = finetuned.weights_hash
    for at in calls:
        file, scores = tmp_path / f"{at}.safetensors", Scores(*SCORES[kind])
        with pytest.raises(KeyboardInterrupt):
            run(finetuned, aligned, config, Interrupted(scores, at=at), resume=file)
        assert finetuned.weights_hash == digest and scores.calls == at
        same(run(finetuned, aligned, config, scores, resume=file), expected)
        assert scores.calls == len(expected.saved) + expected.used_rollback  # none was asked for twice
    again, file = Scores(5.0), tmp_path / f"{calls[-1]}.safetensors"
    same(run(finetuned, aligned, config, again, resume=file), expected)  # read from the file
    assert again.calls == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
@pytest.mark.usefixtures("_one_thread")
def test_a_killed_recovery_goes_on_and_gives_what_one_left_alone_gives(both: Pair, tmp_path: Path) -> None:
    (finetuned, aligned), config = both, replace(CONFIG, steps=6)
    file, scores = tmp_path / "progress.safetensors", SCORES["without rollback"]
    if (child := os.fork()) == 0:
        torch.set_num_threads(1)
        try:
            run(
                finetuned,
                aligned,
                replace(CONFIG, steps=6),
                Interrupted(Scores(*scores), at=3, kill=True),
                resume=file,
            )
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == ["progress.safetensors"]
    left = Scores(*scores[3:])
    found = run(finetuned, aligned, config, left, resume=file)
    assert left.calls == 1  # the fine-tuned model and steps 2 and 4 were scored before
    same(found, run(finetuned, aligned, config, Scores(*scores)))


def test_another_recovery_and_a_damaged_file_are_not_gone_on_with(
    both: Pair, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    finetuned, aligned = both
    file = tmp_path / "progress.safetensors"
    first = run(finetuned, aligned, resume=file)
    other = run(finetuned, aligned, replace(CONFIG, rate=0.02), resume=file)
    assert "holds a recovery of other models, prompts or settings; starting again" in caplog.text
    assert other.delta.n_changed > first.delta.n_changed
    content = bytearray(file.read_bytes())
    content[-10] ^= 255
    file.write_bytes(content)
    same(run(finetuned, aligned, replace(CONFIG, rate=0.02), resume=file), other)
    assert "is damaged" in caplog.text


def test_a_full_disk_is_an_error_that_leaves_the_older_file_and_the_weights(
    both: Pair, tmp_path: Path
) -> None:
    finetuned, aligned = both
    file, digest = tmp_path / "progress.safetensors", finetuned.weights_hash
    with pytest.raises(KeyboardInterrupt):
        run(finetuned, aligned, CONFIG, Interrupted(Scores(1.0), at=1), resume=file)
    before = file.read_bytes()
    with (
        small_disk(len(before) + 100),
        pytest.raises(OSError, match=r"cannot write .*progress.safetensors"),
    ):
        run(finetuned, aligned, resume=file)
    assert [path.name for path in tmp_path.iterdir()] == [file.name] and file.read_bytes() == before
    assert finetuned.weights_hash == digest
    same(run(finetuned, aligned, resume=file), run(finetuned, aligned))


def test_every_saved_step_gives_its_weights(both: Pair) -> None:
    finetuned, aligned = both
    seen: list[dict[str, torch.Tensor]] = []

    def score(model: ChatModel) -> float:
        seen.append(weights(model))
        return 1.0

    recovered = run(finetuned, aligned, RecoveryConfig(**{**vars(CONFIG), "steps": 4}), score)
    assert list(recovered.saved) == [0, 2, 4]
    for step, expected in zip(recovered.saved, seen, strict=True):
        changed = recovered.weights_at(step, weights(finetuned), weights(aligned))
        assert bool(changed) == (step > 0)
        for name, value in (weights(finetuned) | changed).items():
            assert torch.equal(value, expected[name])
    with pytest.raises(ValueError, match="step 3 was not saved; saved are 0, 2, 4"):
        recovered.weights_at(3, weights(finetuned), weights(aligned))
