"""The likeliest next token without a float32 product with the whole vocabulary.

The unembedding is a quarter of a decoding step of a small model. A core with AMX multiplies by the unembedding in
bfloat16 in a sixth of the time, and how far such a logit can lie from the exact one is known: each factor is rounded by
at most 2^-8 of itself, so that the two differ by at most about 2^-7 |x| |w|. Tokens that can be the likeliest by that
bound, a few of 49,152, are multiplied in float32, all others are not needed.

    candidates = Candidates.of(layer)
    logits = candidate_logits(x, layer.weight, candidates)     # exact for candidates, -inf for all other tokens
    token = first_largest(logits)                              # that of the exact logits
"""

from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.engine.unembedding import unembedded
from interp.models.chat_model import ChatModel

_ROUNDING = 2.0**-8
"""Largest relative error of a number rounded to bfloat16."""
_BLOCK = 64
"""Tokens of which the largest logit is found first: over blocks it is found 5 times as fast as over single tokens."""
_MOST_CANDIDATES = 1 / 128
"""Share of all tokens that may be candidates: beyond it the whole product is faster."""
_PACKED_ROWS = 128
"""Rows of products that the weight is packed for: packed for one, products of 64 take 1.2 times as long."""
_PROBED = 1000.0
"""Largest logit of the states by which a model's logits are compared with its unembedding: caps change those."""


class Candidates(NamedTuple):
    """An unembedding in bfloat16, and what bounds the error of its products."""

    packed: Tensor
    """The weight in oneDNN's layout."""
    norms: Float[Tensor, "block token"]
    """Norm of every token's row; 0 beyond the vocabulary."""
    largest: Float[Tensor, " block"]
    """Largest norm of every block."""

    @classmethod
    def of(cls, layer: nn.Linear) -> "Candidates":
        """Those of a layer's present weight."""
        weight = layer.weight.detach()
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.bfloat16(), _PACKED_ROWS)
        norms = _blocks(torch.linalg.vector_norm(weight, dim=-1), beyond=0.0)
        return cls(packed, norms, norms.amax(-1))

    @classmethod
    def compared(cls, layer: nn.Linear, x: Float[Tensor, "*batch d_model"]) -> "Candidates | None":
        """Those of a layer; None unless they find the likeliest tokens of these states, and few candidates."""
        made = cls.of(layer)
        found = candidate_logits(x, layer.weight, made)
        if found is None:
            return None
        whole = nn.functional.linear(x, layer.weight).flatten(0, -2)
        ids, (highest, _) = first_largest(found.flatten(0, -2)), whole.max(-1)
        # Both sums are in float32: tokens may change places that lie within its rounding.
        near = 1e-5 * torch.linalg.vector_norm(x, dim=-1).flatten() * made.largest.amax()
        return made if bool((whole.gather(-1, ids[:, None])[:, 0] >= highest - near).all()) else None


def candidate_logits(
    x: Float[Tensor, "*batch d_model"], weight: Float[Tensor, "d_vocab d_model"], candidates: Candidates
) -> Float[Tensor, "*batch d_vocab"] | None:
    """Logits of every token that can be the likeliest, in float32; -inf for all others.

    Returns:
        None where so many tokens can be the likeliest that the whole product is faster.
    """
    rows = x.reshape(-1, x.shape[-1])
    rough = torch.ops.mkldnn._linear_pointwise(rows.bfloat16(), candidates.packed, None, "none", [], "")
    blocks = _blocks(rough, beyond=-torch.inf)
    tops = blocks.amax(-1).float()
    # Rounding of both factors, and of the sums of a rough and of an exact product in float32.
    of_factors = 2 * _ROUNDING + _ROUNDING**2 + rows.shape[1] * 2.0**-23
    reach = of_factors * torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    floor = _bound(tops, -reach * candidates.largest).amax(-1, keepdim=True)
    row, block = (_bound(tops, reach * candidates.largest) >= floor).nonzero(as_tuple=True)
    highest = _bound(blocks[row, block].float(), reach[row] * candidates.norms[block])
    place, token = (highest >= floor[row]).nonzero(as_tuple=True)
    row, token = row[place], block[place] * _BLOCK + token
    if len(token) > _MOST_CANDIDATES * rough.numel():
        return None
    logits = torch.full(rough.shape, -torch.inf)
    logits[row, token] = (weight[token] * rows[row]).sum(-1)
    return logits.view(*x.shape[:-1], -1)


def _bound(rough: Tensor, reach: Tensor) -> Tensor:
    """How far the exact logit of a rough one, which was rounded itself, can lie in the direction of `reach`."""
    rounded = 1.01 * _ROUNDING * rough.abs()
    return rough + reach + torch.where(rough.isfinite(), rounded.copysign(reach), 0.0)


def first_largest(logits: Float[Tensor, "batch d_vocab"]) -> Int[Tensor, " batch"]:
    """The first token of the largest logit of every row, as `argmax`; NaN is larger than every number.

    On the CPU in a fifth of its time: only maxima of blocks are vectorised.
    """
    if logits.device.type != "cpu":
        return logits.argmax(-1)
    blocks = _blocks(logits, beyond=-torch.inf)
    block = blocks.amax(-1).argmax(-1)
    return block * _BLOCK + blocks[torch.arange(len(logits)), block].argmax(-1)


def _blocks(values: Tensor, *, beyond: float) -> Tensor:
    """The last axis in blocks of tokens, the last one filled up."""
    rest = -values.shape[-1] % _BLOCK
    whole = nn.functional.pad(values, (0, rest), value=beyond) if rest else values
    return whole.unflatten(-1, (-1, _BLOCK))


_whole: WeakKeyDictionary[ChatModel, bool] = WeakKeyDictionary()


def unembedding_is_whole(model: ChatModel) -> bool:
    """Whether a model's logits are its unembedding's product with a state, or a positive multiple of it.

    They are not where logits are capped, or where an adapter, a bias or a hook takes part.
    """
    layer: Any = model.hf.get_output_embeddings()
    if (
        type(layer) is not nn.Linear
        or layer.bias is not None
        or layer._forward_hooks
        or layer._forward_pre_hooks
    ):
        return False
    if model not in _whole:
        try:
            _whole[model] = _only_scales(model, layer)
        except (TypeError, RuntimeError, AttributeError):  # its head does not run alone
            _whole[model] = False
    return _whole[model]


@torch.no_grad()
def _only_scales(model: ChatModel, layer: nn.Linear) -> bool:
    states = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(0))
    product = nn.functional.linear(states, layer.weight.detach().float().cpu())
    scale = _PROBED / product.abs().max().clamp(min=1e-6)
    found, product = unembedded(model, states * scale).float().cpu(), product * scale
    ratio = (found * product).sum() / product.square().sum()
    return bool(ratio > 0) and torch.allclose(
        found, ratio * product, rtol=1e-4, atol=1e-4 * _PROBED * float(ratio)
    )
