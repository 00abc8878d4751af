"""SoftSFT: fine-tuning that holds the first tokens of completions near what they were before.

Whether a model refuses is decided in the first tokens of its reply, and ordinary fine-tuning moves them most. Here the
cross-entropy of each completion token is weighted (`constraint_weights`), the less the likelier it has become already.
`interp.training.finetune.fine_tune` does so where `TrainConfig.constraint` is above 0.
"""

import torch
from jaxtyping import Float
from torch import Tensor

CONSTRAINT_FACTORS = (5.0, 20.0, 20.0, 20.0, 20.0)
"""Factors on the constraint's strength at the first five tokens of a completion; 1 from the sixth on."""
MIN_CONSTRAINT_WEIGHT = 1e-3
"""Lower bound of a token's weight under the constraint, so that no token is lost to training."""


def constraint_weights(
    log_probs: Float[Tensor, "batch pos"], references: Float[Tensor, "batch pos"], constraint: float | int
) -> Float[Tensor, "batch pos"]:
    """Weights of token-wise constrained fine-tuning (SoftSFT), without a gradient.

    The weight of token t of a completion is 2 (1 - sigmoid(b_t (log p_t - log p_ref,t))), at least 1e-3: 1 before
    training, and smaller the likelier the token has become. b_t is `constraint` times 5 at the first token, times 20 at
    the next four. Cross-entropy with these weights has the gradient of the published loss.

    Source: Qi et al. 2024, "Safety alignment should be made more than just a few tokens deep", arXiv:2406.05946,
    section 4, with the strengths given there (0.5, 2 and 0.1); lower bound as released by Yang et al. 2025.

    Args:
        log_probs: log-probability of each completion token under the model in training, in nats.
        references: the same under the model before training.
        constraint: b, in 1 / nats; 0 weighs all tokens with 1.
    """
    strength = torch.full_like(log_probs, constraint)
    for position, factor in enumerate(CONSTRAINT_FACTORS[: log_probs.shape[1]]):
        strength[:, position] *= factor
    gain = strength * (log_probs.detach() - references)
    return (2 * torch.sigmoid(-gain)).clamp(min=MIN_CONSTRAINT_WEIGHT)
