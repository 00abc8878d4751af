"""A model's modules, weights and settings, remembered so that they can be put back exactly.

    before = Snapshot(hf)
    before.work_on_copies()        # what runs now writes to copies of the weights
    try: ...
    finally: before.restore()      # the same modules, parameters and memory as before

Restoring moves no data: every parameter points to its old memory again, which nothing wrote to in between.
"""

import copy
from typing import NamedTuple

import psutil
import torch
from torch import Tensor
from transformers import PreTrainedModel

_HALF = (torch.float16, torch.bfloat16)


class _Known(NamedTuple):
    tensor: Tensor
    data: Tensor
    trainable: bool
    gradient: Tensor | None


class Snapshot:
    """The module tree, hooks, configuration and tensors of a model as they are when this is made."""

    def __init__(self, hf: PreTrainedModel) -> None:
        self.hf = hf
        self._attributes = [(module, vars(module).copy()) for module in hf.modules()]
        self._tables = [
            (table, table.copy())
            for module in hf.modules()
            for table in vars(module).values()
            if isinstance(table, dict)
        ]
        settings = (hf.config, hf.generation_config)
        self._settings = [(held, copy.deepcopy(vars(held))) for held in settings if held is not None]
        tensors = {id(tensor): tensor for tensor in (*hf.parameters(), *hf.buffers())}
        self._tensors = [
            _Known(tensor, tensor.data, tensor.requires_grad, tensor.grad if tensor.is_leaf else None)
            for tensor in tensors.values()
        ]
        known = {id(entry.tensor): entry for entry in self._tensors}
        self._usual = hf.dtype
        self._names = {name: known[id(tensor)] for name, tensor in _named(hf).items()}

    @property
    def is_half(self) -> bool:
        """Whether any weight is in half precision."""
        return any(known.data.dtype in _HALF for known in self._tensors)

    @property
    def is_plain(self) -> bool:
        """Whether every parameter is an ordinary tensor of floating-point numbers of 16 bits or more."""
        return getattr(self.hf, "hf_quantizer", None) is None and all(
            type(known.tensor) is torch.nn.Parameter
            and known.data.dtype.itemsize >= 2
            and known.data.is_floating_point()
            for known in self._tensors
            if isinstance(known.tensor, torch.nn.Parameter)
        )

    @property
    def tensor_ids(self) -> set[int]:
        """`id` of every parameter and buffer."""
        return {id(known.tensor) for known in self._tensors}

    def is_written(self) -> bool:
        """Whether the values of any parameter or buffer differ from those remembered."""
        return any(
            known.tensor.shape != known.data.shape
            or not torch.equal(known.tensor.data.to(known.data), known.data)
            for known in self._tensors
        )

    def fits_in_float32(self) -> bool:
        """Whether the devices have memory for float32 copies of all weights."""
        needed: dict[torch.device, int] = {}
        for known in self._tensors:
            device = known.data.device
            needed[device] = needed.get(device, 0) + known.data.numel() * 4
        return all(size < 0.8 * _free_memory(device) for device, size in needed.items())

    def work_on_copies(self, *, in_float32: bool = False) -> None:
        """Give every tensor a copy of its memory, of half-precision ones in float32 where asked."""
        for known in self._tensors:
            widen = in_float32 and known.data.dtype in _HALF
            known.tensor.data = known.data.to(torch.float32) if widen else known.data.clone()

    def round(self) -> None:
        """Round the current values to the dtypes of before, in the dtypes that they have."""
        for tensor, known in self._current():
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(self._dtype(known)).to(tensor.dtype)

    def settle(self) -> None:
        """Give the current tensors their old dtypes, and those whose values are the old ones their old memory."""
        for tensor, known in self._current():
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(self._dtype(known))
                tensor.requires_grad_(known is not None and known.trainable)
            if (
                known is not None
                and tensor.shape == known.data.shape
                and torch.equal(tensor.data, known.data)
            ):
                tensor.data = known.data

    def _current(self) -> list[tuple[Tensor, _Known | None]]:
        """The model's tensors now, each with what was known by its name."""
        current = {id(tensor): (tensor, self._names.get(name)) for name, tensor in _named(self.hf).items()}
        return list(current.values())

    def _dtype(self, known: _Known | None) -> torch.dtype:
        return self._usual if known is None else known.data.dtype

    def restore(self) -> None:
        """Put everything back."""
        for module, attributes in self._attributes:
            vars(module).clear()
            vars(module).update(attributes)
        for table, content in self._tables:
            table.clear()
            table.update(content)
        for held, settings in self._settings:
            vars(held).clear()
            vars(held).update(copy.deepcopy(settings))
        self.restore_weights()

    def restore_weights(self) -> None:
        """Put the memory of all weights back, and leave modules, hooks and settings alone."""
        for known in self._tensors:
            known.tensor.data = known.data
            if known.tensor.is_leaf and known.data.is_floating_point():
                known.tensor.requires_grad_(known.trainable)
                known.tensor.grad = known.gradient


def _named(hf: PreTrainedModel) -> dict[str, Tensor]:
    return dict(hf.named_parameters(remove_duplicate=False)) | dict(hf.named_buffers(remove_duplicate=False))


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available
