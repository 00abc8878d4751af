"""Precision of the matrix products of float32 models on the CPU: `exact` or `fast`.

`exact` multiplies in float32; which few tokens can be the likeliest is asked of rounded products first, and decided in
float32 (`interp.engine.greedy_unembedding`). `fast` rounds both factors of a product, and what comes out, to bfloat16
(8 bits of precision); sums inside a product, norms, attention, the residual stream, the unembedding and, where states
are read, the first fifth of the blocks stay in float32. One completion alone is decoded as in `exact`.
A core with AMX multiplies bfloat16 seven times as fast as float32, one without such instructions more slowly: whether
`fast` pays is measured when a model is loaded, in about 20 ms, and where it does not, the model stays `exact` and a
warning says so.

Fine-tuning and recovery round the factors of products with gradients alone, in every block and in the unembedding
(`interp.engine.half_products`).

Nothing of the process is switched: each model multiplies by its own rounded weights
(`interp.engine.prepacked_weights`).
"""

import logging
import time
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)
Precision = Literal["exact", "fast"]

_TRIALS = 5
"""Products of each kind that are timed; the fastest counts, since another process may interrupt any of them."""
_MIN_SPEEDUP = 1.25
"""Products in bfloat16, with the rounding of their factors, are used where they are this many times as fast."""


def usable_precision(precision: str, hf: nn.Module, name: str) -> Precision:
    """The precision that a model runs in here: `exact` for `fast` where that would be slower.

    Raises:
        ValueError: unknown precision, or `fast` for a model that is not in float32 on the CPU.
    """
    if precision not in ("exact", "fast"):
        raise ValueError(f"precision must be 'exact' or 'fast', got {precision!r}")
    if precision == "exact":
        return "exact"
    weight = next(hf.parameters())
    if weight.dtype != torch.float32 or weight.device.type != "cpu":
        raise ValueError(
            f"precision='fast' is for float32 models on the CPU, but {name} is in "
            f"{str(weight.dtype).removeprefix('torch.')} on {weight.device}; leave precision out, or load it with "
            "dtype='float32'"
        )
    if not rounding_pays():
        logger.warning(
            "precision='fast' does not pay here: this CPU multiplies bfloat16 %.2g times as fast as float32; %s runs "
            "with precision='exact'",
            bfloat16_speedup(torch.get_num_threads()),
            name,
        )
        return "exact"
    return "fast"


def product_dtype(model: Any) -> torch.dtype:
    """The dtype that a `ChatModel` rounds its products to: how near two ways of computing it can be expected."""
    return torch.bfloat16 if model.precision == "fast" else model.dtype


def rounding_pays() -> bool:
    """Whether products in bfloat16 are used here: where they are faster than float32 ones by enough."""
    return bfloat16_speedup(torch.get_num_threads()) >= _MIN_SPEEDUP


@cache
def bfloat16_speedup(_threads: int) -> float:
    """How many times as fast as a float32 product a packed bfloat16 one is, rounding included; 0 without oneDNN."""
    if not torch.backends.mkldnn.is_available():
        return 0.0
    x, weight = torch.ones(256, 512), torch.ones(1024, 512)
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.bfloat16(), len(x))
        exact, fast = fastest_of(
            lambda: nn.functional.linear(x, weight),
            lambda: torch.ops.mkldnn._linear_pointwise(x.bfloat16(), packed, None, "none", [], "").float(),
        )
    except RuntimeError:  # a CPU that oneDNN has no such product for
        return 0.0
    return exact / fast


@torch.no_grad()
def fastest_of(*products: Callable[[], Tensor]) -> list[float]:
    """Seconds of the fastest of a few trials of each product, taken in turn."""
    seconds = [float("inf")] * len(products)
    for _ in range(_TRIALS):
        for number, product in enumerate(products):
            begun = time.perf_counter()
            product()
            seconds[number] = min(seconds[number], time.perf_counter() - begun)
    return seconds
