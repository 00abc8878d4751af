"""Running many prompts cheaply: shared prefix, length-sorted batches, a progress bar, smaller batches on out-of-memory.

Every prompt of a chat model starts with the same template tokens. Their keys and values are computed once per call
(under the interventions in force) and copied into each batch, so only the tokens that differ are run. Prompts are
sorted by length and cut into batches by dynamic programming over the cost `rows * longest + overhead`.
"""

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache

from interp.engine.interventions import Applied
from interp.models.chat_model import ChatModel
from interp.models.tokens import ChatTokens

logger = logging.getLogger(__name__)
T = TypeVar("T")

TOKEN_BUDGET = 640
"""Tokens of one forward pass that computes a prompt; on two CPU cores more makes the activations leave the cache."""
_PASS_OVERHEAD = 48
"""Fixed cost of one forward pass, in tokens: reading the weights once and launching the kernels."""
MAX_ROWS = 128


def plan_batches(
    lengths: Sequence[int], *, budget: int = TOKEN_BUDGET, max_rows: int = MAX_ROWS
) -> list[list[int]]:
    """Rows of each batch, shortest prompts first, such that padding plus per-pass overhead is least.

    Args:
        lengths: tokens that each row runs.
        budget: most tokens in a batch, padding included; a single longer row is a batch of its own.
    """
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    sizes = [lengths[row] for row in order]
    best = [0.0] + [float("inf")] * len(sizes)
    cut = [0] * (len(sizes) + 1)
    for end in range(1, len(sizes) + 1):
        width = sizes[end - 1]
        for start in range(end - 1, max(-1, end - 1 - max_rows), -1):
            rows = end - start
            if rows > 1 and rows * width > budget:
                break
            cost = best[start] + rows * width + _PASS_OVERHEAD
            if cost < best[end]:
                best[end], cut[end] = cost, start
    batches, end = [], len(sizes)
    while end:
        batches.append(order[cut[end] : end])
        end = cut[end]
    return batches[::-1]


def run_batches(batches: Sequence[list[int]], run: Callable[[list[int]], T]) -> Iterator[tuple[list[int], T]]:
    """Run each batch; one that does not fit into memory is halved and tried again, and later ones start smaller."""
    waiting, limit = list(batches), MAX_ROWS
    while waiting:
        rows = waiting.pop(0)
        if len(rows) > limit:
            waiting[:0] = [rows[i : i + limit] for i in range(0, len(rows), limit)]
            continue
        try:
            result = run(rows)
        except (RuntimeError, MemoryError) as error:
            if len(rows) == 1 or not _is_out_of_memory(error):
                raise
            limit = (len(rows) + 1) // 2
            logger.warning("out of memory with %d prompts in a batch; going on with %d", len(rows), limit)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            waiting.insert(0, rows)
            continue
        yield rows, result


class Enough(Exception):
    """Raised inside a forward pass once all that was asked for has been read."""


@contextmanager
def stopping_before(model: ChatModel, layer: int | None) -> Iterator[None]:
    """Forward passes inside the context end when they reach this block; None lets them run through."""
    if layer is None or layer >= model.n_layers:
        yield
        return
    with model.hooks([("resid_pre", layer, _stop)]), suppress(Enough):
        yield


def _stop(_value: object) -> None:
    raise Enough


@contextmanager
def resuming_at(model: ChatModel, layer: int, resid: Float[Tensor, "batch pos d_model"]) -> Iterator[None]:
    """Forward passes inside the context skip the blocks below this one, which gets `resid` as its input."""
    skipped = [block.module for block in model.blocks[:layer]]
    with model.lock:
        try:
            for module in skipped:
                module.forward = _skip
            with model.hooks([("resid_pre", layer, lambda _: resid)]):
                yield
        finally:
            for module in skipped:
                module.__dict__.pop("forward", None)


def _skip(hidden_states: Tensor, *_args: object, **_options: object) -> Tensor:
    return hidden_states


class SharedPrefix:
    """Keys and values of the tokens that all prompts share, under the interventions in force."""

    def __init__(
        self,
        model: ChatModel,
        tokens: ChatTokens,
        applied: Applied,
        length: int,
        *,
        stop_before: int | None = None,
    ) -> None:
        self.length = length
        self._model = model
        self._cache: DynamicCache | None = None
        if length:
            self._cache = DynamicCache(config=model.hf.config)
            applied.place_prefix(tokens, length)
            ids = torch.tensor([tokens.ids[0][:length]], device=model.device)
            with stopping_before(model, stop_before):
                model.decoder(ids, past_key_values=self._cache, use_cache=True)

    def cache(self, rows: int) -> DynamicCache:
        """A fresh cache for a batch of so many rows that begins after the prefix."""
        if self._cache is None:
            return DynamicCache(config=self._model.hf.config)
        # Updates of a cache put new tensors in place of the old ones, so that the layers can share them.
        cache = copy.copy(self._cache)
        cache.layers = [copy.copy(layer) for layer in cache.layers]
        if rows > 1:
            cache.batch_repeat_interleave(rows)
        return cache


def outgrows_window(model: ChatModel, tokens: ChatTokens, *, beyond: int = 0) -> bool:
    """Whether some prompt, with `beyond` generated tokens, is longer than the model's sliding attention window."""
    config = model.hf.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    uses_window = "sliding_attention" in (getattr(config, "layer_types", None) or ["sliding_attention"])
    longest = max(len(ids) for ids in tokens.ids) + beyond
    return bool(window and uses_window and longest >= window)


def shared_length(model: ChatModel, tokens: ChatTokens, applied: Applied, *, beyond: int = 0) -> int:
    """How many leading tokens to share: 0 where padding behind a prefix would shift a sliding attention window.

    Args:
        beyond: tokens that will be generated after the prompt.
    """
    if outgrows_window(model, tokens, beyond=beyond):
        return 0
    # At least one token of every prompt is left to run.
    return min(applied.shareable(tokens), min(len(ids) for ids in tokens.ids) - 1)


def pad_id(model: ChatModel) -> int:
    """Any valid id: padding is masked or never read."""
    tokenizer: Any = model.tokenizer
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return int(candidate)
    return 0


def _is_out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text
