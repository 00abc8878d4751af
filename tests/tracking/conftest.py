"""Fixtures of tracking: a small spec, a fine-tuning run with checkpoints, and its trajectory."""

from pathlib import Path
from typing import Any

import pytest

from interp.data.examples import Example
from interp.data.prompts import load_prompts
from interp.models.chat_model import ChatModel
from interp.tracking.spec import TrackingSpec
from interp.tracking.tracker import track
from interp.tracking.trajectory import Trajectory
from interp.training.finetune import TrainConfig, fine_tune

COUNTS = (0, 8, 16)
SMALL: dict[str, Any] = {"n": 3, "n_fit": 16, "n_documents": 2, "n_samples": 1, "max_new_tokens": 3}


@pytest.fixture(scope="session")
def spec() -> TrackingSpec:
    return TrackingSpec(**SMALL)


@pytest.fixture(scope="session")
def tuned(tiny: ChatModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tuning run with checkpoints of the tiny model."""
    prompts = load_prompts("builtin")["harmful", "train"].first(16).texts
    config = TrainConfig(
        epochs=1.0, batch_size=8, learning_rate=2e-2, schedule="constant", warmup_steps=0, rank=4
    )
    out = tmp_path_factory.mktemp("tuned") / "sft"
    fine_tune(tiny, [Example(text, "Sure!") for text in prompts], out=out, config=config, checkpoints=COUNTS)
    return out


@pytest.fixture(scope="session")
def tracked(
    tuned: Path, saved_tiny: Path, spec: TrackingSpec, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Trajectory, Path]:
    out = tmp_path_factory.mktemp("tracked") / "run"
    return track(tuned, spec, base=str(saved_tiny), out=out), out
