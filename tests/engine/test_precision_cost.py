"""Fast products: near the exact ones, counted where they are used, and of one model and thread alone."""

import re
from concurrent.futures import ThreadPoolExecutor
from weakref import WeakKeyDictionary

import pytest
import torch
from torch import nn
from transformers import PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import LlamaConfig, LlamaMLP

from interp.data.prompts import load_prompts
from interp.engine import activations, cpu_kernels, prepacked_weights
from interp.engine.activations import collect
from interp.engine.completion_cost import record_cost
from interp.engine.cpu_kernels import fused_forwards, gated_mlp, linear
from interp.engine.decoding import packed_weights
from interp.engine.generation import generate
from interp.engine.precision_cost import cost_prompts
from interp.engine.prepacked_weights import PackedWeights, exact_blocks
from interp.models import precision
from interp.models.adapted_models import with_precision
from interp.models.chat_model import ChatModel
from interp.storage.provenance import content_key, precision_line, provenance_of
from tests.conftest import PROMPTS
from tests.families import COVERED, build

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    reason="this CPU has no bfloat16 products by oneDNN",
)


@pytest.fixture
def exact(tokenizer: PreTrainedTokenizerFast) -> ChatModel:
    return ChatModel(build(*COVERED["llama"]), tokenizer, name="llama")


@pytest.fixture
def fast(exact: ChatModel, monkeypatch: pytest.MonkeyPatch) -> ChatModel:
    monkeypatch.setattr(precision, "bfloat16_speedup", lambda _threads: 7.0)
    monkeypatch.setattr(prepacked_weights, "_packing_pays", lambda _dtype, _threads: True)
    return with_precision(exact, "fast")


