"""One call to steer a model along a direction and see both answers."""

from collections.abc import Sequence
from dataclasses import dataclass

from interp.chat import Positions
from interp.directions import Direction
from interp.display import Card, Shown, Table
from interp.generation import generate
from interp.interventions import Add, Steps
from interp.models import ChatModel


@dataclass(frozen=True, kw_only=True, repr=False)
class Steered(Shown):
    """Plain and steered answers to the same prompts."""

    prompts: tuple[str, ...]
    plain: tuple[str, ...]
    steered: tuple[str, ...]
    step: str
    """What was added, and where."""

    def _card(self) -> Card:
        rows = list(zip(self.prompts, self.plain, self.steered, strict=True))
        return Card(
            title=f"Plain and steered answers: {self.step}",
            tables=[Table(header=["prompt", "plain", "steered"], rows=rows)],
        )


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
    step = f"dose {dose:g}" if dose is not None else f"coefficient {coefficient:g}"
    where = ", ".join(str(layer) for layer in add.layers)
    return Steered(
        prompts=tuple(texts),
        plain=plain.texts,
        steered=steered.texts,
        step=f"{step} at layer {where}, positions {positions}",
    )
