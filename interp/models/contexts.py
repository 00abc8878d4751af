"""The context of a model: how many tokens it has positions for, and the refusal of prompts that do not fit.

Beyond the end of a table of positions (GPT-2, GPT-J) a pass fails with an index error; beyond the context that a
rotary model was made for it returns numbers that mean nothing. Both are refused before anything runs. A table is found
by watching what a pass of a few tokens looks up by position; models with neither (ALiBi) and models whose rotary
frequencies follow the length (dynamic NTK) have no limit.

    check_context(model, tokens, new_tokens=64)
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from interp.models.rotary import RotaryFrequencies
from interp.models.tokens import ChatTokens

_PROBED = (5, 8)
"""Numbers of tokens of the passes that find a table: activations have other sizes in the second, a table does not."""


class _Enough(Exception):
    """Raised after the first block, which is as far as positions are looked up."""


@torch.no_grad()
def table_length(hf: PreTrainedModel, first_block: nn.Module) -> int | None:
    """Number of positions in the table of position embeddings; None for a model without one."""
    lengths = None
    for n_tokens in _PROBED:
        looked_up = _LookedUp(n_tokens)
        _run_first_block(hf, first_block, n_tokens, looked_up)
        lengths = looked_up.lengths if lengths is None else lengths & looked_up.lengths
        if not lengths:
            return None
    return min(lengths or [0]) or None


def rotary_length(hf: PreTrainedModel, rotary: RotaryFrequencies) -> int | None:
    """Tokens that a rotary model was made for, scaling included; None where nothing says so or where it is
    unlimited."""
    config: Any = hf.config.get_text_config()
    declared = getattr(config, "max_position_embeddings", None)
    if not rotary.exist or rotary.never_settle or not declared:
        return None
    scaling = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    nested = [value for value in scaling.values() if isinstance(value, dict)]
    length = int(declared)
    for parameters in nested or [scaling]:
        factor = parameters.get("factor")
        if isinstance(
            factor, int | float
        ):  # some configurations declare the length before scaling, others after
            if not 0 < factor < math.inf:
                raise ValueError(
                    f"the rope factor in config.json is {factor}; it must be positive and finite"
                )
            before = parameters.get("original_max_position_embeddings") or declared
            length = max(length, int(factor * before))
    return length


def check_context(model: Any, tokens: ChatTokens, *, new_tokens: int | Sequence[int] = 0) -> None:
    """Refuse prompts that do not fit into the context of a `ChatModel`.

    Args:
        new_tokens: tokens after every prompt, or after each: a completion, or inserted embeddings.

    Raises:
        ValueError: a prompt that is too long; the message names it, its length and the limit.
    """
    limit = model.context_length
    if limit is None:
        return
    further = [new_tokens] * len(tokens) if isinstance(new_tokens, int) else list(new_tokens)
    for row, (ids, extra) in enumerate(zip(tokens.ids, further, strict=True)):
        if len(ids) + extra > limit:
            grows = f" and up to {extra} more in its completion" if extra else ""
            remedy = (
                f"shorten it, or generate at most {limit - len(ids)} tokens"
                if len(ids) < limit and extra
                else "shorten it"
            )
            raise ValueError(
                f"prompt {tokens.identity.ids[row]} has {len(ids)} tokens{grows}, but the context of {model.name} is "
                f"{limit} tokens; {remedy}"
            )


class _LookedUp(TorchDispatchMode):
    """Lengths of the tables that are indexed by the consecutive positions of a pass."""

    def __init__(self, n_tokens: int) -> None:
        super().__init__()
        self._n_tokens = n_tokens
        self.lengths: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name == "embedding":
            self._note(args[0], 0, args[1])
        elif name == "index_select":
            self._note(*args[:3])
        elif name == "gather":
            # The same position for every channel.
            self._note(args[0], args[1], args[2].transpose(args[1], -1)[..., 0, :])
        elif name == "index":
            for axis, index in enumerate(args[1]):
                if isinstance(index, Tensor):
                    self._note(args[0], axis, index)
        return func(*args, **(kwargs or {}))

    def _note(self, table: Tensor, axis: int, index: Tensor) -> None:
        if index.numel() != self._n_tokens or index.is_floating_point() or index.dtype == torch.bool:
            return
        positions = index.flatten().tolist()
        consecutive = list(range(positions[0], positions[0] + self._n_tokens))
        if positions == consecutive and table.shape[axis] > positions[-1] + 1:
            self.lengths.add(table.shape[axis] - positions[0])


def _run_first_block(hf: PreTrainedModel, block: nn.Module, n_tokens: int, mode: TorchDispatchMode) -> None:
    embedding: Any = hf.get_input_embeddings()
    ids = torch.arange(1, n_tokens + 1, device=embedding.weight.device)[None] * 97 % embedding.weight.shape[0]

    def stop(*_: Any) -> None:
        raise _Enough

    handle = block.register_forward_hook(stop)
    try:
        with mode:
            hf.base_model(ids, use_cache=False)
    except _Enough:
        pass
    finally:
        handle.remove()


def fitting_rows(model: Any, tokens: ChatTokens, *, new_tokens: int = 0) -> list[int]:
    """Rows of the prompts that fit into the context of a `ChatModel` with so many tokens after them."""
    limit = model.context_length
    return [row for row, ids in enumerate(tokens.ids) if limit is None or len(ids) + new_tokens <= limit]
