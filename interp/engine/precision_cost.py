"""What `precision="fast"` costs on a model: how far its states and directions are from the exact ones.

Measured once a model, at first use, on a few prompts of `builtin`; recorded in the model's provenance. A direction of
few prompts is a severe test: rounding errors of single prompts average out in a direction of many.

    collect(model, prompts)                # measures it
    model.provenance["precision_cost"]     # {"states_error": 0.006, "direction_cosine": 0.9996, "prompts": 16}
"""

import logging
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from interp.data.prompts import load_prompts
from interp.models.adapted_models import with_precision
from interp.models.chat_model import ChatModel
from interp.models.tokens import ChatTokens, tokenize

logger = logging.getLogger(__name__)
_PROMPTS = 8
"""Prompts of each kind."""
_COSINE = 0.99
"""A direction with a lower cosine to the exact one is warned of."""


@torch.no_grad()
def measure_cost(
    model: ChatModel, states: Callable[[ChatModel, ChatTokens], Float[Tensor, "prompt layer role d_model"]]
) -> None:
    """Set `precision_cost` of a model in `fast` that has none yet; others, and those without a template, stay as they
    are.

    Args:
        states: collects the states of all layers at a few roles.
    """
    if model.precision != "fast" or model.precision_cost is not None or model.tokenizer.chat_template is None:
        return
    model.precision_cost = {}  # the measurement itself collects in `fast`
    try:
        tokens = tokenize(model.tokenizer, cost_prompts())
        exact, fast = (states(each, tokens).double() for each in (with_precision(model, "exact"), model))
    except BaseException:
        model.precision_cost = None
        raise
    error = _norm(fast - exact) / _norm(exact)
    directions = [each[:_PROMPTS].mean(0) - each[_PROMPTS:].mean(0) for each in (exact, fast)]
    cosines = torch.cosine_similarity(*directions, dim=-1)
    model.precision_cost = {
        "states_error": error.max().item(),
        "direction_cosine": cosines.min().item(),
        "prompts": float(2 * _PROMPTS),
    }
    if cosines.min() < _COSINE:
        logger.warning(
            "precision='fast' changes directions of %s: cosine %.3f with the exact one at some layer; use 'exact'",
            model.name,
            cosines.min().item(),
        )


def cost_prompts() -> list[str]:
    """What the cost is measured on: a few harmful prompts, then as many harmless ones."""
    prompts = load_prompts("builtin")
    return [text for kind in ("harmful", "harmless") for text in prompts[kind, "train"].first(_PROMPTS).texts]


def _norm(states: Float[Tensor, "prompt layer role d_model"]) -> Float[Tensor, " layer"]:
    return torch.linalg.vector_norm(states, dim=(0, 2, 3))
