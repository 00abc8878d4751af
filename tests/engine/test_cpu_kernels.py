"""In-place versions of what lies between matrix products: the same numbers, and only while they are asked for."""

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from weakref import WeakKeyDictionary

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, PreTrainedTokenizerFast
from transformers.models.llama import modeling_llama

from interp.engine import budgets, prepacked_weights
from interp.engine import cpu_kernels as lean
from interp.engine.activations import collect
from interp.engine.budgets import PassBudget
from interp.engine.cpu_kernels import fused_forwards
from interp.engine.prepacked_weights import PackedWeights
from interp.models.chat_model import ChatModel
from tests.families import COVERED, build

IDS = torch.tensor([[5, 9, 40, 3, 77, 12]])


def swapped(model: ChatModel) -> list[nn.Module]:
    return [module for module in model.hf.modules() if "forward" in vars(module)]


@pytest.fixture(params=sorted(COVERED))
def family(request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerFast) -> ChatModel:
    return ChatModel(build(*COVERED[request.param]), tokenizer, name=request.param)


@pytest.mark.parametrize("packed", [False, True])
@torch.no_grad()
def test_every_family_gives_the_same_logits_inside_and_outside(family: ChatModel, packed: bool) -> None:
    expected = family.hf(IDS).logits
    with fused_forwards(family, PackedWeights(family, keep=True) if packed else None):
        found = family.hf(IDS).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(family.hf(IDS).logits, expected)
    assert not swapped(family)


