"""A KV cache that writes the next token's keys and values into room kept for them.

transformers' `DynamicCache` concatenates at every decoding step, which copies all earlier keys and values of every
layer. Here a layer holds a buffer with room for more tokens and hands out the part that is filled; only when the room
is used up is the buffer copied into a larger one. What is handed out is equal to the bit.

    grow(cache)            # from here on, `cache.update` writes instead of concatenating
"""

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

    def __init__(self, start: Tensor, room: int) -> None:
        batch, heads, n, width = start.shape
        self._all = start.new_empty(batch, heads, n + room, width)
        self._all[:, :, :n] = start
        self._filled = n
        self.start = self._all[:, :, :n]
        """The part that it starts with."""

    def followed_by(self, part: Tensor, more: Tensor) -> Tensor | None:
        """`part`, which this buffer handed out, with more tokens after it; None where it has to be copied."""
        n, end = part.shape[2], part.shape[2] + more.shape[2]
        is_latest = self._filled == n and part.data_ptr() == self._all.data_ptr()
        if not is_latest or end > self._all.shape[2] or more.shape[:2] != self._all.shape[:2]:
            return None
        self._all[:, :, n:end] = more
        self._filled = end
        return self._all[:, :, :end]


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
        buffer = self._buffers[name] = _Buffer(before, room)
        extended = buffer.followed_by(buffer.start, more)
        assert extended is not None
        return extended

    def __copy__(self) -> "GrowingLayer":
        return GrowingLayer(self)


def grow(cache: DynamicCache) -> None:
    """Let the layers that concatenate all tokens write them into buffers instead; others, as those of a sliding
    window, stay as they are."""
    layers: list[Any] = cache.layers
    for number, layer in enumerate(layers):
        if type(layer) is DynamicLayer:
            layers[number] = GrowingLayer(layer)
