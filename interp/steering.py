"""One call to steer a model along a direction and see both answers."""

from collections.abc import Sequence
from typing import NamedTuple

from interp.chat import Positions
from interp.directions import Direction
from interp.generation import generate
from interp.interventions import Add, Steps
from interp.models import ChatModel


class Steered(NamedTuple):
    """Plain and steered answers to the same prompts."""

    plain: tuple[str, ...]
    steered: tuple[str, ...]


def steer(
    model: ChatModel,
    prompts: Sequence[str] | str,
    direction: Direction,
    *,
    coefficient: float = 1.0,
    dose: float | None = None,
    layers: Sequence[int] | None = None,
    positions: Positions = "all",
    steps: Steps = None,
    max_new_tokens: int = 64,
) -> Steered:
    """Greedy answers without and with activation addition along a direction.

    Args:
        prompts: one instruction or several.
        coefficient: in multiples of the direction's length; negative pushes the other way.
        dose: in multiples of the mean activation norm at the direction's place, instead of `coefficient`.
        layers: where to add it; the direction's own layer when None.
        positions: prompt tokens it is added at (`chat.ROLES`, `chat.REGIONS`).
        steps: generated tokens it is added at (`interventions.Steps`).

    Raises:
        ValueError: a direction of the wrong width, layer or position out of range.
    """
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    direction.check_width(model.d_model, model.name)
    add = Add.along(
        direction, coefficient=coefficient, dose=dose, layers=layers, positions=positions, steps=steps
    )
    plain = generate(model, texts, max_new_tokens=max_new_tokens)
    steered = generate(model, texts, interventions=[add], max_new_tokens=max_new_tokens)
    return Steered(plain.texts, steered.texts)
