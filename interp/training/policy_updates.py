"""One clipped policy update: log-probabilities and values of answers, and the optimiser's steps on them.

The policy and its value head share one network; the head is linear in the state that a token is predicted from. Answers
follow their prompts, prompts padded on the left and answers on the right. All log-probabilities are those of the
sampling temperature, so that the ratio belongs to the distribution that the answers come from.

Losses are means over a minibatch: its rows run in micro-batches whose gradients add up to the same, however many fit
into memory. On out-of-memory the micro-batch is halved, and the minibatch starts again.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from interp.engine.batching import is_out_of_memory
from interp.training.advantages import clipped_policy_losses, clipped_value_losses
from interp.training.rollouts import Rollouts

logger = logging.getLogger(__name__)


class PolicyOutputs(NamedTuple):
    """What the network says of every answer token."""

    log_probs: Float[Tensor, "batch pos"]
    """Log-probability of the token at the sampling temperature, nats; 0 behind the answer's end."""
    values: Float[Tensor, "batch pos"]
    """Value of the state before it."""
    entropies: Float[Tensor, "batch pos"]
    """Entropy of the distribution it comes from, nats, without gradients."""


class PolicyNetwork(nn.Module):
    """A causal language model with a value head.

    Args:
        module: the model that is trained, with its adapter.
        hf: the same model without PEFT's wrapper.
        temperature: that answers are sampled at.
    """

    def __init__(self, module: Any, hf: Any, temperature: float | int) -> None:
        super().__init__()
        self.module, self.temperature = module, float(temperature)
        self._unembedding = (hf.get_output_embeddings(),)  # a tuple: no second owner of its parameters
        self.head = nn.Linear(hf.get_input_embeddings().weight.shape[1], 1).to(hf.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(
        self,
        ids: Int[Tensor, "batch pos"],
        mask: Int[Tensor, "batch pos"],
        answers: Int[Tensor, "batch answer"],
    ) -> PolicyOutputs:
        """Outputs at the answers [batch, answer], which are the last columns of `ids`; -1 is behind an answer's end."""
        width, states = answers.shape[1], list[Tensor]()
        handle = self._unembedding[0].register_forward_pre_hook(lambda _, args: states.append(args[0]))
        try:
            logits = self.module(
                input_ids=ids,
                attention_mask=mask,
                position_ids=(mask.cumsum(1) - 1).clamp(min=0),
                use_cache=False,
                logits_to_keep=width + 1,
            ).logits[:, :-1]
        finally:
            handle.remove()
        log_probs = (logits.float() / self.temperature).log_softmax(-1)
        present = answers >= 0
        taken = log_probs.gather(-1, answers.clamp(min=0)[..., None])[..., 0]
        with torch.no_grad():
            entropies = -(log_probs.exp() * log_probs).sum(-1)
        values = self.head(states[0][:, -width - 1 : -1].float())[..., 0]
        return PolicyOutputs(taken * present, values * present, entropies * present)


class Batch(NamedTuple):
    """Answers as padded tensors."""

    ids: Int[Tensor, "batch pos"]
    mask: Int[Tensor, "batch pos"]
    answers: Int[Tensor, "batch answer"]
    """Answer tokens; -1 behind the end."""

    def take(self, rows: Tensor) -> "Batch":
        """These rows."""
        return Batch(*(part[rows] for part in self))


def padded(rollouts: Rollouts, *, padding: int, device: torch.device) -> Batch:
    """Prompts padded on the left, answers on the right."""
    before = max(map(len, rollouts.prompts.ids))
    after = max(map(len, rollouts.answers))
    ids = torch.full((len(rollouts), before + after), padding)
    mask = torch.zeros_like(ids)
    answers = torch.full((len(rollouts), after), -1)
    for row, (prompt, answer) in enumerate(zip(rollouts.prompts.ids, rollouts.answers, strict=True)):
        start, end = before - len(prompt), before + len(answer)
        ids[row, start:end] = torch.tensor([*prompt, *answer])
        mask[row, start:end] = 1
        answers[row, : len(answer)] = torch.tensor(answer)
    return Batch(ids.to(device), mask.to(device), answers.to(device))


@torch.no_grad()
def outputs_of(network: Callable[..., PolicyOutputs], batch: Batch, micro_batch: int) -> PolicyOutputs:
    """The network's outputs for a whole batch, in micro-batches, without gradients."""
    rows = torch.arange(len(batch.ids), device=batch.ids.device).split(micro_batch)
    parts = [network(*batch.take(part)) for part in rows]
    return PolicyOutputs(*(torch.cat(list(fields)) for fields in zip(*parts, strict=True)))


@dataclass(frozen=True, eq=False, kw_only=True)
class Targets:
    """What an update trains towards, fixed while the policy moves."""

    old: PolicyOutputs
    """Outputs of the policy that made the rollouts."""
    advantages: Float[Tensor, "batch pos"]
    """Whitened advantages."""
    returns: Float[Tensor, "batch pos"]
    """Targets of the values."""
    policy_mask: Bool[Tensor, "batch pos"]
    """Positions of the policy loss: generated tokens."""
    value_mask: Bool[Tensor, "batch pos"]
    """Positions of the value loss."""


class Losses(NamedTuple):
    """Means over the steps of an update."""

    policy: float
    value: float
    clip_share: float
    """Share of generated positions at which clipping decided."""
    micro_batch: int
    """Rows of a pass that fitted into memory."""


def ppo_steps(
    network: PolicyNetwork,
    optimiser: torch.optim.Optimizer,
    batch: Batch,
    targets: Targets,
    minibatches: Sequence[Tensor],
    *,
    clip: float | int,
    value_clip: float | int,
    value_coefficient: float | int,
    micro_batch: int,
) -> Losses:
    """One optimiser step on each minibatch, given as row numbers.

    Raises:
        ValueError: a loss that is not a number.
    """
    sums = torch.zeros(3, dtype=torch.float64)
    for rows in minibatches:
        counts = [mask[rows].sum().clamp(min=1) for mask in (targets.policy_mask, targets.value_mask)]

        def losses(part: Tensor, counts: Sequence[Tensor] = counts) -> tuple[Tensor, Tensor, Tensor]:
            found = network(*batch.take(part))
            policy = clipped_policy_losses(
                found.log_probs, targets.old.log_probs[part], targets.advantages[part], clip=clip
            )
            value = clipped_value_losses(
                found.values, targets.old.values[part], targets.returns[part], clip=value_clip
            )
            on, valued = targets.policy_mask[part], targets.value_mask[part]
            return (
                (policy.losses * on).sum() / counts[0],
                (value.losses * valued).sum() / counts[1],
                (policy.clipped & on).sum() / counts[0],
            )

        done, micro_batch = _accumulated(network, rows, losses, value_coefficient, micro_batch)
        if not torch.isfinite(done).all():
            raise ValueError(
                f"the losses are not numbers (policy {done[0]:g}, value {done[1]:g}); take a smaller learning rate, "
                "and check the rewards"
            )
        sums += done
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    policy, value, clipped = (sums / len(minibatches)).tolist()
    return Losses(policy, value, clipped, micro_batch)


def _accumulated(
    network: nn.Module,
    rows: Tensor,
    losses: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]],
    value_coefficient: float | int,
    micro_batch: int,
) -> tuple[Tensor, int]:
    """Gradients of one minibatch in micro-batches; what is out of memory starts again at half the rows."""
    while True:
        total = torch.zeros(3, dtype=torch.float64)
        try:
            for part in rows.split(micro_batch):
                policy, value, clipped = losses(part)
                (policy + value_coefficient * value).backward()
                total += torch.stack([policy.detach(), value.detach(), clipped]).double().cpu()
            return total, micro_batch
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or min(micro_batch, len(rows)) == 1:
                raise
            micro_batch = max(1, min(micro_batch, len(rows)) // 2)
            network.zero_grad(set_to_none=True)
            logger.warning(
                "out of memory in training; going on with micro-batches of %d (same gradients)", micro_batch
            )
