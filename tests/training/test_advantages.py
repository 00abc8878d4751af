"""GAE, whitening, KL rewards and clipped losses against sums written out by hand."""

import pytest
import torch

from interp.training.advantages import (
    clipped_policy_losses,
    clipped_value_losses,
    gae,
    kl_shaped_rewards,
    masked_mean,
    whiten,
)

REWARDS = torch.tensor([[1.0, 0.0, 2.0], [3.0, -1.0, 0.0]])
VALUES = torch.tensor([[0.5, 1.0, 1.5], [2.0, 1.0, 9.0]])
LENGTHS = torch.tensor([3, 2])  # the second answer ends after two tokens


def test_gae_by_hand() -> None:
    g, lam = 0.9, 0.5
    found = gae(REWARDS, VALUES, LENGTHS, gamma=g, lam=lam)
    first = [1 + g * 1.0 - 0.5, 0 + g * 1.5 - 1.0, 2 - 1.5]  # one-step errors
    second = [3 + g * 1.0 - 2.0, -1 - 1.0]
    expected = [
        [first[0] + g * lam * (first[1] + g * lam * first[2]), first[1] + g * lam * first[2], first[2]],
        [second[0] + g * lam * second[1], second[1], 0.0],
    ]
    assert torch.allclose(found, torch.tensor(expected), atol=1e-6)


def test_gae_is_return_minus_value_at_lambda_1_and_the_one_step_error_at_0() -> None:
    whole = gae(REWARDS, VALUES, LENGTHS, gamma=1, lam=1)
    returns = torch.tensor([[3.0, 2.0, 2.0], [2.0, -1.0, 0.0]])
    inside = torch.tensor([[True] * 3, [True, True, False]])
    assert torch.allclose(whole, (returns - VALUES) * inside)
    errors = gae(REWARDS, VALUES, LENGTHS, gamma=1, lam=0)
    assert torch.allclose(errors, torch.tensor([[1.5, 0.5, 0.5], [2.0, -2.0, 0.0]]))
    assert not torch.allclose(whole, errors)


def test_kl_rewards_hold_the_score_at_the_last_token() -> None:
    ratios = torch.tensor([[0.1, -0.2, 0.3], [0.4, 0.5, 9.0]])
    found = kl_shaped_rewards(torch.tensor([2.0, -1.0]), ratios, LENGTHS, kl_coefficient=0.5)
    assert torch.allclose(found, torch.tensor([[-0.05, 0.1, 2 - 0.15], [-0.2, -1 - 0.25, 0.0]]))
    assert torch.allclose(found.sum(1), torch.tensor([2.0, -1.0]) - 0.5 * torch.tensor([0.2, 0.9]))


def test_whitening_looks_at_the_mask_alone() -> None:
    mask = torch.tensor([[True, True, False], [True, False, False]])
    values = torch.tensor([[1.0, 2.0, 1e6], [3.0, -1e6, 7.0]])
    found = whiten(values, mask)
    spread = (2 / 3) ** 0.5
    assert found[mask].tolist() == pytest.approx([-1 / spread, 0, 1 / spread], abs=1e-5)
    assert found[~mask].abs().max() == 0
    kept = whiten(values, mask, keep_mean=True)
    assert masked_mean(kept, mask).item() == pytest.approx(2.0)
    assert masked_mean(values, torch.zeros_like(mask)).item() == 0


def test_clipping_by_hand() -> None:
    ratio = torch.tensor([[1.5, 0.5, 1.1]])
    found = clipped_policy_losses(ratio.log(), torch.zeros(1, 3), torch.tensor([[2.0, -2.0, 1.0]]), clip=0.2)
    # A ratio that gains no more beyond 1.2, one whose loss no longer falls below 0.8, and one inside.
    assert torch.allclose(found.losses, torch.tensor([[-2.4, 1.6, -1.1]]))
    assert found.clipped.tolist() == [[True, True, False]]
    value = clipped_value_losses(
        torch.tensor([[1.0, 1.0]]), torch.tensor([[0.5, 0.9]]), torch.tensor([[1.0, 0.0]]), clip=0.2
    )
    assert torch.allclose(value.losses, torch.tensor([[0.5 * 0.3**2, 0.5]]))
    assert value.clipped.tolist() == [[True, False]]
