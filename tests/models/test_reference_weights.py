"""A second set of weights, loaded or read from a folder tensor by tensor."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from interp.models.chat_model import ChatModel, load
from interp.models.reference_weights import reference_weights
from tests.conftest import make_tokenizer, tiny_config


@pytest.fixture(scope="module")
def model(saved_tiny: Path) -> ChatModel:
    return load(saved_tiny)


@pytest.fixture
def folder(model: ChatModel, tmp_path: Path) -> Path:
    """The same model with other weights, as a folder."""
    torch.manual_seed(5)
    AutoModelForCausalLM.from_config(tiny_config()).save_pretrained(tmp_path / "other")
    model.tokenizer.save_pretrained(tmp_path / "other")
    return tmp_path / "other"


def logits(model: ChatModel) -> torch.Tensor:
    with torch.no_grad():
        return model.hf(torch.tensor([[5, 9, 40]]), output_hidden_states=True).hidden_states[2]


def test_a_folder_gives_what_the_loaded_model_gives(model: ChatModel, folder: Path) -> None:
    other, digest, before = load(folder), model.weights_hash, logits(model)
    of_folder, of_model = reference_weights(folder, model), reference_weights(other, model)
    for name, weight in model.hf.named_parameters():
        assert torch.equal(of_folder.tensor(name), of_model.tensor(name))
        assert "norm" in name or not torch.equal(of_folder.tensor(name), weight)
    memory = [weight.data_ptr() for weight in model.hf.parameters()]
    for source in (of_folder, of_model):
        with source.running(model, below=2) as running:
            assert torch.equal(logits(running), logits(other))
        with pytest.raises(KeyError), source.running(model, below=2):
            raise KeyError("stop")
    assert not torch.equal(before, logits(other))  # control
    assert [weight.data_ptr() for weight in model.hf.parameters()] == memory
    assert model.weights_hash == digest and torch.equal(logits(model), before)
    assert (of_folder.name, of_model.name) == ("other", "other")
    assert of_model.digest == other.weights_hash != of_folder.digest


def test_tensors_are_in_the_dtype_of_the_model(folder: Path, saved_tiny: Path) -> None:
    half = load(saved_tiny, dtype="bfloat16")
    name = "model.layers.0.mlp.up_proj.weight"
    found = reference_weights(folder, half).tensor(name)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, load_file(folder / "model.safetensors")[name].bfloat16())


def test_a_decoder_saved_without_its_head_has_names_without_prefix(model: ChatModel, folder: Path) -> None:
    stored = load_file(folder / "model.safetensors")
    save_file({k.removeprefix("model."): v for k, v in stored.items()}, folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(reference_weights(folder, model).tensor(name), stored[name])


def test_what_is_no_pair_or_damaged_is_named(model: ChatModel, folder: Path, tmp_path: Path) -> None:
    def spoiled(name: str) -> Path:
        return Path(shutil.copytree(folder, tmp_path / name))

    def settings(place: Path, **changes: object) -> Path:
        config = json.loads((place / "config.json").read_text())
        (place / "config.json").write_text(json.dumps({**config, **changes}))
        return place

    names = spoiled("names")
    stored = load_file(names / "model.safetensors")
    save_file({f"x.{k}": v for k, v in stored.items()}, names / "model.safetensors")
    sizes = spoiled("sizes")
    first = "model.layers.0.mlp.up_proj.weight"
    save_file({**stored, first: torch.ones(3, 32)}, sizes / "model.safetensors")
    cut = spoiled("cut")
    (cut / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])
    pickled = spoiled("pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    tokenizer = spoiled("tokenizer")
    make_tokenizer(special=("<|endoftext|>", "<|im_end|>", "<|im_start|>")).save_pretrained(tokenizer)
    for place, message in (
        (names, r"has no tensor model\..*: it is another architecture, or its tensors have other names"),
        (sizes, r"is \[64, 32\] in one and \[3, 32\] in sizes"),
        (cut, r"model.safetensors is damaged"),
        (pickled, r"has 0 files model\*.safetensors and no index; save the model as safetensors"),
        (tokenizer, "their tokenizers number 2 tokens differently"),
        (
            settings(spoiled("kind"), model_type="mistral"),
            "model_type is llama in one and mistral in the other",
        ),
        (settings(spoiled("vocab"), vocab_size=301), "vocabularies have 300 and 301 entries"),
        (
            settings(spoiled("quant"), quantization_config={"bits": 4}),
            "weights of quant are stored quantised",
        ),
        (tmp_path / "nowhere", "no checkpoint folder: .*nowhere"),
    ):
        with pytest.raises(ValueError, match=message):
            reference_weights(place, model)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rms_norm_eps": 1e-2}, "compute differently: rms_norm_eps is 1e-06 in one and 0.01 in the other"),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}},
            "compute differently: rope_parameters",
        ),
        ({"hidden_act": "gelu"}, "compute differently: hidden_act is silu in one and gelu in the other"),
    ],
)
def test_a_folder_whose_model_computes_otherwise_is_refused(
    model: ChatModel, folder: Path, changed: dict[str, object], message: str
) -> None:
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, **changed}))
    with pytest.raises(ValueError, match=message):
        reference_weights(folder, model)
    (folder / "config.json").write_text(
        json.dumps({**settings, "rms_norm_eps": 9.99999997e-07})
    )  # as GGUF has it
    assert reference_weights(folder, model).name == "other"
