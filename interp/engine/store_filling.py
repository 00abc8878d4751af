"""Filling an activation store with many prompts in memory that does not grow with their number.

    filled = fill_store(model, open("prompts.txt"), "runs/store", layers=range(10, 20))
    filled.computed                                   # prompts that were not there

Prompts are taken from any iterable, tokenised a few thousand at a time, and only what the store lacks is run. A run
that was killed continues where it stopped, and several processes may fill one store.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import torch

from interp.engine.activations import through_store
from interp.engine.reads import requested
from interp.engine.stored_activations import StoreInput, opened_store
from interp.models.chat_model import ChatModel
from interp.models.layers import Layers
from interp.models.sites import Sites
from interp.models.tokens import Positions

_CHUNK = 2048
"""Prompts that are tokenised together."""


class Filled(NamedTuple):
    """What `fill_store` did."""

    prompts: int
    """Prompts that were given."""
    computed: int
    """Those that were run; the others were there."""


@torch.no_grad()
def fill_store(
    model: ChatModel,
    prompts: Iterable[str],
    store: StoreInput,
    *,
    sites: Sites = "resid_pre",
    layers: Layers = None,
    positions: Positions = ("t_inst", "t_post_inst"),
) -> Filled:
    """Compute and store the activations of these prompts that a store does not have yet.

    Args:
        prompts: instructions; an iterator is read as far as it is needed.
        store: the store, or where it is.
        sites: one or several of `chat_model.SITES`.
        layers: an int, a range, a list, or None for all.
        positions: token roles.

    Raises:
        ValueError: as `collect`; or no store, or a model whose activations cannot be stored.
        OSError: the store cannot be written to.
    """
    opened = opened_store(store)
    if opened is None:
        raise ValueError("give a store: a folder, or s3://bucket/prefix")
    total = computed = 0
    for chunk in _chunks(iter(prompts)):
        tokens, request = requested(model, chunk, sites, layers, positions)
        everything = list(range(len(tokens)))
        for rows, _ in through_store(opened, model, tokens, request, (), everything, purpose="fill"):
            computed += len(rows)
        total += len(chunk)
    return Filled(total, computed)


def _chunks(prompts: Iterator[str]) -> Iterator[list[str]]:
    while chunk := list(islice(prompts, _CHUNK)):
        yield chunk
