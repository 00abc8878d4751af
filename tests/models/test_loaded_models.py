"""`interp.load` of a model that the user has loaded already, and what it refuses in one line."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import interp
from interp.models.adapted_models import with_adapter
from interp.models.chat_model import load
from tests.conftest import PROMPTS
from tests.models.test_loading import make_adapter


@pytest.fixture
def hf(saved_tiny: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(saved_tiny, dtype=torch.float32)


@pytest.fixture
def own_tokenizer(saved_tiny: Path) -> Any:
    return AutoTokenizer.from_pretrained(saved_tiny)


def state(model: Any) -> tuple[Any, ...]:
    """Everything of a model that must stay: weights, flags, modes, hooks, forwards, configuration."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    modules = [
        (
            name,
            module.training,
            list(module._forward_hooks.values()),
            list(module._forward_pre_hooks.values()),
            "forward" in vars(module),
        )
        for name, module in model.named_modules()
    ]
    weights = [
        (name, id(weight), weight.dtype, weight.device, weight.requires_grad)
        for name, weight in model.named_parameters()
    ]
    return digest.hexdigest(), modules, weights, model.config.to_dict(), model.dtype


def use(model: Any, adapter: Path) -> None:
    interp.collect(model, PROMPTS[:2])
    interp.collect(model, PROMPTS[:2], fast=False)
    direction = torch.ones(model.d_model)
    interp.generate(model, PROMPTS[:2], interventions=[interp.Ablate(direction)], max_new_tokens=2)
    with with_adapter(model, str(adapter)) as tuned:
        interp.collect(tuned, PROMPTS[:1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_model_stays_as_it_was(
    dtype: torch.dtype, hf: Any, own_tokenizer: Any, saved_tiny: Path, tmp_path: Path
) -> None:
    make_adapter(tmp_path / "adapter", AutoModelForCausalLM.from_pretrained(saved_tiny))
    hf.to(dtype).train()
    hf.model.layers[1].eval()
    hf.model.layers[0].mlp.requires_grad_(False)
    calls: list[int] = []
    hf.model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    hf.model.layers[2].self_attn.register_forward_pre_hook(lambda *_: calls.append(2))
    template, before = own_tokenizer.chat_template, state(hf)
    model = load(hf, tokenizer=own_tokenizer, chat_template="plain")
    use(model, tmp_path / "adapter")
    assert state(hf) == before
    assert calls == []  # the user's hooks are for the user's passes
    assert own_tokenizer.chat_template == template
    assert model.dtype == dtype and not model.hf.training
    ids = torch.tensor([[1, 2, 3]])
    hf.eval()(ids)
    assert calls == [1, 2]  # control: they still act there


def test_it_computes_what_the_checkpoint_computes(hf: Any, own_tokenizer: Any, saved_tiny: Path) -> None:
    model, stored = load(hf, tokenizer=own_tokenizer), load(str(saved_tiny))
    a, b = (interp.collect(m, PROMPTS)["resid_pre"] for m in (model, stored))
    assert torch.equal(a, b)
    assert model.weights_hash == stored.weights_hash
    before = model.weights_hash
    with torch.no_grad():
        hf.model.norm.weight.add_(1.0)
    assert model.weights_hash != before  # weights are shared, so a training step is seen


def test_what_belongs_to_loading_is_refused(
    hf: Any, own_tokenizer: Any, saved_tiny: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="needs tokenizer="):
        load(hf)
    with pytest.raises(ValueError, match=r"dtype, device belong to loading a checkpoint"):
        load(hf, tokenizer=own_tokenizer, dtype="float32", device="cpu")
    with pytest.raises(ValueError, match="tokenizer= belongs to a model that is loaded already"):
        load(str(saved_tiny), tokenizer=own_tokenizer)
    with pytest.raises(ValueError, match=r"got PeftModelForCausalLM; merge its adapter first"):
        load(make_adapter(tmp_path / "a", hf), tokenizer=own_tokenizer)


def test_dtype_and_device_are_refused_in_one_line(saved_tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"dtype must be float32, bfloat16, float16, got 'bf17'"):
        load(str(saved_tiny), dtype="bf17")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"device 'cuda' is not there: this machine has 0 CUDA devices"):
        load(str(saved_tiny), device="cuda")
    with pytest.raises(ValueError, match=r"unknown device 'gpu'"):
        load(str(saved_tiny), device="gpu")
    for device in ("mps", "xpu", "vulkan"):  # names that torch knows, of devices that this machine lacks
        with pytest.raises(ValueError, match=rf"device '{device}' is not there, .*; give device='cpu'"):
            load(str(saved_tiny), device=device)


def test_a_device_in_any_form_is_that_device(saved_tiny: Path, tmp_path: Path) -> None:
    """`cpu:0` and torch.device('cpu') kept the checkpoint's own dtype, which `cpu` did not."""
    half = load(str(saved_tiny)).hf.to(torch.bfloat16)  # pyright: ignore
    half.save_pretrained(tmp_path)
    load(str(saved_tiny)).tokenizer.save_pretrained(tmp_path)
    for device in (None, "cpu", "cpu:0", torch.device("cpu")):
        assert load(str(tmp_path), device=device).dtype == torch.float32


def test_version_is_that_of_the_package() -> None:
    from importlib.metadata import version

    assert interp.__version__ == version("interp-workbench")
