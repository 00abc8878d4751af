"""Weight edits equal the hooks they stand for, and leave the model as it was."""

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from interp.engine.applying import apply
from interp.engine.interventions import Ablate, Add
from interp.engine.weight_edits import edited_weights
from interp.models.chat_model import ChatModel
from interp.models.tokens import tokenize
from tests.conftest import PROMPTS
from tests.engine.vectors import logits, vector
from tests.families import COVERED, POST_NORM, build


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
        (Ablate(direction=vector(), new_tokens="none"), "every position and step"),
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
