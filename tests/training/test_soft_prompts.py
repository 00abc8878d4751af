"""Training a safety prompt: the losses written out, the model untouched, and the fast path's numbers."""

import inspect
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import interp
from interp.data.replies import REFUSALS, STUBS
from interp.engine.safety_prompts import SafetyPrompt
from interp.models.chat_model import ChatModel
from interp.models.prompt_inputs import PromptIdentity
from interp.representations.safety_plane import SafetySpace, anchor
from interp.representations.safety_states import SafetyStates, query_sides
from interp.training.config import SafetyPromptConfig
from interp.training.prompt_losses import DroLoss, LikelihoodLoss
from interp.training.soft_prompts import (
    QueryReplies,
    TrainedPrompt,
    desired_replies,
    fit_safety_space,
    optimise_prompt,
    safety_prompt,
    tune_prompt,
)
from tests.conftest import PROMPTS, prompts_of

HARMFUL, HARMLESS = PROMPTS[:3], PROMPTS[3:]
SMALL = SafetyPromptConfig(
    epochs=3,
    batch_size=4,
    texts=("Be kind.",),
    folds=3,
    solver="converged",
    products="model",
    learning_rate=0.02,
    reply_tokens=5,
)
START = "Be brief."
LN2 = 0.693147


@pytest.fixture(scope="module")
def space(tiny: ChatModel) -> SafetySpace:
    return fit_safety_space(tiny, HARMFUL, HARMLESS, config=SMALL)


@pytest.fixture(scope="module")
def trained(tiny: ChatModel, space: SafetySpace) -> TrainedPrompt:
    return optimise_prompt(tiny, space, HARMFUL, HARMLESS, start=START, config=SMALL)


def plane(width: int = 16) -> tuple[SafetySpace, Tensor]:
    """A plane of synthetic states, and some of them."""
    generator = torch.Generator().manual_seed(0)
    values = 5 * torch.randn(2, 20, width, generator=generator)
    states = SafetyStates(
        values=values,
        conditions=("none", "x"),
        harmful=torch.arange(20) < 10,
        place="final_norm",
        ending="as-is",
        identity=PromptIdentity.numbered([str(i) for i in range(20)]),
    )
    return anchor(states, torch.sigmoid(values[..., 0]), solver="converged"), values[0]


def test_at_the_start_the_loss_is_0_7001(trained: TrainedPrompt) -> None:
    first = {name: values[0] for name, values in trained.losses.items()}
    assert first["refusal"] == pytest.approx(LN2, abs=1e-5)
    assert first["harmfulness"] == pytest.approx(LN2, abs=1e-5)
    assert first["rest"] == pytest.approx(0, abs=1e-8)
    assert first["total"] == pytest.approx(0.7001, abs=5e-5)


def test_the_losses_are_those_written_out() -> None:
    space, x0 = plane()
    labels = (torch.arange(20) < 10).float()
    x = x0 + torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
    rows = [3, 15, 7]
    found = DroLoss(space, x0, labels, SafetyPromptConfig())(x[rows][:, None], rows)
    a, v, u = space.mean, space.basis, space.rest
    z, z0 = ((points[rows].double() - a) @ v for points in (x, x0))
    total = 0.0
    for name, weight, w in (("refusal", 1, space.refusal_weights), ("harmfulness", 0.01, space.harm_weights)):
        p = torch.sigmoid((z - z0) @ w)
        y = labels[rows].double()
        expected = -(y * p.log() + (1 - y) * (1 - p).log()).mean()
        assert found[name].item() == pytest.approx(expected.item(), rel=1e-4)
        total += weight * expected.item()
    rest = ((x - x0)[rows].double() @ u).square().mean()
    assert found["rest"].item() == pytest.approx(rest.item(), rel=1e-4)
    assert found["total"].item() == pytest.approx(total + 0.001 * rest.item(), rel=1e-4)
    halves = [
        DroLoss(space, x0, labels, SafetyPromptConfig())(x[part][:, None], part, of=3)
        for part in ([3], [15, 7])
    ]
    assert sum(half["total"].item() for half in halves) == pytest.approx(found["total"].item(), rel=1e-5)


def test_moving_a_harmful_point_along_the_refusal_normal_lowers_l_r_and_leaves_l_u() -> None:
    space, x0 = plane()
    loss = DroLoss(space, x0, (torch.arange(20) < 10).float(), SafetyPromptConfig())
    still = loss(x0[:1, None], [0])
    moved = loss((x0[:1] + space.refusal_normal.float())[:, None], [0])
    assert moved["refusal"] < still["refusal"] - 1e-3
    assert moved["rest"] == pytest.approx(0, abs=1e-9)
    harmless = loss((x0[15:16] + space.refusal_normal.float())[:, None], [15])
    assert harmless["refusal"] > still["refusal"] + 1e-3
    beside = loss((x0[:1] + space.rest[:, 0].float())[:, None], [0])
    assert beside["rest"] == pytest.approx(1 / 12, rel=1e-3) and beside["refusal"] == pytest.approx(
        LN2, abs=1e-4
    )


def test_training_lowers_the_loss_and_leaves_the_model_alone(
    tiny: ChatModel, space: SafetySpace, trained: TrainedPrompt
) -> None:
    weights, asked = tiny.weights_hash, [p.requires_grad for p in tiny.hf.parameters()]
    again = optimise_prompt(tiny, space, HARMFUL, HARMLESS, start=START, config=SMALL)
    assert torch.equal(again.prompt.embeddings, trained.prompt.embeddings)
    assert tiny.weights_hash == weights == trained.prompt.weights_hash
    assert all(p.grad is None for p in tiny.hf.parameters())
    assert [p.requires_grad for p in tiny.hf.parameters()] == asked
    more = optimise_prompt(
        tiny,
        space,
        HARMFUL,
        HARMLESS,
        start=START,
        config=replace(SMALL, epochs=25, batch_size=6, rest_weight=0.0),
    )
    assert len(more.losses["total"]) == 25
    assert more.losses["refusal"][-1] < 0.69
    assert more.losses["total"][-1] < more.losses["total"][0]
    assert trained.prompt.provenance["objective"] == "dro" and trained.prompt.text == START


