"""A hash of all of a model's weights that stays current: only tensors that changed are hashed again.

The hash covers every byte. A tensor counts as unchanged while it has the same memory and version (torch raises a
tensor's version with each in-place operation, including an optimiser's step) and a sample of its values is the same,
which detects most writes that bypass versions: through `.data`, as when PEFT merges adapters, or through a NumPy view.
Such a write to single values between the sampled ones is not detected.

The hash does not depend on the device, nor on which tensors were hashed again.
"""

import hashlib
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_CHUNK = 2**24
"""Elements of a tensor that are copied to the CPU and hashed at a time."""
_SAMPLE = 64
"""Number of values of each tensor that are compared."""


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
        fresh: dict[str, _Known] = {}
        for name, tensor in tensors.items():
            state, known = _state(tensor), self._known.get(name)
            fresh[name] = known if known and known.state == state else _Known(state, _digest(name, tensor))
        self._known = fresh
        return hashlib.sha256(b"".join(known.digest for known in fresh.values())).hexdigest()


def weight_states(model: nn.Module) -> dict[str, tuple[Any, ...]]:
    """What tells whether a tensor has changed, by its name: memory, version, dtype, shape, a sample of values."""
    return {name: _state(tensor) for name, tensor in _tensors(model).items()}


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    # Tied weights appear in the state dict under each of their names, but are one parameter.
    stored = model.state_dict(keep_vars=True).keys()
    tensors: dict[str, Tensor] = dict(model.named_parameters())
    return tensors | {name: buffer for name, buffer in model.named_buffers() if name in stored}


def _state(tensor: Tensor) -> tuple[Any, ...]:
    flat = tensor.detach().reshape(-1)
    sample = _raw(flat[:: max(1, flat.numel() // _SAMPLE)]).tobytes()
    version = None if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), version, tensor.device, tensor.dtype, tuple(tensor.shape), sample


def _digest(name: str, tensor: Tensor) -> bytes:
    digest = hashlib.sha256(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
    flat = tensor.detach().reshape(-1)
    for start in range(0, flat.numel(), _CHUNK):
        digest.update(_raw(flat[start : start + _CHUNK]))
    return digest.digest()


def _raw(flat: Tensor) -> Any:
    return flat.to("cpu").contiguous().view(torch.uint8).numpy()
