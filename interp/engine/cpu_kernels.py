"""Faster arithmetic for passes that keep nothing for a gradient: in place between products, and packed weights.

Between two matrix products a block only moves memory: transformers' gated MLPs, RMS norms and rotary embeddings
write a new tensor for every operation, each too large for a core's cache. `lean_forwards` swaps in versions that write
over what nobody reads again. No family is known by name: what has the parts of one of the three is swapped when both
versions give the same on a random input, and left alone otherwise.

oneDNN multiplies by weights in its own layout (`PackedWeights`) faster than MKL does by plain ones: on two AMD cores at
215 instead of 185 GFLOP/s, and it applies SiLU and the gate as it writes a product. Packing costs as much as is gained
on about 500 rows: a model that runs hundreds of times keeps its packed weights, others pack them in passes that are
large enough, a layer at a time.
"""

import inspect
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

    Kept, they take as much memory again as those weights, and are packed when first used; where that is more than half
    of what is free they are not kept. Weights that are not kept are packed for each product with rows enough.

    Args:
        keep: for a model that will run many times.
        least_rows: how many are enough; the budget's when None.
    """

    def __init__(self, model: ChatModel, *, keep: bool, least_rows: int | None = None) -> None:
        self.usable = (
            model.device.type == "cpu"
            and model.dtype == torch.float32
            and torch.backends.mkldnn.is_available()
            and any(type(module) is nn.Linear for module in model.decoder.modules())
        )
        """Whether passes use them."""
        budget = PassBudget.for_(model)
        size = 4 * sum(module.weight.numel() for module in _modules(model) if type(module) is nn.Linear)
        self._keep = keep and size <= budget.prepacked_bytes
        self._least_rows = budget.prepacked_rows if least_rows is None else least_rows
        self._kept: dict[nn.Linear, tuple[tuple[int, int], Tensor]] = {}

    def of(self, layer: nn.Linear, x: Float[Tensor, "*batch d_in"]) -> Tensor | None:
        """The packed weight of a layer as it is now; None where packing it for this input does not pay."""
        rows = x.numel() // layer.in_features
        if not self._keep:
            return _pack(layer, rows) if rows >= self._least_rows else None
        state = (layer.weight.data_ptr(), layer.weight._version)
        if layer not in self._kept or self._kept[layer][0] != state:
            self._kept[layer] = state, _pack(layer, rows)
        return self._kept[layer][1]


def _pack(layer: nn.Linear, rows: int) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(layer.weight, rows)


Lean = Callable[..., Tensor]
"""(module, input, packed weights) → what the module's own forward gives."""


class _Swaps(NamedTuple):
    modules: list[tuple[nn.Module, Lean]]
    attentions: list[nn.Module]
    """Those that turn queries and keys by a function of the family's code that the in-place version equals."""


_known: WeakKeyDictionary[ChatModel, _Swaps] = WeakKeyDictionary()


@contextmanager
def lean_forwards(model: ChatModel, weights: PackedWeights | None = None) -> Iterator[None]:
    """Inside the context, float32 passes of `model.hf` without gradients use the faster versions.

    Hold `model.lock`. Passes of other threads, which may want gradients that what is written over in place has not, and
    passes of other models are left alone, to the bit.

    Args:
        weights: multiply by these.
    """
    # Lower precisions round in an order of their own.
    swaps = _Swaps([], []) if torch.is_grad_enabled() or model.dtype != torch.float32 else _swaps(model)
    weights = weights if weights is not None and weights.usable else None
    forwards: dict[nn.Module, Callable[..., Any]] = {
        module: partial(lean, module, weights=weights)
        for module, lean in swaps.modules
        if lean is not linear or weights is not None
    }
    turning = {kind: _turning_in_place(kind.forward) for kind in set(map(type, swaps.attentions))}
    forwards |= {module: partial(turning[type(module)], module) for module in swaps.attentions}
    with swapped_forwards(forwards):
        yield


def _turning_in_place(forward: Any) -> Any:
    """An attention's forward as it is written, but where it turns queries and keys it calls `rotary`.

    The function that it calls there is a global name of the family's code, which all models of the family share: the
    copy has global names of its own.
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
    """down(act(gate(x)) * up(x)); oneDNN applies SiLU and the factor as it writes a product."""
    gate, up = module.gate_proj, module.up_proj
    # An adapter may stand in the place of a layer, or a hook look at it: only its own call knows what they add.
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
        modules, agree = list[tuple[nn.Module, Lean]](), dict[str, bool]()
        packed = PackedWeights(model, keep=False, least_rows=1)
        for module, lean, width in _candidates(model):
            if "forward" in vars(module):
                continue
            kind = repr(module)  # type, parts and sizes: one of each kind is compared
            if kind not in agree:
                x = _random(1, 3, width).to(model.device)
                tried = [None, packed] if packed.usable else [None]
                agree[kind] = all(_same(module.forward, partial(lean, module, weights=w), x) for w in tried)
            if agree[kind]:
                modules.append((module, lean))
        attentions = [part for block in model.blocks for part in block.attention.modules() if _turns(part)]
        _known[model] = _Swaps(modules, attentions)
    return _known[model]


def _modules(model: ChatModel) -> Iterator[nn.Module]:
    """The decoder's and the unembedding."""
    yield from model.decoder.modules()
    unembedding = model.hf.get_output_embeddings()
    if unembedding is not None:
        yield unembedding


def _candidates(model: ChatModel) -> Iterator[tuple[nn.Module, Lean, int]]:
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
    """Whether a module's own forward turns queries and keys as `rotary` does."""
    forward: Any = type(module).forward
    named = isinstance(forward, FunctionType) and _ROTARY in forward.__code__.co_names
    return named and "forward" not in vars(module) and _is_rotary(forward.__globals__.get(_ROTARY))


@cache
def _is_rotary(own: Any) -> bool:
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
    except (TypeError, RuntimeError, AttributeError):
        return False
    return torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))