def gap(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_a_product_is_the_one_of_rounded_factors(fast: ChatModel, bias: bool) -> None:
    layer, weights = nn.Linear(96, 40, bias=bias), PackedWeights(fast, keep=False)
    x = torch.randn(2, 30, 96)
    found = linear(layer, x, weights)
    rounded = x.bfloat16().double() @ layer.weight.bfloat16().double().T
    expected = rounded if layer.bias is None else rounded + layer.bias.double()
    assert found.dtype == torch.float32
    assert 1e-5 < gap(found, expected) < 2**-8  # only the result is rounded beyond that
    before = weights.rounded(x)
    assert weights.rounded(x) is before
    x.mul_(2)
    assert torch.equal(weights.rounded(x), x.bfloat16())  # not what it was before


@torch.no_grad()
def test_an_mlp_is_near_and_its_hooks_are_called(fast: ChatModel) -> None:
    mlp = LlamaMLP(LlamaConfig(hidden_size=48, intermediate_size=80, num_attention_heads=2, mlp_bias=True))
    x, weights = torch.randn(1, 30, 48), PackedWeights(fast, keep=False)
    assert 1e-5 < gap(gated_mlp(mlp, x, weights), mlp(x)) < 1e-2
    handle = mlp.down_proj.register_forward_hook(lambda _module, _args, output: output + 100)
    found = gated_mlp(mlp, x, weights)
    assert found.dtype == torch.float32 and found.mean() > 90
    handle.remove()


@torch.no_grad()
def test_the_first_blocks_and_the_unembedding_stay_in_float32(fast: ChatModel) -> None:
    weights, layer = PackedWeights(fast, keep=True), fast.hf.get_output_embeddings()
    x = torch.randn(1, 9, fast.d_model)
    torch.testing.assert_close(linear(layer, x, weights), layer(x), rtol=1e-5, atol=1e-5)
    assert [exact_blocks(n) for n in (1, 3, 5, 6, 30)] == [1, 1, 1, 2, 6]
    for block, rounds in zip(fast.blocks, (False, True, True), strict=True):
        x = torch.randn(1, 9, fast.d_model)
        inner = torch.randn(1, 9, block.mlp.down_proj.in_features)
        assert (gap(linear(block.mlp.down_proj, inner, weights), block.mlp.down_proj(inner)) > 1e-5) == rounds
        assert (gap(gated_mlp(block.mlp, x, weights), block.mlp(x)) > 1e-5) == rounds


def test_states_are_near_and_what_it_costs_is_recorded(exact: ChatModel, fast: ChatModel) -> None:
    expected = collect(exact, PROMPTS, sites="resid_post")["resid_post"]
    assert fast.precision_cost is None
    found = collect(fast, PROMPTS, sites="resid_post")["resid_post"]
    assert activations._self_tested[fast] > 0
    assert found.dtype == torch.float32 and 1e-5 < gap(found, expected) < 2e-2
    cost = fast.provenance["precision_cost"]
    assert 1e-5 < cost["states_error"] < 2e-2 and 0.9 < cost["direction_cosine"] < 1 and cost["prompts"] == 16
    assert exact.provenance["precision_cost"] is None
    assert torch.equal(collect(fast, PROMPTS, sites="resid_post", fast=False)["resid_post"], plain(exact))
    assert torch.equal(collect(exact, PROMPTS, sites="resid_post")["resid_post"], expected)  # as before


def plain(model: ChatModel) -> torch.Tensor:
    return collect(model, PROMPTS, sites="resid_post", fast=False)["resid_post"]


def test_other_threads_and_models_stay_exact(exact: ChatModel, fast: ChatModel) -> None:
    ids = torch.tensor([[5, 9, 40, 3, 77, 12]])
    with torch.no_grad(), ThreadPoolExecutor(1) as other:
        expected = exact.hf(ids).logits
        with fast.lock, fused_forwards(fast, PackedWeights(fast, keep=True)):
            rounded = fast.hf(ids).logits
            elsewhere = other.submit(lambda: exact.hf(ids).logits.detach()).result()
        assert torch.equal(elsewhere, expected) and torch.equal(exact.hf(ids).logits, expected)
    assert 1e-5 < gap(rounded, expected) < 2e-2
    assert torch.get_float32_matmul_precision() == "highest"


def test_completions_are_those_of_fast_logits(fast: ChatModel) -> None:
    found = generate(fast, PROMPTS, max_new_tokens=6)
    assert all(len(ids) for ids in found.ids)
    assert generate(fast, PROMPTS, max_new_tokens=6).ids == found.ids


@torch.no_grad()
def test_decoding_rounds_all_blocks_and_one_completion_none(exact: ChatModel, fast: ChatModel) -> None:
    x = torch.randn(1, 9, fast.d_model)
    for rows, rounds in ((1, False), (2, True)):
        weights = packed_weights(fast, rows, 24)
        for block in fast.blocks:
            assert (gap(gated_mlp(block.mlp, x, weights), block.mlp(x)) > 1e-5) == rounds
    one = generate(fast, PROMPTS[:1], max_new_tokens=6)
    assert one.ids == generate(exact, PROMPTS[:1], max_new_tokens=6).ids


def test_a_kernel_that_is_far_off_is_not_used(fast: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_kernels, "_known", WeakKeyDictionary())
    pack = prepacked_weights._pack
    monkeypatch.setattr(prepacked_weights, "_pack", lambda layer, rows, dtype: 1.1 * pack(layer, rows, dtype))
    with torch.no_grad(), fused_forwards(fast, PackedWeights(fast, keep=False)):
        assert not any(
            isinstance(module, nn.Linear) for module in fast.hf.modules() if "forward" in vars(module)
        )


def test_a_run_records_how_many_completions_differ_once(exact: ChatModel, fast: ChatModel) -> None:
    record_cost(exact)
    assert exact.precision_cost is None
    record_cost(fast)
    cost = fast.precision_cost
    assert cost is not None and cost["completions"] == cost["prompts"] == 16
    texts = cost_prompts()
    pairs = zip(
        generate(exact, texts, max_new_tokens=24).ids,
        generate(fast, texts, max_new_tokens=24).ids,
        strict=True,
    )
    assert cost["completions_differ"] == sum(one != other for one, other in pairs) / 16
    record_cost(fast)
    assert fast.precision_cost is cost  # not measured again


def test_what_was_measured_is_no_part_of_what_was_asked(fast: ChatModel) -> None:
    prompts = load_prompts("builtin")
    before = provenance_of(fast, prompts, seed=0)
    assert (
        precision_line(before) == "Products in bfloat16 (precision 'fast'); what that costs was not measured."
    )
    record_cost(fast)
    after = provenance_of(fast, prompts, seed=0)
    assert after.model != before.model and content_key(after) == content_key(before)
    line = precision_line(after)
    assert line is not None
    assert re.search(r"on 16 prompts, states differ by up to \d\.\d%.* \d+ of 16 completions differ\.$", line)
    exact = with_precision(fast, "exact")
    assert precision_line(provenance_of(exact, prompts, seed=0)) is None
    assert content_key(provenance_of(exact, prompts, seed=0)) != content_key(after)
