"""Exported models and adapters are loaded by transformers and PEFT themselves, and compute what the hooks do."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from interp.directions import Direction
from interp.engine import model_exports
from interp.engine.applying import apply
from interp.engine.interventions import Ablate
from interp.engine.model_exports import save_ablated_model, save_ablation_adapter
from interp.models.chat_model import ChatModel, load
from interp.models.tokens import tokenize
from tests.conftest import PROMPTS, tiny_config
from tests.families import COVERED, build

UNTIED, TIED = "untied", "tied"


def model_of(kind: str, tokenizer: PreTrainedTokenizerFast) -> ChatModel:
    if kind in COVERED:
        return ChatModel(build(*COVERED[kind]), tokenizer, name=kind)
    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_config(tiny_config(tie_word_embeddings=kind == TIED)).float()
    return ChatModel(hf, tokenizer, name=kind)


def direction_of(**changes: Any) -> Direction:
    vector = torch.randn(32, generator=torch.Generator().manual_seed(0))
    return Direction(**{"vector": vector, "layer": 1, "position": "t_inst", **changes})


@torch.inference_mode()
def logits(hf: Any, model: ChatModel) -> torch.Tensor:
    ids = tokenize(model.tokenizer, PROMPTS[3]).ids
    return hf(input_ids=torch.tensor(ids)).logits


def hooked(model: ChatModel) -> torch.Tensor:
    with apply(model, [Ablate(direction_of())]):
        return logits(model.hf, model)


@pytest.mark.parametrize("kind", [TIED, UNTIED, "qwen2", "gpt2", "gpt_neox", "mixtral"])
def test_a_saved_model_is_the_model_under_hooks(
    kind: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = model_of(kind, tokenizer)
    before, hash_before = logits(model.hf, model), model.weights_hash
    config = model.hf.config.to_json_string()
    exported = save_ablated_model(model, direction_of(), tmp_path / "out")
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    expected = hooked(model)
    assert not torch.allclose(expected, before, atol=1e-2)  # control
    torch.testing.assert_close(logits(written, model), expected, rtol=1e-3, atol=1e-3)
    assert exported.difference < exported.tolerance
    # A second ablation changes nothing, and the model itself is as it was.
    again = load(str(tmp_path / "out"))
    with apply(again, [Ablate(direction_of())]):
        torch.testing.assert_close(logits(again.hf, model), expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(logits(model.hf, model), before) and model.weights_hash == hash_before
    assert model.hf.config.to_json_string() == config
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == tokenizer.chat_template
    record = json.loads((tmp_path / "out" / "interp_export.json").read_text())
    assert record["removed_direction"]["layer"] == 1 and record["model"]["weights_hash"] == hash_before
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["out"]


@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings:UserWarning")
@pytest.mark.parametrize("kind", [TIED, UNTIED, "qwen2"])
def test_a_saved_adapter_is_the_model_under_hooks(
    kind: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = model_of(kind, tokenizer)
    before, trainable = logits(model.hf, model), [weight.requires_grad for weight in model.hf.parameters()]
    exported = save_ablation_adapter(model, direction_of(), tmp_path / "out")
    assert torch.equal(logits(model.hf, model), before)
    assert [weight.requires_grad for weight in model.hf.parameters()] == trainable
    model.hf.save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    adapted = PeftModel.from_pretrained(base, str(tmp_path / "out")).eval()
    expected = hooked(model)
    assert not torch.allclose(expected, before, atol=1e-2)
    torch.testing.assert_close(logits(adapted, model), expected, rtol=1e-3, atol=1e-3)
    with adapted.disable_adapter():
        torch.testing.assert_close(logits(adapted, model), before)
    assert exported.n_matrices == 1 + 2 * model.n_layers  # embedding, attention and MLP output
    assert bool(exported.notes) == model.hf.config.tie_word_embeddings
    assert (tmp_path / "out" / "adapter_model.safetensors").stat().st_size < 40_000
    model.tokenizer.save_pretrained(tmp_path / "base")
    merged = load(str(tmp_path / "base"), adapter=str(tmp_path / "out"))  # takes tied embeddings apart
    torch.testing.assert_close(logits(merged.hf, model), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("gpt2", r"would leave out \d+ parameters .*first transformer.h.0.attn.c_proj.weight; .* --to hf"),
        ("gpt_neox", r"first gpt_neox.layers.0.attention.dense.bias"),
        ("mixtral", r"first model.layers.0.mlp.experts.down_proj"),
    ],
)
def test_what_an_adapter_cannot_hold_is_refused_by_name(
    kind: str, message: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        save_ablation_adapter(model_of(kind, tokenizer), direction_of(), tmp_path / "out")
    assert not any(path.is_dir() for path in tmp_path.iterdir())


def test_half_precision(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_config(tiny_config()).to(torch.bfloat16)
    model = ChatModel(hf, tokenizer, name="half")
    save_ablated_model(model, direction_of(), tmp_path / "model")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model").dtype == torch.bfloat16
    save_ablation_adapter(model, direction_of(), tmp_path / "adapter")


@pytest.mark.parametrize("save", [save_ablated_model, save_ablation_adapter])
def test_files_that_are_not_the_ablation_are_refused_and_removed(
    save: Any, tiny: ChatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(*_: Any) -> Ablate:
        return Ablate(direction_of(vector=torch.ones(32)))

    hooks = model_exports._hooked
    monkeypatch.setattr(model_exports, "_hooked", lambda model, _, ids: hooks(model, other(), ids))
    with pytest.raises(ValueError, match="the written files do not compute what the hooks do on tiny"):
        save(tiny, direction_of(), tmp_path / "out")
    assert not any(path.is_dir() for path in tmp_path.iterdir())


def test_weights_that_do_not_come_back_are_refused(
    tiny: ChatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = model_exports.load_checkpoint

    def damaged(*arguments: Any, **options: Any) -> Any:
        checkpoint = read(*arguments, **options)
        with torch.no_grad():  # an unused row, which no logits of the comparison show
            checkpoint.hf.get_parameter("model.embed_tokens.weight")[299] += 1e-6
        return checkpoint

    monkeypatch.setattr(model_exports, "load_checkpoint", damaged)
    with pytest.raises(
        ValueError, match=r"1 weights of tiny do not come back .* first model\.embed_tokens\.weight"
    ):
        save_ablated_model(tiny, direction_of(), tmp_path / "out")
    assert not any(path.is_dir() for path in tmp_path.iterdir())


def test_targets_and_directions_that_are_refused(tiny: ChatModel, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    for save in (save_ablated_model, save_ablation_adapter):
        with pytest.raises(ValueError, match="full is not empty; give a new folder"):
            save(tiny, direction_of(), tmp_path / "full")
        with pytest.raises(ValueError, match=r"notes\.txt is a file; give a folder"):
            save(tiny, direction_of(), tmp_path / "full" / "notes.txt")
        with pytest.raises(ValueError, match="the direction is zero"):
            save(tiny, direction_of(vector=torch.zeros(32)), tmp_path / "out")
        with pytest.raises(ValueError, match="direction has d_model 8"):
            save(tiny, direction_of(vector=torch.ones(8)), tmp_path / "out")
    assert (tmp_path / "full" / "notes.txt").read_text() == "mine"
