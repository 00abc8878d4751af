"""Soft tokens: embeddings that stand in prompts as if the vocabulary had more tokens.

Inside `soft_tokens` the ids from `d_vocab` on name embeddings that no token has. Prompts that hold them run everywhere
prompts run: an id tells what stands at a slot, whether the pass is padded, packed, behind a shared prefix or a KV
cache, and prompts share what they share by their ids alone.

    with soft_tokens(model, embeddings) as ids:         # [soft d_model] -> d_vocab, d_vocab + 1, ...
        generate(model, slot.filled(ids))

The embeddings replace the output of the model's input embedding, as `inputs_embeds` do. Outside the context such
prompts cannot run: the model has no such tokens, and says so.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.models.chat_model import ChatModel
from interp.models.threads import in_this_thread


@contextmanager
def soft_tokens(model: ChatModel, embeddings: Float[Tensor, "soft d_model"]) -> Iterator[range]:
    """Give these embeddings ids for every pass of `model.hf` of this thread inside the context.

    Yields:
        The ids, in the order of the embeddings.

    Raises:
        ValueError: embeddings of another width than the model's.
    """
    first = model.d_vocab
    if embeddings.shape[1] != model.d_model:
        raise ValueError(
            f"the soft prompt has d_model {embeddings.shape[1]}, but {model.name} has {model.d_model}: it was trained "
            "on another model"
        )
    soft = embeddings.to(model.device, model.dtype)
    given: list[Tensor] = []

    def before(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        given[:] = [args[0]]
        return (args[0].where(args[0] < first, 0), *args[1:])

    def after(_module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> Tensor:
        number = given[0] - first
        return torch.where((number >= 0)[..., None], soft[number.clamp(min=0)], output)

    with ExitStack() as stack:
        for handle in (
            model.embedding.register_forward_pre_hook(in_this_thread(before, _nothing)),
            model.embedding.register_forward_hook(in_this_thread(after, _nothing)),
        ):
            stack.callback(handle.remove)
        yield range(first, first + len(soft))


def _nothing(*_: Any) -> None:
    return None