def test_the_fast_path_trains_to_the_plain_ones_prompt(
    tiny: ChatModel, space: SafetySpace, trained: TrainedPrompt
) -> None:
    plain = optimise_prompt(tiny, space, HARMFUL, HARMLESS, start=START, config=SMALL, fast=False)
    start = SafetyPrompt.from_text(tiny, START).embeddings
    moved = (plain.prompt.embeddings - start).norm()
    assert moved > 0.05
    # Adam divides by the gradient's size, so that rounding of near-zero gradients is amplified.
    assert (plain.prompt.embeddings - trained.prompt.embeddings).norm() < 0.02 * moved


def test_provenance_names_queries_of_both_kinds_also_where_they_come_from_one_file(
    tiny: ChatModel, space: SafetySpace
) -> None:
    sides = prompts_of(HARMFUL), prompts_of(HARMLESS)  # both from "test"
    prompt = optimise_prompt(tiny, space, *sides, start=START, config=replace(SMALL, epochs=1)).prompt
    assert {name: part["hash"] for name, part in prompt.provenance["prompts"].items()} == {
        "test (harmful)": sides[0].hash,
        "test (harmless)": sides[1].hash,
    }


def test_prompt_tuning_is_likelihood_and_unlikelihood_of_replies(tiny: ChatModel) -> None:
    replies = [QueryReplies("no", "yes")] * 3 + [QueryReplies("bread", "never!")] * 3
    tuned, plain = (
        tune_prompt(tiny, HARMFUL, HARMLESS, start=START, replies=replies, config=SMALL, fast=fast)
        for fast in (True, False)
    )
    for name, values in tuned.losses.items():
        assert values == pytest.approx(plain.losses[name], rel=2e-3)
    read = torch.randn(2, 4, 300, generator=torch.Generator().manual_seed(0))
    found = LikelihoodLoss([[5, 6], [7, 8, 9]], SafetyPromptConfig(unlikelihood_weight=2.0))(read, [0, 1])
    log_probs = read.log_softmax(-1)
    likelihood = -(log_probs[0, 1, 5] + log_probs[0, 2, 6]) / 2
    unlikelihood = -sum((1 - log_probs[1, i, 7 + i].exp()).log() for i in range(3)) / 3
    assert found["likelihood"].item() == pytest.approx(likelihood.item(), rel=1e-5)
    assert found["unlikelihood"].item() == pytest.approx(float(unlikelihood), rel=1e-3)
    assert found["total"].item() == pytest.approx(float(likelihood + 2 * unlikelihood), rel=1e-4)
    longer = tune_prompt(
        tiny, HARMFUL, HARMLESS, start=START, replies=replies, config=replace(SMALL, epochs=20, batch_size=6)
    )
    assert longer.losses["total"][-1] < longer.losses["total"][0] - 0.05
    with pytest.raises(ValueError, match="got replies to 1 queries for 6"):
        tune_prompt(tiny, HARMFUL, HARMLESS, start=START, replies=replies[:1], config=SMALL)


def test_nothing_harmful_is_ever_desired(tiny: ChatModel) -> None:
    """A model that never refuses gives refusals of ours for harmful queries, its own words only for harmless ones."""
    replies = desired_replies(
        tiny, query_sides({"harmful": HARMFUL, "harmless": HARMLESS}), START, config=SMALL
    )
    for row, reply in enumerate(replies):
        if row < 3:
            assert reply.desired in REFUSALS and reply.undesired in STUBS
        else:
            assert reply.desired not in REFUSALS and reply.undesired in REFUSALS


def test_one_call_trains_a_prompt_and_mistakes_are_named(tiny: ChatModel, space: SafetySpace) -> None:
    assert interp.safety_prompt is safety_prompt
    once = replace(SMALL, epochs=1)
    for objective in ("dro", "prompt-tuning"):
        prompt = safety_prompt(tiny, HARMFUL, HARMLESS, start=START, objective=objective, config=once)  # pyright: ignore[reportArgumentType]
        assert prompt.provenance["objective"] == objective
        assert interp.generate(tiny, "Hi", safety_prompt=prompt, max_new_tokens=2).ids
    plain = inspect.unwrap(safety_prompt)  # without the tests' type checks
    with pytest.raises(ValueError, match="model must be a ChatModel, got str"):
        plain("tiny", HARMFUL, HARMLESS)
    with pytest.raises(ValueError, match="config must be a SafetyPromptConfig, got dict"):
        plain(tiny, HARMFUL, HARMLESS, config={})
    with pytest.raises(
        ValueError, match="starts from a text, got an empty one; known by name: default, short"
    ):
        optimise_prompt(tiny, space, HARMFUL, HARMLESS, start=" ", config=once)
    with pytest.raises(ValueError, match="fitted after the final norm of tiny, of width 32"):
        optimise_prompt(tiny, replace(space, place="blocks.1.hook_resid_pre"), HARMFUL, HARMLESS, config=once)
    with pytest.raises(ValueError, match="epochs must be 1 or more"):
        SafetyPromptConfig(epochs=0)
    with pytest.raises(ValueError, match=r"the gradient is not finite at step \d; lower learning_rate"):
        optimise_prompt(
            tiny,
            space,
            HARMFUL,
            HARMLESS,
            start=START,
            config=replace(SMALL, learning_rate=1e37, max_norm=1e37),
        )
