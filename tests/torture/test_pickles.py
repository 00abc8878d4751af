"""Pickled code in every file that a command reads: it is never run, and the refusal is one line."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from tests.cli.commands import refused
from tests.storage.test_direction_files import Trap

pytestmark = pytest.mark.torture


@pytest.fixture
def trap(tmp_path: Path) -> tuple[bytes, Path]:
    """A pickle that makes a file when it is read, and that file."""
    marker = tmp_path / "was-here"
    return pickle.dumps(Trap(marker)), marker


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("d.pt", ["steer", "Hi", "-d", "{path}", "--model", "{model}"]),
        ("d.pt", ["export", "{path}", "--out", "x.gguf", "--architecture", "llama"]),
        ("d.safetensors", ["steer", "Hi", "-d", "{path}", "--model", "{model}"]),
        ("g.safetensors", ["guard", "score", "{path}", "Hi"]),
        ("prompts.parquet", ["collect", "{path}", "--model", "{model}", "--out", "x.safetensors"]),
        ("prompts.jsonl", ["collect", "{path}", "--model", "{model}", "--out", "x.safetensors"]),
        ("result.json", ["plot", "{folder}"]),
        ("change.delta", ["tokens", "Hi", "--model", "{model}", "--delta", "{path}"]),
    ],
)
def test_a_pickle_by_another_name_is_not_run(
    name: str, words: list[str], trap: tuple[bytes, Path], saved_tiny: Path, tmp_path: Path
) -> None:
    data, marker = trap
    path = tmp_path / "files" / name
    path.parent.mkdir()
    path.write_bytes(data)
    refused(*(word.format(path=path, folder=path.parent, model=saved_tiny) for word in words))
    assert not marker.exists()


@pytest.mark.filterwarnings("ignore")
def test_pickled_weights_of_a_checkpoint_are_not_run(
    trap: tuple[bytes, Path], saved_tiny: Path, tmp_path: Path
) -> None:
    _, marker = trap
    folder = tmp_path / "model"
    shutil.copytree(saved_tiny, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save({"x": Trap(marker)}, folder / "pytorch_model.bin")
    assert "cannot load the checkpoint" in refused("tokens", "Hi", "--model", folder)
    assert not marker.exists()
    torch.load(folder / "pytorch_model.bin", weights_only=False)  # control: the trap is one
    assert marker.exists()


def test_code_of_a_checkpoint_is_not_run(saved_tiny: Path, tmp_path: Path) -> None:
    folder, marker = tmp_path / "model", tmp_path / "was-here"
    shutil.copytree(saved_tiny, folder)
    (folder / "modeling_own.py").write_text(f"from pathlib import Path\nPath({str(marker)!r}).touch()\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "own",
        "auto_map": {"AutoConfig": "modeling_own.C", "AutoModelForCausalLM": "modeling_own.M"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    refused("steer", "Hi", "-d", "absent.safetensors", "--model", folder)
    refused("collect", "Hi", "--model", folder, "--out", tmp_path / "a.safetensors")
    assert not marker.exists()
