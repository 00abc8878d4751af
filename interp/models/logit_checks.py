"""Logits of a few tokens: the proof that two ways of computing the same model agree.

ids = probe_tokens(hf)
gap = relative_difference(probe_logits(hf, ids), expected)
gap <= tolerance_of(hf)
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

PROBE_TOKENS = 12
"""Tokens, spread over the vocabulary, on which logits are compared."""
TOLERANCES = {torch.float32: 2e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest relative difference of logits that counts as rounding, by dtype."""


def probe_tokens(hf: PreTrainedModel) -> Int[Tensor, "1 pos"]:
    """A row of a few tokens, spread over the vocabulary."""
    embedding: Any = hf.get_input_embeddings()
    last = embedding.weight.shape[0] - 1
    return torch.linspace(1, last, PROBE_TOKENS, device=embedding.weight.device).long()[None]


@torch.no_grad()
def probe_logits(model: Any, ids: Int[Tensor, "1 pos"]) -> Float[Tensor, "pos d_vocab"]:
    """Logits in float32, relative to their mean at each position."""
    logits = model(input_ids=ids, use_cache=False).logits[0].float()
    return logits - logits.mean(dim=-1, keepdim=True)


def relative_difference(one: Float[Tensor, "pos d_vocab"], other: Float[Tensor, "pos d_vocab"]) -> float:
    """Size of the difference relative to the size of the second; NaN where either is not finite."""
    return (one - other).norm().item() / max(other.norm().item(), 1e-9)


def tolerance_of(hf: nn.Module) -> float:
    """The largest relative difference that rounding explains in this model's dtypes."""
    dtypes = {weight.dtype for weight in hf.parameters()}
    return max(TOLERANCES.get(dtype, TOLERANCES[torch.bfloat16]) for dtype in dtypes)
