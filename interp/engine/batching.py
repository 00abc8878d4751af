"""Running many prompts cheaply: shared prefix, length-sorted batches, and smaller ones where memory runs out.

Every prompt of a chat model starts with the same template tokens. Their keys and values are computed once per call
(under the active interventions) and copied into each batch, so only the tokens that differ are run. Prompts are
sorted by length and cut into batches by dynamic programming over the cost `rows * longest + overhead`.
"""

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from interp.engine.applying import Applied
from interp.engine.layouts import PassLayout
from interp.models.chat_model import ChatModel
from interp.models.threads import swapped_forwards
from interp.models.tokens import ChatTokens

logger = logging.getLogger(__name__)
T = TypeVar("T")

_MAX_CUTS = 2**19
"""Maximum ways to cut prompts into batches that are compared, a tenth of a second; with more prompts, cuts are only
considered after every few."""
_FITTING_PASSES = 4
"""Consecutive passes that must fit after an out-of-memory error before larger ones are tried again."""


def plan_batches(lengths: Sequence[int], *, budget: int, max_rows: int, overhead: int) -> list[list[int]]:
    """Rows of each batch, shortest prompts first, that minimise padding plus per-pass overhead.

    Args:
        lengths: tokens that each row runs.
        budget: maximum tokens in a batch, padding included; a single longer row is a batch of its own.
        max_rows: maximum rows in a batch.
        overhead: fixed cost of a pass, in tokens.
    """
    if not lengths:
        return []
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    sizes = [lengths[row] for row in order]
    best = [0.0] + [float("inf")] * len(sizes)
    cut = [0] * (len(sizes) + 1)
    step = -(-len(sizes) * min(len(sizes), max_rows) // _MAX_CUTS)
    if 4 * step * max(sizes) > budget:
        step = 1
    for end in [*range(step, len(sizes), step), len(sizes)]:
        width = sizes[end - 1]
        for start in range((end - 1) // step * step, max(-1, end - 1 - max_rows), -step):
            rows = end - start
            if rows > 1 and rows * width > budget:
                break
            cost = best[start] + rows * width + overhead
            if cost < best[end]:
                best[end], cut[end] = cost, start
    batches, end = [], len(sizes)
    while end:
        batches.append(order[cut[end] : end])
        end = cut[end]
    return batches[::-1]


def run_batches(
    batches: Sequence[list[int]], run: Callable[[list[int]], T], *, max_rows: int
) -> Iterator[tuple[list[int], T]]:
    """Run each batch, at most `max_rows` rows at a time.

    A batch that does not fit into memory is halved and tried again, and later ones start at the smaller size; after a
    few that fit, the size is doubled again.
    """
    waiting, limit, fitting = [rows for rows in batches if rows], max_rows, 0
    while waiting:
        rows = waiting[0][:limit]
        try:
            result = run(rows)
        except (RuntimeError, MemoryError) as error:
            if len(rows) == 1 or not is_out_of_memory(error):
                raise
            limit, fitting = (len(rows) + 1) // 2, 0
            logger.warning("out of memory with %d prompts in a batch; going on with %d", len(rows), limit)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            continue
        rest = waiting.pop(0)[len(rows) :]
        if rest:
            waiting.insert(0, rest)
        fitting += 1
        if limit < max_rows and fitting >= _FITTING_PASSES:
            limit, fitting = min(2 * limit, max_rows), 0
        yield rows, result


class Enough(Exception):
    """Raised inside a forward pass to end it once everything requested has been read."""


@contextmanager
def stopping_before(model: ChatModel, layer: int | None) -> Iterator[None]:
    """Forward passes inside the context stop before this block; None runs them to the end."""
    if layer is None or layer >= model.n_layers:
        yield
        return
    with model.hooks([("resid_pre", layer, _stop)]), suppress(Enough):
        yield


def _stop(_value: object) -> None:
    raise Enough


@contextmanager
def resuming_at(model: ChatModel, layer: int, resid: Float[Tensor, "batch pos d_model"]) -> Iterator[None]:
    """This thread's passes inside the context skip the blocks below `layer`, whose input is `resid`."""
    skipped = {block.module: passed_through for block in model.blocks[:layer]}
    with model.lock, swapped_forwards(skipped), model.hooks([("resid_pre", layer, lambda _: resid)]):
        yield


def passed_through(hidden_states: Tensor, *_args: object, **_options: object) -> Tensor:
    """The forward of a block that is skipped."""
    return hidden_states


class SharedPrefix:
    """Keys and values of the prefix shared by all prompts, under the active interventions."""

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
            ids = torch.tensor([tokens.ids[0][:length]], device=model.device)
            layout = PassLayout.prefix(tokens, length)
            longest = max(len(row) for row in tokens.ids)
            with (
                applied.running(layout),
                model.rotary.at([longest]),
                stopping_before(model, stop_before),
            ):
                model.decoder(ids, past_key_values=self._cache, use_cache=True)

    def cache(self, rows: int) -> DynamicCache:
        """A fresh cache for a batch of this many rows, filled with the shared prefix."""
        if self._cache is None:
            return DynamicCache(config=self._model.hf.config)
        # Updating a cache replaces its tensors instead of writing into them, so copies can share them.
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


def rotate_alike(model: ChatModel, tokens: ChatTokens) -> bool:
    """Whether all prompts have the same rotary frequencies, so that keys of one are valid in another."""
    return model.rotary.alike([len(ids) for ids in tokens.ids])


def shared_length(model: ChatModel, tokens: ChatTokens, applied: Applied, *, beyond: int = 0) -> int:
    """Length of the shared prefix: 0 where prompts rotate it by different frequencies, or where padding after it would
    shift a sliding attention window.

    Args:
        beyond: tokens that will be generated after the prompt.
    """
    if outgrows_window(model, tokens, beyond=beyond) or not rotate_alike(model, tokens):
        return 0
    # Every prompt keeps at least one token of its own to run.
    return min(applied.shareable(tokens), min(len(ids) for ids in tokens.ids) - 1)


def pad_id(model: ChatModel) -> int:
    """Token id used for padding; any valid id works, since padding is masked or never read."""
    tokenizer: Any = model.tokenizer
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return int(candidate)
    return 0


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch or Python says that memory is exhausted."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


class PaddedBatch(NamedTuple):
    """Left-padded token ids with explicit attention mask and position ids."""

    ids: Int[Tensor, "batch pos"]
    mask: Int[Tensor, "batch pos"]
    position_ids: Int[Tensor, "batch pos"]


def pad_left(rows: Sequence[Sequence[int]], *, pad_id: int, first_position: int = 0) -> PaddedBatch:
    """Left-pad rows to one width; positions count from `first_position` at each row's first real token."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :] = torch.tensor(row, dtype=torch.long)
        mask[i, width - len(row) :] = 1
    position_ids = (mask.cumsum(1) - 1).clamp(min=0) + first_position
    return PaddedBatch(ids, mask, position_ids)
