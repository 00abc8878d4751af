"""Check that a model's sites are correct: resid_post = resid_pre + attn_out + mlp_out in every block."""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from interp.models.architecture import Block
from interp.models.sites import Edit, Site, edited

_PROBE_TOKENS = 4


# no_grad, not inference_mode: a buffer that a model creates in its first pass must be usable in training.
@torch.no_grad()
def runs_in_parallel(hf: PreTrainedModel, blocks: list[Block], name: str) -> bool:
    """Check the residual identity in every block and return whether attention and MLP run in parallel.

    Raises:
        ValueError: a block whose writes to the residual stream the sites do not cover.
    """
    values: dict[tuple[Site, int], Tensor] = {}
    embedding = hf.get_input_embeddings().weight
    ids = torch.arange(1, _PROBE_TOKENS + 1, device=embedding.device)[None] * 97 % embedding.shape[0]  # pyright: ignore[reportArgumentType, reportCallIssue, reportOperatorIssue, reportIndexIssue]

    def keep(place: tuple[Site, int], value: Any) -> None:
        if not isinstance(value, Tensor):
            raise TypeError(f"block {place[1]} has a {type(value).__name__} where {place[0]} is a tensor")
        values[place] = value.detach().float()

    def read(site: Site, layer: int) -> tuple[Site, Block, Edit]:
        return site, blocks[layer], partial(keep, (site, layer))

    sites: tuple[Site, ...] = ("resid_pre", "attn_out", "mlp_out", "resid_post")
    kind = f"{type(hf).__name__} ({name})"
    try:
        with edited([read(site, layer) for layer in range(len(blocks)) for site in sites]):
            hf.base_model(ids, use_cache=False)
    except Exception as error:  # an architecture can fail in any way where its blocks are not what they seem
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{kind}: a pass that reads its residual stream fails ({reason}); interp does not cover this architecture"
        ) from error
    _check_identity(values, len(blocks), kind, hf.dtype)
    # Parallel blocks: the MLP does not see the attention's output.
    with_attention = values["mlp_out", 0]
    with edited([("attn_out", blocks[0], lambda value: value * 3.0), read("mlp_out", 0)]):
        hf.base_model(ids, use_cache=False)
    return bool(torch.allclose(with_attention, values["mlp_out", 0], rtol=1e-6, atol=0.0))


def _check_identity(
    values: dict[tuple[Site, int], Tensor], n_layers: int, kind: str, dtype: torch.dtype
) -> None:
    tolerance = 1e-3 if dtype == torch.float32 else 3e-2
    sites: tuple[Site, ...] = ("resid_pre", "attn_out", "mlp_out", "resid_post")
    for layer in range(n_layers):
        if any((site, layer) not in values for site in sites):
            raise ValueError(f"{kind}: attention or MLP of block {layer} never ran; interp does not cover it")
        pre, attn, mlp, post = (values[site, layer] for site in sites)
        if pre.shape != attn.shape or pre.shape != mlp.shape:
            raise ValueError(f"{kind}: outputs of block {layer} do not have the residual stream's shape")
        gap = ((pre + attn + mlp - post).norm() / (post - pre).norm()).item()
        if not gap < tolerance:
            raise ValueError(
                f"{kind}: block {layer} does not add attention and MLP output to the residual stream as they are "
                f"(relative gap {gap:.2g}); interp only covers models where "
                "resid_post = resid_pre + attn_out + mlp_out"
            )
