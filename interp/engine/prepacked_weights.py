"""Linear layers' weights in oneDNN's layout, in which a CPU multiplies by them faster than by plain ones.

For float32 on two AMD cores that is 215 instead of 185 GFLOP/s. In bfloat16 on a core with AMX it is 630 instead of 382
GFLOP/s for 48 rows and the same for thousands; there, as everywhere, oneDNN fuses SiLU and the gate of an MLP into the
products. Packing costs as much as is gained on about 500 rows: a model that runs hundreds of times keeps its packed
weights, others pack them one layer at a time in passes that are large enough.

In a model of precision `fast` (`interp.models.precision`) the packed weights are float32 ones rounded to bfloat16, and
a product rounds its input and returns float32. They are always kept. The first blocks stay in float32 where states are
read, since directions of early layers are small beside the stream; completions are decoded with all blocks rounded. The
unembedding stays in float32 everywhere: logits of 8 bits have ties among the likeliest tokens. Where nothing but the
likeliest token is asked for, it alone is computed (`interp.engine.greedy_unembedding`), in both precisions.

On Intel's processors torch multiplies plain float32 weights by MKL, which needs no packing: the products of a layer of
smollm2 take 57 instead of 75 ms for 768 rows, and a whole pass of 4,331 tokens 5 to 10% less processor time. Weights
that are not kept stay plain there.

Kept weights stay as long as the model, so that the next call finds them. A call multiplies by them only once it has
compared a checksum of every byte of the layer's weight: torch's version numbers do not count writes through `.data`.
"""

import math
import platform
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.engine.budgets import PassBudget
from interp.engine.greedy_unembedding import Candidates, unembedding_is_whole
from interp.models.chat_model import ChatModel
from interp.models.precision import fastest_of, rounding_pays
from interp.models.weight_hashes import checksum

_MOST_SLOWER = 1.1
"""A packed product of half precision may take this many times as long as the plain one: what is fused into it is worth
more than that."""


Rounding = Literal["late blocks", "all blocks", "none"]
"""Blocks whose factors a model in `fast` rounds."""


class _Kept(NamedTuple):
    checksum: tuple[int, ...]
    made: Any


_kept: WeakKeyDictionary[nn.Linear, dict[object, _Kept]] = WeakKeyDictionary()
"""What outlives a call, by layer: packed weights by the dtype that they are multiplied in, and `Candidates`."""


class PackedWeights:
    """The linear layers' weights of a model on the CPU in oneDNN's layout, for the passes of one call.

    Kept weights are packed on first use and take as much memory again as the originals; where that is more than half of
    the free memory they are not kept. Weights that are not kept are packed for each product with enough rows.

    Args:
        keep: keep the packed weights, for a model that will run many times.
        min_rows: minimum rows of a product for which weights are packed; the budget's when None.
        rounding: what a model in `fast` rounds.
        single: whether weights are packed for a single product; None asks the processor.
        likeliest: of logits nothing but the likeliest token is asked; those of all others may come out as -inf.
    """

    def __init__(
        self,
        model: ChatModel,
        *,
        keep: bool,
        min_rows: int | None = None,
        rounding: Rounding = "late blocks",
        single: bool | None = None,
        likeliest: bool = False,
    ) -> None:
        layers = [module for module in linear_modules(model) if type(module) is nn.Linear]
        self.rounds = model.precision == "fast" and rounding != "none"
        """Whether factors of float32 products are rounded to bfloat16."""
        self._dtype = torch.bfloat16 if self.rounds else model.dtype
        self._exact = _exact_modules(model, rounding) if self.rounds else set[nn.Module]()
        self.usable = (
            model.device.type == "cpu"
            and can_pack_dtype(self._dtype)
            and any(type(module) is nn.Linear for module in model.decoder.modules())
        )
        """Whether passes use prepacked weights."""
        budget = PassBudget.for_(model)
        missing = sum(
            self.dtype_of(layer).itemsize * layer.weight.numel()
            for layer in layers
            if self.dtype_of(layer) not in _kept.get(layer, {})
        )
        fits = missing <= budget.prepacked_bytes
        self._keep = (keep or self.rounds) and fits
        self._min_rows = budget.prepacked_rows if min_rows is None else min_rows
        packs = single if single is not None else not plain_products_are_fast()
        self._single = packs or self._dtype != torch.float32
        self._valid: dict[nn.Linear, tuple[tuple[int, int], Any]] = {}
        self._rounded: tuple[Tensor, int, Tensor] | None = None
        searches = likeliest and fits and self.usable and model.dtype == torch.float32
        searches = searches and rounding_pays() and unembedding_is_whole(model)
        self.searched: nn.Module | None = model.hf.get_output_embeddings() if searches else None
        """The unembedding whose product is searched for the likeliest token; None where all logits are computed."""

    def multiplies(self, layer: nn.Module) -> bool:
        """Whether any product of a layer may be another than the layer's own."""
        return self._keep or self._single or layer is self.searched

    def of(self, layer: nn.Linear, x: Float[Tensor, "*batch d_in"], *, fuses: bool = False) -> Tensor | None:
        """The packed weight of a layer as it is now; None where packing it for this input does not pay.

        Args:
            fuses: what follows the product is fused into it, which only a packed one can do.
        """
        rows = x.numel() // layer.in_features
        if not self._keep:
            # Many rows in half precision take a plain product as long (AMX: 1,050 and 1,120 GFLOP/s).
            pays = self._single and rows >= self._min_rows and (fuses or layer.weight.dtype == torch.float32)
            return _pack(layer, rows, self.dtype_of(layer)) if pays else None
        state = (layer.weight.data_ptr(), layer.weight._version)
        known = self._valid.get(layer)
        if known is None or known[0] != state:
            dtype = self.dtype_of(layer)
            known = self._valid[layer] = state, _kept_of(layer, dtype, lambda: _pack(layer, rows, dtype))
        return known[1]

    def candidates(self, layer: nn.Linear, x: Float[Tensor, "*batch d_in"]) -> Candidates | None:
        """What finds the likeliest token among the unembedding's products; None where it does not pay.

        Before its first use it is compared with the whole product, on the states of that pass.
        """
        state = (layer.weight.data_ptr(), layer.weight._version)
        known = self._valid.get(layer)
        if known is None or known[0] != state:
            made = _kept_of(layer, Candidates, lambda: Candidates.compared(layer, x))
            known = self._valid[layer] = state, made
        return known[1]

    def dtype_of(self, layer: nn.Module) -> torch.dtype:
        """The dtype of a layer's factors."""
        return torch.float32 if layer in self._exact else self._dtype

    def keeps_exact(self, module: nn.Module) -> bool:
        """Whether the module multiplies in float32 also in `fast`."""
        return module in self._exact

    def rounded(self, x: Float[Tensor, "*batch d_in"]) -> Tensor:
        """The input in bfloat16, rounded once for layers that share it, such as those of queries, keys and values."""
        if (
            x.dtype == torch.bfloat16 or x.is_inference()
        ):  # inference tensors do not say whether they were changed
            return x.bfloat16()
        last = self._rounded
        if last is None or last[0] is not x or last[1] != x._version:
            last = self._rounded = x, x._version, x.bfloat16()
        return last[2]