@torch.no_grad()
def test_what_has_the_parts_is_swapped_and_what_computes_otherwise_is_not(
    tiny: ChatModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    own = modeling_llama.apply_rotary_pos_emb
    with fused_forwards(tiny):
        # Three blocks with an attention, an MLP and two norms each, and the final norm.
        assert len(swapped(tiny)) == 3 * 4 + 1
        assert modeling_llama.apply_rotary_pos_emb is own
    with fused_forwards(tiny, PackedWeights(tiny, keep=True)):  # and seven linear layers, and the unembedding
        assert len(swapped(tiny)) == 3 * 11 + 2
    gemma = ChatModel(build(*COVERED["gemma2"]), tokenizer, name="gemma2")
    with fused_forwards(gemma):  # its norms multiply by 1 + weight
        assert {type(module).__name__ for module in swapped(gemma)} == {"Gemma2MLP", "Gemma2Attention"}
    neox = ChatModel(build(*COVERED["gpt_neox"]), tokenizer, name="gpt_neox")
    with fused_forwards(neox):  # it turns a part of each head
        assert not swapped(neox)


def test_a_norm_of_another_formula_is_left_alone(tiny: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def offset(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon) * (1 + self.weight)

    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", offset)
    other = ChatModel(tiny.hf, tiny.tokenizer, name="other")
    with torch.no_grad(), fused_forwards(other):
        assert {type(module).__name__ for module in swapped(other)} == {"LlamaMLP", "LlamaAttention"}


def test_passes_with_gradients_stay_as_they_are(tiny: ChatModel) -> None:
    with torch.enable_grad(), fused_forwards(tiny):
        assert not swapped(tiny)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("packed", [False, True])
@torch.no_grad()
def test_in_half_precision_the_kernels_round_no_more_than_the_model_itself(
    tokenizer: PreTrainedTokenizerFast, dtype: torch.dtype, packed: bool
) -> None:
    exact = build(*COVERED["llama"])(IDS).logits
    model = ChatModel(build(*COVERED["llama"]).to(dtype), tokenizer, name="llama")
    plain = model.hf(IDS).logits.float()
    weights = PackedWeights(model, keep=True) if packed else None
    with fused_forwards(model, weights):
        kinds = {type(module).__name__ for module in swapped(model)}
        found = model.hf(IDS).logits.float()
    assert {"LlamaMLP", "LlamaRMSNorm", "LlamaAttention"} <= kinds
    assert ("Linear" in kinds) is (weights is not None and weights.usable)

    def error(logits: torch.Tensor) -> float:
        return float((logits - exact).norm() / exact.norm())

    assert 0 < error(plain) < 5e-2  # control: it rounds at all
    assert error(found) < 1.5 * error(plain)  # rounding is random: not every sum comes out better
    assert torch.equal(model.hf(IDS).logits.float(), plain)


def test_everything_is_back_after_an_exception(tiny: ChatModel) -> None:
    with pytest.raises(RuntimeError, match="stop"), torch.no_grad(), fused_forwards(tiny):
        assert swapped(tiny)  # control
        raise RuntimeError("stop")
    assert not swapped(tiny)


@torch.no_grad()
def test_queries_and_keys_are_turned_in_place_in_this_model_alone(
    tiny: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    turned: list[int] = []
    own = lean.rotary
    monkeypatch.setattr(lean, "rotary", lambda *args: (turned.append(1), own(*args))[1])
    other = ChatModel(build(*COVERED["llama"]), tiny.tokenizer, name="of the same family")
    with fused_forwards(tiny):
        tiny.hf(IDS)
        assert len(turned) == tiny.n_layers
        other.hf(IDS)
        assert len(turned) == tiny.n_layers
    tiny.hf(IDS)
    assert len(turned) == tiny.n_layers


def test_a_collection_uses_them(tiny: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    plain: Callable[..., torch.Tensor] = lean.rms_norm

    def counted(module: nn.Module, x: torch.Tensor, weights: PackedWeights | None = None) -> torch.Tensor:
        calls.append(1)
        return plain(module, x, weights)

    monkeypatch.setattr(lean, "rms_norm", counted)
    fresh = ChatModel(tiny.hf, tiny.tokenizer, name="fresh")
    collect(fresh, ["Hello", "How do I pick a lock?"])
    assert calls


@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_a_layer_is_packed_once_and_again_when_it_was_edited(tiny: ChatModel, bias: bool) -> None:
    layer, weights = nn.Linear(24, 40, bias=bias), PackedWeights(tiny, keep=True)
    assert weights.usable
    x = torch.randn(1, 30, 24)
    # Float32 sums of 24 products in another order.
    torch.testing.assert_close(lean.linear(layer, x, weights), layer(x), rtol=1e-5, atol=1e-5)
    once = weights.of(layer, x)
    assert weights.of(layer, x[:, :4]) is once
    layer.weight.mul_(2)
    assert weights.of(layer, x) is not once
    torch.testing.assert_close(lean.linear(layer, x, weights), layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("act", ["silu", "gelu_pytorch_tanh"])
@torch.no_grad()
def test_a_gated_mlp_is_the_same_whatever_its_activation(tiny: ChatModel, act: str) -> None:
    config = LlamaConfig(hidden_size=24, intermediate_size=40, num_attention_heads=2, hidden_act=act)
    mlp, x = modeling_llama.LlamaMLP(config), torch.randn(1, 30, 24)
    weights = PackedWeights(tiny, keep=True)
    torch.testing.assert_close(lean.gated_mlp(mlp, x, weights), mlp(x), rtol=1e-5, atol=1e-6)
    assert len(weights._valid) == (2 if act == "silu" else 0)  # down_proj multiplies by its own forward


@torch.no_grad()
def test_an_adapter_in_the_place_of_a_layer_counts(tiny: ChatModel) -> None:
    class Adapted(nn.Module):
        def __init__(self, inner: nn.Linear) -> None:
            super().__init__()
            self.inner, self.in_features = inner, inner.in_features

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) + 1

    mlp = modeling_llama.LlamaMLP(LlamaConfig(hidden_size=24, intermediate_size=40, num_attention_heads=2))
    mlp.up_proj, x = Adapted(mlp.up_proj), torch.randn(1, 30, 24)  # type: ignore[assignment]
    torch.testing.assert_close(
        lean.gated_mlp(mlp, x, PackedWeights(tiny, keep=True)), mlp(x), rtol=1e-5, atol=1e-6
    )


@torch.no_grad()
def test_a_hook_inside_a_gated_mlp_is_called(tiny: ChatModel) -> None:
    mlp, x = tiny.blocks[0].mlp, torch.randn(1, 30, 32)
    with_hook = mlp.gate_proj.register_forward_hook(lambda _module, _args, output: output + 1)
    try:
        expected = mlp(x)
        torch.testing.assert_close(lean.gated_mlp(mlp, x, PackedWeights(tiny, keep=True)), expected)
    finally:
        with_hook.remove()
    assert not torch.allclose(mlp(x), expected)  # control


def test_passes_of_another_thread_are_left_alone_with_their_gradients(tiny: ChatModel) -> None:
    def gradients() -> list[torch.Tensor]:
        with torch.enable_grad():
            loss = tiny.hf(IDS).logits.square().mean()
            return list(torch.autograd.grad(loss, [block.mlp.gate_proj.weight for block in tiny.blocks]))

    expected = gradients()
    with (
        ThreadPoolExecutor(1) as other,
        torch.no_grad(),
        fused_forwards(tiny, PackedWeights(tiny, keep=True)),
    ):
        found = other.submit(gradients).result()
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert all(gradient.abs().max() > 0 for gradient in expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_later_call_finds_kept_weights_and_packs_what_was_written_past_torch(
    tokenizer: PreTrainedTokenizerFast, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed: list[nn.Linear] = []
    pack = prepacked_weights._pack
    monkeypatch.setattr(
        prepacked_weights,
        "_pack",
        lambda layer, rows, dtype: (packed.append(layer), pack(layer, rows, dtype))[1],
    )
    model = ChatModel(build(*COVERED["llama"]).to(dtype), tokenizer, name="llama")
    layer = model.blocks[0].mlp.down_proj
    x = torch.randn(4, layer.in_features, dtype=dtype)
    PackedWeights(model, keep=True).of(layer, x)
    PackedWeights(model, keep=True).of(layer, x)
    assert len(packed) == 1
    version = layer.weight._version
    layer.weight.data[3, 5] += 1
    assert layer.weight._version == version  # control: torch has not noticed
    PackedWeights(model, keep=True).of(layer, x)
    assert len(packed) == 2
    layer.weight.data[[0, 1]] = layer.weight.data[[1, 0]]  # the same numbers elsewhere
    found = lean.linear(layer, x, PackedWeights(model, keep=True))
    torch.testing.assert_close(found, layer(x), rtol=2e-2, atol=2e-2)
    assert len(packed) == 3
    layer.weight.data[2] = layer.weight.data[2].roll(8)  # and within a row
    PackedWeights(model, keep=True).of(layer, x)
    assert len(packed) == 4


@torch.no_grad()
def test_weights_that_leave_too_little_memory_are_not_kept(
    tiny: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        prepacked_weights, "_kept", WeakKeyDictionary()
    )  # those of other tests count as there
    monkeypatch.setattr(prepacked_weights, "plain_products_are_fast", lambda: False)  # whatever runs the test
    size = 4 * sum(m.weight.numel() for m in tiny.hf.modules() if type(m) is nn.Linear)
    layer = tiny.blocks[0].mlp.down_proj
    few, many = torch.randn(1, 3, layer.in_features), torch.randn(1, 1000, layer.in_features)
    for free, kept in ((2 * size - 1, False), (2 * size + 1, True)):
        monkeypatch.setattr(
            budgets.psutil, "virtual_memory", lambda free=free: SimpleNamespace(available=free)
        )
        weights = PackedWeights(tiny, keep=True)
        assert (weights.of(layer, few) is not None) is kept
        assert weights.of(layer, many) is not None  # worth packing for this product alone
        assert bool(weights._valid) is kept


@pytest.mark.parametrize("keep", [False, True])
@torch.no_grad()
def test_packed_products_that_come_out_otherwise_are_not_used(
    tiny: ChatModel, monkeypatch: pytest.MonkeyPatch, keep: bool
) -> None:
    monkeypatch.setattr(lean, "_known", WeakKeyDictionary())  # what was compared before is forgotten
    reorder = torch.ops.mkldnn._reorder_linear_weight
    monkeypatch.setattr(
        prepacked_weights, "_pack", lambda layer, rows, dtype: reorder(2 * layer.weight.to(dtype), rows)
    )
    ids = IDS.expand(PassBudget.for_(tiny).prepacked_rows, -1)
    expected = tiny.hf(ids).logits
    with fused_forwards(tiny, PackedWeights(tiny, keep=keep)):
        assert not any(isinstance(module, nn.Linear) for module in swapped(tiny))
        torch.testing.assert_close(tiny.hf(ids).logits, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("plain_is_fast", [False, True])
def test_a_large_pass_packs_as_it_goes_where_that_is_faster_and_gives_the_same(
    tiny: ChatModel, monkeypatch: pytest.MonkeyPatch, plain_is_fast: bool
) -> None:
    monkeypatch.setattr(prepacked_weights, "plain_products_are_fast", lambda: plain_is_fast)
    packed: list[int] = []
    own = prepacked_weights._pack
    monkeypatch.setattr(
        prepacked_weights,
        "_pack",
        lambda layer, rows, dtype: (packed.append(rows), own(layer, rows, dtype))[1],
    )
    prompts = [f"{i:04d} is a number" for i in range(90)]  # too few for a pass of their own to be cut
    small = collect(tiny, prompts, budget=100)["resid_pre"]
    assert not packed
    large = collect(tiny, prompts)["resid_pre"]
    assert bool(packed) is not plain_is_fast
    assert min(packed, default=sys.maxsize) >= PassBudget.for_(tiny).prepacked_rows
    torch.testing.assert_close(large, small, rtol=1e-4, atol=1e-5)
