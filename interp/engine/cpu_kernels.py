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
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import psutil
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.activations import ACT2FN

from interp.models.chat_model import ChatModel, in_this_thread

_ROTARY = "apply_rotary_pos_emb"
_MEMORY_SHARE = 0.5
"""Most of the free memory that packed weights may take."""
_WIDEST = 2**23
"""Most numbers in the widest activation of a pass that packs as it goes: 32 MB."""
_MOST_NODES = 5120
"""Most tokens of such a pass; packing then costs a twentieth of the products."""
_MOST_WORK = 1.2e12
"""Most floating-point operations of such a pass: seconds on two cores, after which a progress bar moves."""
_PACKED_ROWS = 768
"""From so many rows on, packing a weight for one product pays."""


class PackedWeights:
    """The linear layers' weights of a float32 model on the CPU in oneDNN's layout.

    Kept, they take as much memory again as those weights, and are packed when first used; where that is more than half
    of what is free they are not kept. Weights that are not kept are packed for each product with rows enough.

    Args:
        keep: for a model that will run many times.
        least_rows: how many are enough.
    """

    def __init__(self, model: ChatModel, *, keep: bool, least_rows: int = _PACKED_ROWS) -> None:
        layers = [module for module in model.decoder.modules() if type(module) is nn.Linear]
        self.usable = bool(layers) and (
            model.device.type == "cpu"
            and model.dtype == torch.float32
            and torch.backends.mkldnn.is_available()
        )
        """Whether passes use them."""
        widest = max((layer.out_features for layer in layers), default=1)
        count = sum(layer.weight.numel() for layer in layers)
        quick = max(2 * _PACKED_ROWS, int(_MOST_WORK / (2 * max(count, 1))))
        self.pass_nodes = min(_MOST_NODES, _WIDEST // widest, quick)
        """How many tokens a pass may have that packs as it goes: the more the better, but for memory and waiting."""
        size = 4 * sum(module.weight.numel() for module in _modules(model) if type(module) is nn.Linear)
        self._keep = keep and size < _MEMORY_SHARE * psutil.virtual_memory().available
        self._least_rows = least_rows
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
    rotary: list[tuple[Any, Callable[..., Any]]]
    """Python modules of the family's code, and the rotary embedding that each has of its own."""


_known: WeakKeyDictionary[ChatModel, _Swaps] = WeakKeyDictionary()


@contextmanager
def lean_forwards(model: ChatModel, weights: PackedWeights | None = None) -> Iterator[None]:
    """Inside the context, float32 passes of `model.hf` without gradients use the faster versions.

    Hold `model.lock`: one thread at a time. Passes of other threads, which may want gradients that what is written over
    in place has not, are left alone, to the bit. The rotary embedding is a function of the family's code, so that this
    thread's passes of its other models use the in-place version too.

    Args:
        weights: multiply by these.
    """
    # Lower precisions round in an order of their own.
    swaps = _Swaps([], []) if torch.is_grad_enabled() or model.dtype != torch.float32 else _swaps(model)
    weights = weights if weights is not None and weights.usable else None
    try:
        for module, lean in swaps.modules:
            if lean is not linear or weights is not None:
                own = partial(type(module).forward, module)
                module.__dict__["forward"] = in_this_thread(partial(lean, module, weights=weights), own)
        for code, own in swaps.rotary:
            setattr(code, _ROTARY, in_this_thread(rotary, own))
        yield
    finally:
        for module, _ in swaps.modules:
            module.__dict__.pop("forward", None)
        for code, own in swaps.rotary:
            setattr(code, _ROTARY, own)


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
        homes = {type(block.attention).__module__ for block in model.blocks}
        codes = [sys.modules[home] for home in sorted(homes)]
        _known[model] = _Swaps(
            modules, [(code, getattr(code, _ROTARY)) for code in codes if _is_rotary(code)]
        )
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
    except (TypeError, RuntimeError, AttributeError):
        return False
    return torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))
