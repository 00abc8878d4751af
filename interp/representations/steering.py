"""Steering in two calls: find the two directions of a layer, then compare answers with and without one of them.

directions = find_directions(model, load_prompts("builtin"), layer=17)
steer(model, "How do I bake bread?", directions["refusal"])
steer_with(model, "How do I bake bread?", [Add(directions["refusal"]), Ablate(directions["harmfulness"])])
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from interp.data.prompts import Prompts, PromptSet, as_prompts
from interp.directions import Direction, check_difference
from interp.display.cards import Card, Shown, Table
from interp.engine.activations import collect_means
from interp.engine.generation import generate
from interp.engine.interventions import Ablate, Add, Intervention, NewTokens, intervention_list
from interp.engine.reads import check_model
from interp.engine.safety_prompts import SafetyPrompt, under
from interp.models.chat_model import ChatModel
from interp.models.layers import Layers
from interp.models.prompt_inputs import PromptIdentity
from interp.models.tokens import Positions, PromptInput
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
    prompts: PromptSet | Mapping[str, PromptInput] | PromptInput,
    negative: PromptInput | None = None,
    *,
    layer: int | None = None,
    n_prompts: int = 64,
    show_progress: bool = False,
) -> dict[str, Direction]:
    """`harmfulness` and `refusal` at one layer: differences in means, harmful minus harmless training prompts.

        find_directions(model, {"harmful": [...], "harmless": [...]})["refusal"]
        find_directions(model, polite, rude)["t_post_inst"]        # any contrast: directions by token role

    Harmfulness is read at `t_inst` (Zhao et al. 2025, arXiv:2507.11878, section 3.3), refusal at `t_post_inst` (Arditi
    et al. 2024, arXiv:2406.11717, section 2.3). This is a quick version: prompts are not filtered by whether the model
    refuses them, and the layer is not chosen by the effect of steering; the experiments do both.

    Args:
        prompts: a prompt set, prompts by `harmful` and `harmless` or by `positive` and `negative`, or the positive
            prompts. A contrast without harm in its names has its directions by token role.
        negative: the negative prompts, where `prompts` are the positive ones.
        layer: layer to read; at three fifths of the depth when None.
        n_prompts: number of prompts of each kind.

    Raises:
        ValueError: a layer out of range, a set without harmful or harmless training prompts, one side missing,
            or sides that do not differ.
    """
    check_model(model)
    sides, kinds, about = _contrast(prompts, negative)
    selected = model.layer(3 * model.n_layers // 5 if layer is None else layer)
    read = ("t_inst", "t_post_inst")
    roles = dict(zip(("harmfulness", "refusal") if kinds[0] == "harmful" else read, read, strict=True))
    bad, good = (
        collect_means(
            model,
            side.first(n_prompts),
            layers=selected,
            positions=tuple(roles.values()),
            show_progress=show_progress,
        )
        for side in sides
    )
    norms = (bad.norms["resid_pre"][0] * bad.n + good.norms["resid_pre"][0] * good.n) / (bad.n + good.n)
    vectors = (bad["resid_pre"][0] - good["resid_pre"][0]).float()
    for i, role in enumerate(roles.values()):
        check_difference(vectors[i], norms[i].item(), f"layer {selected}, {role}")
    return {
        name: Direction(
            vector=vectors[i],
            layer=selected,
            position=role,
            sign=f"{kinds[0]} - {kinds[1]}",
            mean_activation_norm=norms[i].item(),
            provenance={**model.provenance, "prompts": about, "n": max(bad.n, good.n)},
        )
        for i, (name, role) in enumerate(roles.items())
    }


def _contrast(
    prompts: PromptSet | Mapping[str, PromptInput] | PromptInput, negative: PromptInput | None
) -> tuple[tuple[Prompts, Prompts], tuple[str, str], dict[str, Any]]:
    """Both sides of a contrast, their names, and its provenance."""
    if isinstance(prompts, PromptSet) and negative is None:
        sides = prompts["harmful", "train"], prompts["harmless", "train"]
        return sides, ("harmful", "harmless"), prompts.provenance
    names = "positive", "negative"
    if isinstance(prompts, Mapping) and negative is None:
        names = ("harmful", "harmless") if "harmful" in prompts else names
        if set(prompts) != set(names):
            raise ValueError(
                "a contrast by name has harmful and harmless, or positive and negative prompts; got "
                f"{', '.join(map(str, prompts)) or 'none'}"
            )
        given = prompts[names[0]], prompts[names[1]]
    elif negative is None:
        raise ValueError("a direction needs a second list of prompts, the negative ones; got one list")
    else:
        given = prompts, negative
    first, second = (as_prompts(side, source=name) for side, name in zip(given, names, strict=True))  # pyright: ignore[reportArgumentType]
    splits = {side.source: {"n": len(side), "hash": side.hash} for side in (first, second)}
    return (first, second), names, {"name": f"{first.source} against {second.source}", "splits": splits}


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
    safety_prompt: SafetyPrompt | None = None,
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
        safety_prompt: stands in the system slot of every prompt, in both answers.

    Raises:
        ValueError: a direction of the wrong width, layer or position out of range, or a safety prompt of another model.
    """
    check_model(model)
    direction = as_direction(direction)
    if not (direction.vector if isinstance(direction, Direction) else direction).any():
        raise ValueError(
            "the direction is zero, so adding it changes nothing; read it at another layer or token"
        )
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
    amount = (
        f"relative norm {relative_norm:g}" if relative_norm is not None else f"coefficient {coefficient:g}"
    )
    where = ", ".join(str(layer) for layer in add.layers)
    answers = steer_with(model, prompts, [add], max_new_tokens=max_new_tokens, safety_prompt=safety_prompt)
    return replace(answers, step=f"{amount} at layer {where}, positions {positions}")


