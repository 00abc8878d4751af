"""A model that was loaded by name can be loaded again elsewhere; one that changed since cannot."""

import shutil
from pathlib import Path

import pytest
import torch

from interp.models.chat_model import ChatModel, load
from interp.models.named_models import load_same, source_of


def test_the_same_model_is_loaded_again(saved_tiny: Path) -> None:
    model = load(str(saved_tiny), chat_template="plain")
    again = load_same(source_of(model), model.weights_hash)
    assert (again.weights_hash, again.template_hash) == (model.weights_hash, model.template_hash)
    with pytest.raises(ValueError, match="differ between the machines of the cluster; copy the same files"):
        load_same(source_of(model), "another hash")


def test_a_model_that_is_nowhere_else_is_refused(tiny: ChatModel, saved_tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tiny is in this process's memory alone, or was changed"):
        source_of(tiny)
    model = load(str(shutil.copytree(saved_tiny, tmp_path / "model")))
    source_of(model)  # control
    with torch.no_grad():
        model.blocks[0].attention.q_proj.weight.mul_(2)  # pyright: ignore
    with pytest.raises(ValueError, match="or was changed after it was loaded"):
        source_of(model)
