"""Rotary frequencies that depend on the sequence's length (longrope, dynamic NTK), and how to hold them fixed.

Most models rotate a token's query and key by its position alone. Longrope takes one set of frequencies up to a length
and another beyond it; dynamic NTK changes them with every token beyond a length. transformers derives the length from
the largest position of a pass, so that a short prompt beside a long one, a cached prefix, or a pass over a few tokens
of a long prompt is rotated by frequencies that are not its own; dynamic NTK also keeps those of the pass before.

`RotaryFrequencies.at(lengths)` gives every row of the passes inside the context the frequencies of its own length,
whatever else the pass holds. Which kind of rope a model has is found by calling its rotary modules.

    with model.rotary.at([12, 4100]):
        model.decoder(...)                 # two rows, of 12 and 4,100 tokens
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from interp.models.threads import lock_of, swapped_forwards

_FAR = 2**24
"""A length beyond the context of every model."""


class RotaryFrequencies:
    """The rotary frequencies of a model as a function of the sequence's length."""

    def __init__(self, hf: nn.Module, decoder: nn.Module) -> None:
        self._lock = lock_of(hf)
        self._modules = [module for module in decoder.modules() if _is_rotary(module) and _runs(module)]
        self._forwards = {module: module.forward for module in self._modules}
        self._options = {module: _options(module) for module in self._modules}
        self._known: dict[int, bytes] = {}
        changing = bool(self._modules) and self._frequencies(1) != self._frequencies(_FAR)
        self.vary = changing
        """Whether the frequencies depend on the length."""
        self.never_settle = changing and self._frequencies(_FAR) != self._frequencies(2 * _FAR)
        """Whether they change with every further token, so that no length is the longest."""

    @property
    def exist(self) -> bool:
        """Whether the model has rotary embeddings that take position ids."""
        return bool(self._modules)

    def key(self, length: int) -> bytes:
        """Equal for two lengths exactly where their frequencies are; constant where frequencies do not vary."""
        if not self.vary:
            return b""
        if length not in self._known:
            self._known[length] = self._frequencies(length)
        return self._known[length]

    def alike(self, lengths: Sequence[int]) -> bool:
        """Whether sequences of these lengths have equal frequencies."""
        return not self.vary or len({self.key(length) for length in set(lengths)}) == 1

    @contextmanager
    def at(self, lengths: Sequence[int]) -> Iterator[None]:
        """Inside the context, this thread's passes rotate by the frequencies of these lengths.

        Args:
            lengths: of every row of the passes, or one for all rows.
        """
        if not self.vary:
            yield
            return
        forwards: dict[nn.Module, Callable[..., Any]] = {
            module: partial(self._at, forward, list(lengths)) for module, forward in self._forwards.items()
        }
        with self._lock, swapped_forwards(forwards):
            yield

    def _at(
        self,
        forward: Callable[..., tuple[Tensor, Tensor]],
        lengths: list[int],
        x: Tensor,
        position_ids: Tensor,
        *args: Any,
        **options: Any,
    ) -> tuple[Tensor, Tensor]:
        def turn(positions: Tensor, length: int) -> tuple[Tensor, Tensor]:
            return _at_length(forward, x, positions, length, *args, **options)

        keys = [self.key(length) for length in lengths]
        if len(set(keys)) == 1:
            return turn(position_ids, max(lengths))
        rows = position_ids.expand(len(lengths), -1)
        parts = [turn(rows[row : row + 1], length) for row, length in enumerate(lengths)]
        return torch.cat([cos for cos, _ in parts]), torch.cat([sin for _, sin in parts])

    @torch.no_grad()
    def _frequencies(self, length: int) -> bytes:
        """Cosines and sines of one rotation at this length, of every rotary module and type of layer."""
        parts = []
        with self._lock:
            for module, forward in self._forwards.items():
                for options in self._options[module]:
                    cos, sin = _at_length(forward, *_one_position(module), max(length, 2), **options)
                    parts += [cos.float().cpu(), sin.float().cpu()]
        return torch.cat([part.flatten() for part in parts]).numpy().tobytes()


def _at_length(
    forward: Callable[..., tuple[Tensor, Tensor]],
    x: Tensor,
    position_ids: Tensor,
    length: int,
    *args: Any,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Cosines and sines at these positions of a sequence of this length, whatever was computed before."""
    # A pass of length 1 resets dynamic NTK, whose frequencies otherwise only grow. The additional last column is the
    # position from which the module takes the length, and slots beyond it are padding; afterwards the module is reset
    # for the passes of others.
    start = torch.zeros_like(position_ids[:, :1])
    forward(x, start, *args, **options)
    inside = torch.cat([position_ids.clamp(max=length - 1), start + length - 1], dim=1)
    cos, sin = forward(x, inside, *args, **options)
    forward(x, start, *args, **options)
    return cos[:, :-1], sin[:, :-1]


def _is_rotary(module: nn.Module) -> bool:
    takes = inspect.signature(module.forward).parameters
    names = [name for name, _ in module.named_buffers(recurse=False)]
    return "position_ids" in takes and any(name.endswith("inv_freq") for name in names)


def _runs(module: nn.Module) -> bool:
    """Whether a module takes one axis of positions; some multimodal ones take three, which no pass here gives."""
    try:
        with torch.no_grad():
            for options in _options(module):
                _at_length(module.forward, *_one_position(module), 2, **options)
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):
        return False
    return True


def _one_position(module: nn.Module) -> tuple[Tensor, Tensor]:
    """An input of one token at position 1; rotary modules read only its device and dtype."""
    device = next(module.buffers()).device
    return torch.zeros(1, 1, device=device), torch.ones(1, 1, dtype=torch.long, device=device)


def _options(module: nn.Module) -> list[dict[str, Any]]:
    """Further arguments of a rotary module: one call for each type of layer that it distinguishes."""
    taken = inspect.signature(module.forward).parameters
    if "layer_type" not in taken:
        return [{}]
    types = {
        name.removesuffix("_inv_freq").removesuffix("_original")
        for name, _ in module.named_buffers(recurse=False)
    }
    named = sorted(name for name in types if not name.endswith("inv_freq"))
    return [{"layer_type": name} for name in named] or [{}]
