"""KTO and ORPO beside DPO: the order of KTO's rows, what is refused, and a margin that rises."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from interp.data.examples import Preference
from interp.engine.log_probs import completion_log_probs
from interp.models.adapted_models import with_adapter
from interp.models.chat_model import ChatModel
from interp.training.config import one_pass
from interp.training.finetune import preference_tune
from interp.training.preference_trainers import rated_rows
from tests.conftest import PROMPTS

PAIRS = [Preference(text, f"no {i}", f"yes {i}") for i, text in enumerate(PROMPTS[:4])]
QUICK = one_pass(batch_size=2, learning_rate=2e-2, rank=2, seed=0, log_every=1)


@pytest.fixture(autouse=True)
def no_telemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "1")  # TRL sends nothing then


def margin(model: ChatModel) -> float:
    """Mean log-probability of the preferred completions over that of the others."""

    def total(texts: list[str]) -> float:
        ids = [list(row) for row in model.tokenizer(texts, add_special_tokens=False)["input_ids"]]  # pyright: ignore
        scores = completion_log_probs(model, [pair.prompt for pair in PAIRS], ids)
        return sum(float(score.sum()) for score in scores) / len(texts)

    return total([pair.chosen for pair in PAIRS]) - total([pair.rejected for pair in PAIRS])


def test_rated_rows_never_shift_a_completion_to_its_own_prompt() -> None:
    pairs = [Preference(f"p{i}", f"good {i}", f"bad {i}") for i in range(7)]
    rows = rated_rows(pairs, batch_size=2, seed=1)
    assert len(rows) == 14 and sum(row["label"] for row in rows) == 7
    assert {row["completion"][0]["content"] for row in rows} == {
        text for pair in pairs for text in (pair.chosen, pair.rejected)
    }
    for first in range(0, 12, 4):  # whole batches: what KTO's trainer shifts by one within
        batch = rows[first : first + 4]
        assert [row["label"] for row in batch] == [True, True, False, False]
        prompts = [row["prompt"][0]["content"] for row in batch]
        assert all(prompts[i] != prompts[i - 1] for i in range(4))
        assert all(row["completion"][0]["content"][-1] == row["prompt"][0]["content"][-1] for row in batch)
    assert rows == rated_rows(pairs, batch_size=2, seed=1) != rated_rows(pairs, batch_size=2, seed=2)


@pytest.mark.parametrize("objective", ["kto", "orpo"])
def test_the_margin_rises(tiny: ChatModel, tmp_path: Path, objective: Literal["kto", "orpo"]) -> None:
    before, weights = margin(tiny), tiny.weights_hash
    config = replace(QUICK, objective=objective, beta=0.5)
    done = preference_tune(tiny, PAIRS, out=tmp_path / "run", config=config)
    assert (
        tiny.weights_hash == weights and len(done.losses) == 2
    )  # two steps of two pairs, whatever the objective
    with with_adapter(tiny, str(done.folder)) as trained:
        assert margin(trained) > before + 0.01


def test_kto_refuses_a_batch_of_one_pair(tiny: ChatModel, tmp_path: Path) -> None:
    config = replace(QUICK, objective="kto", batch_size=1)
    with pytest.raises(ValueError, match="batch_size must be 2 or more, got 1"):
        preference_tune(tiny, PAIRS, out=tmp_path / "run", config=config)
