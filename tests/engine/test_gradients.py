"""The path that keeps gradients: the plain path's numbers, and the gradients that PyTorch gives without us."""

import threading
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from interp.engine.activations import collect
from interp.engine.gradients import Readings, SoftPrefix, differentiable
from interp.engine.interventions import Ablate, Add, Intervention
from interp.engine.log_probs import next_token_log_probs
from interp.models.chat_model import SITES, ChatModel, Site
from interp.models.tokens import ChatTokens, tokenize
from tests.conftest import PROMPTS
from tests.families import COVERED, build


def vector(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def changes() -> list[Intervention]:
    return [
        Ablate(direction=vector(32)),
        Add(direction=vector(32, seed=1), layers=[1], positions=["t_inst", "post_inst[1]"]),
    ]


def sites_of(model: ChatModel) -> list[Site]:
    return [site for site in SITES if not (site == "resid_mid" and model.is_parallel)]


def soft(count: int = 3, **place: Any) -> SoftPrefix:
    return SoftPrefix(embeddings=vector(count, 32, seed=2).requires_grad_(), **place)


def loss_of(readings: Readings) -> Tensor:
    """A number that depends on everything that was read."""
    total = readings.log_probs[:, ::7].sum()
    for value in readings.values.values():
        total = total + (value * vector(*value.shape, seed=3)).sum()
    return total


def inserted(tokens: ChatTokens, ids: list[int], at: list[int]) -> ChatTokens:
    """The prompts with these tokens inside, at an index of each, before their instruction's end."""
    return ChatTokens(
        ids=tuple((*row[:i], *ids, *row[i:]) for row, i in zip(tokens.ids, at, strict=True)),
        starts=tuple(start + len(ids) for start in tokens.starts),
        ends=tuple(end + len(ids) for end in tokens.ends),
        tokenizer=tokens.tokenizer,
    )


@pytest.mark.parametrize("changed", [False, True])
def test_it_reads_what_the_plain_path_reads(family: ChatModel, changed: bool) -> None:
    interventions = changes() if changed else []
    sites, roles = sites_of(family), ["t_inst", "post_inst"]
    plain = collect(family, PROMPTS, sites=sites, positions=roles, interventions=interventions, fast=False)
    log_probs = next_token_log_probs(family, PROMPTS, interventions=interventions, fast=False)
    with differentiable(family, interventions=interventions) as through:
        found = through.run(PROMPTS, sites=sites, positions=roles)
    assert found.roles == plain.roles and found.layers == plain.layers
    for site in sites:
        assert (found[site] - plain[site]).norm() < 1e-5 * plain[site].norm()
    assert (found.log_probs - log_probs).norm() < 1e-5 * log_probs.norm()
    if changed:  # control: the interventions do something
        assert (collect(family, PROMPTS, positions=roles)["resid_pre"] - plain["resid_pre"]).abs().max() > 0.1


@pytest.mark.parametrize("before", [None, "instruction", "t_inst"])
def test_a_soft_prefix_of_real_tokens_is_those_tokens(family: ChatModel, before: str | None) -> None:
    tokens, ids = tokenize(family.tokenizer, PROMPTS), [70, 80, 90]
    at = [
        0 if before is None else s if before == "instruction" else e - 1
        for s, e in zip(tokens.starts, tokens.ends, strict=True)
    ]
    longer = inserted(tokens, ids, at)
    expected = collect(family, longer, sites=["resid_post"], interventions=changes(), fast=False)
    log_probs = next_token_log_probs(family, longer, interventions=changes(), fast=False)
    with differentiable(family, interventions=changes()) as through:
        embeddings = family.embedding(torch.tensor(ids)).detach()
        found = through.run(
            tokens, soft_prefix=SoftPrefix(embeddings=embeddings, before=before), sites=["resid_post"]
        )
        without = through.run(tokens, sites=["resid_post"])
    assert (found["resid_post"] - expected["resid_post"]).norm() < 1e-5 * expected["resid_post"].norm()
    assert (found.log_probs - log_probs).norm() < 1e-5 * log_probs.norm()
    assert (without["resid_post"] - expected["resid_post"]).norm() > 1e-3 * expected["resid_post"].norm()


def test_gradients_are_those_of_the_model_called_by_hand(family: ChatModel) -> None:
    """Prompt by prompt, without padding, hooks or a frozen parameter."""
    prefix = soft()
    tokens = tokenize(family.tokenizer, PROMPTS)
    with differentiable(family) as through:
        found = through.run(tokens, soft_prefix=prefix)
        (gradient,) = torch.autograd.grad(found.log_probs[:, 65].sum(), prefix.embeddings)
    total = torch.zeros(())
    for ids in tokens.ids:
        embeds = torch.cat([prefix.embeddings, family.embedding(torch.tensor(ids))])[None]
        total = total + family.hf(inputs_embeds=embeds).logits[0, -1].log_softmax(-1)[65]
    (expected,) = torch.autograd.grad(total, prefix.embeddings)
    assert expected.abs().max() > 1e-4
    assert (gradient - expected).norm() < 1e-4 * expected.norm()


def test_gradients_are_finite_differences(tokenizer: PreTrainedTokenizerFast) -> None:
    # GPT-2 computes in float64 throughout; RMS norms go through float32, whose rounding drowns a small step.
    model = ChatModel(build(*COVERED["gpt2"]).double(), tokenizer, name="gpt2")
    tokens = tokenize(tokenizer, PROMPTS[:3])
    prefix, step = soft(2, before="instruction").embeddings.detach().double(), 1e-6
    embeds = [vector(len(ids), 32, seed=len(ids)).double() for ids in tokens.ids]
    direction = vector(32, seed=5).double()

    def loss(prefix: Tensor, first: Tensor, direction: Tensor) -> Tensor:
        change = [
            Add(direction=direction, layers=[1], positions="t_inst"),
            Ablate(direction=vector(32).double()),
        ]
        with differentiable(model, interventions=change) as through:
            found = through.run(
                tokens,
                inputs_embeds=[first, *embeds[1:]],
                soft_prefix=SoftPrefix(embeddings=prefix, before="instruction"),
                sites=["resid_mid"],
                layers=[2],
            )
        return loss_of(found)

    inputs = [value.requires_grad_() for value in (prefix, embeds[0], direction)]
    gradients = torch.autograd.grad(loss(*inputs), inputs)
    with torch.no_grad():
        for number, gradient in enumerate(gradients):
            towards = vector(*gradient.shape, seed=9).double()
            ends = [
                [v + sign * step * towards if i == number else v for i, v in enumerate(inputs)]
                for sign in (1, -1)
            ]
            slope = (loss(*ends[0]) - loss(*ends[1])) / (2 * step)
            assert slope.abs() > 1e-3
            torch.testing.assert_close((gradient * towards).sum(), slope, rtol=1e-6, atol=1e-7)


def gradient_and_memory(model: ChatModel, checkpointing: bool, *, backward: Any = None) -> tuple[Tensor, int]:
    prefix, kept = soft(before="instruction"), [0]

    def pack(value: Tensor) -> Tensor:
        kept[0] += value.numel()
        return value

    with differentiable(model, interventions=changes(), checkpointing=checkpointing) as through:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            found = through.run(PROMPTS, soft_prefix=prefix, sites=sites_of(model))
            loss = loss_of(found)
        (backward or Tensor.backward)(loss)
    assert prefix.embeddings.grad is not None
    return prefix.embeddings.grad, kept[0]


def test_checkpointed_blocks_give_equal_gradients_from_less_memory(family: ChatModel) -> None:
    plain, much = gradient_and_memory(family, False)
    found, little = gradient_and_memory(family, True)
    assert torch.equal(found, plain) and plain.abs().max() > 1e-3
    assert little < 0.5 * much


def test_blocks_run_again_in_autograds_own_thread_as_they_ran(tiny: ChatModel) -> None:
    """On a card the backward pass has its own thread, where interventions of this one must act all the same."""

    def elsewhere(loss: Tensor) -> None:
        thread = threading.Thread(target=loss.backward)
        thread.start()
        thread.join()

    plain, _ = gradient_and_memory(tiny, False)
    found, _ = gradient_and_memory(tiny, True, backward=elsewhere)
    assert torch.equal(found, plain)


def test_a_graph_can_be_walked_twice(tiny: ChatModel) -> None:
    prefix = soft()
    with differentiable(tiny, interventions=changes(), checkpointing=True) as through:
        loss = loss_of(through.run(PROMPTS, soft_prefix=prefix))
        once, twice = (torch.autograd.grad(loss, prefix.embeddings, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(once, twice)


def test_a_checkpointed_pass_cannot_go_back_once_interventions_are_gone(tiny: ChatModel) -> None:
    prefix = soft()
    with differentiable(tiny, checkpointing=True) as through:
        loss = loss_of(through.run(PROMPTS, soft_prefix=prefix))
    with pytest.raises(RuntimeError, match="must run inside `differentiable`"):
        loss.backward()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_parameters_stay_frozen_and_the_model_is_as_before(
    tokenizer: PreTrainedTokenizerFast, checkpointing: bool, fails: bool
) -> None:
    model = ChatModel(build(*COVERED["llama"]), tokenizer, name="llama")
    parameters = list(model.hf.parameters())
    parameters[3].requires_grad_(False)
    asked = [parameter.requires_grad for parameter in parameters]
    ids = torch.tensor([[5, 9, 40]])
    before, weights = model.hf(ids).logits, model.weights_hash
    prefix = soft()
    try:
        with differentiable(model, interventions=changes(), checkpointing=checkpointing) as through:
            assert not any(parameter.requires_grad for parameter in parameters)
            loss_of(through.run(PROMPTS, soft_prefix=prefix)).backward()
            assert prefix.embeddings.grad is not None
            if fails:
                raise KeyError("stop")
    except KeyError:
        assert fails
    assert [parameter.requires_grad for parameter in parameters] == asked
    assert all(parameter.grad is None for parameter in parameters)
    assert torch.equal(model.hf(ids).logits, before) and model.weights_hash == weights
    assert not any("forward" in vars(module) for module in model.hf.modules())
    hooks = [m for m in model.hf.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert not hooks


def test_mistakes_are_named(tiny: ChatModel) -> None:
    with differentiable(tiny) as through:
        embeds = through.embed(PROMPTS)
        with pytest.raises(ValueError, match="inputs_embeds of 1 prompts for 6"):
            through.run(PROMPTS, inputs_embeds=embeds[:1])
        with pytest.raises(ValueError, match=r"inputs_embeds of prompt 0 must have shape \[\d+, 32\]"):
            through.run(PROMPTS, inputs_embeds=[embeds[0][1:], *embeds[1:]])
        with pytest.raises(ValueError, match="unknown position 'nowhere'"):
            through.run(PROMPTS, soft_prefix=soft(before="nowhere"))
        with pytest.raises(ValueError, match="layer must be in"):
            through.run(PROMPTS, sites=["resid_pre"], layers=[9])


# Trainable weights, and one layer's states


def weights_below(model: ChatModel, layer: int) -> list[torch.nn.Parameter]:
    return [weight for block in model.blocks[:layer] for weight in block.module.parameters()]


@pytest.mark.parametrize("changed", [False, True])
@pytest.mark.parametrize("site", ["resid_post", "resid_pre"])
@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2"])
def test_states_of_a_layer_are_those_of_whole_prompts_with_equal_gradients(
    tokenizer: PreTrainedTokenizerFast, kind: str, site: Site, changed: bool
) -> None:
    family = ChatModel(build(*COVERED[kind]), tokenizer, name=kind)
    trainable, roles = weights_below(family, 2 if site == "resid_post" else 1), ["t_inst", "t_post_inst"]
    found: list[tuple[Tensor, tuple[Tensor, ...]]] = []
    interventions = changes() if changed else []
    with differentiable(family, interventions=interventions, trainable=trainable) as through:
        for fast in (True, False):
            states = through.states(PROMPTS, layer=1, site=site, positions=roles, fast=fast)
            loss = (states * vector(*states.shape, seed=3)).sum()
            gradients = torch.autograd.grad(loss, trainable, allow_unused=True)
            found.append((states.detach(), tuple(g for g in gradients if g is not None)))
        run = through.run(PROMPTS, sites=[site], layers=1, positions=roles)[site][:, 0]
        assert all(weight.requires_grad for weight in trainable)
        assert sum(weight.requires_grad for weight in family.hf.parameters()) == len(trainable)
    for states, gradients in found:
        assert (states - run).norm() < 1e-5 * run.norm()
        assert len(gradients) == len(found[0][1]) > 0
        for gradient, expected in zip(gradients, found[1][1], strict=True):
            assert (gradient - expected).norm() < 1e-4 * expected.norm() + 1e-6
    assert all(weight.requires_grad for weight in family.hf.parameters())


def test_states_run_no_block_above_their_layer(tiny: ChatModel) -> None:
    ran: list[int] = []
    handles = [
        block.module.register_forward_hook(lambda *_, layer=layer: ran.append(layer))
        for layer, block in enumerate(tiny.blocks)
    ]
    try:
        with differentiable(tiny) as through:
            through.states(PROMPTS, layer=1)
            ran.clear()  # the first use compares both paths
            through.states(PROMPTS, layer=0)
            assert ran == [0]
            through.states(PROMPTS, layer=0, fast=False)
            assert ran == [0, 0, 1, 2]  # control
    finally:
        for handle in handles:
            handle.remove()


def test_states_of_checkpointed_blocks_have_equal_gradients(tiny: ChatModel) -> None:
    trainable = weights_below(tiny, 2)
    found = []
    for checkpointing in (False, True):
        with differentiable(tiny, trainable=trainable, checkpointing=checkpointing) as through:
            loss = through.states(PROMPTS, layer=1).square().sum()
            found.append(torch.autograd.grad(loss, trainable))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
