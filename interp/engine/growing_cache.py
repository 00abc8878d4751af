"""A KV cache that writes the next token's keys and values into room kept for them.

transformers' `DynamicCache` concatenates at every decoding step, which copies all earlier keys and values of every
layer. Here a layer holds a buffer with room for more tokens and hands out the part that is filled; only when the room
is used up is the buffer copied into a larger one. What is handed out is equal to the bit.

    grow(cache)            # from here on, `cache.update` writes instead of concatenating
    rearrange(cache, [0, 0, 2], capacity=64)  # the same for rows: only those that change their place are copied
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

_MIN_ROOM = 32
"""Tokens that a new buffer has room for at least."""
_ROOM = 0.25
"""Room of a new buffer, as a share of the tokens that it starts with."""


class _Buffer:
    """Keys or values with room for more tokens; only its latest part may be continued, so that copies do not mix."""

    def __init__(self, start: Tensor, room: int, capacity: int = 0) -> None:
        rows, heads, n, width = start.shape
        self._all = start.new_empty(max(rows, capacity), heads, n + room, width)
        self._all[:rows, :, :n] = start
        self._rows, self._filled = rows, n

    @property
    def capacity(self) -> int:
        """Rows that there is room for."""
        return len(self._all)

    @property
    def latest(self) -> Tensor:
        """The part that is filled."""
        return self._all[: self._rows, :, : self._filled]

    def is_latest(self, part: Tensor) -> bool:
        """Whether a part that this buffer handed out holds all that is filled."""
        return part.data_ptr() == self._all.data_ptr() and part.shape[:3:2] == (self._rows, self._filled)

    def followed_by(self, part: Tensor, more: Tensor) -> Tensor | None:
        """`part`, which this buffer handed out, with more tokens after it; None where it has to be copied."""
        n, end = part.shape[2], part.shape[2] + more.shape[2]
        if not self.is_latest(part) or end > self._all.shape[2] or len(more) != self._rows:
            return None
        self._all[: self._rows, :, n:end] = more
        self._filled = end
        return self.latest

    def rearranged(self, part: Tensor, rows: Sequence[int]) -> Tensor | None:
        """These rows of `part` in this order, written over it; None where it has to be copied."""
        if not self.is_latest(part) or len(rows) > self.capacity:
            return None
        places = [place for place, row in enumerate(rows) if place != row]
        if places:
            index = torch.tensor([places, [rows[place] for place in places]], device=part.device)
            self._all[index[0], :, : self._filled] = self._all[index[1], :, : self._filled]
        self._rows = len(rows)
        return self.latest


class GrowingLayer(DynamicLayer):
    """One layer's keys and values, of a sequence that is decoded without gradients."""

    def __init__(self, layer: DynamicLayer) -> None:
        super().__init__()
        vars(self).update(vars(layer))
        self._buffers: dict[str, _Buffer] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add tokens, and return the keys and values of all."""
        if not self.is_initialized or self.get_seq_length() == 0 or torch.is_grad_enabled():
            return super().update(key_states, value_states, *args, **kwargs)
        self.keys = self._extended("keys", self.keys, key_states)
        self.values = self._extended("values", self.values, value_states)
        return self.keys, self.values

    def _extended(self, name: str, before: Tensor | None, more: Tensor) -> Tensor:
        assert before is not None  # the layer is initialised
        buffer = self._buffers.get(name)
        extended = None if buffer is None else buffer.followed_by(before, more)
        if extended is not None:
            return extended
        room = more.shape[2] + max(_MIN_ROOM, int(_ROOM * before.shape[2]))
        capacity = 0 if buffer is None or not buffer.is_latest(before) else buffer.capacity
        buffer = self._buffers[name] = _Buffer(before, room, capacity)
        extended = buffer.followed_by(buffer.latest, more)
        assert extended is not None
        return extended

    def rearrange(self, rows: Sequence[int], capacity: int) -> None:
        """Keep these rows in this order, with room for so many; copies of this layer must not be used any more."""
        assert self.keys is not None and self.values is not None
        self.keys = self._rearranged("keys", self.keys, rows, capacity)
        self.values = self._rearranged("values", self.values, rows, capacity)

    def _rearranged(self, name: str, before: Tensor, rows: Sequence[int], capacity: int) -> Tensor:
        buffer = self._buffers.get(name)
        after = None if buffer is None else buffer.rearranged(before, rows)
        if after is not None:
            return after
        room = max(_MIN_ROOM, int(_ROOM * before.shape[2]))
        start = before[torch.tensor(rows, device=before.device)]
        buffer = self._buffers[name] = _Buffer(start, room, capacity)
        return buffer.latest

    def __copy__(self) -> "GrowingLayer":
        return GrowingLayer(self)


def grow(cache: DynamicCache) -> None:
    """Let the layers that concatenate all tokens write them into buffers instead; others, as those of a sliding
    window, stay as they are."""
    layers: list[Any] = cache.layers
    for number, layer in enumerate(layers):
        if type(layer) is DynamicLayer:
            layers[number] = GrowingLayer(layer)


def rearrange(cache: DynamicCache, rows: Sequence[int], capacity: int) -> None:
    """Keep these rows of a cache, in this order; a row may come back several times.

    Where layers write into buffers, only rows that change their place are copied, within the buffer: nothing else may
    use the cache's tensors.
    """
    for layer in cache.layers:
        if isinstance(layer, GrowingLayer) and layer.is_initialized and layer.get_seq_length() > 0:
            layer.rearrange(rows, capacity)
        else:
            layer.batch_select_indices(torch.tensor(rows, device=layer.keys.device))  # type: ignore[union-attr]
