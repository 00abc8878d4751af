"""What is no path is refused by name, wherever a path is wanted; a store is a folder."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from interp.engine.stored_activations import opened_store
from interp.storage.activation_store import ActivationStore
from interp.storage.paths import expanded
from tests.cli.commands import refused


@pytest.mark.parametrize("wrong", [None, 5, ["runs"], b"runs"])
def test_what_is_no_path_is_refused(wrong: Any) -> None:
    with pytest.raises(
        ValueError, match=rf"a path is a text or a pathlib.Path, got {type(wrong).__name__}: "
    ):
        expanded(wrong)
    assert expanded("~/runs") == Path.home() / "runs" == expanded(Path("~/runs"))


def test_public_functions_say_that_a_path_or_a_name_is_wanted() -> None:
    """In an interpreter whose calls nothing checks, as a user's."""
    code = """
import torch, interp
from interp.detectors import LatentGuard
from interp.engine.stored_activations import opened_store
from interp.evaluation import downstream_task, read_outputs
from interp.experiments.running import experiment
from interp.models import ModelSource, convert_gguf, read_delta
from interp.storage import file_sha256, read_header, read_tensors, read_vllm_states
from interp.training import load_reward_model
direction = interp.Direction(vector=torch.ones(4), layer=1, position="-1")
calls = {
    "path": [
        interp.open_run, interp.runs, lambda x: interp.compare_runs(x, x), interp.read_activations,
        interp.read_direction, lambda x: interp.write_direction(x, direction), interp.ActivationStore,
        LatentGuard.load, interp.MachineTextDetector.load, interp.SafetyPrompt.read, interp.Trajectory.load,
        load_reward_model, read_outputs,
        read_delta, convert_gguf, read_header, read_tensors, file_sha256, lambda x: read_vllm_states(x, layers=[1]),
        lambda x: opened_store(7 if x is None else x),
        lambda x: interp.run("demo", out=7 if x is None else x, source="stored"),
    ],
    "": [experiment, interp.track, downstream_task, lambda x: ModelSource(x).check(), interp.load, interp.load_prompts],
}
for words, functions in calls.items():
    for number, function in enumerate(functions):
        for wrong in (None, 5, [5], b"x"):
            try:
                function(wrong)
            except ValueError as error:
                assert words in str(error), (words, number, wrong, error)
            else:
                raise AssertionError((words, number, wrong))
"""  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_store_that_is_a_file_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    for place in (file, file / "below"):
        with pytest.raises(ValueError, match=r"store is a folder, or s3://.*, and .*notes.txt is a file"):
            ActivationStore(place)
    asked = ("collect", "How?", "--model", tmp_path / "absent", "--out", tmp_path / "acts.safetensors")
    assert "notes.txt is a file; give another place" in refused(*asked, "--store", file)
    assert "notes.txt is a file" in refused("run", "demo", "--model", tmp_path / "absent", "--store", file)
    assert file.read_text() == "mine"
    assert opened_store("none") is None
    assert isinstance(opened_store(tmp_path / "new" / "store"), ActivationStore)
