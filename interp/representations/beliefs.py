"""A model's beliefs about a prompt (is it harmful, will it be refused) from centres and cosine margins per layer.

    s^l(h) = cos(h^l, mu^l_positive) - cos(h^l, mu^l_negative)         margin of one layer
    Delta(h) = mean over layers of s^l(h)                              belief

Read at `t_inst` with harmful and harmless centres, Delta measures how harmful the prompt looks to the model; read at
`t_post_inst` with refused and answered centres, whether it will refuse. A belief above 0 is nearer the positive centre.
Where prompts of the two sets end differently, a belief read at `t_inst` also encodes how a prompt ends: see
`interp.representations.confounds` and the `ending` of prompt sets.

Layers count as in the source: 0..L-1 is `resid_pre` of block l, L is `resid_post` of the last block, and all L + 1 are
averaged by default. At layer 0 a template token is a constant, so its margin there is 0.

Source: Zhao et al. 2025, arXiv:2507.11878, equations 2 to 4; the layer set and float64 as in the released notebook.

    centres = fit_centres(harmful, harmless)                           # [prompt, layer, d_model] each
    belief(cosine_margin(states, centres.positive, centres.negative))  # [prompt]
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from interp.directions import unit
from interp.engine.activations import collect
from interp.engine.interventions import Intervention
from interp.models.chat_model import ChatModel
from interp.models.layers import Layers, layer_list
from interp.models.tokens import Positions, PromptInput
from interp.representations.records import BELIEFS, HarmAndRefusal


@dataclass(frozen=True, eq=False, kw_only=True)
class Centres:
    """Mean states of two groups of prompts at one token role, per layer."""

    positive: Float[Tensor, "layer d_model"]
    """Centre of harmful, or of refused, prompts."""
    negative: Float[Tensor, "layer d_model"]
    """Centre of harmless, or of answered, prompts."""

    def __post_init__(self) -> None:
        if not (torch.isfinite(self.positive).all() and torch.isfinite(self.negative).all()):
            raise ValueError("the centres hold NaN or infinite values")

    def margin(self, states: Float[Tensor, "prompt layer d_model"]) -> Float[Tensor, "prompt layer"]:
        """`cosine_margin` of these states."""
        return cosine_margin(states, self.positive, self.negative)


def fit_centres(
    positive: Float[Tensor, "positive layer d_model"], negative: Float[Tensor, "negative layer d_model"]
) -> Centres:
    """Centres of two groups, accumulated in float64.

    Raises:
        ValueError: a group is empty.
    """
    for name, group in (("positive", positive), ("negative", negative)):
        if len(group) == 0:
            raise ValueError(f"the {name} group is empty; a centre needs prompts")
    return Centres(positive=positive.double().mean(0).float(), negative=negative.double().mean(0).float())


def fit_both_centres(
    harmful: Float[Tensor, "harmful layer role d_model"],
    harmless: Float[Tensor, "harmless layer role d_model"],
) -> HarmAndRefusal[Centres]:
    """Centres of both beliefs, from the `states` of refused harmful and answered harmless prompts.

    Args:
        harmful: states of refused harmful prompts at `t_inst` and `t_post_inst`.
        harmless: states of answered harmless prompts at the same roles.

    Raises:
        ValueError: a group is empty.
    """
    harm, refusal = (fit_centres(harmful[:, :, role], harmless[:, :, role]) for role in range(len(BELIEFS)))
    return HarmAndRefusal(harm=harm, refusal=refusal)


def both_beliefs(
    hidden: Float[Tensor, "prompt layer role d_model"], centres: HarmAndRefusal[Centres]
) -> HarmAndRefusal[Float[Tensor, " prompt"]]:
    """Harm belief at `t_inst` and refusal belief at `t_post_inst` of every prompt, from its `states`."""
    return HarmAndRefusal(
        harm=belief(centres.harm.margin(hidden[:, :, 0])),
        refusal=belief(centres.refusal.margin(hidden[:, :, 1])),
    )


def cosine_margin(
    hidden: Float[Tensor, "prompt layer d_model"],
    positive_centre: Float[Tensor, "layer d_model"],
    negative_centre: Float[Tensor, "layer d_model"],
) -> Float[Tensor, "prompt layer"]:
    """Cosine with the positive centre minus cosine with the negative one, per layer, -2 to 2.

    Float64 inside and out; a zero vector has cosine 0 with everything.

    Source: Zhao et al. 2025, arXiv:2507.11878, equation 2.
    """
    h = unit(hidden.double())
    towards = unit(positive_centre.double()) - unit(negative_centre.double())
    return einsum(h, towards, "prompt layer d_model, layer d_model -> prompt layer")


def belief(margin: Float[Tensor, "prompt layer"], layers: Layers = None) -> Float[Tensor, " prompt"]:
    """Mean margin over the given layers, by default over all of them.

    Source: Zhao et al. 2025, arXiv:2507.11878, equations 3 and 4.

    Raises:
        ValueError: no layers, or one out of range.
    """
    if layers is None:
        return margin.mean(1)
    return margin[:, list(layer_list(layers, n_layers=margin.shape[1], of="this belief"))].mean(1)


def states(
    model: ChatModel,
    prompts: PromptInput,
    *,
    layers: Layers = None,
    positions: Positions = ("t_inst", "t_post_inst"),
    interventions: Sequence[Intervention] = (),
    show_progress: bool = False,
) -> Float[Tensor, "prompt layer role d_model"]:
    """Residual stream at the given roles, for layers 0..L as this module counts them.

    Args:
        prompts: as for `collect`.
        layers: an int, a range, a list, or None for all L + 1.
    """
    selected = model.layer_list(layers, upper=model.n_layers + 1)
    last = model.n_layers - 1
    read = sorted({min(layer, last) for layer in selected})
    activations = collect(
        model,
        prompts,
        sites=("resid_pre", "resid_post") if last + 1 in selected else "resid_pre",
        layers=read,
        positions=positions,
        interventions=interventions,
        show_progress=show_progress,
    )
    by_layer = [
        activations["resid_post" if layer > last else "resid_pre"][:, read.index(min(layer, last))]
        for layer in selected
    ]
    return torch.stack(by_layer, dim=1)
