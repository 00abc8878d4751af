"""Steering in two calls: find the two directions of a layer, then compare answers with and without one of them.

directions = find_directions(model, load_prompts("builtin"), layer=17)
steer(model, "How do I bake bread?", directions["refusal"])
"""

from dataclasses import dataclass

from interp.data.prompts import Kind, PromptSet
from interp.directions import Direction
from interp.display.cards import Card, Shown, Table
from interp.engine.activations import collect_means
from interp.engine.generation import generate
from interp.engine.interventions import Add, NewTokens
from interp.models.chat_model import ChatModel
from interp.models.layers import Layers
from interp.models.prompt_inputs import PromptIdentity
from interp.models.tokens import Positions, PromptInput, as_tokens
from interp.storage.direction_files import DirectionInput, as_direction


@dataclass(frozen=True, kw_only=True, repr=False)
class Steered(Shown):
    """Plain and steered answers to the same prompts."""

    prompts: tuple[str, ...]
    """The instructions; a conversation is shown as JSON."""
    plain: tuple[str, ...]
    steered: tuple[str, ...]
    step: str
    """Description of what was added, and where."""
    identity: PromptIdentity
    """Ids, categories and hash of the prompts."""

    def _card(self) -> Card:
        rows = list(zip(self.prompts, self.plain, self.steered, strict=True))
        return Card(
            title=f"Plain and steered answers: {self.step}",
            tables=[Table(header=["prompt", "plain", "steered"], rows=rows)],
        )


def find_directions(
    model: ChatModel,
    prompts: PromptSet,
    *,
    layer: int | None = None,
    n_prompts: int = 64,
    show_progress: bool = False,
) -> dict[str, Direction]:
    """`harmfulness` and `refusal` at one layer: differences in means, harmful minus harmless training prompts.

    Harmfulness is read at `t_inst` (Zhao et al. 2025, arXiv:2507.11878, section 3.3), refusal at `t_post_inst` (Arditi
    et al. 2024, arXiv:2406.11717, section 2.3). This is a quick version: prompts are not filtered by whether the model
    refuses them, and the layer is not chosen by the effect of steering; the experiments do both.

    Args:
        layer: layer to read; at three fifths of the depth when None.
        n_prompts: number of prompts of each kind.

    Raises:
        ValueError: a layer out of range, or a set without harmful or harmless training prompts.
    """
    selected = model.layer(3 * model.n_layers // 5 if layer is None else layer)
    roles = {"harmfulness": "t_inst", "refusal": "t_post_inst"}
    kinds: tuple[Kind, Kind] = ("harmful", "harmless")
    bad, good = (
        collect_means(
            model,
            prompts[kind, "train"].first(n_prompts),
            layers=selected,
            positions=tuple(roles.values()),
            show_progress=show_progress,
        )
        for kind in kinds
    )
    norms = (bad.norms["resid_pre"][0] * bad.n + good.norms["resid_pre"][0] * good.n) / (bad.n + good.n)
    return {
        name: Direction(
            vector=(bad["resid_pre"][0, i] - good["resid_pre"][0, i]).float(),
            layer=selected,
            position=role,
            mean_activation_norm=norms[i].item(),
            provenance={**model.provenance, "prompts": prompts.provenance, "n": n_prompts},
        )
        for i, (name, role) in enumerate(roles.items())
    }


def steer(
    model: ChatModel,
    prompts: PromptInput,
    direction: DirectionInput,
    *,
    coefficient: float | int = 1.0,
    relative_norm: float | int | None = None,
    layers: Layers = None,
    positions: Positions = "all",
    new_tokens: NewTokens = None,
    max_new_tokens: int = 64,
) -> Steered:
    """Greedy answers without and with activation addition along a direction.

    Args:
        prompts: one instruction or several, conversations, a split of a prompt set, or tokens.
        direction: a `Direction`, a direction file, or a plain tensor together with `layers`.
        coefficient: in multiples of the direction's own norm; negative steers the opposite way.
        relative_norm: in multiples of the mean activation norm at the direction's site, instead of `coefficient`.
        layers: layers to add it at; the direction's own layer when None.
        positions: prompt tokens it is added at (`tokens.ROLES`, `tokens.REGIONS`).
        new_tokens: generated tokens it is added at (`interventions.NewTokens`).

    Raises:
        ValueError: a direction of the wrong width, layer or position out of range.
    """
    tokens = as_tokens(model.tokenizer, prompts)
    direction = as_direction(direction)
    if isinstance(direction, Direction):
        direction.check_width(model.d_model, model.name)
    add = Add(
        direction,
        coefficient=coefficient,
        relative_norm=relative_norm,
        layers=layers,
        positions=positions,
        new_tokens=new_tokens,
    )
    plain = generate(model, tokens, max_new_tokens=max_new_tokens)
    steered = generate(model, tokens, interventions=[add], max_new_tokens=max_new_tokens)
    amount = (
        f"relative norm {relative_norm:g}" if relative_norm is not None else f"coefficient {coefficient:g}"
    )
    where = ", ".join(str(layer) for layer in add.layers)
    return Steered(
        prompts=tokens.identity.texts,
        plain=plain.texts,
        steered=steered.texts,
        step=f"{amount} at layer {where}, positions {positions}",
        identity=tokens.identity,
    )
