"""The two references of alignment recovery, the losses towards them, and the gradients of the weights below the cut.

h(x) is the residual stream after the last block below the cut, at one token of the prompt x. A reference is a direction
d and a centre c; the loss of a batch is -cos(mean of h over the batch - c, d).

Source: Yang et al. 2025, arXiv:2504.09757, as released; `difference-of-means` is ours.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor, nn

from interp.engine.activations import collect_means
from interp.engine.budgets import PassBudget
from interp.engine.gradients import differentiable
from interp.engine.half_products import HalfWeights, half_products
from interp.engine.weight_gradients import summed_gradients
from interp.models.chat_model import ChatModel
from interp.models.reference_weights import ReferenceWeights
from interp.models.tokens import ChatTokens
from interp.training.recovery_config import RecoveryConfig


@dataclass(frozen=True, eq=False, kw_only=True)
class Reference:
    """A direction that mean activations are pulled towards."""

    direction: Float[Tensor, " d_model"]
    """d: a mean activation, or a difference of two; in float32."""
    centre: Float[Tensor, " d_model"]
    """c: what is subtracted from a mean before it is compared; zero for the published method."""

    def cosine(self, mean: Float[Tensor, " d_model"]) -> Float[Tensor, ""]:
        """Cosine between a mean activation, less the centre, and the direction; -1 to 1."""
        return torch.nn.functional.cosine_similarity(
            mean.float() - self.centre.to(mean.device), self.direction.to(mean.device), dim=0
        )


@dataclass(frozen=True, kw_only=True)
class Summed:
    """Losses and gradients of one walk through a prompt set."""

    loss: float
    """Mean loss of the mini-batches, -1 to 1; lower is closer to the reference."""
    n_batches: int
    """Number of mini-batches, over which the gradients are summed."""


def harmful_reference(
    aligned: ReferenceWeights, model: ChatModel, harmful: ChatTokens, task: ChatTokens, config: RecoveryConfig
) -> Reference:
    """d_harm: mean over the harmful prompts of h, in the aligned model."""
    cut = config.cut_layer(model.n_layers)
    with aligned.running(model, below=cut) as reference:
        mean = mean_state(reference, harmful, config)
        if config.target == "mean":
            return Reference(direction=mean, centre=torch.zeros_like(mean))
        other = mean_state(reference, task, config)
    return Reference(direction=mean - other, centre=other)


def task_reference(
    finetuned: ChatModel, harmful: ChatTokens, task: ChatTokens, config: RecoveryConfig
) -> Reference:
    """d_task: mean over the task prompts of h, in the fine-tuned model, whose behaviour rollback keeps."""
    mean = mean_state(finetuned, task, config)
    if config.target == "mean":
        return Reference(direction=mean, centre=torch.zeros_like(mean))
    other = mean_state(finetuned, harmful, config)
    return Reference(direction=mean - other, centre=other)


def mean_state(model: ChatModel, prompts: ChatTokens, config: RecoveryConfig) -> Float[Tensor, " d_model"]:
    """Mean of h over the prompts, summed in float64, as float32."""
    layer = config.cut_layer(model.n_layers) - 1
    means = collect_means(model, prompts, sites="resid_post", layers=layer, positions=config.position)
    return means.means["resid_post"][0, 0].float()


def reference_loss(states: Float[Tensor, "batch d_model"], reference: Reference) -> Float[Tensor, ""]:
    """-cos(mean of h over the mini-batch - c, d): the recovery loss for d_harm, the rollback loss for d_task."""
    return -reference.cosine(reduce(states.float(), "batch d_model -> d_model", "mean"))


def sum_gradients(
    model: ChatModel,
    weights: Mapping[str, nn.Parameter],
    prompts: ChatTokens,
    reference: Reference,
    config: RecoveryConfig,
    *,
    into: dict[str, Tensor],
    fast: bool = True,
) -> Summed:
    """Add the gradients of the losses of all mini-batches to `into`, by name of the weight.

    Several mini-batches share a pass, which computes each loss of its own prompts: sums of gradients do not see that.
    A model of precision `fast` multiplies in bfloat16 (`interp.engine.half_products`).

    Args:
        fast: pack the prompts and stop at the cut; False runs each mini-batch padded through all blocks.

    Raises:
        ValueError: a gradient is NaN or infinite.
    """
    layer, total, count = config.cut_layer(model.n_layers) - 1, 0.0, 0
    with (
        differentiable(model, trainable=list(weights.values())) as through,
        summed_gradients(weights, into),
        half_products(HalfWeights(model, below=layer + 1) if model.precision == "fast" else None),
    ):
        for groups in _passes(model, prompts, config.batch_size, fast=fast):
            rows = [row for group in groups for row in group]
            states = through.states(prompts.take(rows), layer=layer, positions=config.position, fast=fast)[
                :, 0
            ]
            sizes = [len(group) for group in groups]
            losses = torch.stack([reference_loss(part, reference) for part in states.split(sizes)])
            losses.sum().backward()
            total, count = total + float(losses.detach().sum()), count + len(groups)
    for name, gradient in into.items():
        if not torch.isfinite(gradient).all():
            raise ValueError(
                f"the gradient of {name} holds NaN or infinite values; the weights or activations overflow: load both "
                "models in float32 or bfloat16, and check that the fine-tuned one generates text"
            )
    return Summed(loss=total / count, n_batches=count)


def _passes(
    model: ChatModel, prompts: ChatTokens, batch_size: int, *, fast: bool
) -> Iterator[list[list[int]]]:
    """Mini-batches in the order of the prompts, by pass: as many in one as its activations have room for."""
    order = list(range(len(prompts)))
    groups = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    room, shared = PassBudget.for_(model).gradient_tokens, prompts.n_shared
    waiting, size = list[list[int]](), 0
    for group in groups:
        own = sum(len(prompts.ids[row]) - shared for row in group)
        if waiting and (not fast or size + own > room):
            yield waiting
            waiting, size = [], 0
        waiting.append(group)
        size += own
    if waiting:
        yield waiting
