"""In-place arithmetic for passes that keep nothing for a gradient.

Between two matrix products a block only moves memory: transformers' gated MLPs, RMS norms and rotary embeddings write
a new tensor for every operation, each too large for a core's cache. `lean_forwards` swaps in versions that write over
what nobody reads again. No family is known by name: what has the parts of one of the three is swapped when both
versions give the same on a random input, and left alone otherwise.
"""

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.models import ChatModel

Forward = Callable[[Tensor], Tensor]
_ROTARY = "apply_rotary_pos_emb"


class _Swaps(NamedTuple):
    modules: list[tuple[nn.Module, Forward]]
    rotary: list[tuple[Any, Callable[..., Any]]]
    """Python modules of the family's code, and the rotary embedding that each has of its own."""


_known: WeakKeyDictionary[ChatModel, _Swaps] = WeakKeyDictionary()


@contextmanager
def lean_forwards(model: ChatModel) -> Iterator[None]:
    """Inside the context, float32 passes of `model.hf` without gradients use the in-place versions.

    Hold `model.lock`: the model as a whole computes differently. The rotary embedding is a function of the family's
    code, so that passes of its other models use the in-place version too, to the same values.
    """
    # Lower precisions round in an order of their own.
    swaps = _Swaps([], []) if torch.is_grad_enabled() or model.dtype != torch.float32 else _swaps(model)
    try:
        for module, forward in swaps.modules:
            module.forward = forward
        for code, _ in swaps.rotary:
            setattr(code, _ROTARY, rotary)
        yield
    finally:
        for module, _ in swaps.modules:
            module.__dict__.pop("forward", None)
        for code, own in swaps.rotary:
            setattr(code, _ROTARY, own)


def gated_mlp(module: Any, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
    """down(act(gate(x)) * up(x))."""
    return module.down_proj(module.act_fn(module.gate_proj(x)).mul_(module.up_proj(x)))


def rms_norm(module: Any, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
    """x / sqrt(mean(x^2) + eps) * weight."""
    square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
    scale = square.div_(x.shape[-1]).add_(module.variance_epsilon).rsqrt_()
    return (x * scale).mul_(module.weight)


def rotary(
    q: Float[Tensor, "batch head pos d_head"],
    k: Float[Tensor, "batch key_head pos d_head"],
    cos: Float[Tensor, "batch_or_one pos d_turned"],
    sin: Float[Tensor, "batch_or_one pos d_turned"],
    unsqueeze_dim: int = 1,
) -> tuple[Float[Tensor, "batch head pos d_head"], Float[Tensor, "batch key_head pos d_head"]]:
    """x cos + (-second half of x, first half of x) sin, for queries and keys."""
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)

    def turned(x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        out = x * cos
        out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
        out[..., half:].addcmul_(x[..., :half], sin[..., half:])
        return out

    return turned(q), turned(k)


@torch.no_grad()
def _swaps(model: ChatModel) -> _Swaps:
    if model not in _known:
        found = [(module, partial(lean, module), width) for module, lean, width in _candidates(model)]
        modules = [
            (module, forward)
            for module, forward, width in found
            if "forward" not in vars(module)
            and _same(module.forward, forward, _random(1, 3, width).to(model.device))
        ]
        homes = {type(block.attention).__module__ for block in model.blocks}
        codes = [sys.modules[home] for home in sorted(homes)]
        _known[model] = _Swaps(
            modules, [(code, getattr(code, _ROTARY)) for code in codes if _is_rotary(code)]
        )
    return _known[model]


def _candidates(model: ChatModel) -> Iterator[tuple[nn.Module, Callable[[Any, Tensor], Tensor], int]]:
    for module in model.decoder.modules():
        gate, weight = getattr(module, "gate_proj", None), getattr(module, "weight", None)
        if isinstance(gate, nn.Linear) and all(
            hasattr(module, part) for part in ("up_proj", "down_proj", "act_fn")
        ):
            yield module, gated_mlp, gate.in_features
        elif hasattr(module, "variance_epsilon") and isinstance(weight, Tensor):
            yield module, rms_norm, weight.numel()


def _is_rotary(code: Any) -> bool:
    own: Any = getattr(code, _ROTARY, None)
    if own is None or [*inspect.signature(own).parameters] != [*inspect.signature(rotary).parameters]:
        return False
    # Some families turn only the first part of each head, which the in-place version does not.
    return all(
        _same(lambda *x: torch.cat(own(*x), 1), lambda *x: torch.cat(rotary(*x), 1), *inputs) is wanted
        for wanted, inputs in (
            (True, (_random(1, 2, 3, 8), _random(1, 1, 3, 8), _random(1, 3, 8), _random(1, 3, 8))),
            (None, (_random(1, 2, 3, 8), _random(1, 1, 3, 8), _random(1, 3, 4), _random(1, 3, 4))),
        )
    )


def _same(plain: Callable[..., Tensor], lean: Callable[..., Tensor], *inputs: Tensor) -> bool | None:
    """None where the plain version does not take such inputs."""
    try:
        expected = plain(*inputs)
    except (TypeError, RuntimeError):
        return None
    try:
        found = lean(*inputs)
    except (TypeError, RuntimeError):
        return False
    return torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))
