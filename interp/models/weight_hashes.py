"""A hash of all of a model's weights that stays current: only tensors that changed are hashed again.

The hash is SHA-256 over every byte. Whether a tensor changed since is decided by a checksum of every byte as well,
which takes a tenth of the time: torch's own version numbers do not count writes through `.data`, as when PEFT merges
adapters, nor through a NumPy view. On the CPU the checksum is XXH3's, which a change leaves as it was with a
probability of 2^-128. On a GPU it is a sum: a change within 32 neighbouring bits, such as that of a single number,
always changes it, any other leaves it as it was with a probability of 2^-32.

Rotary frequencies are part of what a model computes but not of its file: they count where they are not those that the
configuration gives.

The hash does not depend on the device, nor on which tensors were hashed again.
"""

import hashlib
import inspect
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
import xxhash
from torch import Tensor, nn

_CHUNK = 2**24
"""Elements of a tensor that are copied to the CPU and hashed at a time."""
_BLOCK = 2**22
"""Words of a tensor on a GPU that are multiplied and summed at a time: 64 MB of intermediate values."""
_LENGTH_DEPENDENT = ("dynamic", "longrope")
"""Kinds of rotary embedding whose frequencies change with the prompts that ran last."""


class _Known(NamedTuple):
    state: tuple[Any, ...]
    digest: bytes


class WeightHash:
    """SHA-256 over name, shape, dtype and bytes of every parameter and stored buffer."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}

    def of(self, model: nn.Module) -> str:
        """The hash of the model's current weights."""
        tensors = _tensors(model)
        # Hashes release the interpreter's lock, so that tensors are hashed side by side.
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            fresh = dict(zip(tensors, pool.map(self._current, tensors.items()), strict=True))
        self._known = fresh
        return hashlib.sha256(b"".join(known.digest for known in fresh.values())).hexdigest()

    def _current(self, named: tuple[str, Tensor]) -> _Known:
        name, tensor = named
        state, known = _state(tensor), self._known.get(name)
        return known if known and known.state == state else _Known(state, _digest(name, tensor))


def _edited_frequencies(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Rotary frequencies that are not those that a fresh module of the same configuration has."""
    for path, module in model.named_modules():
        frequencies = {
            name: value for name, value in module.named_buffers(recurse=False) if "inv_freq" in name
        }
        config = getattr(module, "config", None)
        if not frequencies or config is None or "config" not in inspect.signature(type(module)).parameters:
            continue
        kinds = getattr(module, "rope_type", None)  # by kind of layer, where they differ
        if any(
            kind in _LENGTH_DEPENDENT for kind in (kinds.values() if isinstance(kinds, dict) else [kinds])
        ):
            continue
        fresh = dict(type(module)(config=config).named_buffers())
        for name, value in frequencies.items():
            usual = fresh.get(name)
            if usual is None or not _close(value, usual):
                yield f"{path}.{name}", value


def _close(value: Tensor, usual: Tensor) -> bool:
    """Whether two tensors are equal but for the rounding of another device or dtype."""
    usual = usual.to(value.dtype).to("cpu", torch.float32)
    return value.shape == usual.shape and torch.allclose(
        value.to("cpu", torch.float32), usual, rtol=1e-6, atol=0.0
    )


def weight_states(model: nn.Module) -> dict[str, tuple[Any, ...]]:
    """What tells whether a tensor has changed, by its name: dtype, shape, device, a checksum of every byte."""
    return {name: _state(tensor) for name, tensor in _tensors(model).items()}


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    # Tied weights appear in the state dict under each of their names, but are one parameter.
    stored = model.state_dict(keep_vars=True).keys()
    tensors: dict[str, Tensor] = dict(model.named_parameters())
    tensors |= {name: buffer for name, buffer in model.named_buffers() if name in stored}
    return tensors | dict(_edited_frequencies(model))


def _state(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.dtype, tuple(tensor.shape), tensor.device.type, checksum(tensor)


def checksum(tensor: Tensor) -> tuple[int, ...]:
    """A checksum of every byte of a tensor, on its own device."""
    flat = tensor.detach().reshape(-1)
    if flat.device.type != "cpu":
        return _checksum_on_device(flat)
    sums = xxhash.xxh3_128()
    for start in range(0, flat.numel(), _CHUNK):
        sums.update(_raw(flat[start : start + _CHUNK]))
    return (sums.intdigest(),)


def _checksum_on_device(flat: Tensor) -> tuple[int, ...]:
    """Sums of 32-bit words, each times an odd number of its own, modulo 2^64: no copy to the CPU."""
    raw = flat.contiguous().view(torch.uint8)
    if (over := -raw.numel() % 4) or raw.storage_offset() % 4:
        raw = torch.cat([raw, raw.new_zeros(over)])
    words, factors = raw.view(torch.int32), _factors(flat.device)
    sums = [(part.to(torch.int64) * factors[: len(part)]).sum() for part in words.split(_BLOCK)]
    return tuple(torch.stack(sums).tolist()) if sums else ()


@cache
def _factors(device: torch.device) -> Tensor:
    """An odd number for every word of a block, drawn and copied once: for each of the 291 weights of a 7B model that
    would take seconds a check."""
    odd = np.random.default_rng(0).integers(-(2**62), 2**62, _BLOCK, dtype=np.int64) | 1
    return torch.from_numpy(odd).to(device)


def _digest(name: str, tensor: Tensor) -> bytes:
    digest = hashlib.sha256(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
    flat = tensor.detach().reshape(-1)
    for start in range(0, flat.numel(), _CHUNK):
        digest.update(_raw(flat[start : start + _CHUNK]))
    return digest.digest()


def _raw(flat: Tensor) -> Any:
    return flat.to("cpu").contiguous().view(torch.uint8).numpy()
