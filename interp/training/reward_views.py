"""Where in the layers the reward is, and how it lies to harmfulness and refusal.

    rows = reward_by_layer(model, preferences)
    rows[12].accuracy, rows[12].shuffled          # held-out pairs; the same with random labels
    reward_cosines(model, rows, prompts)          # to both directions, beside what random directions reach

At every layer a Bradley-Terry head is fitted on `resid_post` of the replies' last token. Accuracy at a layer says that
the preference can be read there, not that a reward model or the chat model uses it. The cosine of a head depends on its
penalty and on the scaling of states; the difference in means of preferred and rejected replies stands beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from interp.data.preferences import PreferenceSet
from interp.data.prompt_sets import PromptSet
from interp.directions import Direction, cosine
from interp.engine.activations import collect, collect_means
from interp.models.chat_model import ChatModel
from interp.models.layers import Layers
from interp.models.tokens import ChatTokens
from interp.stats import Estimate, rate
from interp.training.reward_models import RewardModelConfig, fit_bradley_terry, pair_tokens

_LAST = "-1"


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerReward:
    """What can be read of the preference at one layer."""

    layer: int
    """Counted from 0."""
    accuracy: Estimate
    """Share of held-out pairs ordered right by a head fitted at this layer."""
    shuffled: Estimate
    """The same with the training pairs' labels drawn at random: the control, near 0.5."""
    head: Direction
    """Weight of the head, in units of reward per unit of activation."""
    difference: Direction
    """Mean state of preferred minus rejected replies."""


@dataclass(frozen=True, kw_only=True)
class RewardCosines:
    """Cosines at one layer; a random direction stays within `random` in 95% of cases."""

    layer: int
    harmfulness: float
    """Of the head with the difference in means of harmful and harmless prompts at `t_inst`."""
    refusal: float
    """Of the head with that at `t_post_inst`."""
    difference_harmfulness: float
    """Of the difference in means of replies with the first."""
    difference_refusal: float
    """Of the difference in means of replies with the second."""
    random: float
    """1.96 / sqrt(d_model)."""


def reward_by_layer(
    model: ChatModel,
    preferences: PreferenceSet,
    *,
    layers: Layers = None,
    config: RewardModelConfig | None = None,
) -> tuple[LayerReward, ...]:
    """A head at every layer, fitted on the train split and measured on the test split."""
    config = RewardModelConfig() if config is None else config
    chosen_layers = model.layer_list(layers)
    limit = config.max_completion_tokens
    fit = [_states(model, side, chosen_layers) for side in pair_tokens(model, preferences["train"], limit)]
    held = [_states(model, side, chosen_layers) for side in pair_tokens(model, preferences["test"], limit)]
    generator = torch.Generator().manual_seed(config.seed)
    signs = 1.0 - 2.0 * torch.randint(2, (len(fit[0]), 1), generator=generator)
    rows = []
    for i, layer in enumerate(chosen_layers):
        differences, spread = fit[0][:, i] - fit[1][:, i], fit[0][:, i].std(0)
        tested = held[0][:, i] - held[1][:, i]
        head, control = (
            fit_bradley_terry(values, penalty=config.penalty, scale=spread)
            for values in (differences, signs * differences)
        )
        rows.append(
            LayerReward(
                layer=layer,
                accuracy=rate((tested @ head > 0).tolist()),
                shuffled=rate((tested @ control > 0).tolist()),
                head=_direction(head, layer, "reward_head"),
                difference=_direction(differences.mean(0), layer, "difference_in_means"),
            )
        )
    return tuple(rows)


def reward_cosines(
    model: ChatModel, rows: Sequence[LayerReward], prompts: PromptSet
) -> tuple[RewardCosines, ...]:
    """How the heads lie to the harmfulness and the refusal direction of the same layer, from the train prompts."""
    layers = [row.layer for row in rows]
    means = [
        collect_means(model, prompts[kind, "train"], sites="resid_post", layers=layers)["resid_post"]
        for kind in ("harmful", "harmless")
    ]
    directions = (means[0] - means[1]).float()  # [layer, role, d_model]
    return tuple(
        RewardCosines(
            layer=row.layer,
            harmfulness=_cosine(row.head, directions[i, 0]),
            refusal=_cosine(row.head, directions[i, 1]),
            difference_harmfulness=_cosine(row.difference, directions[i, 0]),
            difference_refusal=_cosine(row.difference, directions[i, 1]),
            random=1.96 / model.d_model**0.5,
        )
        for i, row in enumerate(rows)
    )


def _states(
    model: ChatModel, tokens: ChatTokens, layers: Sequence[int]
) -> Float[Tensor, "pair layer d_model"]:
    found = collect(model, tokens, sites="resid_post", layers=list(layers), positions=[int(_LAST)])
    return found.at("resid_post", _LAST).float()


def _direction(vector: Tensor, layer: int, kind: str) -> Direction:
    return Direction(
        vector=vector,
        layer=layer,
        position=_LAST,
        site="resid_post",
        sign="preferred - rejected",
        kind=kind,
    )


def _cosine(direction: Direction, other: Tensor) -> float:
    return float(cosine(direction.vector, other))
