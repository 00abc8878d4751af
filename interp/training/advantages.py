"""Rewards, advantages and losses of policy optimisation on padded batches; a mask says which positions are real.

Positions are answer tokens: `values[:, t]` is the value of the state before token t, `rewards[:, t]` what the token
earns.

Sources: Schulman et al. 2016, arXiv:1506.02438, equation 16 (GAE); Schulman et al. 2017, arXiv:1707.06347, equation 7
(clipped objective); Stiennon et al. 2020, arXiv:2009.01325, section 3.4 (KL reward); whitening and value clipping as in
the released code of Chang et al. 2024, arXiv:2404.08495.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def masked_mean(values: Float[Tensor, "batch pos"], mask: Bool[Tensor, "batch pos"]) -> Float[Tensor, ""]:
    """Mean over the positions of the mask, whichever row they are in; 0 for an empty mask."""
    return (values * mask).sum() / mask.sum().clamp(min=1)


def whiten(
    values: Float[Tensor, "batch pos"], mask: Bool[Tensor, "batch pos"], *, keep_mean: bool = False
) -> Float[Tensor, "batch pos"]:
    """Values scaled to unit variance over the mask, and centred unless the mean is kept; 0 outside of the mask."""
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean) ** 2, mask)
    scaled = (values - mean) * torch.rsqrt(variance + 1e-8)
    return (scaled + mean if keep_mean else scaled) * mask


def kl_shaped_rewards(
    scores: Float[Tensor, " batch"],
    log_ratios: Float[Tensor, "batch pos"],
    lengths: Int[Tensor, " batch"],
    *,
    kl_coefficient: float | int,
) -> Float[Tensor, "batch pos"]:
    """-kl_coefficient (log pi - log pi_ref) at every token, plus the score of the answer at its last token."""
    positions = torch.arange(log_ratios.shape[1], device=log_ratios.device)
    rewards = -kl_coefficient * log_ratios * (positions < lengths[:, None])
    last = positions == lengths[:, None] - 1
    return rewards + last * scores[:, None]


def gae(
    rewards: Float[Tensor, "batch pos"],
    values: Float[Tensor, "batch pos"],
    lengths: Int[Tensor, " batch"],
    *,
    gamma: float | int = 1.0,
    lam: float | int = 0.95,
) -> Float[Tensor, "batch pos"]:
    """Generalised advantage estimates: sum over k of (gamma lam)^k (r + gamma V' - V) from each position on.

    The value after an answer's last token is 0; positions behind it have no advantage.
    """
    advantages = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        inside = t < lengths
        after = (
            values[:, t + 1] * (t + 1 < lengths) if t + 1 < rewards.shape[1] else torch.zeros_like(following)
        )
        step_error = rewards[:, t] + gamma * after - values[:, t]
        following = (step_error + gamma * lam * following) * inside
        advantages[:, t] = following
    return advantages


class Clipped(NamedTuple):
    """A loss by position, and where clipping decided it."""

    losses: Float[Tensor, "batch pos"]
    clipped: Bool[Tensor, "batch pos"]


def clipped_policy_losses(
    log_probs: Float[Tensor, "batch pos"],
    old_log_probs: Float[Tensor, "batch pos"],
    advantages: Float[Tensor, "batch pos"],
    *,
    clip: float | int,
) -> Clipped:
    """max(-A ratio, -A clip(ratio, 1 - clip, 1 + clip)) at every position."""
    ratio = (log_probs - old_log_probs).exp()
    plain, bounded = -advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip)
    return Clipped(torch.maximum(plain, bounded), bounded > plain)


def clipped_value_losses(
    values: Float[Tensor, "batch pos"],
    old_values: Float[Tensor, "batch pos"],
    returns: Float[Tensor, "batch pos"],
    *,
    clip: float | int,
) -> Clipped:
    """Half the larger squared error of the value and of the value held within `clip` of the old one."""
    held = torch.clamp(values, old_values - clip, old_values + clip)
    plain, bounded = (values - returns) ** 2, (held - returns) ** 2
    return Clipped(0.5 * torch.maximum(plain, bounded), bounded > plain)
