"""A model with other weights: for a while, or as a copy."""

from pathlib import Path

import pytest
import torch

from interp.engine.generation import generate
from interp.models.adapted_models import copy_with_weights, load_like, with_weights
from interp.models.chat_model import ChatModel, load
from tests.conftest import PROMPTS, make_tokenizer


def changed(model: ChatModel, scale: float) -> dict[str, torch.Tensor]:
    """Two of the model's weights, multiplied."""
    weights = dict(model.hf.named_parameters())
    names = [name for name in weights if "down_proj" in name][:2]
    assert len(names) == 2
    return {name: weights[name].detach() * scale for name in names}


def test_a_model_has_other_weights_for_a_while_and_then_its_own(tiny: ChatModel) -> None:
    digest, own = tiny.weights_hash, generate(tiny, PROMPTS, max_new_tokens=6).texts
    parameters = [id(parameter) for parameter in tiny.hf.parameters()]
    for scale in (-40.0, 40.0):  # one after the other: nothing of the first stays in a cache
        with with_weights(tiny, changed(tiny, scale)) as model:
            assert model.weights_hash != digest
            replies = generate(model, PROMPTS, max_new_tokens=6).texts
        copy = copy_with_weights(tiny, changed(tiny, scale))
        assert generate(copy, PROMPTS, max_new_tokens=6).texts == replies != own
    with pytest.raises(KeyError), with_weights(tiny, changed(tiny, 2.0)):
        raise KeyError
    assert tiny.weights_hash == digest
    assert [id(parameter) for parameter in tiny.hf.parameters()] == parameters
    assert generate(tiny, PROMPTS, max_new_tokens=6).texts == own


def test_weights_that_the_model_does_not_have_are_refused(tiny: ChatModel) -> None:
    name = next(iter(changed(tiny, 1.0)))
    for wrong, message in (
        ({"no.such": torch.zeros(3)}, "no such weight"),
        ({name: torch.zeros(3)}, "there"),
    ):
        with pytest.raises(ValueError, match=message), with_weights(tiny, wrong):
            pass
        with pytest.raises(ValueError, match=message):
            copy_with_weights(tiny, wrong)


def test_another_checkpoint_is_loaded_as_the_model_was(tiny: ChatModel, tmp_path: Path) -> None:
    for name in ("one", "other"):
        tiny.hf.save_pretrained(tmp_path / name)
        make_tokenizer(template=None).save_pretrained(tmp_path / name)
    one = load(tmp_path / "one", chat_template="plain", dtype="bfloat16", device="cpu")
    other = load_like(one, str(tmp_path / "other"))
    assert (other.dtype, other.device, other.chat_template) == (torch.bfloat16, one.device, "plain")
    assert (other.template_hash, other.weights_hash) == (one.template_hash, one.weights_hash)
