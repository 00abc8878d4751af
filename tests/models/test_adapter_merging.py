"""Every method of PEFT: merged weights compute what was trained, or the method is refused by name."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig, XLoraConfig, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from interp.models import adapter_merging
from interp.models.adapted_models import with_adapter
from interp.models.adapter_merging import merge_adapter, merged_adapter
from interp.models.chat_model import ChatModel
from tests.families import COVERED, HEAD, build

IDS = torch.arange(1, 24)[None] * 11
METHODS = sorted(str(getattr(method, "value", method)) for method in PEFT_TYPE_TO_CONFIG_MAPPING)
SETTINGS: dict[str, dict[str, Any]] = {
    "ADALORA": {"total_step": 10},
    "ADAPTION_PROMPT": {"adapter_len": 4, "adapter_layers": 2, "target_modules": None},
    "ADAMSS": {"target_modules": ["q_proj"], "num_subspaces": 2},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 8},
    "CARTRIDGE": {"num_virtual_tokens": 4},
    "CPT": {"cpt_token_ids": [1, 2], "cpt_mask": [1, 1], "cpt_tokens_type_mask": [1, 2]},
    "FOURIERFT": {"n_frequency": 20},
    "IA3": {"feedforward_modules": ["down_proj"]},
    "LN_TUNING": {"target_modules": ["input_layernorm"]},
    "MULTITASK_PROMPT_TUNING": {"num_virtual_tokens": 4},
    "OFT": {"oft_block_size": 4, "r": 0},
    "PREFIX_TUNING": {"num_virtual_tokens": 4},
    "PROMPT_TUNING": {"num_virtual_tokens": 4},
    "P_TUNING": {"num_virtual_tokens": 4},
    "ROAD": {"group_size": 4},
    "TRAINABLE_TOKENS": {"target_modules": ["embed_tokens"], "token_indices": [11, 44, 45]},
    "VBLORA": {"vector_length": 8, "num_vectors": 16},
    "WAVEFT": {"n_frequency": 20},
}
"""What a method needs beside its targets on a model of width 32."""
REFUSED = {
    *("ADAPTION_PROMPT", "BEFT", "LILY", "POLY", "SHADOW"),
    *("CARTRIDGE", "CPT", "MULTITASK_PROMPT_TUNING", "PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING", "XLORA"),
}
"""Methods that no weights of the model express."""


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(IDS).logits


def base(**changes: Any) -> PreTrainedModel:
    return build("LlamaConfig", HEAD | {"num_hidden_layers": 2} | changes)


def cast(hf: Any, dtype: torch.dtype) -> PreTrainedModel:
    return hf.to(dtype)


def train(hf: PreTrainedModel, config: Any, folder: Path, size: float = 0.1) -> Any:
    """An adapter whose trained tensors are moved at random, saved as a trainer saves it."""
    torch.manual_seed(1)
    adapted: Any = get_peft_model(hf, config).eval()
    with torch.no_grad():
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight.add_(size * torch.randn_like(weight))
    adapted.save_pretrained(folder)
    return adapted


def config_of(method: str) -> Any:
    cls = PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(method)]
    fields = {field.name for field in dataclasses.fields(cls)}  # pyright: ignore[reportArgumentType]
    settings: dict[str, Any] = {"task_type": "CAUSAL_LM"}
    settings |= {"target_modules": ["q_proj", "down_proj"]} if "target_modules" in fields else {}
    settings |= {"r": 4} if "r" in fields else {}
    settings |= SETTINGS.get(method, {})
    return cls(**{key: value for key, value in settings.items() if value is not None})


def merges_exactly(
    make: Callable[[], PreTrainedModel], config: Any, folder: Path, *, load: bool = True
) -> None:
    """Loading and swapping give the trained logits, and the base is bit for bit the same afterwards."""
    plain, trained = logits(make()), logits(train(make(), config, folder))
    assert (trained - plain).abs().max() > 0.05  # control: the adapter does something
    hf = make()
    with merged_adapter(hf, str(folder), shown="tiny"):
        # Two orders of the same sums: round-off of float32 at logits of about ten.
        torch.testing.assert_close(logits(hf), trained, rtol=1e-4, atol=1e-4)
        merged = {name: value.clone() for name, value in hf.state_dict().items()}
    assert torch.equal(logits(hf), plain)
    if load:
        merge_adapter(hf, str(folder), shown="tiny")
        assert all(torch.equal(value, merged[name]) for name, value in hf.state_dict().items())


def is_refused(make: Callable[[], PreTrainedModel], folder: Path, match: str) -> None:
    """Loading and swapping raise, and leave the model as it was."""
    hf = make()
    modules, before = (
        list(hf.named_modules()),
        {name: value.clone() for name, value in hf.state_dict().items()},
    )
    flags = [weight.requires_grad for weight in hf.parameters()]
    with pytest.raises(ValueError, match=match), merged_adapter(hf, str(folder), shown="tiny"):
        pass
    with pytest.raises(ValueError, match=match):
        merge_adapter(hf, str(folder), shown="tiny")
    assert list(hf.named_modules()) == modules
    assert flags == [weight.requires_grad for weight in hf.parameters()]
    assert all(torch.equal(value, before[name]) for name, value in hf.state_dict().items())


@pytest.mark.filterwarnings("ignore")  # PEFT's and torch's own, about methods under test
@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_exact_or_refused_by_name(method: str, tmp_path: Path) -> None:
    if method == "XLORA":  # mixes adapters that were trained before
        train(base(), lora(), tmp_path / "part")
        config = XLoraConfig(adapters={"part": str(tmp_path / "part")}, hidden_size=32, task_type="CAUSAL_LM")
        train(base(use_cache=False), config, tmp_path)
        is_refused(lambda: base(use_cache=False), tmp_path, method)
    elif method in REFUSED:
        train(base(use_cache=False), config_of(method), tmp_path)
        is_refused(base, tmp_path, method)
    else:
        merges_exactly(base, config_of(method), tmp_path, load=False)


LORA: dict[str, dict[str, Any]] = {
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "mica": {"init_lora_weights": "mica"},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True, "lora_alpha": 3},
    "patterns": {"rank_pattern": {"down_proj": 2}, "alpha_pattern": {"layers.1.*q_proj": 7}},
    "some layers": {"layers_to_transform": [1]},
    "all biases": {"bias": "all", "target_modules": ["q_proj"]},
    "own biases": {"bias": "lora_only", "target_modules": ["q_proj"], "lora_bias": True},
    "saved norms": {"modules_to_save": ["norm", "input_layernorm"]},
    "saved head": {"modules_to_save": ["lm_head"]},
    "saved embedding": {"modules_to_save": ["embed_tokens"]},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "head": {"target_modules": ["lm_head", "q_proj"]},
    "both": {"target_modules": ["embed_tokens", "lm_head"]},
    "both tied": {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
    "tokens": {"trainable_token_indices": [11, 44, 45]},
}
"""Kinds of LoRA that weights express."""
TIED = ("pissa", "saved head", "saved embedding", "embedding", "head", "both", "both tied", "tokens")
"""Those that are tried with tied embeddings as well."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "tied"), [*((kind, False) for kind in LORA), *((kind, True) for kind in TIED)]
)
def test_kinds_of_lora_are_exact(kind: str, tied: bool, tmp_path: Path) -> None:
    settings = {"r": 4, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"} | LORA[kind]
    merges_exactly(
        lambda: base(tie_word_embeddings=tied, attention_bias="bias" in kind),
        LoraConfig(**settings),
        tmp_path,
    )


def lora(**changes: Any) -> LoraConfig:
    settings = {"r": 4, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    return LoraConfig(**{**settings, **changes})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"init_lora_weights": "pissa_niter_1"}, r"LORA \(pissa_niter_1\)\) starts from random numbers"),
        ({"lora_bias": True}, "LORA.*cannot be merged.*base layer has no bias"),
        ({"alora_invocation_tokens": [5, 6]}, "LORA.*cannot be merged.*aLoRA"),
    ],
    ids=["random start", "bias without a place", "activated by tokens"],
)
def test_kinds_of_lora_that_no_weights_express_are_refused(
    changes: dict[str, Any], match: str, tmp_path: Path
) -> None:
    train(base(), lora(**changes), tmp_path)
    is_refused(base, tmp_path, match)


