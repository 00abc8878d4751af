"""Fused CPU kernels for passes without gradients: in-place operations between products, and prepacked weights.

Between two matrix products a block only moves memory: transformers' gated MLPs, RMS norms and rotary embeddings
write a new tensor for every operation, each too large for a core's cache. `fused_forwards` swaps in versions that
overwrite tensors which are not read again. No architecture is known by name: a module with the structure of one of the
three is swapped when both versions give the same result on a random input, and left alone otherwise.

In bfloat16 and float16 the fused versions round less often than the model's own (an MLP's gate is multiplied before it
is rounded), so that the two agree to rounding and not to the bit.
"""

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from types import FunctionType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.activations import ACT2FN

from interp.engine.greedy_unembedding import candidate_logits
from interp.engine.prepacked_weights import PackedWeights, linear_modules
from interp.models.chat_model import ChatModel
from interp.models.threads import swapped_forwards

_ROTARY = "apply_rotary_pos_emb"
_ROUNDING = {torch.bfloat16: 2e-2, torch.float16: 4e-3}
"""Maximum relative difference of both versions of a module in half precision: a few times the dtype's own rounding."""


FusedForward = Callable[..., Tensor]
"""A function of module, input and packed weights that returns what the module's own forward returns."""


class _Swaps(NamedTuple):
    modules: list[tuple[nn.Module, FusedForward]]
    attentions: list[nn.Module]
    """Attention modules whose rotary function, from the architecture's code, equals the in-place version."""


_known: WeakKeyDictionary[ChatModel, dict[tuple[torch.dtype, str], _Swaps]] = WeakKeyDictionary()


@contextmanager
def fused_forwards(model: ChatModel, weights: PackedWeights | None = None) -> Iterator[None]:
    """Inside the context, passes of `model.hf` without gradients use the fused kernels.

    The caller holds `model.lock`. Passes of other threads, which may need gradients and so cannot run in place, and
    passes of other models stay bit-identical.

    Args:
        weights: prepacked weights to multiply by; None keeps the plain ones.
    """
    swaps = _Swaps([], []) if torch.is_grad_enabled() or not _covered(model) else _swaps(model)
    weights = weights if weights is not None and weights.usable else None
    forwards: dict[nn.Module, Callable[..., Any]] = {
        module: partial(fused, module, weights=weights)
        for module, fused in swaps.modules
        if fused is not linear or (weights is not None and weights.multiplies(module))
    }
    turning = {kind: _turning_in_place(kind.forward) for kind in set(map(type, swaps.attentions))}
    forwards |= {module: partial(turning[type(module)], module) for module in swaps.attentions}
    with swapped_forwards(forwards):
        yield


def _covered(model: ChatModel) -> bool:
    """Whether a model's passes are fused: on the CPU also in half precision."""
    return model.dtype == torch.float32 or (model.device.type == "cpu" and model.dtype in _ROUNDING)


def _turning_in_place(forward: Any) -> Any:
    """A copy of an attention's forward that calls `rotary` to rotate queries and keys.

    The original calls a global function of the architecture's module, which all its models share: the copy gets its own
    globals.
    """
    own = {**forward.__globals__, _ROTARY: rotary}
    copied = FunctionType(forward.__code__, own, forward.__name__, forward.__defaults__, forward.__closure__)
    copied.__kwdefaults__ = forward.__kwdefaults__
    return copied


def linear(
    module: nn.Linear, x: Float[Tensor, "*batch d_in"], weights: PackedWeights | None = None
) -> Float[Tensor, "*batch d_out"]:
    """x W^T + b; of the unembedding's product, where nothing else is asked for, the largest numbers alone."""
    if weights is not None and weights.searched is module:
        candidates = weights.candidates(module, x)
        found = None if candidates is None else candidate_logits(x, module.weight, candidates)
        return nn.functional.linear(x, module.weight) if found is None else found
    packed = None if weights is None else weights.of(module, x)
    if packed is None:
        return nn.functional.linear(x.to(module.weight.dtype), module.weight, module.bias)
    product = torch.ops.mkldnn._linear_pointwise
    if weights is None or weights.dtype_of(module) == module.weight.dtype:
        return product(x, packed, module.bias, "none", [], "")
    y = product(weights.rounded(x), packed, None, "none", [], "").to(module.weight.dtype)
    return y if module.bias is None else y.add_(module.bias)


