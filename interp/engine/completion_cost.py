"""What `precision="fast"` costs a run: beside states and directions, how many completions differ from the exact ones.

    record_cost(model)                     # once a model, before a run; nothing for one in `exact`
    model.precision_cost["completions_differ"]

Experiments record it in their provenance, so that every rate of a run in `fast` comes with it.
"""

import torch

from interp.engine.activations import layer_states
from interp.engine.generation import generate
from interp.engine.precision_cost import cost_prompts, measure_cost
from interp.models.adapted_models import with_precision
from interp.models.chat_model import ChatModel

TOKENS = 24
"""Length of the completions that are compared."""


@torch.no_grad()
def record_cost(model: ChatModel) -> None:
    """Measure what `fast` costs on this model where that is not known yet; one without a chat template is left out."""
    measure_cost(model, layer_states)
    cost = model.precision_cost
    if not cost or "completions_differ" in cost:
        return
    texts = cost_prompts()
    exact, fast = (
        generate(each, texts, max_new_tokens=TOKENS).ids for each in (with_precision(model, "exact"), model)
    )
    differ = sum(one != other for one, other in zip(exact, fast, strict=True))
    model.precision_cost = {
        **cost,
        "completions_differ": differ / len(texts),
        "completions": float(len(texts)),
    }
