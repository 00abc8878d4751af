"""The size of one forward pass: `PassBudget.for_(model)`, from the device's free memory and the model's size.

On a CPU a pass should fit in the caches: the numbers were measured on two AMD cores and do not depend on memory. On a
GPU larger passes are faster until memory is full, so that the limit is an upper bound on the memory per token. GPU
budgets are powers of two, so that a few megabytes more or less of free memory do not change how prompts are batched.

    budget = PassBudget.for_(model)
    budget.packed_tokens                   # 5120 on a CPU for smollm2, 131072 on a card of 80 GB
"""

import sys
from dataclasses import dataclass, replace

import psutil
import torch
from torch import nn

from interp.models.chat_model import ChatModel

_GPU_SHARE = 0.4
"""Share of a GPU's free memory that one pass may take, between 0 and 1; the rest is for results, fragmentation and
other processes."""
_MAX_GPU_TOKENS = 2**17
"""Maximum tokens of a GPU pass: larger passes are no faster, and the progress bar advances only between passes."""
_DECODED_LENGTH = 1024
"""Tokens per row, prompt and completion, that the size of a GPU decoding batch allows for."""
_PREPACKED = (torch.float32, torch.bfloat16, torch.float16)
"""Dtypes whose weights oneDNN may hold in a layout of its own."""
_CPU_PACKED = 5120
"""Maximum tokens of a CPU pass that prepacks weights layer by layer; packing then takes a twentieth of the time of the
matrix products."""
_CPU_WIDEST = 2**23
"""Maximum numbers in the widest activation of such a pass: 32 MB."""
_CPU_LOGITS = 2**24
"""Logits that exist at a time where they are reduced at once: 64 MB. For smollm2 a position of 341 takes 0.54 ms to
unembed, one of 85 takes 0.69 ms."""
_CPU_REDUCED = 2**20
"""Logits that are reduced at a time: 4 MB."""
_CPU_WORK = 1.2e12
"""Maximum floating-point operations of such a pass: seconds on two cores, between updates of the progress bar."""


