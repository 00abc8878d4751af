"""The scorer of beliefs gives what the guard itself gives."""

from pathlib import Path

import pytest
from inspect_ai import Task
from inspect_ai import eval as run_inspect
from inspect_ai.model import get_model
from inspect_ai.solver import generate

from interp.data.prompts import load_prompts
from interp.detectors.inspect_beliefs import beliefs
from interp.detectors.latent_guard import LatentGuard
from interp.evaluation.inspect_tasks import prompts_dataset
from interp.models.chat_model import ChatModel


def test_beliefs_of_a_log_are_those_of_the_guard(tiny: ChatModel, tmp_path: Path) -> None:
    prompts = load_prompts(ending="period")
    guard = LatentGuard.fit(tiny, prompts, n_prompts=10, max_new_tokens=1)
    guard.save(tmp_path / "guard.safetensors")
    part = prompts["harmful", "test"].first(3)
    task = Task(
        dataset=prompts_dataset(part),
        solver=[generate()],
        scorer=beliefs(str(tmp_path / "guard.safetensors")),
    )
    model = get_model("interp/tiny", chat_model=tiny, memoize=False)
    (log,) = run_inspect(task, model=model, log_dir=str(tmp_path), display="none", max_tokens=1)
    assert log.status == "success", log.error
    ours = guard.score(tiny, part)
    for sample, score in zip(log.samples or [], ours, strict=True):
        stored = (sample.scores or {})["beliefs"]
        assert stored.value == pytest.approx(score.harmfulness, abs=1e-5) and stored.answer == score.verdict
    with pytest.raises(ValueError, match="no such guard file: absent"):
        beliefs("absent")
