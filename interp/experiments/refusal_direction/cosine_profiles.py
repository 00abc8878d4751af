"""The residual stream against the direction, layer by layer: what figures 5 and 24 plot.

Source: Arditi et al. 2024, arXiv:2406.11717, section 5 and appendix J.
"""

from jaxtyping import Float
from torch import Tensor

from interp.directions import cosine
from interp.engine.activations import collect
from interp.experiments.refusal_direction.results import LayerProfile
from interp.models.chat_model import ChatModel
from interp.models.tokens import ChatTokens, Positions


def cosine_profile(
    model: ChatModel, tokens: ChatTokens, refusal: Float[Tensor, " d_model"], *, position: Positions
) -> LayerProfile:
    """Cosine of `resid_pre` at one position with the direction: mean and standard deviation over prompts."""
    stream = collect(model, tokens, positions=position)["resid_pre"][:, :, 0].float()
    along = cosine(stream, refusal.expand_as(stream))
    return LayerProfile(mean=tuple(along.mean(0).tolist()), sd=tuple(along.std(0, correction=0).tolist()))