@dataclass(frozen=True, kw_only=True)
class PassBudget:
    """Limits of one pass on a device; tokens include padding."""

    plain_tokens: int
    """Tokens of a padded pass over prompts without their shared prefix."""
    plain_rows: int
    """Prompts of a pass on the plain path, which runs whole prompts."""
    packed_tokens: int
    """Tokens of a packed pass."""
    sweep_tokens: int
    """Tokens of a packed pass of a sweep over candidates, which is repeated for every candidate."""
    unfolded_tokens: int
    """Tokens to which attention may unfold a packed pass, which is more than its own where prompts share prefixes."""
    gradient_tokens: int
    """Tokens of a pass whose activations are kept for the backward pass."""
    scored_tokens: int
    """Tokens of a pass that unembeds all positions of its completions."""
    unembedded_positions: int
    """Positions whose logits exist at a time where they are reduced at once."""
    reduced_positions: int
    """Positions that are reduced at a time: their float32 logits and what is made of them should stay in the caches."""
    decode_rows: int
    """Completions decoded together at most."""
    decode_tokens: int
    """Tokens, prompts included, whose keys and values are cached for completions that are decoded together."""
    rows: int
    """Prompts of any pass."""
    overhead_tokens: int
    """Fixed cost of one pass, in tokens: reading the weights once and launching the kernels."""
    short_scores: int
    """Maximum attention scores of a row at which two products and a softmax beat the fused kernel; 0 is never."""
    few_scores: int
    """The same maximum for all rows of a pass together."""
    prepacked_rows: int
    """Minimum rows at which packing a weight into oneDNN's layout for a single product pays."""
    prepacked_passes: int
    """Minimum passes at which keeping all weights in that layout pays."""
    prepacked_bytes: int
    """Maximum bytes that weights kept in that layout may take."""

    @classmethod
    def for_(cls, model: ChatModel) -> "PassBudget":
        """The budget of a model on its device, given the memory that is free now and the model's `batch_size`."""
        linear = [module for module in model.decoder.modules() if type(module) is nn.Linear]
        config = model.hf.config.get_text_config()
        d_mlp = max([module.out_features for module in linear], default=0)
        budget = pass_budget(
            model.device.type,
            free_bytes(model.device),
            d_model=model.d_model,
            d_mlp=d_mlp or getattr(config, "intermediate_size", None) or 4 * model.d_model,
            n_layers=model.n_layers,
            d_vocab=model.d_vocab,
            dtype=model.dtype,
            linear_weights=sum(module.weight.numel() for module in linear),
        )
        return budget if model.batch_size is None else budget.limited(model.batch_size)

    def decoded_together(self, longest: int) -> int:
        """How many completions decode together of which the longest, with its prompt, has so many tokens."""
        return max(1, min(self.decode_rows, self.decode_tokens // longest))

    def limited(self, prompts: int) -> "PassBudget":
        """The same budget with at most this many prompts in one pass."""
        rows = {name: min(getattr(self, name), prompts) for name in ("plain_rows", "decode_rows", "rows")}
        return replace(self, **rows)


def free_bytes(device: torch.device) -> int:
    """Bytes of memory available to new tensors on a device."""
    if device.type != "cuda":
        return int(psutil.virtual_memory().available)
    stats = torch.cuda.memory_stats(device)  # once: each reading of the allocator takes 6 ms
    unused = stats.get("reserved_bytes.all.current", 0) - stats.get("allocated_bytes.all.current", 0)
    return torch.cuda.mem_get_info(device)[0] + unused


def pass_budget(
    device: str,
    free: int,
    *,
    d_model: int,
    d_mlp: int,
    n_layers: int,
    d_vocab: int,
    dtype: torch.dtype,
    linear_weights: int | None = None,
) -> PassBudget:
    """The budget of a model of the given size on the given type of device.

    Args:
        device: type of the device, as torch names it.
        free: free bytes on the device.
        d_mlp: width of the widest activation between two matrix products.
        linear_weights: weights of linear layers that oneDNN could hold; None counts those of a gated transformer.
    """
    if linear_weights is None:
        linear_weights = n_layers * d_model * (4 * d_model + 3 * d_mlp)
    if device == "cpu":
        return _cpu_budget(
            free, d_mlp=d_mlp, d_vocab=d_vocab, prepacks=dtype in _PREPACKED, weights=linear_weights
        )
    return _gpu_budget(free, d_model, d_mlp, n_layers, d_vocab, dtype.itemsize)


def _cpu_budget(free: int, *, d_mlp: int, d_vocab: int, prepacks: bool, weights: int) -> PassBudget:
    plain, prepacked_rows = 640, 768
    packed = plain
    if prepacks and weights and torch.backends.mkldnn.is_available():
        quick = max(2 * prepacked_rows, int(_CPU_WORK / (2 * weights)))
        packed = max(plain, min(_CPU_PACKED, _CPU_WIDEST // d_mlp, quick))
    return PassBudget(
        plain_tokens=plain,  # with more the activations leave the cache
        plain_rows=32,
        packed_tokens=packed,
        sweep_tokens=1280,  # a candidate's validation prompts fit into one or two passes
        unfolded_tokens=32 * plain,
        gradient_tokens=plain,
        scored_tokens=512,
        unembedded_positions=max(8, _CPU_LOGITS // d_vocab),
        reduced_positions=max(8, _CPU_REDUCED // d_vocab),
        decode_rows=128,  # of smollm2 80 rows take 0.75 of the time of twice 40, 128 0.87 of twice 64, 256 as long
        decode_tokens=2**16,
        rows=128,
        overhead_tokens=48,
        short_scores=2**15,  # 2.3 times as fast for prompts of 20 tokens, no faster at 300 tokens
        few_scores=2**22,
        prepacked_rows=prepacked_rows,
        prepacked_passes=8,
        prepacked_bytes=free // 2,
    )


def _gpu_budget(
    free: int, d_model: int, d_mlp: int, n_layers: int, d_vocab: int, itemsize: int
) -> PassBudget:
    """Upper bounds: every head counts as a key head, and logits count as four float32 tensors, for the softmax."""
    available = _GPU_SHARE * free
    cached = 2 * n_layers * d_model * itemsize
    passing = (16 * d_model + 4 * d_mlp) * itemsize
    unembedded = 16 * d_vocab
    tokens = min(_MAX_GPU_TOKENS, _power_of_two(available / (cached + passing)))
    rows = _power_of_two(available / 4 / unembedded)
    together = min(rows, _power_of_two(available / (cached * _DECODED_LENGTH + unembedded)))
    return PassBudget(
        plain_tokens=tokens,
        plain_rows=max(1, min(rows, tokens // _DECODED_LENGTH)),
        packed_tokens=tokens,
        sweep_tokens=tokens,
        unfolded_tokens=4 * tokens,
        gradient_tokens=min(tokens, _power_of_two(available / (n_layers * passing))),
        scored_tokens=min(tokens, rows),
        unembedded_positions=min(tokens, rows),
        reduced_positions=min(tokens, rows),
        decode_rows=together,
        decode_tokens=together * _DECODED_LENGTH,
        rows=rows,
        overhead_tokens=2048,
        short_scores=0,
        few_scores=0,
        prepacked_rows=sys.maxsize,
        prepacked_passes=sys.maxsize,
        prepacked_bytes=0,
    )


def _power_of_two(maximum: float) -> int:
    """The largest power of two up to `maximum`; at least 1."""
    return 1 << max(0, int(maximum).bit_length() - 1)
