"""Check that a model's sites are correct: resid_post = resid_pre + attn_out + mlp_out in every block.

The gap is compared with what a block adds to the stream. In half precision the sums are rounded to the stream's size,
which in late blocks is a hundred times what they add, so the check runs in float32 there: each block receives the input
that it had in the model's own pass, with its weights in float32 for that call. Where weights cannot be converted
(quantised ones), the gap is compared with the rounding of the stream itself.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from interp.models.architecture import Block
from interp.models.sites import Edit, Site, edited
from interp.models.threads import in_this_thread, lock_of

_PROBE_TOKENS = 4
_SITES: tuple[Site, ...] = ("resid_pre", "attn_out", "mlp_out", "resid_post")
_TOLERANCE = 1e-3
"""Largest gap in float32, relative to what the block adds."""
_HALVES = (torch.bfloat16, torch.float16)


# no_grad, not inference_mode: a buffer that a model creates in its first pass must be usable in training.
@torch.no_grad()
def runs_in_parallel(hf: PreTrainedModel, blocks: list[Block], name: str) -> bool:
    """Check the residual identity in every block and return whether attention and MLP run in parallel.

    Raises:
        ValueError: a block whose writes to the residual stream the sites do not cover, or activations that overflow.
    """
    kind = f"{type(hf).__name__} ({name})"
    embedding = hf.get_input_embeddings().weight
    ids = torch.arange(1, _PROBE_TOKENS + 1, device=embedding.device)[None] * 97 % embedding.shape[0]  # pyright: ignore[reportArgumentType, reportCallIssue, reportOperatorIssue, reportIndexIssue]

    def forward() -> None:
        _running(kind, lambda: hf.base_model(ids, use_cache=False))

    if hf.dtype in _HALVES:
        with lock_of(hf):
            calls = _calls(blocks, forward)
            parallel = [_check_in_float32(n, block, calls, kind, hf.dtype) for n, block in enumerate(blocks)]
        return parallel[0]
    values: dict[tuple[Site, int], Tensor] = {}
    with edited([_read(values, site, n, block) for n, block in enumerate(blocks) for site in _SITES]):
        forward()
    for n in range(len(blocks)):
        _check_identity(values, n, kind, hf.dtype)
    return _ignores_attention(blocks[0], values["mlp_out", 0], forward)


def _running(kind: str, call: Callable[[], Any]) -> None:
    try:
        call()
    except Exception as error:  # an architecture can fail in any way where its blocks are not what they seem
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{kind}: a pass that reads its residual stream fails ({reason}); interp does not cover this architecture"
        ) from error


class _Call:
    """The arguments that a block had in the model's pass."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.args, self.kwargs = args, kwargs


def _calls(blocks: list[Block], forward: Callable[[], None]) -> dict[int, _Call]:
    calls: dict[int, _Call] = {}

    def keep(number: int, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls[number] = _Call(args, kwargs)

    handles = [
        block.module.register_forward_pre_hook(
            in_this_thread(partial(keep, number), lambda *_: None), with_kwargs=True
        )
        for number, block in enumerate(blocks)
    ]
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _check_in_float32(
    number: int, block: Block, calls: dict[int, _Call], kind: str, dtype: torch.dtype
) -> bool:
    """Check one block with its weights in float32 and return whether it runs attention and MLP in parallel."""
    if number not in calls:
        raise ValueError(f"{kind}: block {number} never ran; interp does not cover it")
    call = calls[number]
    weights = dict(block.module.named_parameters()) | dict(block.module.named_buffers())
    is_plain = all(
        type(weight) in (nn.Parameter, Tensor) and weight.is_floating_point()
        for weight in block.module.parameters()
    )
    wide = {key: _float32(weight) for key, weight in weights.items()} if is_plain else weights
    args, kwargs = (_float32(call.args), _float32(call.kwargs)) if is_plain else (call.args, call.kwargs)

    def forward() -> None:
        _running(kind, lambda: functional_call(block.module, wide, args, kwargs))

    values: dict[tuple[Site, int], Tensor] = {}
    with edited([_read(values, site, number, block) for site in _SITES]):
        forward()
    _check_identity(values, number, kind, torch.float32 if is_plain else dtype, stored_in=dtype)
    return number == 0 and _ignores_attention(block, values["mlp_out", 0], forward)


def _float32(value: Any) -> Any:
    """Half-precision tensors as float32, in tuples, lists and dicts as well; everything else as it is."""
    if isinstance(value, Tensor):
        return value.detach().float() if value.dtype in _HALVES else value
    if isinstance(value, (tuple, list)) and type(value) in (tuple, list):
        return type(value)(_float32(item) for item in value)
    if type(value) is dict:
        return {key: _float32(item) for key, item in value.items()}
    return value


def _read(
    values: dict[tuple[Site, int], Tensor], site: Site, number: int, block: Block
) -> tuple[Site, Block, Edit]:
    def keep(value: Any) -> None:
        if not isinstance(value, Tensor):
            raise TypeError(f"block {number} has a {type(value).__name__} where {site} is a tensor")
        values[site, number] = value.detach().float()

    return site, block, keep


def _ignores_attention(block: Block, mlp_out: Tensor, forward: Callable[[], None]) -> bool:
    """Whether a block's MLP does not see its attention's output."""
    values: dict[tuple[Site, int], Tensor] = {}
    with edited([("attn_out", block, lambda value: value * 3.0), _read(values, "mlp_out", 0, block)]):
        forward()
    return bool(torch.allclose(mlp_out, values["mlp_out", 0], rtol=1e-6, atol=0.0))


def _check_identity(
    values: dict[tuple[Site, int], Tensor],
    number: int,
    kind: str,
    dtype: torch.dtype,
    *,
    stored_in: torch.dtype | None = None,
) -> None:
    if any((site, number) not in values for site in _SITES):
        raise ValueError(f"{kind}: attention or MLP of block {number} never ran; interp does not cover it")
    pre, attn, mlp, post = (values[site, number] for site in _SITES)
    if pre.shape != attn.shape or pre.shape != mlp.shape:
        raise ValueError(f"{kind}: outputs of block {number} do not have the residual stream's shape")
    if not all(bool(value.isfinite().all()) for value in (pre, attn, mlp, post)):
        name = str(stored_in or dtype).removeprefix("torch.")
        raise ValueError(
            f"{kind}: activations of block {number} are not finite in {name}; float16 overflows above 65,504 (load "
            "with dtype='bfloat16' or 'float32'), or the weights are damaged"
        )
    gap, added = (pre + attn + mlp - post).norm().item(), (post - pre).norm().item()
    # Each of the two sums is rounded to the size of the stream.
    rounding = torch.finfo(dtype).eps * (pre.norm() + attn.norm() + post.norm()).item()
    if not gap <= _TOLERANCE * added + rounding:
        raise ValueError(
            f"{kind}: block {number} does not add attention and MLP output to the residual stream as they are "
            f"(relative gap {gap / max(added, 1e-30):.2g}); interp only covers models where "
            "resid_post = resid_pre + attn_out + mlp_out"
        )