def steer_with(
    model: ChatModel,
    prompts: PromptInput,
    interventions: Sequence[Intervention],
    *,
    max_new_tokens: int = 64,
    temperature: float | int = 0.0,
    seed: int = 0,
    safety_prompt: SafetyPrompt | None = None,
    show_progress: bool = False,
) -> Steered:
    """Answers without and with any interventions, all of them together.

    Args:
        prompts: one instruction or several, conversations, a split of a prompt set, or tokens.
        interventions: applied in this order, each at its own layers and tokens.
        temperature: 0 is greedy; above, plain and steered answers are sampled with the same seed.
        seed: seed of the sampling.
        safety_prompt: stands in the system slot of every prompt, in both answers.
        show_progress: draw a progress bar for the plain and for the steered answers.

    Raises:
        ValueError: no intervention, or as `interp.engine.generation.generate`.
    """
    if not (interventions := intervention_list(interventions)):
        raise ValueError("steering needs at least one intervention, such as Add(direction)")
    with under(model, prompts, safety_prompt) as tokens:
        plain, steered = (
            generate(
                model,
                tokens,
                interventions=given,
                max_new_tokens=max_new_tokens,
                temperature=float(temperature),
                seed=seed,
                show_progress=show_progress,
            )
            for given in ((), tuple(interventions))
        )
    return Steered(
        prompts=tokens.identity.texts,
        plain=plain.texts,
        steered=steered.texts,
        step="; ".join(_step(intervention) for intervention in interventions),
        identity=tokens.identity,
    )


def _step(intervention: Intervention) -> str:
    """One intervention in words, e.g. `add 2 times a direction of norm 20 at layer 12, positions all`."""
    if intervention.layers is None:
        where = "all layers"
    else:
        where = f"layer {', '.join(str(layer) for layer in intervention.layers)}"
    act = type(intervention).__name__.lower()
    if isinstance(intervention, Add):
        norm = intervention.direction.norm().item()
        act = f"add {intervention.coefficient:g} times a direction of norm {norm:.3g}"
    elif isinstance(intervention, Ablate):
        act = "ablate a direction"
    return f"{act} at {where}, positions {intervention.positions}"
