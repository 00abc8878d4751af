"""The safety plane: planted directions are recovered, with the identities that its definition promises."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from interp.directions import cosine
from interp.engine.log_probs import next_token_log_probs
from interp.models.chat_model import ChatModel
from interp.models.prompt_inputs import PromptIdentity
from interp.models.tokens import tokenize
from interp.representations.safety_plane import (
    SafetySpace,
    anchor,
    plane_by_layer,
    plane_cosines,
    shift_table,
)
from interp.representations.safety_regressions import fit_folds
from interp.representations.safety_states import SafetyStates, refusal_targets, safety_representations
from interp.representations.steering import find_directions
from tests.conftest import PROMPTS

CONDITIONS = ("none", "default")


def planted(seed: int = 0, n: int = 40, width: int = 24) -> tuple[SafetyStates, Tensor, Tensor, Tensor]:
    """States with harmfulness along axis 0 and refusal along axis 1, large enough for the released step size."""
    generator = torch.Generator().manual_seed(seed)
    harmful = torch.arange(2 * n) < n
    values = torch.randn(2, 2 * n, width, generator=generator)
    values[..., 0] += 80 * (harmful.float() - 0.5)
    level = 40 * torch.randn(2, 2 * n, generator=generator)
    values[..., 1] += level
    values[1, :, 1] += 20  # the prompt moves queries towards refusing
    level = values[..., 1]
    states = SafetyStates(
        values=values,
        conditions=CONDITIONS,
        harmful=harmful,
        place="final_norm",
        ending="as-is",
        identity=PromptIdentity.numbered([str(i) for i in range(2 * n)]),
    )
    axes = torch.eye(width)
    return states, torch.sigmoid(level / 12), axes[0], axes[1]


@pytest.fixture(scope="module")
def case() -> tuple[SafetyStates, Tensor, SafetySpace]:
    states, refusal, *_ = planted()
    return states, refusal, anchor(states, refusal)


@pytest.mark.parametrize("solver", ["released", "converged"])
def test_planted_directions_are_recovered(solver: str) -> None:
    states, refusal, harm_axis, refusal_axis = planted()
    space = anchor(states, refusal, solver=solver)  # pyright: ignore[reportArgumentType]
    assert cosine(space.refusal_normal.float(), refusal_axis) > 0.95
    assert cosine(space.harm_normal.float(), harm_axis) > 0.95
    assert abs(cosine(space.refusal_normal.float(), harm_axis)) < 0.3
    if solver == "released":
        return
    shuffled = refusal.flatten()[torch.randperm(refusal.numel(), generator=torch.Generator().manual_seed(1))]
    control = anchor(states, shuffled.view_as(refusal), solver=solver)  # pyright: ignore[reportArgumentType]
    axis = refusal_axis.double()
    assert abs(control.refusal_normal @ axis) < 0.3 * (space.refusal_normal @ axis)


def test_q_is_orthonormal_and_the_norm_splits(case: tuple[SafetyStates, Tensor, SafetySpace]) -> None:
    states, _, space = case
    whole = torch.cat([space.basis, space.rest], dim=1)
    torch.testing.assert_close(whole.T @ whole, torch.eye(24, dtype=torch.float64), rtol=0, atol=1e-10)
    x = states.values[0].double() - space.mean
    parts = space.coordinates(states.values[0].double()).square().sum(-1) + (x @ space.rest).square().sum(-1)
    torch.testing.assert_close(x.square().sum(-1), parts)
    torch.testing.assert_close(space.beside(x), (x @ space.rest).square().mean(-1))


def test_flipping_all_labels_flips_both_normals(case: tuple[SafetyStates, Tensor, SafetySpace]) -> None:
    states, refusal, space = case
    flipped = anchor(replace(states, harmful=~states.harmful), 1 - refusal)
    torch.testing.assert_close(flipped.refusal_normal, -space.refusal_normal)
    torch.testing.assert_close(flipped.harm_normal, -space.harm_normal)


def test_the_arrows_point_to_the_high_side(case: tuple[SafetyStates, Tensor, SafetySpace]) -> None:
    states, refusal, space = case
    logits, harm = space.refusal(states.values), space.harmfulness(states.values)
    assert logits[refusal > 0.8].mean() > logits[refusal < 0.2].mean() + 0.1
    assert harm[:, states.harmful].mean() > harm[:, ~states.harmful].mean() + 0.1


def test_averaging_fold_weights_equals_averaging_fold_logits(
    case: tuple[SafetyStates, Tensor, SafetySpace],
) -> None:
    states, _, space = case
    z = space.coordinates(states.values.flatten(0, 1).double())
    logits = z @ space.folds.weights[0].T + space.folds.biases[0]
    torch.testing.assert_close(logits.mean(-1), space.refusal(states.values.flatten(0, 1).double()))
    assert logits.std(-1).max() > 1e-4  # control: folds differ


def test_the_released_fit_equals_the_loop_written_out() -> None:
    states, refusal, *_ = planted()
    z = states.values.flatten(0, 1)[:, :4].double()
    found = fit_folds(z, refusal.flatten()[None], folds=4, seed=3)
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(3))
    held = order[torch.arange(len(z)) % 4 == 1]
    train = torch.tensor([i for i in range(len(z)) if i not in set(held.tolist())])
    layer = torch.nn.Linear(4, 1).double()
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-4)
    loss = torch.nn.functional.binary_cross_entropy_with_logits
    best, waited, p = torch.inf, 0, refusal.flatten().double()
    for _ in range(10_000):
        optimizer.zero_grad()
        loss(layer(z[train])[:, 0], p[train]).backward()
        optimizer.step()
        with torch.no_grad():
            now = loss(layer(z[held])[:, 0], p[held]).item()
        best, waited = (now, 0) if now < best - 1e-4 else (best, waited + 1)
        if waited == 3:
            break
    torch.testing.assert_close(found.weights[0, 1], layer.weight[0].detach())
    torch.testing.assert_close(found.biases[0, 1], layer.bias[0].detach())
    assert found.held_out_loss[0, 1].item() == pytest.approx(now)
    assert 10 < found.steps[0, 1] < 10_000


def test_shifts_are_split(case: tuple[SafetyStates, Tensor, SafetySpace]) -> None:
    states, _, space = case
    harmful, harmless = shift_table(space, states)
    assert (harmful.condition, harmful.kind, harmless.kind) == ("default", "harmful", "harmless")
    mean = (states.of("default", harmful=True) - states.of("none", harmful=True)).mean(0)
    along = mean.double() @ space.refusal_normal / space.refusal_normal.norm()
    assert harmful.refusal.value == pytest.approx(along.item(), rel=1e-5) and harmful.refusal.low > 0
    assert harmful.total == pytest.approx(mean.norm().item(), rel=1e-5)
    change = space.refusal(states.of("default", harmful=True)) - space.refusal(
        states.of("none", harmful=True)
    )
    assert harmful.refusal_logit.value == pytest.approx(change.mean().item(), rel=1e-4)
    # Moved within the span of both normals only, nothing is left over.
    inside = states.values.clone().double()
    inside[1] = inside[0] + 2 * space.refusal_normal - space.harm_normal
    moved = shift_table(space, replace(states, values=inside.float()))[0]
    assert moved.rest < 1e-3 * moved.total and moved.share_explained == pytest.approx(1)


def test_mistakes_are_named(case: tuple[SafetyStates, Tensor, SafetySpace]) -> None:
    states, refusal, space = case
    with pytest.raises(ValueError, match=r"shape \[2, 80\] \[condition, query\], got \[1, 80\]"):
        anchor(states, refusal[:1])
    with pytest.raises(ValueError, match=r"in 0\.\.1"):
        anchor(states, refusal + 1)
    with pytest.raises(ValueError, match=r"is 0\.5 at every point: no direction tells it apart"):
        anchor(states, torch.full_like(refusal, 0.5))
    with pytest.raises(ValueError, match="all states at final_norm are equal"):
        anchor(replace(states, values=torch.ones_like(states.values)), refusal)
    with pytest.raises(ValueError, match="n_components must be in"):
        anchor(states, refusal, n_components=24)
    with pytest.raises(ValueError, match="no states under 'short'; there are none, default"):
        shift_table(space, states, base="short")
    with pytest.raises(ValueError, match=r"fitted at final_norm, these states were read at blocks\.1"):
        shift_table(space, replace(states, place="blocks.1.hook_resid_pre"))


def test_the_plane_of_every_layer_beside_the_directions_of_find_directions(tiny: ChatModel) -> None:
    queries = {"harmful": PROMPTS[:3], "harmless": PROMPTS[3:]}
    prompts = {"none": "", "short": "Be kind."}
    refusal = torch.rand(2, 6, generator=torch.Generator().manual_seed(0))
    planes = plane_by_layer(tiny, queries, prompts, refusal, folds=3, solver="converged")
    assert [plane.layer for plane in planes] == [1, 2]  # at layer 0 the last template token is all there is
    directions = find_directions(tiny, queries, layer=2)
    expected = plane_cosines(
        planes[1].space, refusal=directions["refusal"].vector, harmfulness=directions["harmfulness"].vector
    )
    assert planes[1].cosines == pytest.approx(expected, abs=1e-4)
    states = safety_representations(tiny, queries, prompts, layer=2)
    assert planes[1].shifts[0].total == pytest.approx(shift_table(planes[1].space, states)[0].total, rel=1e-4)
    (alone,) = plane_by_layer(tiny, queries, prompts, refusal, layers=2, folds=3, solver="converged")
    assert alone.layer == 2
    assert alone.cosines == pytest.approx(planes[1].cosines, abs=1e-5)
    ended = plane_by_layer(tiny, queries, prompts, refusal, folds=3, solver="converged", ending="period")
    assert ended[1].shifts[0].total != planes[1].shifts[0].total


def test_first_tokens_are_read_from_states_of_the_same_queries_alone(tiny: ChatModel) -> None:
    queries = {"harmful": PROMPTS[:3], "harmless": PROMPTS[3:]}
    texts = {"none": "", "default": "Be safe."}
    states = safety_representations(tiny, queries, texts)
    found = refusal_targets(tiny, queries, texts, states=states)
    assert found.tokens is not None
    asked = tokenize(tiny.tokenizer, [*PROMPTS[:3], *PROMPTS[3:]])
    expected = next_token_log_probs(tiny, asked)[:, list(found.tokens.ids)].exp().sum(-1)
    torch.testing.assert_close(found.values[0], expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(refusal_targets(tiny, queries, texts).values, found.values)
    for other in (
        replace(states, place="blocks.1.hook_resid_pre"),
        replace(states, ending="period"),
        safety_representations(tiny, queries, {"none": "", "other": "Be safe."}),
        safety_representations(tiny, {"harmful": PROMPTS[:2], "harmless": PROMPTS[3:]}, texts),
    ):
        with pytest.raises(ValueError, match="states must be those of the same queries"):
            refusal_targets(tiny, queries, texts, states=other)
