"""The theorems of ablation and addition, on every covered family."""

import threading

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from interp.directions import Direction, unit
from interp.engine.activations import collect
from interp.engine.generation import generate
from interp.engine.interventions import Ablate, Add, apply, bridge_hooks
from interp.engine.weight_edits import edited_weights
from interp.models.chat_model import ChatModel, load
from interp.models.tokens import ChatTokens, pad_left, tokenize
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


@pytest.mark.parametrize("steps", ["prompt", 0, 1, 2, "all"])
def test_decoding_steps_with_a_cache_equal_a_full_pass_over_masked_tokens(
    tiny: ChatModel, tokens: ChatTokens, steps: str | int
) -> None:
    add = Add(direction=4 * vector(), layers=[1], positions="post_inst", steps=steps)
    reply = generate(tiny, tokens.take([0]), interventions=[add], max_new_tokens=5).ids[0]
    n_prompt, end = len(tokens.ids[0]), tokens.ends[0]
    reach = {"prompt": 0, "all": 99}.get(steps, steps) if isinstance(steps, str) else steps

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


def test_relative_norms_are_relative_to_the_mean_activation_norm() -> None:
    direction = Direction(vector=vector(), layer=1, position="t_inst", mean_activation_norm=10.0)
    step = Add(direction, relative_norm=0.5)(torch.zeros(1, 1, 32))
    assert step.norm().item() == pytest.approx(5.0, rel=1e-5)
    assert Add(direction, coefficient=2.0).layers == (1,)
    with pytest.raises(ValueError, match="needs a direction with its mean_activation_norm"):
        Add(Direction(vector=vector(), layer=1, position="t_inst"), relative_norm=1.0)


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
    with pytest.raises(ValueError, match="NaN or infinite"):
        Ablate(direction=torch.full((32,), float("nan")))
    with pytest.raises(ValueError, match="steps must be 0 or more"):
        Add(direction=vector(), layers=[0], steps=-1)


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
            [Add(direction=vector(), layers=[1], coefficient=5.0, positions="all", steps=1)],
            tokens=tokenize(tiny.tokenizer, ["Hi"]),
        ):
            steered = tiny.hf(ids).logits
            other = threading.Thread(target=elsewhere)
            other.start()
            other.join()
    assert torch.equal(seen[0], plain)
    assert not torch.equal(steered, plain)  # control
