"""Weights that cannot be those of the model: not numbers, or without a place in it.

NaN in attention need not reach the logits, since kernels skip what they take for masked: answers look right.

transformers leaves out what a configuration has no place for, and says so in a log line. Some of it belongs to parts
that a language model does not need, such as an image encoder. A bias of a layer that is there, or a whole layer beyond
the last, means that the configuration describes another model, whose answers would look right.
"""

import logging
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

logger = logging.getLogger(__name__)

_BUFFERS = ("inv_freq", "masked_bias")
"""Ends of names of what older versions stored and newer ones compute."""
_LAYER = re.compile(r"(?P<layers>.+\.(?:layers|h|blocks))\.(?P<number>\d+)\..+")


_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@torch.no_grad()
def check_finite(model: nn.Module) -> None:
    """Raise a ValueError that names the first weight, or frequencies of RoPE, with NaN or infinite values."""
    frequencies = [(name, value) for name, value in model.named_buffers() if name.endswith("inv_freq")]
    for name, weight in [*model.named_parameters(), *frequencies]:
        wider = torch.float64 if weight.dtype == torch.float64 else torch.float32
        # A sum needs no copy of the weights, as a mask does.
        if weight.dtype in _FLOATS and not weight.sum(dtype=wider).isfinite():
            raise ValueError(f"{name} holds NaN or infinite values")


def check_unused(model: nn.Module, names: Iterable[str]) -> None:
    """Refuse unused tensors that belong to the model's own layers; warn of others.

    Args:
        names: the tensors of the checkpoint that have no place in the model.

    Raises:
        ValueError: one belongs to a module that has weights, or to a layer beyond the last.
    """
    modules = dict(model.named_modules())
    unused = sorted(name for name in names if not name.endswith(_BUFFERS))
    for name in unused:
        if _is_own(name, modules):
            raise ValueError(
                f"{len(unused)} tensors of the weights have no place in the model, first {name}: config.json describes "
                "another model than the weights; take both from one checkpoint"
            )
    if unused:
        logger.warning(
            "%d tensors of the checkpoint are not used by %s, first %s",
            len(unused),
            type(model).__name__,
            unused[0],
        )


def _is_own(name: str, modules: dict[str, Any]) -> bool:
    parent = modules.get(name.rpartition(".")[0])
    if parent is not None and any(True for _ in parent.parameters(recurse=False)):
        return True
    layer = _LAYER.fullmatch(name)
    return (
        layer is not None
        and f"{layer['layers']}.0" in modules
        and f"{layer['layers']}.{layer['number']}" not in modules
    )
