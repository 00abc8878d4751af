"""Logit lens against the model's own logits, patching by role against runs by hand."""

import pytest
import torch

from interp.engine.activations import collect
from interp.engine.log_probs import next_token_log_probs
from interp.models.chat_model import ChatModel, load
from interp.models.tokens import tokenize
from interp.representations.readouts import logit_lens, patch
from tests.conftest import PROMPTS, make_tokenizer
from tests.families import COVERED, build


@pytest.fixture(scope="module")
def model(saved_tiny) -> ChatModel:
    return load(str(saved_tiny))


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_the_deepest_entry_of_the_lens_is_the_model(name: str) -> None:
    """Gemma 2 caps its logits after the unembedding, which a lens must do as well."""
    model = ChatModel(build(*COVERED[name]), make_tokenizer(), name=name)
    lens = logit_lens(model, PROMPTS[:3], tokens=["a", 5])
    own = next_token_log_probs(model, PROMPTS[:3])
    a = model.tokenizer("a", add_special_tokens=False)["input_ids"][0]
    torch.testing.assert_close(lens.log_probs[:, -1], own[:, [a, 5]], atol=1e-4, rtol=1e-4)
    assert lens.log_probs.shape == (3, 4, 2)
    assert float((lens.log_probs[:, 0] - lens.log_probs[:, -1]).abs().max()) > 5e-3  # control: depth matters


def test_by_default_each_prompt_has_its_own_first_token(model: ChatModel) -> None:
    lens = logit_lens(model, PROMPTS)
    own = next_token_log_probs(model, PROMPTS)
    torch.testing.assert_close(lens.log_probs[:, -1, 0], own.max(-1).values, atol=1e-4, rtol=1e-4)
    assert lens.ranks[:, -1, 0].tolist() == [0] * len(PROMPTS)
    assert lens.tokens == ("own first token",)
    torch.testing.assert_close(lens.entropy[:, -1], -(own.exp() * own).sum(-1), atol=1e-3, rtol=1e-3)


def test_the_lens_by_hand_in_the_middle(model: ChatModel) -> None:
    stream = collect(model, PROMPTS[:2], layers=1, positions="t_inst")["resid_pre"][:, 0, 0]
    with torch.no_grad():
        by_hand = model.hf.lm_head(model.hf.model.norm(stream)).log_softmax(-1)[:, [7]]
    lens = logit_lens(model, PROMPTS[:2], tokens=[7], position="t_inst")
    torch.testing.assert_close(lens.log_probs[:, 1], by_hand, atol=1e-4, rtol=1e-4)


def test_patching_everything_that_counts_gives_the_clean_run(model: ChatModel) -> None:
    clean, corrupted = PROMPTS[:3], PROMPTS[3:6]
    patched = patch(model, clean, corrupted, metric=("a", "b"), site="resid_post", positions="t_post_inst")
    torch.testing.assert_close(patched.values[:, 2, 0], patched.clean, atol=1e-4, rtol=1e-4)
    log_probs = next_token_log_probs(model, corrupted)
    a, b = model.tokenizer("ab", add_special_tokens=False)["input_ids"]
    torch.testing.assert_close(patched.corrupted, log_probs[:, a] - log_probs[:, b], atol=1e-4, rtol=1e-4)
    assert patched.recovered(2, "t_post_inst").value == pytest.approx(1, abs=1e-3)
    # The template's last token has one embedding in every prompt: before the first block nothing can be recovered.
    first = patch(model, clean, corrupted, metric=("a", "b"), layers=0, positions="t_post_inst")
    assert first.recovered(0, "t_post_inst").value == pytest.approx(0, abs=1e-4)


def test_one_patch_by_hand(model: ChatModel) -> None:
    """Prompts of unlike length: the clean t_inst goes to the corrupted t_inst, wherever that is."""
    clean, corrupted = PROMPTS[0], PROMPTS[3]
    source = collect(model, clean, layers=1, positions="t_inst")["resid_pre"][0, 0, 0]
    tokens = tokenize(model.tokenizer, [corrupted])
    column = tokens.ends[0] - 1

    def replace(_, given):
        hidden = given[0].clone()
        hidden[0, column] = source
        return (hidden, *given[1:])

    handle = model.hf.model.layers[1].register_forward_pre_hook(replace)
    with torch.no_grad():
        by_hand = model.hf(torch.tensor(tokens.ids)).logits[0, -1].log_softmax(-1)[9]
    handle.remove()
    patched = patch(model, clean, corrupted, metric=lambda log_probs: log_probs[:, 9], positions="t_inst")
    torch.testing.assert_close(patched.values[0, 1, 0], by_hand, atol=1e-4, rtol=1e-4)
    assert abs(float(patched.values[0, 1, 0] - patched.corrupted[0])) > 1e-3  # control: the patch acts


def test_a_patch_with_itself_changes_nothing_and_is_not_measurable(model: ChatModel) -> None:
    patched = patch(model, PROMPTS[:2], PROMPTS[:2], metric=("a", "b"))
    torch.testing.assert_close(
        patched.values, patched.corrupted[:, None, None].expand_as(patched.values), atol=1e-4, rtol=1e-4
    )
    assert not patched.recovered(1, "t_inst").measurable
    assert repr(patched).count("–") == 2  # one for each role


def test_a_users_mistakes_are_named(model: ChatModel) -> None:
    with pytest.raises(ValueError, match="'ab' is 2 tokens of"):
        logit_lens(model, PROMPTS[:1], tokens=["ab"])
    with pytest.raises(ValueError, match=r"token id must be in 0..299, got 300"):
        logit_lens(model, PROMPTS[:1], tokens=[300])
    with pytest.raises(ValueError, match="are pairs: got 2 and 1"):
        patch(model, PROMPTS[:2], PROMPTS[:1], metric=("a", "b"))
    with pytest.raises(ValueError, match="unknown position 'last'"):
        patch(model, PROMPTS[:1], PROMPTS[:1], metric=("a", "b"), positions="last")
    with pytest.raises(ValueError, match="position must be a single token"):
        logit_lens(model, PROMPTS[:1], position="post_inst")
