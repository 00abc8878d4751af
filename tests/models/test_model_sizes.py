"""A model's size from its configuration against the parameters of the model that it describes."""

import pytest

from interp.models.chat_model import ChatModel
from interp.models.model_sizes import ModelSize


def test_weights_are_those_of_every_covered_family(family: ChatModel) -> None:
    config = family.hf.config.to_dict()
    size = ModelSize.from_config(config)
    matrices = sum(
        weight.numel()
        for name, weight in family.hf.named_parameters()
        if weight.ndim > 1 and "wpe" not in name  # GPT-2 adds its positions, which no token passes through
    )
    assert size.weights == matrices
    assert (size.n_layers, size.d_model, size.d_vocab) == (3, 32, 300)


def test_a_token_passes_through_some_experts_only() -> None:
    config = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config |= {"vocab_size": 10, "num_local_experts": 4, "num_experts_per_tok": 1}
    size = ModelSize.from_config(config)
    assert size.block_weights - size.active_weights == 3 * (3 * 8 * 16)
    assert size.flops_per_token == 2 * 2 * size.active_weights


def test_a_cached_token_has_a_key_and_a_value_in_every_block(tiny: ChatModel) -> None:
    size = ModelSize.from_config(tiny.hf.config.to_dict())
    cache = tiny.hf(
        tiny.tokenizer("abcdef", return_tensors="pt")["input_ids"], use_cache=True
    ).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert size.cached_bytes(6, 4) == held


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": None}, "has no hidden_size or n_embd"),
        ({"num_hidden_layers": "3"}, "num_hidden_layers must be a whole number above 0, got '3'"),
        ({"vocab_size": -1}, "vocab_size must be a whole number above 0, got -1"),
    ],
)
def test_a_damaged_configuration_is_named(change: dict[str, object], message: str) -> None:
    config = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 10}
    with pytest.raises(ValueError, match=message):
        ModelSize.from_config({**config, **change})


def test_a_multimodal_configuration_is_read_at_its_text_part(tiny: ChatModel) -> None:
    config = tiny.hf.config.to_dict()
    assert ModelSize.from_config({"text_config": config, "hidden_size": 1}) == ModelSize.from_config(config)
