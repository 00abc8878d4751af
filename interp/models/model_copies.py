"""A second module tree over the same weights."""

import copy
from collections import OrderedDict
from typing import Any

from torch import nn

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
"""Attributes of a module that hold its hooks."""


def shared_copy(model: Any) -> Any:
    """A copy that shares parameters and buffers with the model, and has its own modules and no hooks.

    Changes of weights are seen by both. Training mode, hooks and configuration of one are not those of the other.
    """
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    for module in model.modules():
        memo |= {id(hooks): OrderedDict() for name in _HOOKS if (hooks := vars(module).get(name)) is not None}
    twin: nn.Module = copy.deepcopy(model, memo=memo)
    return twin
