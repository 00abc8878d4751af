"""Attribution of heads and their attention by role, against the Hugging Face model's own tensors."""

from typing import Any

import numpy as np
import pytest
import torch

from interp.engine.activations import collect
from interp.models.chat_model import ChatModel, load
from interp.models.tokens import tokenize
from interp.representations.heads import Head, attention_by_role, attribute, head_list, role_masks
from tests.conftest import PROMPTS, make_tokenizer
from tests.families import COVERED, POST_NORM, build


@pytest.fixture(scope="module")
def model(saved_tiny) -> ChatModel:
    return load(str(saved_tiny))


@pytest.fixture(scope="module")
def u(model: ChatModel) -> torch.Tensor:
    vector = torch.randn(model.d_model, generator=torch.Generator().manual_seed(0))
    return vector / vector.norm()


def test_attribution_is_each_heads_slice_of_the_output_projection(model: ChatModel, u: torch.Tensor) -> None:
    """By hand: the input of `o_proj`, cut into heads, times their columns of it."""
    written = attribute(model, PROMPTS[:3], 3 * u)  # the length of the direction does not matter
    tokens = tokenize(model.tokenizer, PROMPTS[:3])
    for row, ids in enumerate(tokens.ids):
        seen: dict[int, torch.Tensor] = {}

        def record(layer: int, seen: dict[int, torch.Tensor] = seen) -> Any:
            return lambda _, given: seen.update({layer: given[0][0, -1]})

        handles = [
            block.attention.get_submodule("o_proj").register_forward_pre_hook(record(layer))
            for layer, block in enumerate(model.blocks)
        ]
        with torch.no_grad():
            model.hf(torch.tensor([ids]))
        [handle.remove() for handle in handles]
        for layer, block in enumerate(model.blocks):
            weight = block.attention.get_parameter("o_proj.weight").detach()  # [d_model, head * d_head]
            by_hand = [u @ weight[:, 8 * h : 8 * h + 8] @ seen[layer][8 * h : 8 * h + 8] for h in range(4)]
            torch.testing.assert_close(written.heads[row, layer], torch.stack(by_hand), atol=1e-4, rtol=1e-4)


