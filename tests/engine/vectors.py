"""A direction and the logits that it changes, for tests of interventions and weight edits."""

import torch

from interp.models.chat_model import ChatModel
from interp.models.tokens import ChatTokens


def vector(seed: int = 0, width: int = 32) -> torch.Tensor:
    """A seeded random direction."""
    return torch.randn(width, generator=torch.Generator().manual_seed(seed))


def logits(model: ChatModel, tokens: ChatTokens, row: int = 0) -> torch.Tensor:
    """Logits of one prompt, in a plain pass."""
    with torch.inference_mode():
        return model.hf(torch.tensor([tokens.ids[row]])).logits
