"""Passes with gradients for the system slot: those of whole prompts, each called by hand."""

import pytest
import torch
from torch import Tensor

import interp.engine.slot_passes as method
from interp.engine.slot_passes import Loss, SlotPasses
from interp.models.chat_model import ChatModel
from interp.models.system_slots import SystemSlot, system_slot
from tests.conftest import PROMPTS

REPLIES = [[70, 71, 72], [80], [90, 91], [70], [71, 72, 73, 74], [99]]


def slot_of(model: ChatModel) -> SystemSlot:
    return system_slot(model.tokenizer, PROMPTS, "Be kind and brief.")


def start(slot: SystemSlot, seed: int = 0) -> Tensor:
    return torch.randn(len(slot), 32, generator=torch.Generator().manual_seed(seed))


def by_hand(model: ChatModel, slot: SystemSlot, soft: Tensor, after: list[list[int]], row: int) -> Tensor:
    ids = torch.tensor([*slot.tokens.ids[row], *after[row]])
    embeds = model.embedding(ids).detach()
    return torch.cat([embeds[: slot.start], soft, embeds[slot.stop :]])[None]


def towards(n: int, width: int) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(5))


def states_loss(weights: Tensor) -> Loss:
    return lambda read, rows: {"total": (read[:, -1] * weights[rows]).sum()}


def test_gradients_of_states_are_those_of_the_model_called_by_hand(
    family: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(method, "_ROW_TOKENS", 120)  # several passes a step
    slot, rows = slot_of(family), [4, 0, 3]
    passes, soft, weights = SlotPasses(family, slot), start(slot), towards(len(PROMPTS), 32)
    assert passes.shared == slot.tokens.n_shared
    found = passes.gradient(soft, rows, states_loss(weights))
    whole = SlotPasses(family, slot, fast=False)
    assert whole.shared == 0
    plainly = whole.gradient(soft, rows, states_loss(weights)).gradient
    theta, total = soft.clone().requires_grad_(), torch.zeros(())
    for row in rows:
        embeds = by_hand(family, slot, theta, [[]] * len(PROMPTS), row)
        total = (
            total
            + family.hf(inputs_embeds=embeds, output_hidden_states=True).hidden_states[-1][0, -1]
            @ weights[row]
        )
    (expected,) = torch.autograd.grad(total, theta)
    assert expected.norm() > 1e-3
    assert (found.gradient - expected).norm() < 1e-4 * expected.norm()
    assert (plainly - expected).norm() < 1e-4 * expected.norm()
    assert found.terms["total"] == pytest.approx(total.item(), abs=1e-3)
    with torch.no_grad():
        plain = [
            family.hf(
                inputs_embeds=by_hand(family, slot, soft, [[]] * len(PROMPTS), row), output_hidden_states=True
            ).hidden_states[-1][0, -1]
            for row in range(len(PROMPTS))
        ]
    states = passes.states(soft)
    assert (states - torch.stack(plain)).norm() < 1e-5 * states.norm()


def reply_loss(read: Tensor, rows: list[int]) -> dict[str, Tensor]:
    total = torch.zeros(())
    for i, row in enumerate(rows):
        ids = torch.tensor(REPLIES[row])
        total = total - read[i, -len(ids) - 1 : -1].log_softmax(-1).gather(1, ids[:, None]).sum()
    return {"total": total}


@pytest.mark.parametrize("fast", [True, False])
def test_logits_of_completions_and_their_gradients_are_those_by_hand(
    tiny: ChatModel, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(method, "_ROW_TOKENS", 120)
    slot = slot_of(tiny)
    passes, soft = SlotPasses(tiny, slot, completions=REPLIES, fast=fast), start(slot)
    found = passes.gradient(soft, range(len(PROMPTS)), reply_loss)
    theta, total = soft.clone().requires_grad_(), torch.zeros(())
    for row, reply in enumerate(REPLIES):
        logits = tiny.hf(inputs_embeds=by_hand(tiny, slot, theta, REPLIES, row)).logits[0]
        chosen = logits[-len(reply) - 1 : -1].log_softmax(-1).gather(1, torch.tensor(reply)[:, None])
        total = total - chosen.sum()
    (expected,) = torch.autograd.grad(total, theta)
    assert (found.gradient - expected).norm() < 1e-4 * expected.norm()
    assert found.terms["total"] == pytest.approx(total.item(), rel=1e-4)


def test_products_in_half_precision_are_near_those_of_the_model_and_not_equal(tiny: ChatModel) -> None:
    slot = slot_of(tiny)
    soft, weights = start(slot), towards(len(PROMPTS), 32)
    exact, half = (
        SlotPasses(tiny, slot, products=products).gradient(soft, range(6), states_loss(weights)).gradient
        for products in ("model", "bfloat16")
    )
    error = (half - exact).norm() / exact.norm()
    assert 1e-5 < error < 0.05  # 8 bits a factor


@pytest.mark.parametrize("products", ["model", "bfloat16"])
def test_only_the_prompt_has_a_gradient_and_the_model_is_as_it_was(tiny: ChatModel, products: str) -> None:
    slot, weights = slot_of(tiny), tiny.weights_hash
    passes = SlotPasses(tiny, slot, products=products)  # pyright: ignore[reportArgumentType]
    asked = [parameter.requires_grad for parameter in tiny.hf.parameters()]

    def loss(read: Tensor, rows: list[int]) -> dict[str, Tensor]:
        assert not any(parameter.requires_grad for parameter in tiny.hf.parameters())
        return {"total": read.square().sum() + len(rows)}

    assert passes.gradient(start(slot), range(6), loss).gradient.norm() > 0
    with pytest.raises(KeyError):
        passes.gradient(start(slot), range(6), lambda *_: {}["total"])
    assert [parameter.requires_grad for parameter in tiny.hf.parameters()] == asked
    assert all(parameter.grad is None for parameter in tiny.hf.parameters())
    assert tiny.weights_hash == weights
    assert not any("forward" in vars(module) for module in tiny.hf.modules())
