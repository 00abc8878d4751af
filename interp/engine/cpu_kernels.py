"""Fused CPU kernels for passes without gradients: in-place operations between products, and weight prepacking.

Between two matrix products a block only moves memory: transformers' gated MLPs, RMS norms and rotary embeddings
write a new tensor for every operation, each too large for a core's cache. `fused_forwards` swaps in versions that
overwrite tensors which are not read again. No architecture is known by name: a module with the structure of one of the
three is swapped when both versions give the same result on a random input, and left alone otherwise.

oneDNN multiplies by weights prepacked into its own layout (`PackedWeights`) faster than MKL does by plain ones: on two
AMD cores at 215 instead of 185 GFLOP/s, and it fuses SiLU and the gate into the product. Packing costs as much as is
gained on about 500 rows: a model that runs hundreds of times keeps its packed weights, others pack them one layer at a
time in passes that are large enough.
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

from interp.engine.budgets import PassBudget
from interp.models.chat_model import ChatModel
from interp.models.threads import swapped_forwards

_ROTARY = "apply_rotary_pos_emb"


class PackedWeights:
    """The linear layers' weights of a float32 model on the CPU in oneDNN's layout.

    Kept weights are packed on first use and take as much memory again as the originals; where that is more than half of
    the free memory they are not kept. Weights that are not kept are packed for each product with enough rows.

    Args:
        keep: keep the packed weights, for a model that will run many times.
        min_rows: minimum rows of a product for which weights are packed; the budget's when None.
    """

    def __init__(self, model: ChatModel, *, keep: bool, min_rows: int | None = None) -> None:
        self.usable = (
            model.device.type == "cpu"
            and model.dtype == torch.float32
            and torch.backends.mkldnn.is_available()
            and any(type(module) is nn.Linear for module in model.decoder.modules())
        )
        """Whether passes use prepacked weights."""
        budget = PassBudget.for_(model)
        size = 4 * sum(module.weight.numel() for module in _modules(model) if type(module) is nn.Linear)
        self._keep = keep and size <= budget.prepacked_bytes
        self._min_rows = budget.prepacked_rows if min_rows is None else min_rows
        self._kept: dict[nn.Linear, tuple[tuple[int, int], Tensor]] = {}

    def of(self, layer: nn.Linear, x: Float[Tensor, "*batch d_in"]) -> Tensor | None:
        """The packed weight of a layer as it is now; None where packing it for this input does not pay."""
        rows = x.numel() // layer.in_features
        if not self._keep:
            return _pack(layer, rows) if rows >= self._min_rows else None
        state = (layer.weight.data_ptr(), layer.weight._version)
        if layer not in self._kept or self._kept[layer][0] != state:
            self._kept[layer] = state, _pack(layer, rows)
        return self._kept[layer][1]


def _pack(layer: nn.Linear, rows: int) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(layer.weight, rows)


FusedForward = Callable[..., Tensor]
"""A function of module, input and packed weights that returns what the module's own forward returns."""


class _Swaps(NamedTuple):
    modules: list[tuple[nn.Module, FusedForward]]
    attentions: list[nn.Module]
    """Attention modules whose rotary function, from the architecture's code, equals the in-place version."""


_known: WeakKeyDictionary[ChatModel, _Swaps] = WeakKeyDictionary()


@contextmanager
def fused_forwards(model: ChatModel, weights: PackedWeights | None = None) -> Iterator[None]:
    """Inside the context, float32 passes of `model.hf` without gradients use the fused kernels.

    The caller holds `model.lock`. Passes of other threads, which may need gradients and so cannot run in place, and
    passes of other models stay bit-identical.

    Args:
        weights: prepacked weights to multiply by; None keeps the plain ones.
    """
    # In lower precisions the order of rounding differs.
    swaps = _Swaps([], []) if torch.is_grad_enabled() or model.dtype != torch.float32 else _swaps(model)
    weights = weights if weights is not None and weights.usable else None
    forwards: dict[nn.Module, Callable[..., Any]] = {
        module: partial(fused, module, weights=weights)
        for module, fused in swaps.modules
        if fused is not linear or weights is not None
    }
    turning = {kind: _turning_in_place(kind.forward) for kind in set(map(type, swaps.attentions))}
    forwards |= {module: partial(turning[type(module)], module) for module in swaps.attentions}
    with swapped_forwards(forwards):
        yield


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
    """x W^T + b."""
    packed = None if weights is None else weights.of(module, x)
    if packed is None:
        return nn.functional.linear(x, module.weight, module.bias)
    return torch.ops.mkldnn._linear_pointwise(x, packed, module.bias, "none", [], "")


def gated_mlp(
    module: Any, x: Float[Tensor, "*batch d_model"], weights: PackedWeights | None = None
) -> Float[Tensor, "*batch d_model"]:
    """down(act(gate(x)) * up(x)); oneDNN fuses SiLU and the factor into the products."""
    gate, up = module.gate_proj, module.up_proj
    # A layer may be replaced by an adapter or carry hooks: only calling it includes what they add.
    plain = _bare(gate) and _bare(up) and isinstance(module.act_fn, type(ACT2FN["silu"]))
    packed = None if weights is None or not plain else (weights.of(gate, x), weights.of(up, x))
    if packed is None or packed[0] is None or packed[1] is None:
        return module.down_proj(module.act_fn(gate(x)).mul_(up(x)))
    product = torch.ops.mkldnn._linear_pointwise
    opened = product(x, packed[0], gate.bias, "swish", [], "")
    return module.down_proj(product.binary(x, opened, packed[1], up.bias, "mul"))


def _bare(layer: nn.Module) -> bool:
    return type(layer) is nn.Linear and not (layer._forward_hooks or layer._forward_pre_hooks)


def rms_norm(
    module: Any,
    x: Float[Tensor, "*batch d"],
    weights: PackedWeights | None = None,  # noqa: ARG001 (a norm has no product)
) -> Float[Tensor, "*batch d"]:
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
    return _turned(q, cos, sin), _turned(k, cos, sin)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    out = x * cos
    out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
    out[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return out


@torch.no_grad()
def _swaps(model: ChatModel) -> _Swaps:
    if model not in _known:
        modules, agree = list[tuple[nn.Module, FusedForward]](), dict[str, bool]()
        packed = PackedWeights(model, keep=False, min_rows=1)
        for module, fused, width in _candidates(model):
            if "forward" in vars(module):
                continue
            kind = repr(module)  # type, submodules and sizes: one module of each kind is compared
            if kind not in agree:
                x = _random(1, 3, width).to(model.device)
                tried = [None, packed] if packed.usable else [None]
                agree[kind] = all(_same(module.forward, partial(fused, module, weights=w), x) for w in tried)
            if agree[kind]:
                modules.append((module, fused))
        attentions = [part for block in model.blocks for part in block.attention.modules() if _turns(part)]
        _known[model] = _Swaps(modules, attentions)
    return _known[model]


def _modules(model: ChatModel) -> Iterator[nn.Module]:
    """The modules of the decoder, and the unembedding."""
    yield from model.decoder.modules()
    unembedding = model.hf.get_output_embeddings()
    if unembedding is not None:
        yield unembedding


def _candidates(model: ChatModel) -> Iterator[tuple[nn.Module, FusedForward, int]]:
    for module in _modules(model):
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


def _same(plain: Callable[..., Tensor], fused: Callable[..., Tensor], *inputs: Tensor) -> bool | None:
    """Whether both versions return the same; None where the plain version does not take such inputs."""
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
    return math.isfinite(scale) and torch.allclose(result, expected, rtol=1e-4, atol=1e-5 * scale)


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))