def gated_mlp(
    module: Any, x: Float[Tensor, "*batch d_model"], weights: PackedWeights | None = None
) -> Float[Tensor, "*batch d_model"]:
    """down(act(gate(x)) * up(x)); oneDNN fuses SiLU and the factor into the products."""
    gate, up = module.gate_proj, module.up_proj
    # A layer may be replaced by an adapter or carry hooks: only calling it includes what they add.
    plain = _bare(gate) and _bare(up) and isinstance(module.act_fn, type(ACT2FN["silu"]))
    packed = (
        None
        if weights is None or not plain
        else (weights.of(gate, x, fuses=True), weights.of(up, x, fuses=True))
    )
    if packed is None or packed[0] is None or packed[1] is None:
        opened = nn.functional.silu(gate(x), inplace=True) if plain else module.act_fn(gate(x))
        return module.down_proj(opened.mul_(up(x)))
    product = torch.ops.mkldnn._linear_pointwise
    if weights is not None and weights.dtype_of(gate) != gate.weight.dtype:
        half, (gate_bias, up_bias) = weights.rounded(x), (_half(gate.bias), _half(up.bias))
        opened = product(half, packed[0], gate_bias, "swish", [], "")
        hidden = product.binary(half, opened, packed[1], up_bias, "mul")
        down = module.down_proj
        # What follows rounds its input anyway.
        return linear(down, hidden, weights) if _bare(down) else down(hidden.to(x.dtype))
    opened = product(x, packed[0], gate.bias, "swish", [], "")
    return module.down_proj(product.binary(x, opened, packed[1], up.bias, "mul"))


