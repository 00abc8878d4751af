"""Which checkpoints a series has, in which order, and how they are loaded."""

import shutil
from pathlib import Path

import pytest
import torch

from interp.models.chat_model import load
from interp.tracking.checkpoints import find_checkpoints, find_series, step_unit
from interp.tracking.series import CheckpointLoader
from tests.tracking.conftest import COUNTS


def test_a_series_is_found_in_order_of_its_steps(tuned: Path, tmp_path: Path) -> None:
    for step in (1000, 20, 300):
        (tmp_path / "run" / f"checkpoint-{step}").mkdir(parents=True)
    found = find_checkpoints(tmp_path / "run")
    assert [c.step for c in found] == [20, 300, 1000] and step_unit(found) == "step"
    found = find_checkpoints(
        [tuned, "owner/model@step1000,main", "smollm2", "o/m-step-50K-105b"], base="smollm2"
    )
    assert [c.step for c in found] == [*COUNTS, 1000, None, None, 50_000]
    assert [c.label for c in found][-4:] == [
        "owner/model@step1000",
        "owner/model@main",
        "smollm2",
        "o/m-step-50K-105b",
    ]
    assert found[0].source == "smollm2" and found[0].adapter == str(tuned / "checkpoint-0")
    assert step_unit(found[:3]) == "training examples"
    twice = find_checkpoints([tuned, tuned], base="smollm2")
    assert len({c.label for c in twice}) == 6


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no checkpoints were given"):
        find_checkpoints([])
    with pytest.raises(ValueError, match=r"no such checkpoint: runs/no/where; give a folder"):
        find_checkpoints("runs/no/where")
    with pytest.raises(ValueError, match=r"is no checkpoint \(config.json\), no adapter"):
        find_checkpoints(tmp_path)
    with pytest.raises(ValueError, match="empty revision"):
        find_checkpoints("owner/model@a,,b")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="does not name its base model; give base="):
        find_checkpoints(tmp_path)


def test_a_base_that_is_no_model_or_that_nothing_needs_is_refused(
    tuned: Path, saved_tiny: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        ValueError, match=r"the base .* would not be used, as every checkpoint is a whole model"
    ):
        find_series([saved_tiny], base=str(saved_tiny))
    with pytest.raises(ValueError, match=r"no such folder or \.gguf file: .*absent"):
        find_series([tuned], base=str(tmp_path / "absent"))
    assert len(find_series([tuned, saved_tiny], base=str(saved_tiny)).checkpoints) == 1 + len(COUNTS)


def test_the_loader_holds_one_base_and_swaps_adapters(tuned: Path, saved_tiny: Path) -> None:
    loader, loaded = CheckpointLoader(), []
    found = find_checkpoints([tuned, saved_tiny], base=str(saved_tiny))
    plain = load(str(saved_tiny)).hf.state_dict()
    for checkpoint in found:
        with loader.open(checkpoint) as model:
            loaded.append(model.hf)
            other = load(checkpoint.source, adapter=checkpoint.adapter).hf.state_dict()
            assert all(torch.equal(value, other[key]) for key, value in model.hf.state_dict().items())
    assert all(hf is loaded[0] for hf in loaded)
    assert all(torch.equal(value, plain[key]) for key, value in loaded[0].state_dict().items())


def test_a_whole_model_stays_loaded_until_another_is_opened(saved_tiny: Path, tmp_path: Path) -> None:
    other = shutil.copytree(saved_tiny, tmp_path / "other")
    loader, opened = CheckpointLoader(), []
    first, second = find_checkpoints([saved_tiny, other])
    for checkpoint in (first, first, second, first):
        with loader.open(checkpoint) as model:
            opened.append(model)
    assert opened[0] is opened[1]
    assert len({id(model) for model in opened}) == 3