def test_the_parts_add_up_to_the_final_stream(model: ChatModel, u: torch.Tensor) -> None:
    written = attribute(model, PROMPTS, u, position="t_inst")
    stream = collect(model, PROMPTS, sites="resid_post", layers=2, positions="t_inst")["resid_post"][:, 0, 0]
    torch.testing.assert_close(written.total, stream @ u, atol=1e-4, rtol=1e-4)
    parts = written.embedding + written.heads.sum((1, 2)) + written.mlps.sum(1)
    torch.testing.assert_close(parts, written.total, atol=1e-4, rtol=1e-4)
    assert float(written.biases.abs().max()) < 1e-4  # Llama's attention has no output bias
    assert written.heads.abs().mean() > 0.01  # control: there was something to add


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "qwen3_moe"])
def test_biases_and_parallel_blocks_add_up(name: str) -> None:
    kind, settings = COVERED[name]
    hf = build(kind, settings)
    with torch.no_grad():
        for parameter_name, parameter in hf.named_parameters():
            if parameter_name.endswith("bias"):
                parameter.normal_(0, 0.1)
    written = attribute(ChatModel(hf, make_tokenizer(), name=name), PROMPTS[:2], torch.arange(32.0) - 15)
    assert (float(written.biases.abs().max()) > 1e-3) == (name in {"gpt2", "gpt_neox"})
    torch.testing.assert_close(written.biases[0], written.biases[1], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", sorted(POST_NORM))
def test_heads_whose_output_is_normalised_are_refused(name: str) -> None:
    model = ChatModel(build(*COVERED[name]), make_tokenizer(), name=name)
    assert model.normalises_attention
    with pytest.raises(ValueError, match=f"{name} normalises what attention writes"):
        attribute(model, PROMPTS[:1], torch.ones(32))


def test_attention_by_role_is_what_the_model_attends_to(model: ChatModel) -> None:
    """By hand from Hugging Face's eager attention weights, one prompt at a time."""
    heads = [(0, 1), Head(2, 3)]
    by_role = attention_by_role(model, PROMPTS[:3], heads)
    eager: Any = build_eager(model)
    tokens = tokenize(model.tokenizer, PROMPTS[:3])
    assert by_role.roles == ("prefix", "instruction", "t_inst", "post_inst")
    for row, ids in enumerate(tokens.ids):
        with torch.no_grad():
            attentions = eager(torch.tensor([ids]), output_attentions=True).attentions
        start, end = tokens.starts[row], tokens.ends[row]
        for h, (layer, head) in enumerate(heads):
            weights = attentions[layer][0, head, -1]
            spans = [weights[:start], weights[start : end - 1], weights[end - 1 : end], weights[end:]]
            torch.testing.assert_close(
                by_role.values[row, h], torch.stack([span.sum() for span in spans]), atol=1e-5, rtol=1e-4
            )
    assert "L2H3" in repr(by_role) and len(by_role.figure().to_dict()["data"]) == len(by_role.roles)


def build_eager(model: ChatModel) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    eager = AutoModelForCausalLM.from_config(model.hf.config, attn_implementation="eager").eval()
    eager.load_state_dict(model.hf.state_dict())
    return eager


def test_roles_are_disjoint_and_cover_a_prefilled_conversation(model: ChatModel) -> None:
    turns = [("user", "Hi"), ("assistant", "Yes."), ("user", "Name a colour."), ("assistant", "Sure, b")]
    tokens = tokenize(model.tokenizer, [[{"role": role, "content": text} for role, text in turns]])
    masks = role_masks(tokens, 0)
    assert set(masks) == {"prefix", "instruction", "t_inst", "post_inst", "prefill"}
    assert torch.equal(
        torch.stack(list(masks.values())).sum(0), torch.ones(len(tokens.ids[0]), dtype=torch.long)
    )
    assert int(masks["prefill"].sum()) == len("Sure, b")


def test_a_users_mistakes_are_named(model: ChatModel, u: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"heads 0..3 in each layer, got L0H4"):
        attention_by_role(model, PROMPTS[:1], [(0, 4)])
    with pytest.raises(ValueError, match=r"layer must be in 0..2, got 7"):
        attention_by_role(model, PROMPTS[:1], [(7, 0)])
    with pytest.raises(ValueError, match=r"heads must be \(layer, head\) pairs"):
        attention_by_role(model, PROMPTS[:1], [])
    with pytest.raises(ValueError, match="position must be a single token, got 'post_inst'"):
        attribute(model, PROMPTS[:1], u, position="post_inst")
    with pytest.raises(ValueError, match="direction must have 32 numbers"):
        attribute(model, PROMPTS[:1], torch.ones(31))
    with pytest.raises(ValueError, match="and not be zero"):
        attribute(model, PROMPTS[:1], torch.zeros(32))


def test_top_lists_the_strongest_in_either_sign(model: ChatModel, u: torch.Tensor) -> None:
    written = attribute(model, PROMPTS[:2], u)
    mean = written.heads.mean(0)
    layer, head = written.top(1)[0]
    assert float(mean[layer, head].abs()) == float(mean.abs().max())
    opposite = attribute(model, PROMPTS[:2], -u)
    assert opposite.top(12) == written.top(12)
    assert opposite.estimate(written.top(1)[0]).value == pytest.approx(
        -written.estimate(written.top(1)[0]).value
    )
    with pytest.raises(ValueError, match=r"n must be in 1..12"):
        written.top(13)
    assert (
        "direct attribution" in repr(written).lower() and written.figure().to_dict()["data"][0]["zmid"] == 0
    )


def test_heads_are_pairs_of_whole_numbers() -> None:
    assert head_list([(0, 1), [np.int64(2), 3]]) == [Head(0, 1), Head(2, 3)]
    for wrong in (None, [], "all", (0, 1), [0], [(0,)], [(0.5, 1)], ["L0H1"]):
        with pytest.raises(
            ValueError, match=r"must be \(layer, head\) pairs|a head is a pair|must be a whole number"
        ):
            head_list(wrong)
