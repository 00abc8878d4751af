"""Weight edits on layouts that differ: equal to the hooks, or refused before anything runs with them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from interp.engine.applying import apply
from interp.engine.interventions import Ablate, Add
from interp.engine.weight_edits import edited_weights
from interp.models.chat_model import ChatModel
from tests.families import COVERED, HEAD, build

IDS = torch.arange(1, 12)[None] * 7
DIRECTION = torch.randn(32, generator=torch.Generator().manual_seed(1))
GPT_OSS = {
    **HEAD,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "sliding_window": 128,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}


def logits(model: ChatModel) -> Tensor:
    with torch.no_grad():
        return model.hf(IDS).logits


def llama(tokenizer: PreTrainedTokenizerFast) -> ChatModel:
    return ChatModel(build(*COVERED["llama"]), tokenizer, name="llama")


@pytest.mark.parametrize("d_mlp", [64, 32], ids=["wider", "as wide as the stream"])
def test_stacked_experts_stored_transposed_and_with_biases(
    d_mlp: int, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = ChatModel(
        build("GptOssConfig", {**GPT_OSS, "intermediate_size": d_mlp}), tokenizer, name="gpt-oss"
    )
    with torch.no_grad():
        for block in model.blocks:
            nn.init.normal_(block.mlp.experts.down_proj_bias)  # pyright: ignore
    before = logits(model)
    with apply(model, [Ablate(DIRECTION)]):
        hooked = logits(model)
    with edited_weights(model, Ablate(DIRECTION)):
        torch.testing.assert_close(logits(model), hooked, rtol=1e-4, atol=1e-4)  # round-off at logits of ten
    assert (hooked - before).abs().max() > 0.1  # control: the ablation does something
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_norm_between_embedding_and_first_block_is_refused(
    dtype: torch.dtype, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = llama(tokenizer)
    model.hf.to(dtype)  # pyright: ignore
    handle = model.embedding.register_forward_hook(
        lambda _module, _args, out: nn.functional.layer_norm(
            out, (32,), DIRECTION.abs().to(out), DIRECTION.to(out)
        )
    )
    memory = [weight.data_ptr() for weight in model.hf.parameters()]
    before = logits(model)
    with (
        pytest.raises(ValueError, match="llama is not what the hooks compute: logits differ by"),
        edited_weights(model, Ablate(DIRECTION)),
    ):
        pass
    assert torch.equal(logits(model), before)
    handle.remove()
    with edited_weights(model, Ablate(DIRECTION)):  # control: without the norm the same edit is allowed
        assert model.hf.dtype == dtype
    assert memory == [weight.data_ptr() for weight in model.hf.parameters()]


def test_a_module_that_is_not_recognised_is_seen_in_half_precision(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """A part as small as bfloat16's own rounding is found, because the comparison runs in float32."""
    model = llama(tokenizer)
    model.hf.to(torch.bfloat16)  # pyright: ignore
    extra = DIRECTION * 0.02

    def add(_module: nn.Module, _args: Any, out: Any) -> Tensor:
        return out + extra.to(out)

    handle = model.blocks[1].mlp.register_forward_hook(add)
    with pytest.raises(ValueError, match="something else writes"), edited_weights(model, Ablate(DIRECTION)):
        pass
    handle.remove()


class Quantised(nn.Linear):
    """A projection stored in bytes."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__(plain.in_features, plain.out_features, bias=False)
        self.scale = plain.weight.abs().max().item() / 127
        stored = (plain.weight.detach() / self.scale).round().to(torch.int8)
        self.weight = nn.Parameter(stored, requires_grad=False)

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, self.weight.to(input) * self.scale)


def test_quantised_weights_are_refused_by_name(tokenizer: PreTrainedTokenizerFast) -> None:
    hf: Any = build(*COVERED["llama"])
    hf.model.layers[1].mlp.down_proj = Quantised(hf.model.layers[1].mlp.down_proj)
    model = ChatModel(hf, tokenizer, name="llama")
    for intervention in (Ablate(DIRECTION), Add(DIRECTION, layers=[2])):
        with (
            pytest.raises(
                ValueError, match=r"weight of Quantised in llama is stored quantised \(Parameter, int8"
            ),
            edited_weights(model, intervention),
        ):
            pass


def test_an_addition_that_the_bias_does_not_reach_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    model = llama(tokenizer)

    def halve(_module: nn.Module, _args: Any, out: Any) -> Tensor:
        return out * 0.5

    handle = model.blocks[1].mlp.register_forward_hook(halve)
    add = Add(DIRECTION, layers=[2])
    with pytest.raises(ValueError, match="is not what the hooks compute"), edited_weights(model, add):
        pass
    handle.remove()
    with edited_weights(model, add):
        pass
