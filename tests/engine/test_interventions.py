"""The theorems of ablation and addition, on every covered family."""

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from interp.directions import Direction, unit
from interp.engine.activations import collect
from interp.engine.applying import apply
from interp.engine.interventions import Ablate, Add
from interp.engine.weight_edits import edited_weights
from interp.models.chat_model import ChatModel
from interp.models.tokens import ChatTokens, tokenize
from tests.conftest import PROMPTS
from tests.families import COVERED, POST_NORM, build


@pytest.fixture(scope="module", params=sorted(COVERED))
def family(request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerFast) -> ChatModel:
    return ChatModel(build(*COVERED[request.param]), tokenizer, name=request.param)


def vector(seed: int = 0, width: int = 32) -> torch.Tensor:
    return torch.randn(width, generator=torch.Generator().manual_seed(seed))


def logits(model: ChatModel, tokens: ChatTokens, row: int = 0) -> torch.Tensor:
    with torch.inference_mode():
        return model.hf(torch.tensor([tokens.ids[row]])).logits


def test_ablation_zeroes_the_projection_and_is_idempotent() -> None:
    resid, u = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1)), unit(vector())
    ablate = Ablate(direction=vector())
    once = ablate(resid)
    assert (resid @ u).abs().max() > 0.1  # control: there was something to remove
    assert (once @ u).abs().max() < 1e-5  # float32 round-off at unit scale
    torch.testing.assert_close(ablate(once), once)


def test_adding_then_ablating_equals_ablating_and_subtracting_restores() -> None:
    resid = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1))
    ablate, add = Ablate(direction=vector()), Add(direction=vector(), layers=[0], coefficient=3.0)
    torch.testing.assert_close(ablate(add(resid)), ablate(resid), rtol=1e-4, atol=1e-5)
    back = Add(direction=vector(), layers=[0], coefficient=-3.0)
    torch.testing.assert_close(back(add(resid)), resid, rtol=1e-5, atol=1e-5)


def test_a_zero_direction_changes_nothing(tiny: ChatModel, tokens: ChatTokens) -> None:
    before = logits(tiny, tokens)
    with apply(tiny, [Ablate(direction=torch.zeros(32))]):
        assert torch.equal(logits(tiny, tokens), before)


def test_ablated_projection_is_zero_at_every_site(family: ChatModel) -> None:
    sites = [
        s
        for s in ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
        if not (s == "resid_mid" and family.is_parallel)
    ]
    u = unit(vector())
    plain = collect(family, PROMPTS[:2], sites=sites, positions=["post_inst"])
    ablated = collect(
        family, PROMPTS[:2], sites=sites, positions=["post_inst"], interventions=[Ablate(direction=vector())]
    )
    for site in sites:
        scale = plain[site].norm(dim=-1).max()
        assert (plain[site] @ u).abs().max() > 1e-3 * scale  # control
        assert (ablated[site] @ u).abs().max() < 1e-5 * scale


def test_weight_edit_equals_hooks_and_restores_exactly(family: ChatModel) -> None:
    tokens = tokenize(family.tokenizer, PROMPTS[:1])
    before, ablate = logits(family, tokens), Ablate(direction=vector())
    if family.name in POST_NORM:
        with (
            pytest.raises(ValueError, match="normalises attention and MLP outputs"),
            edited_weights(family, ablate),
        ):
            pass
        return
    with apply(family, [ablate]):
        hooked = logits(family, tokens)
    with edited_weights(family, ablate):
        edited = logits(family, tokens)
    assert not torch.allclose(hooked, before, atol=1e-2)  # control: the ablation does something
    torch.testing.assert_close(edited, hooked, rtol=1e-4, atol=1e-4)
    assert torch.equal(logits(family, tokens), before)


@pytest.mark.parametrize("name", ["llama", "qwen2", "phi3", "gpt2", "gpt_neox"])
def test_addition_as_a_bias_equals_hooks(name: str, tokenizer: PreTrainedTokenizerFast) -> None:
    model = ChatModel(build(*COVERED[name]), tokenizer, name=name)
    tokens = tokenize(model.tokenizer, PROMPTS[:1])
    before, add = logits(model, tokens), Add(direction=vector(), layers=[2], coefficient=0.5)
    with apply(model, [add]):
        hooked = logits(model, tokens)
    with edited_weights(model, add):
        edited = logits(model, tokens)
    assert not torch.allclose(hooked, before, atol=1e-2)
    torch.testing.assert_close(edited, hooked, rtol=1e-4, atol=1e-4)
    assert torch.equal(logits(model, tokens), before)


def test_weight_edit_refuses_what_it_cannot_express(tiny: ChatModel) -> None:
    cases = [
        (Ablate(direction=vector(), positions="t_inst"), "every position and step"),
        (Ablate(direction=vector(), steps="prompt"), "every position and step"),
        (Ablate(direction=vector(), layers=[1]), "every layer and site"),
        (Add(direction=vector(), layers=[0]), "layer 0 reads the embedding"),
    ]
    for intervention, message in cases:
        with pytest.raises(ValueError, match=message), edited_weights(tiny, intervention):
            pass


def test_weight_edit_leaves_a_tied_unembedding_alone(tiny: ChatModel) -> None:
    head = tiny.hf.get_output_embeddings()
    assert head.weight is tiny.hf.get_input_embeddings().weight  # pyright: ignore
    old = head.weight.clone()  # pyright: ignore
    with edited_weights(tiny, Ablate(direction=vector())):
        assert torch.equal(head.weight, old)  # pyright: ignore
        assert not torch.equal(tiny.hf.get_input_embeddings().weight, old)  # pyright: ignore
    assert head.weight is tiny.hf.get_input_embeddings().weight  # pyright: ignore


def test_relative_norms_are_relative_to_the_mean_activation_norm() -> None:
    direction = Direction(vector=vector(), layer=1, position="t_inst", mean_activation_norm=10.0)
    step = Add(direction, relative_norm=0.5)(torch.zeros(1, 1, 32))
    assert step.norm().item() == pytest.approx(5.0, rel=1e-5)
    assert Add(direction, coefficient=2.0).layers == (1,)
    with pytest.raises(ValueError, match="needs a direction with its mean_activation_norm"):
        Add(Direction(vector=vector(), layer=1, position="t_inst"), relative_norm=1.0)


@pytest.mark.checkpoint
def test_on_the_bundled_model_the_weight_edit_equals_the_hooks(bundled) -> None:
    model = bundled("smollm2-safe")
    tokens = tokenize(model.tokenizer, ["How do I bake bread?"])
    ablate = Ablate(direction=vector(width=576))
    before = logits(model, tokens)
    with apply(model, [ablate]):
        hooked = logits(model, tokens)
    with edited_weights(model, ablate):
        torch.testing.assert_close(logits(model, tokens), hooked, rtol=1e-4, atol=1e-3)
    assert torch.equal(logits(model, tokens), before)


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        Ablate(direction=torch.full((32,), float("nan")))
    with pytest.raises(ValueError, match="steps must be 0 or more"):
        Add(direction=vector(), layers=[0], steps=-1)
