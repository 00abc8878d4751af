"""`interp export --to hf|peft`: folders that other tools load, and what is refused before a model is loaded."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from interp.directions import Direction
from interp.engine.applying import apply
from interp.engine.interventions import Ablate
from interp.models.chat_model import ChatModel
from interp.storage.direction_files import write_direction
from tests.cli.commands import passed, refused

IDS = torch.arange(40, 52)[None]


def direction_of(**provenance: object) -> Direction:
    vector = torch.randn(32, generator=torch.Generator().manual_seed(0))
    return Direction(vector=vector, layer=2, position="t_post_inst", provenance=provenance)


@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings:UserWarning")
def test_an_ablation_becomes_a_model_and_an_adapter(
    saved_tiny: Path, tiny: ChatModel, tmp_path: Path
) -> None:
    # The model is the one that the direction was read in.
    write_direction(tmp_path / "run" / "refusal.safetensors", direction_of(model=str(saved_tiny)))
    shown = passed("export", tmp_path / "run", "--to", "hf", "--out", tmp_path / "model")
    assert "7 parameters changed; logits differ from those under hooks by" in shown
    assert "note: input and output embeddings are stored apart" in shown
    file = write_direction(tmp_path / "bare.safetensors", direction_of())
    shown = passed("export", file, "--model", saved_tiny, "--to", "peft", "--out", tmp_path / "adapter")
    assert "note: keep it attached" in shown
    with torch.inference_mode(), apply(tiny, [Ablate(direction_of())]):
        expected = tiny.hf(IDS).logits
    with torch.inference_mode():
        assert not torch.allclose(tiny.hf(IDS).logits, expected, atol=1e-2)  # control
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
        torch.testing.assert_close(model(IDS).logits, expected, rtol=1e-3, atol=1e-3)
        base = AutoModelForCausalLM.from_pretrained(saved_tiny)
        adapted = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
        torch.testing.assert_close(adapted(IDS).logits, expected, rtol=1e-3, atol=1e-3)


def test_exports_that_cannot_be_done(saved_tiny: Path, tmp_path: Path) -> None:
    file, out = write_direction(tmp_path / "one.safetensors", direction_of()), tmp_path / "out"
    assert "does not say which model it is of; give --model" in refused(
        "export", file, "--to", "hf", "--out", out
    )
    gguf = ("export", file, "--out", tmp_path / "x.gguf", "--architecture", "llama")
    assert "--model and its options belong to --to hf and peft" in refused(*gguf, "--model", saved_tiny)
    hf = ("export", file, "--to", "hf", "--model", saved_tiny, "--out")
    assert "--coefficient belong to --to gguf, not to hf" in refused(*hf, out, "--coefficient", 2)
    assert "--architecture belong to --to gguf, not to hf" in refused(*hf, out, "--architecture", "llama")
    assert "is not empty; give a new folder" in refused(*hf, tmp_path)
    assert "is a file; give a folder" in refused(*hf, file)
    assert "use .gguf" in refused("export", file, "--to", "gguf", "--out", out)
    assert "holds the direction of layer" in refused(*gguf, "--layer", 17)
    write_direction(tmp_path / "two.safetensors", direction_of())
    line = refused("export", tmp_path, "--out", tmp_path / "x.safetensors")
    assert "a folder with several: one.safetensors, two.safetensors; name a file" in line
    assert not out.exists()
