"""Logits of a few tokens: the proof that two ways of computing the same model agree.

ids = probe_tokens(hf)
gap = relative_difference(probe_logits(hf, ids), expected)
explained_by_rounding(gap, hf, ids)
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
_AMPLIFIED = 4
"""Roundings of every product that two ways of computing the same may differ by: each has its own of inputs, products
and sums."""


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


def explained_by_rounding(gap: float, hf: nn.Module, ids: Int[Tensor, "1 pos"]) -> bool:
    """Whether rounding explains a relative difference of logits between two ways of computing this model.

    It does below the tolerance of the dtype. Some weights, those of two checkpoints mixed for one, amplify rounding by
    orders of magnitude: there it does below four times what one more rounding of every product changes.
    """
    return gap <= tolerance_of(hf) or gap <= _AMPLIFIED * rounding_noise(hf, ids)


@torch.no_grad()
def rounding_noise(hf: nn.Module, ids: Int[Tensor, "1 pos"]) -> float:
    """Relative difference that one more rounding of every product of a linear layer makes in the logits."""
    generator = torch.Generator().manual_seed(0)

    def round_again(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        del module, args
        relative = torch.finfo(output.dtype).eps * torch.randn(output.shape, generator=generator)
        return output * (1 + relative.to(output))

    plain = probe_logits(hf, ids)
    handles = [
        part.register_forward_hook(round_again) for part in hf.modules() if isinstance(part, nn.Linear)
    ]
    try:
        return relative_difference(probe_logits(hf, ids), plain)
    finally:
        for handle in handles:
            handle.remove()
