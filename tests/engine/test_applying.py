"""Interventions in force: where they act, in which order and thread, and that nothing of them is left."""

import threading

import pytest
import torch

from interp.engine.applying import apply, bridge_hooks
from interp.engine.batching import pad_left
from interp.engine.generation import generate
from interp.engine.interventions import Ablate, Add
from interp.engine.weight_edits import edited_weights
from interp.models.chat_model import ChatModel, load
from interp.models.tokens import ChatTokens, tokenize
from tests.conftest import PROMPTS
from tests.engine.vectors import logits, vector


def test_logits_are_bit_equal_after_the_context_also_by_an_exception(
    tiny: ChatModel, tokens: ChatTokens
) -> None:
    before = logits(tiny, tokens)
    for manager in (
        apply(tiny, [Ablate(direction=vector())]),
        edited_weights(tiny, Ablate(direction=vector())),
    ):
        with pytest.raises(RuntimeError, match="boom"), manager:
            assert not torch.equal(logits(tiny, tokens), before)
            raise RuntimeError("boom")
        assert torch.equal(logits(tiny, tokens), before)


def test_interventions_compose_in_order(tiny: ChatModel, tokens: ChatTokens) -> None:
    add = Add(direction=vector(), layers=[1], coefficient=5.0)
    ablate = Ablate(direction=vector(), layers=[1], sites=("resid_pre",))
    with apply(tiny, [ablate]):
        ablated = logits(tiny, tokens)
    with apply(tiny, [add, ablate]):
        torch.testing.assert_close(logits(tiny, tokens), ablated, rtol=1e-4, atol=1e-4)
    with apply(tiny, [ablate, add]):
        assert not torch.allclose(logits(tiny, tokens), ablated, atol=1e-2)


def test_roles_limit_what_is_touched_in_a_padded_batch(tiny: ChatModel, tokens: ChatTokens) -> None:
    padded = pad_left(tokens.ids, pad_id=256)
    change = Add(direction=vector(), layers=[0], positions=["t_inst", "post_inst[1]"])
    seen: list[torch.Tensor] = []
    run = {"attention_mask": padded.mask, "position_ids": padded.position_ids}
    with torch.inference_mode(), tiny.hooks([("resid_pre", 0, lambda v: seen.append(v.clone()))]):
        tiny.hf(padded.ids, **run)
    with (
        torch.inference_mode(),
        apply(tiny, [change], tokens=tokens),
        tiny.hooks([("resid_pre", 0, lambda v: seen.append(v.clone()))]),
    ):
        tiny.hf(padded.ids, **run)
    moved = (seen[1] - seen[0]).norm(dim=-1) > 1e-6
    for row, ids in enumerate(tokens.ids):
        gap = padded.ids.shape[1] - len(ids)
        expected = torch.zeros(padded.ids.shape[1], dtype=torch.bool)
        expected[gap + tokens.ends[row] - 1] = True
        expected[gap + tokens.ends[row] + 1] = True
        assert torch.equal(moved[row], expected)


@pytest.mark.parametrize("new_tokens", ["none", 0, 1, 2, "all"])
def test_decoding_steps_with_a_cache_equal_a_full_pass_over_masked_tokens(
    tiny: ChatModel, tokens: ChatTokens, new_tokens: str | int
) -> None:
    add = Add(direction=4 * vector(), layers=[1], positions="post_inst", new_tokens=new_tokens)
    reply = generate(tiny, tokens.take([0]), interventions=[add], max_new_tokens=5).ids[0]
    n_prompt, end = len(tokens.ids[0]), tokens.ends[0]
    reach = {"none": 0, "all": 99}.get(new_tokens, new_tokens) if isinstance(new_tokens, str) else new_tokens

    def edit(value: torch.Tensor) -> torch.Tensor:
        value = value.clone()
        value[:, end : n_prompt + reach] += 4 * vector()
        return value

    so_far = list(tokens.ids[0])
    for token in reply:
        with torch.inference_mode(), tiny.hooks([("resid_pre", 1, edit)]):
            assert tiny.hf(torch.tensor([so_far])).logits[0, -1].argmax().item() == token
        so_far.append(token)


def test_bridge_hooks_equal_native_hooks(saved_tiny) -> None:
    model = load(str(saved_tiny))
    tokens = tokenize(model.tokenizer, PROMPTS[:1])
    for change in (
        Ablate(direction=vector()),
        Add(direction=vector(), layers=[1], coefficient=2.0, positions="instruction"),
    ):
        with apply(model, [change], tokens=tokens):
            native = logits(model, tokens)
        with torch.inference_mode():
            bridged = model.bridge.run_with_hooks(
                torch.tensor([tokens.ids[0]]), fwd_hooks=bridge_hooks(model, [change], tokens=tokens)
            )
        torch.testing.assert_close(bridged, native, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="need tokens="):
        bridge_hooks(model, [Ablate(direction=vector(), positions="t_inst")])


def test_mistakes_are_named(tiny: ChatModel, tokens: ChatTokens) -> None:
    with (
        pytest.raises(ValueError, match="direction has d_model 16, but tiny has 32"),
        apply(tiny, [Ablate(direction=vector(width=16))]),
    ):
        pass
    with (
        pytest.raises(ValueError, match=r"layer must be in 0\.\.2, got 7"),
        apply(tiny, [Add(direction=vector(), layers=[7])]),
    ):
        pass
    with (
        pytest.raises(ValueError, match="need to know the prompts"),
        apply(tiny, [Ablate(direction=vector(), positions="t_inst")]),
    ):
        logits(tiny, tokens)
    with pytest.raises(ValueError, match="Ablate never acted"), apply(tiny, [Ablate(direction=vector())]):
        pass


def test_an_intervention_acts_in_its_own_thread_only(tiny: ChatModel) -> None:
    ids = torch.tensor([[257, 72, 105]])
    seen: list[torch.Tensor] = []

    def elsewhere() -> None:
        with torch.no_grad():
            seen.append(tiny.hf(ids).logits)

    with torch.no_grad():
        plain = tiny.hf(ids).logits
        with apply(
            tiny,
            [Add(direction=vector(), layers=[1], coefficient=5.0, positions="all", new_tokens=1)],
            tokens=tokenize(tiny.tokenizer, ["Hi"]),
        ):
            steered = tiny.hf(ids).logits
            other = threading.Thread(target=elsewhere)
            other.start()
            other.join()
    assert torch.equal(seen[0], plain)
    assert not torch.equal(steered, plain)  # control
