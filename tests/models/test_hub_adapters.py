"""Adapters by a Hub id, read from the local cache of the Hub."""

import copy
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig

from interp.models.adapted_models import with_adapter
from interp.models.adapters import adapter_named
from interp.models.chat_model import ChatModel
from interp.training.weight_repairs import weights_of, weights_with_adapter
from tests.models.test_adapter_merging import train

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cached(tiny: ChatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an adapter, the same as `someone/adapter` in the cache, and `someone/model` beside it."""
    settings = LoraConfig(task_type="CAUSAL_LM", target_modules=["down_proj"], r=2)
    train(copy.deepcopy(tiny.hf), settings, tmp_path / "adapter")
    cache = tmp_path / "hub"
    for name, file in (("adapter", None), ("model", "config.json")):
        place = cache / f"models--someone--{name}"
        snapshot = place / "snapshots" / COMMIT
        if file is None:
            shutil.copytree(tmp_path / "adapter", snapshot)
        else:
            snapshot.mkdir(parents=True)
            (snapshot / file).write_text("{}")
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "adapter"


def test_a_hub_id_of_an_adapter_is_told_from_that_of_a_model(cached: Path) -> None:
    assert adapter_named(str(cached)) == str(cached)
    assert adapter_named("someone/adapter") == "someone/adapter"
    for other in ("someone/model", "someone/unknown", "smollm2", "a/b/c", str(cached.parent)):
        assert adapter_named(other) is None


def test_an_adapter_by_its_hub_id_gives_the_weights_of_its_folder(cached: Path, tiny: ChatModel) -> None:
    from_folder, from_hub = (weights_with_adapter(tiny, name) for name in (str(cached), "someone/adapter"))
    assert all(torch.equal(from_folder[name], from_hub[name]) for name in from_folder)
    assert any(not torch.equal(from_hub[name], value) for name, value in weights_of(tiny).items())
    with with_adapter(tiny, "someone/adapter") as adapted:
        assert adapted.adapter == "someone/adapter"
