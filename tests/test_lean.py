"""In-place versions of what lies between matrix products: the same numbers, and only while they are asked for."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import PreTrainedTokenizerFast
from transformers.models.llama import modeling_llama

from interp import lean
from interp.activations import collect
from interp.lean import lean_forwards
from interp.models import ChatModel
from tests.families import COVERED, build

IDS = torch.tensor([[5, 9, 40, 3, 77, 12]])


def swapped(model: ChatModel) -> list[nn.Module]:
    return [module for module in model.hf.modules() if "forward" in vars(module)]


@pytest.fixture(params=sorted(COVERED))
def family(request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerFast) -> ChatModel:
    return ChatModel(build(*COVERED[request.param]), tokenizer, name=request.param)


@torch.no_grad()
def test_every_family_gives_the_same_logits_inside_and_outside(family: ChatModel) -> None:
    expected = family.hf(IDS).logits
    with lean_forwards(family):
        found = family.hf(IDS).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(family.hf(IDS).logits, expected)
    assert not swapped(family)


@torch.no_grad()
def test_what_has_the_parts_is_swapped_and_what_computes_otherwise_is_not(
    tiny: ChatModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    own = modeling_llama.apply_rotary_pos_emb
    with lean_forwards(tiny):
        # Three blocks with one MLP and two norms each, and the final norm.
        assert len(swapped(tiny)) == 3 * 3 + 1
        assert modeling_llama.apply_rotary_pos_emb is lean.rotary
    assert modeling_llama.apply_rotary_pos_emb is own
    gemma = ChatModel(build(*COVERED["gemma2"]), tokenizer, name="gemma2")
    with lean_forwards(gemma):  # its norms multiply by 1 + weight
        assert {type(module).__name__ for module in swapped(gemma)} == {"Gemma2MLP"}
    neox = ChatModel(build(*COVERED["gpt_neox"]), tokenizer, name="gpt_neox")
    with lean_forwards(neox):  # it turns a part of each head
        from transformers.models.gpt_neox import modeling_gpt_neox

        assert modeling_gpt_neox.apply_rotary_pos_emb is not lean.rotary
        assert not swapped(neox)


def test_a_norm_of_another_formula_is_left_alone(tiny: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def offset(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon) * (1 + self.weight)

    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", offset)
    other = ChatModel(tiny.hf, tiny.tokenizer, name="other")
    with torch.no_grad(), lean_forwards(other):
        assert {type(module).__name__ for module in swapped(other)} == {"LlamaMLP"}


@pytest.mark.parametrize("reason", ["gradient", "half precision"])
def test_passes_with_gradients_or_in_half_precision_stay_as_they_are(
    reason: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = ChatModel(build(*COVERED["llama"]), tokenizer, name="llama")
    if reason == "half precision":
        model.hf.to(torch.bfloat16)
    with torch.set_grad_enabled(reason == "gradient"), lean_forwards(model):
        assert not swapped(model)


def test_everything_is_back_after_an_exception(tiny: ChatModel) -> None:
    own = modeling_llama.apply_rotary_pos_emb
    with pytest.raises(RuntimeError, match="stop"), torch.no_grad(), lean_forwards(tiny):
        assert swapped(tiny)  # control
        raise RuntimeError("stop")
    assert not swapped(tiny)
    assert modeling_llama.apply_rotary_pos_emb is own


def test_a_collection_uses_them(tiny: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    plain: Callable[..., torch.Tensor] = lean.rms_norm

    def counted(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return plain(module, x)

    monkeypatch.setattr(lean, "rms_norm", counted)
    fresh = ChatModel(tiny.hf, tiny.tokenizer, name="fresh")
    collect(fresh, ["Hello", "How do I pick a lock?"])
    assert calls
