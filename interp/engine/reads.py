"""What is asked of a pass: sites, layers and tokens, and the hooks that keep their activations.

A `Request` is made once from what the caller names; a `Reads` is made for each pass and holds what its hooks have seen.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.models.chat_model import ChatModel, Edit, Site
from interp.models.contexts import check_context
from interp.models.layers import Layers
from interp.models.sites import Sites, site_list
from interp.models.tokens import ChatTokens, Positions, PromptInput, as_tokens


class Request(NamedTuple):
    """The activations that are wanted of each prompt."""

    sites: tuple[Site, ...]
    layers: tuple[int, ...]
    roles: tuple[str, ...]
    where: Int[Tensor, "prompt role"]
    """Places in each prompt's own tokens."""

    @property
    def stop_before(self) -> int:
        """The first block that need not run."""
        last = max(self.layers)
        # resid_pre of the last layer is known when its block begins; every other site when it ends.
        return last if set(self.sites) == {"resid_pre"} else last + 1


def check_model(model: Any) -> None:
    """Raise a ValueError for what is no loaded `ChatModel`: a name, or a model of transformers."""
    if not isinstance(model, ChatModel):
        how = f"interp.load({model!r})" if isinstance(model, str) else "interp.load(model, tokenizer=...)"
        raise ValueError(f"model must be a ChatModel, got {type(model).__name__}; load it: {how:.80}")


def requested(
    model: ChatModel,
    prompts: PromptInput,
    sites: Sites,
    layers: Layers,
    positions: Positions,
) -> tuple[ChatTokens, Request]:
    """The prompts as tokens, and what is wanted of them.

    Raises:
        ValueError: a prompt that is too long, unknown site or role, no position, layer or position out of range.
    """
    check_model(model)
    tokens = as_tokens(model.tokenizer, prompts)
    check_context(model, tokens)
    unique_sites = site_list(sites)
    for site in unique_sites:
        model.site(site, 0)
    roles, index = tokens.resolve(positions)
    if not roles:
        raise ValueError("give at least one position, such as t_inst or t_post_inst")
    return tokens, Request(unique_sites, model.layer_list(layers), tuple(roles), index)


class Reads:
    """What was asked for of the prompts of one pass, and the hooks that fill it in."""

    def __init__(self, model: ChatModel, request: Request, n_prompts: int) -> None:
        # Layers first, so that a hook writes one contiguous slab.
        shape = (len(request.layers), n_prompts, len(request.roles), model.d_model)
        self._slabs: dict[Site, Tensor] = {
            site: torch.empty(shape, dtype=model.dtype, device=model.device) for site in request.sites
        }
        self._layers = request.layers

    @property
    def values(self) -> dict[Site, Float[Tensor, "prompt layer role d_model"]]:
        """By site."""
        return {site: slab.transpose(0, 1) for site, slab in self._slabs.items()}

    def edits(
        self,
        where: Int[Tensor, "prompt role"],
        *,
        of: Callable[[Site, int], bool] = lambda _site, _layer: True,
    ) -> list[tuple[Site, int, Edit]]:
        """Hooks that keep these tokens at the sites and layers for which `of` is true.

        Args:
            where: places in the pass, its rows put end to end.
        """

        places = where.flatten()
        return [
            (site, layer, partial(_keep, slab[slot].flatten(0, 1), places.to(slab.device)))
            for slot, layer in enumerate(self._layers)
            for site, slab in self._slabs.items()
            if of(site, layer)
        ]


def _keep(kept: Float[Tensor, "place d_model"], places: Int[Tensor, " place"], value: Tensor) -> None:
    """Write what a pass has at these places, its rows put end to end."""
    kept[:] = value.flatten(0, 1).index_select(0, places)


def all_finite(
    batches: Iterable[tuple[list[int], dict[Site, Tensor]]], request: Request
) -> Iterator[tuple[list[int], dict[Site, Tensor]]]:
    """The rows and activations of each batch, unchanged.

    Raises:
        ValueError: an activation is NaN or infinite; the message names the first place.
    """
    for rows, batch in batches:
        _check_finite(batch, request, rows)
        yield rows, batch


def _check_finite(batch: dict[Site, Tensor], request: Request, rows: list[int]) -> None:
    for site, value in batch.items():
        if not torch.isfinite(value.sum()):
            bad = (~torch.isfinite(value)).nonzero()
            if len(bad) == 0:  # only the sum overflowed
                continue
            row, layer, role = (int(i) for i in bad[0][:3])
            raise ValueError(
                f"activations are not finite at {site} of layer {request.layers[layer]}, {request.roles[role]}, prompt "
                f"{rows[row]}; float16 may overflow (load in bfloat16 or float32), or the weights are damaged"
            )
