"""Section 5, appendices I.1 and J: what happens inside, on prompts that the direction was not fitted on first.

Source: Arditi et al. 2024, arXiv:2406.11717.
"""

from dataclasses import dataclass

from interp.data.prompts import PromptSet
from interp.directions import Direction
from interp.experiments.refusal_direction import Config
from interp.experiments.refusal_direction.activation_shift import scatter
from interp.experiments.refusal_direction.base_model import base_check
from interp.experiments.refusal_direction.candidates import FilteredPrompts
from interp.experiments.refusal_direction.mechanism import mechanism
from interp.experiments.refusal_direction.results import BaseCheck, Mechanism, Scatter
from interp.models.chat_model import ChatModel, load
from interp.models.sources import ADAPTER_FOLDERS


@dataclass(frozen=True, kw_only=True)
class Inside:
    """Readings from inside the model."""

    mechanism: Mechanism
    """Section 5."""
    scatter: Scatter
    """Appendix I.1."""
    base_check: BaseCheck | None
    """Appendix J; None where no base model is known."""


def look_inside(
    model: ChatModel,
    prompts: PromptSet,
    filtered: FilteredPrompts,
    direction: Direction,
    config: Config,
) -> Inside:
    """The mechanism, the shift of activations, and the direction in the base model.

    Raises:
        ValueError: a base model of another shape.
    """
    refused = filtered.both_splits("harmful")[: config.n_mechanism]
    answered = filtered.both_splits("harmless")[: config.n_mechanism]
    return Inside(
        mechanism=mechanism(
            model,
            direction.vector,
            refused=refused,
            answered=answered,
            refusal_ids=filtered.refusal_tokens.ids,
            suffixes=config.suffixes,
            seed=config.seed,
        ),
        scatter=scatter(model, direction, refused=refused, answered=answered),
        base_check=_base_check(model, prompts, direction, config),
    )


def _base_check(
    model: ChatModel, prompts: PromptSet, direction: Direction, config: Config
) -> BaseCheck | None:
    """Appendix J on the training prompts, where a base model is known."""
    base = config.base or ("smollm2" if model.name in ADAPTER_FOLDERS else "")
    if not base:
        return None
    return base_check(
        model,
        load(base, dtype=model.dtype, device=str(model.device)),
        direction.vector,
        harmful=prompts["harmful", "train"].first(config.n_train).texts,
        harmless=prompts["harmless", "train"].first(config.n_train).texts,
    )