def exact_blocks(n_blocks: int) -> int:
    """How many of the first blocks multiply in float32 also in `fast`: one in five, rounded up.

    What tells kinds of prompts apart grows over the layers, from 0.2% of the stream's norm after the first block to 40%
    (smollm2-safe, harmful less harmless), so that the rounding of the first blocks weighs most.
    """
    return math.ceil(n_blocks / 5)


def _exact_modules(model: ChatModel, rounding: Rounding) -> set[nn.Module]:
    """What `fast` keeps in float32: the unembedding and, unless all blocks are rounded, all of the first ones."""
    first = model.blocks[: exact_blocks(len(model.blocks)) if rounding == "late blocks" else 0]
    unembedding = model.hf.get_output_embeddings()
    return {module for block in first for module in block.module.modules()} | (
        set() if unembedding is None else {unembedding}
    )


def linear_modules(model: ChatModel) -> Iterator[nn.Module]:
    """The modules of the decoder, and the unembedding."""
    yield from model.decoder.modules()
    unembedding = model.hf.get_output_embeddings()
    if unembedding is not None:
        yield unembedding


def _kept_of(layer: nn.Linear, kind: object, make: Callable[[], Any]) -> Any:
    """What an earlier call made of a layer's weight, made anew where there is nothing or the weight was changed."""
    of_layer, now = _kept.setdefault(layer, {}), checksum(layer.weight)
    before = of_layer.get(kind)
    if before is None or before.checksum != now:
        before = of_layer[kind] = _Kept(now, make())
    return before.made


def _pack(layer: nn.Linear, rows: int, dtype: torch.dtype) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(layer.weight.to(dtype), rows)


@cache
def plain_products_are_fast() -> bool:
    """Whether products by plain float32 weights are as fast as packed ones: on Intel's processors, by MKL.

    By the maker and not by a measurement, so that a machine's results are the same to the bit from process to process.
    """
    if not torch.backends.mkl.is_available():
        return False
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "Intel" in platform.processor()


def can_pack_dtype(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies by packed weights of this dtype here and is not slower than the plain product."""
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.float32:
        return True
    if dtype not in (torch.bfloat16, torch.float16):
        return False
    return _packing_pays(dtype, torch.get_num_threads())


@cache
def _packing_pays(dtype: torch.dtype, _threads: int) -> bool:
    x, weight = torch.ones(256, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, len(x))
        plain, ours = fastest_of(
            lambda: nn.functional.linear(x, weight),
            lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], ""),
        )
    except RuntimeError:  # a CPU that oneDNN has no such product for
        return False
    return ours <= _MOST_SLOWER * plain
