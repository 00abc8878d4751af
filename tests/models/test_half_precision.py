"""Half precision: the same sites, means and completions as in float32, up to the dtype's rounding."""

import copy
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from interp.engine.activations import collect, collect_means, fast_path_agrees
from interp.engine.generation import generate
from interp.engine.packing import can_pack
from interp.models.chat_model import ChatModel
from interp.models.tokens import tokenize
from tests.conftest import PROMPTS
from tests.families import COVERED, PARALLEL, REFUSED, build

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
# A few roundings a block, of 2^-9 and 2^-12, over three blocks; the largest seen are 1.3% and 0.2%.
CLOSE = {"bfloat16": 4e-2, "float16": 5e-3}
EXPERTS = {"mixtral", "qwen3_moe"}


def in_dtype(hf: Any, dtype: torch.dtype) -> Any:
    return hf.to(dtype)


def model_of(family: str, dtype: torch.dtype, tokenizer: PreTrainedTokenizerFast) -> ChatModel:
    return ChatModel(in_dtype(build(*COVERED[family]), dtype), tokenizer, name=family)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", COVERED)
def test_every_family_reads_and_generates(
    family: str, dtype: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    exact = model_of(family, torch.float32, tokenizer)
    model = model_of(family, DTYPES[dtype], tokenizer)
    assert model.is_parallel == (family in PARALLEL)
    assert all(weight.dtype == DTYPES[dtype] for weight in model.hf.parameters())  # the check put them back
    expected = collect_means(exact, PROMPTS, sites=("resid_pre", "attn_out", "mlp_out"))
    tokens = tokenize(tokenizer, PROMPTS)
    if family not in EXPERTS:  # where rounding may send a token to another expert
        assert fast_path_agrees(model, tokens) == can_pack(model, tokens)  # slower than float32 nowhere
    for fast in (True, False):
        found = collect_means(model, PROMPTS, sites=("resid_pre", "attn_out", "mlp_out"), fast=fast)
        for site in ("resid_pre", "attn_out", "mlp_out"):
            gap = (found[site].float() - expected[site].float()).norm() / expected[site].float().norm()
            assert gap < CLOSE[dtype], (site, fast, gap)
    for fast in (True, False):
        assert generate(model, PROMPTS[:2], max_new_tokens=2, fast=fast).texts


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", REFUSED)
def test_uncovered_families_are_refused_in_half_precision(
    family: str, dtype: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(ValueError, match=r"interp (does not cover|only covers)"):
        ChatModel(in_dtype(build(*REFUSED[family]), DTYPES[dtype]), tokenizer, name=family)


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_stream_is_no_reason_for_refusal(dtype: str, tokenizer: PreTrainedTokenizerFast) -> None:
    # As in late blocks of real models: the stream is 500 times what a block adds, so its rounding hides what is added.
    hf = build(*COVERED["llama"])
    with torch.no_grad():
        hf.get_input_embeddings().weight.mul_(500)  # pyright: ignore[reportCallIssue, reportArgumentType]
    model = ChatModel(in_dtype(hf, DTYPES[dtype]), tokenizer, name="large")
    found = collect(model, PROMPTS[:2], sites=("resid_pre", "attn_out"))
    assert found["resid_pre"].float().norm() > 50 * found["attn_out"].float().norm()  # control


@pytest.mark.parametrize("dtype", DTYPES)
def test_scaled_writes_are_refused_under_a_large_stream(
    dtype: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    hf = build(*REFUSED["granite"])
    with torch.no_grad():
        hf.get_input_embeddings().weight.mul_(500)  # pyright: ignore[reportCallIssue, reportArgumentType]
    with pytest.raises(ValueError, match="does not add attention and MLP output"):
        ChatModel(in_dtype(hf, DTYPES[dtype]), tokenizer, name="large")


def test_overflow_in_float16_is_named(tokenizer: PreTrainedTokenizerFast) -> None:
    hf = build(*COVERED["llama"])
    with torch.no_grad():
        hf.model.layers[1].mlp.down_proj.weight.mul_(1e5)  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
    ChatModel(in_dtype(copy.deepcopy(hf), torch.bfloat16), tokenizer, name="wide")  # control
    with pytest.raises(ValueError, match=r"not finite in float16.*bfloat16"):
        ChatModel(in_dtype(hf, torch.float16), tokenizer, name="wide")
