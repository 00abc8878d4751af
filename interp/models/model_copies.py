"""A second module tree over the same weights, for the bridge and for models that a user has loaded."""

import copy
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interp.models.conversations import template_of, with_thinking

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


def boot_bridge(
    hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, name: str, device: torch.device, folder: str
) -> Any:
    """A `TransformerBridge` over a copy of the model's modules that shares its weights.

    Args:
        folder: for a copy of the tokenizer, which the bridge edits and loads again.
    """
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoTokenizer

    twin = shared_copy(hf)
    if not twin.config.architectures:  # the bridge looks its adapter up by this name
        twin.config.architectures = [type(hf).__name__]
    tokenizer.save_pretrained(folder)
    return TransformerBridge.boot_transformers(
        name,
        hf_model=twin,
        tokenizer=AutoTokenizer.from_pretrained(folder),
        dtype=hf.dtype,
        device=str(device),
    )


class UserModel(NamedTuple):
    """What stands for a model that a user has loaded."""

    hf: PreTrainedModel
    """A copy that shares its weights."""
    tokenizer: PreTrainedTokenizerBase
    """The user's tokenizer, or a copy of it with another template."""
    name: str
    """Name in results."""


def user_model(
    hf: Any,
    tokenizer: PreTrainedTokenizerBase | None,
    given: dict[str, Any],
    chat_template: str | Path | None,
    thinking: bool | None = None,
) -> UserModel:
    """A model that a user has loaded, which stays as it is.

    Args:
        given: arguments of `load` that belong to loading a checkpoint.
        thinking: whether the model thinks before it answers; None leaves the template's default.

    Raises:
        ValueError: not a transformers model, no tokenizer, or arguments that a loaded model has no use for.
    """
    if not isinstance(hf, PreTrainedModel):
        merge = (
            "; merge its adapter first: model.merge_and_unload()" if hasattr(hf, "merge_and_unload") else ""
        )
        raise ValueError(
            f"load takes a name, a folder, a .gguf file or a transformers model, got {type(hf).__name__}{merge}"
        )
    if tokenizer is None:
        raise ValueError(
            "a model that is loaded already needs tokenizer=, such as AutoTokenizer.from_pretrained(...)"
        )
    if extra := [name for name, value in given.items() if value is not None]:
        raise ValueError(f"{', '.join(extra)} belong to loading a checkpoint; this model is loaded already")
    if chat_template is not None or thinking is not None:
        template = tokenizer.chat_template if chat_template is None else template_of(tokenizer, chat_template)
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.chat_template = template if thinking is None else with_thinking(template, thinking)
    return UserModel(shared_copy(hf), tokenizer, str(hf.name_or_path or type(hf).__name__))