def _half(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.bfloat16()


def _bare(layer: nn.Module) -> bool:
    return type(layer) is nn.Linear and not (layer._forward_hooks or layer._forward_pre_hooks)


def rms_norm(
    module: Any,
    x: Float[Tensor, "*batch d"],
    weights: PackedWeights | None = None,  # noqa: ARG001 (a norm has no product)
) -> Float[Tensor, "*batch d"]:
    """x / sqrt(mean(x^2) + eps) * weight."""
    if x.dtype == torch.float32:
        return (x * _inverse_rms(x, module.variance_epsilon)).mul_(module.weight)
    wide = x.float()
    return wide.mul_(_inverse_rms(wide, module.variance_epsilon)).to(x.dtype).mul_(module.weight)


def _inverse_rms(x: Float[Tensor, "*batch d"], epsilon: float) -> Float[Tensor, "*batch one"]:
    square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
    return square.div_(x.shape[-1]).add_(epsilon).rsqrt_()


def rotary(
    q: Float[Tensor, "batch head pos d_head"],
    k: Float[Tensor, "batch key_head pos d_head"],
    cos: Float[Tensor, "batch_or_one pos d_turned"],
    sin: Float[Tensor, "batch_or_one pos d_turned"],
    unsqueeze_dim: int = 1,
) -> tuple[Float[Tensor, "batch head pos d_head"], Float[Tensor, "batch key_head pos d_head"]]:
    """x cos + (-second half of x, first half of x) sin, for queries and keys."""
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return _turned(q, cos, sin), _turned(k, cos, sin)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    out = x * cos
    out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
    out[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return out.to(x.dtype)  # OLMo keeps its cosines in float32, and rounds queries and keys once


@torch.no_grad()
def _swaps(model: ChatModel) -> _Swaps:
    known, key = _known.setdefault(model, {}), (model.dtype, model.precision)
    if key not in known:
        modules, agree = list[tuple[nn.Module, FusedForward]](), dict[tuple[str, bool], bool]()
        rounded, exact = (
            PackedWeights(model, keep=False, min_rows=1, rounding=rounding, single=True)
            for rounding in ("all blocks", "none")
        )
        for module, fused, width in _candidates(model):
            if "forward" in vars(module):
                continue
            # Type, submodules and sizes, and whether it rounds: one module of each kind is compared.
            kind = repr(module), rounded.keeps_exact(module)
            if kind not in agree:
                x = _random(1, 3, width).to(model.device, model.dtype)
                tried = [None, *(packed for packed in (exact, rounded) if packed.usable)]
                agree[kind] = all(
                    _same(
                        module.forward,
                        partial(fused, module, weights=w),
                        x,
                        rounds=w is not None and w.rounds,
                    )
                    for w in tried
                )
            if agree[kind]:
                modules.append((module, fused))
        attentions = [part for block in model.blocks for part in block.attention.modules() if _turns(part)]
        known[key] = _Swaps(modules, attentions)
    return known[key]


def _candidates(model: ChatModel) -> Iterator[tuple[nn.Module, FusedForward, int]]:
    for module in linear_modules(model):
        gate, weight = getattr(module, "gate_proj", None), getattr(module, "weight", None)
        if type(module) is nn.Linear:
            yield module, linear, module.in_features
        elif isinstance(gate, nn.Linear) and all(
            hasattr(module, part) for part in ("up_proj", "down_proj", "act_fn")
        ):
            yield module, gated_mlp, gate.in_features
        elif hasattr(module, "variance_epsilon") and isinstance(weight, Tensor):
            yield module, rms_norm, weight.numel()


def _turns(module: nn.Module) -> bool:
    """Whether a module's own forward rotates queries and keys as `rotary` does."""
    forward: Any = type(module).forward
    named = isinstance(forward, FunctionType) and _ROTARY in forward.__code__.co_names
    return named and "forward" not in vars(module) and _is_rotary(forward.__globals__.get(_ROTARY))


@cache
def _is_rotary(own: Any) -> bool:
    if own is None or [*inspect.signature(own).parameters] != [*inspect.signature(rotary).parameters]:
        return False
    # Some architectures rotate only the first part of each head, which the in-place version does not support.
    return all(
        _same(lambda *x: torch.cat(own(*x), 1), lambda *x: torch.cat(rotary(*x), 1), *inputs) is wanted
        for wanted, inputs in (
            (True, (_random(1, 2, 3, 8), _random(1, 1, 3, 8), _random(1, 3, 8), _random(1, 3, 8))),
            (None, (_random(1, 2, 3, 8), _random(1, 1, 3, 8), _random(1, 3, 4), _random(1, 3, 4))),
        )
    )


def _same(
    plain: Callable[..., Tensor], fused: Callable[..., Tensor], *inputs: Tensor, rounds: bool = False
) -> bool | None:
    """Whether both versions return the same; None where the plain version does not take such inputs.

    Args:
        rounds: the fused version rounds float32 factors to bfloat16.
    """
    try:
        expected = plain(*inputs)
    except (TypeError, RuntimeError):
        return None
    try:
        result = fused(*inputs)
    except (TypeError, RuntimeError, AttributeError):
        return False
    scale = expected.abs().max().item()
    # Weights that are no numbers are said by what reads activations or logits.
    if not math.isfinite(scale) or result.dtype != expected.dtype:
        return False
    dtype = torch.bfloat16 if rounds else expected.dtype
    if dtype in _ROUNDING:
        gap = torch.linalg.vector_norm(result.float() - expected.float())
        return bool(gap <= _ROUNDING[dtype] * torch.linalg.vector_norm(expected.float()))
    return torch.allclose(result, expected, rtol=1e-4, atol=1e-5 * scale)


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))