@pytest.mark.parametrize("family", ["gpt2", "mixtral", "gpt_neox"])
def test_other_layouts_of_weights_are_exact(family: str, tmp_path: Path) -> None:
    targets: dict[str, dict[str, Any]] = {
        "gpt2": {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True},
        "gpt_neox": {"target_modules": ["query_key_value", "embed_in"], "bias": "all"},
        "mixtral": {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.down_proj"]},
    }
    merges_exactly(lambda: build(*COVERED[family]), lora(**targets[family]), tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_a_merge_that_goes_wrong_is_refused_by_its_logits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever PEFT does wrong shows in the logits: here a merge of half the adapter."""
    from peft.tuners.lora.layer import Linear

    train(base(), lora(), tmp_path)
    right = Linear.get_delta_weight
    monkeypatch.setattr(Linear, "get_delta_weight", lambda self, name: right(self, name) / 2)
    is_refused(base, tmp_path, "LORA.*is not what the adapter computes: logits differ by 0")


def test_an_interrupted_merge_leaves_the_base_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft.tuners.lora.layer import Linear

    train(base(), lora(bias="all", modules_to_save=["norm"]), tmp_path)
    merged: list[Any] = []
    right = Linear.merge

    def interrupted(self: Any, *args: Any, **options: Any) -> None:
        right(self, *args, **options)
        merged.append(self)
        if len(merged) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Linear, "merge", interrupted)
    hf = base()
    plain, modules = logits(hf), list(hf.named_modules())
    with pytest.raises(KeyboardInterrupt), merged_adapter(hf, str(tmp_path), shown="tiny"):
        pass
    assert len(merged) == 3 and torch.equal(logits(hf), plain) and list(hf.named_modules()) == modules


@pytest.mark.filterwarnings("ignore")
def test_a_series_on_one_base_equals_each_checkpoint_loaded_alone(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Adapters that write biases, norms, an embedding or a changed base do not reach the next one of the series."""
    kinds = [
        lora(bias="all", target_modules=["q_proj"]),
        lora(init_lora_weights="pissa"),
        lora(modules_to_save=["norm", "embed_tokens"]),
        config_of("LN_TUNING"),
        config_of("OSF"),
        lora(),
    ]
    model = ChatModel(base(attention_bias=True), tokenizer, name="tiny")
    before, plain = model.weights_hash, logits(model.hf)
    for number, config in enumerate(kinds):
        folder = tmp_path / str(number)
        trained = logits(train(base(attention_bias=True), config, folder))
        with with_adapter(model, str(folder)) as swapped:
            torch.testing.assert_close(logits(swapped.hf), trained, rtol=1e-4, atol=1e-4)
            assert swapped.weights_hash != before
        assert model.weights_hash == before
        assert torch.equal(logits(model.hf), plain)
    with (
        pytest.raises(RuntimeError, match=r"the weights of tiny are not what they were before adapter"),
        with_adapter(model, str(tmp_path / "5")),
        torch.no_grad(),
    ):
        model.hf.lm_head.weight[3].mul_(2)  # pyright: ignore


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_merged_in_float32_and_rounded_once(
    dtype: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    half = getattr(torch, dtype)
    train(base(), lora(trainable_token_indices=[11, 44]), tmp_path / "large")
    hf, wide = cast(base(), half), cast(base(), half).float()
    kept = [weight.data_ptr() for weight in hf.parameters()]
    with merged_adapter(hf, str(tmp_path / "large"), shown="tiny"):
        merge_adapter(wide, str(tmp_path / "large"), shown="tiny")
        assert all(
            torch.equal(weight, wide.state_dict()[name].to(half)) for name, weight in hf.state_dict().items()
        )
    assert kept == [weight.data_ptr() for weight in hf.parameters()] and not caplog.messages
    # An adapter smaller than the last digit of the weights disappears when it is rounded, and that is said.
    train(base(), lora(), tmp_path / "small", size=1e-3)
    merge_adapter(hf, str(tmp_path / "small"), shown="tiny")
    assert "rounding to half precision loses" in caplog.text


def test_without_memory_for_float32_half_precision_has_a_tolerance_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter_merging.Snapshot, "fits_in_float32", lambda _: False)
    train(base(), lora(), tmp_path)
    hf = cast(base(), torch.bfloat16)
    with merged_adapter(hf, str(tmp_path), shown="tiny"):
        assert hf.dtype == torch.bfloat16
