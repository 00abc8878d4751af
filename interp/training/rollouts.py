"""Rollouts of a policy in training, by the engine's generation; resets to a uniform cut of a reference answer.

    prefixes = draw_resets(references, share=1.0, generator=generator)
    rollouts = roll_out(policy.refreshed(), prompts, prefixes, max_new_tokens=32, temperature=0.7, seed=0)

A state of text generation is the prompt with a part of an answer, so a rollout can start anywhere: the reset prefix is
fed with the prompt, and the policy finishes. Prompt, prefix and answer share one tokenisation; the length of prefix and
generated tokens together is the same with and without a reset.

Source: Chang et al. 2024, arXiv:2404.08495, sections 3 and 5: the roll-in length is uniform on 1..len-1, each rollout
is reset independently with probability beta, references of fewer than 2 tokens are not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from interp.engine.applying import apply
from interp.engine.decoding import decode_steps, packed_weights, stop_ids
from interp.engine.log_probs import map_completions
from interp.engine.packed_prefill import packing_pays
from interp.engine.prefill import decoding_passes
from interp.engine.sampling import picker
from interp.models.chat_model import ChatModel
from interp.models.tokens import ChatTokens
from interp.training.policy_config import RewardFunction
from interp.training.reward_models import with_replies


@dataclass(frozen=True, kw_only=True)
class Rollouts:
    """Answers to a batch of prompts."""

    prompts: ChatTokens
    """The prompts, without their reset prefixes."""
    answers: tuple[tuple[int, ...], ...]
    """Reset prefix and generated tokens of each answer, its end-of-turn token included."""
    forced: tuple[int, ...]
    """Length of each reset prefix; 0 without a reset."""
    finished: tuple[bool, ...]
    """Whether the policy ended the answer itself."""

    def __len__(self) -> int:
        return len(self.answers)

    @property
    def generated(self) -> list[int]:
        """Tokens that the policy generated in each answer."""
        return [len(answer) - forced for answer, forced in zip(self.answers, self.forced, strict=True)]


def prompt_rows(n: int, places: range, *, seed: int) -> list[int]:
    """The prompts at these places of seeded permutations of all n prompts, one permutation after the other."""
    orders = {
        turn: torch.randperm(n, generator=torch.Generator().manual_seed(7_919 * seed + turn))
        for turn in {place // n for place in places}
    }
    return [int(orders[place // n][place % n]) for place in places]


def draw_resets(
    references: Sequence[Sequence[int]], *, share: float | int, generator: torch.Generator
) -> list[tuple[int, ...]]:
    """The tokens that each answer is reset to: a prefix of its reference of uniform length on 1..len-1, or none.

    Args:
        references: token ids of a reference answer to each prompt.
        share: probability of a reset (beta).
    """
    draws = torch.rand(2, len(references), generator=generator)
    prefixes: list[tuple[int, ...]] = []
    for reference, (reset, cut) in zip(references, draws.T.tolist(), strict=True):
        n = len(reference)
        length = 1 + min(int(cut * (n - 1)), n - 2) if n >= 2 and reset < share else 0
        prefixes.append(tuple(reference[:length]))
    return prefixes


def roll_out(
    model: ChatModel,
    prompts: ChatTokens,
    prefixes: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float | int,
    seed: int,
) -> Rollouts:
    """Let the model finish every prompt from its reset prefix, sampling at a temperature.

    Args:
        prefixes: forced tokens of each answer, fewer than max_new_tokens; empty ones start at the prompt.
        max_new_tokens: length of prefix and generated tokens together.

    Raises:
        ValueError: a prefix that leaves nothing to generate, or as `generate`.
    """
    limits = [max_new_tokens - len(prefix) for prefix in prefixes]
    if min(limits) < 1:
        raise ValueError(
            f"a reset prefix of {max(map(len, prefixes))} tokens leaves nothing of {max_new_tokens} to generate; cut "
            "references to max_new_tokens"
        )
    tokens = with_replies(prompts, prefixes)
    pick = picker(max_new_tokens, float(temperature), seed, ())
    done: list[list[int]] = [[] for _ in range(len(tokens))]
    weights, packs = packed_weights(model, len(tokens), max_new_tokens), packing_pays(model, tokens)
    with torch.no_grad(), apply(model, ()) as applied:
        passes = decoding_passes(model, tokens, applied, weights, max_new_tokens, packs=packs)
        for rows, (logits, state) in passes:
            steps = decode_steps(
                model,
                logits,
                state,
                pick,
                [tokens.ids[row] for row in rows],
                max_new_tokens=max(limits[row] for row in rows),
                shrink=True,
                limits=[limits[row] for row in rows],
            )
            for step in steps:
                for row, token in zip(step.rows, step.ids, strict=True):
                    done[rows[row]].append(token)
    stops = stop_ids(model)
    return Rollouts(
        prompts=prompts,
        answers=tuple((*prefix, *ids) for prefix, ids in zip(prefixes, done, strict=True)),
        forced=tuple(map(len, prefixes)),
        finished=tuple(ids[-1] in stops for ids in done),
    )


def scores_of(
    rollouts: Rollouts, reward: RewardFunction, *, missing_end_score: float | int | None
) -> Float[Tensor, " sample"]:
    """The reward of every answer, or that of an answer that does not end in time, on the CPU.

    Raises:
        ValueError: rewards that are not one finite number an answer.
    """
    scores = reward(rollouts.prompts, rollouts.answers).float().cpu()
    if scores.shape != (len(rollouts),) or not torch.isfinite(scores).all():
        raise ValueError(
            f"the reward must be one finite number an answer, got {tuple(scores.shape)} for {len(rollouts)} answers"
        )
    if missing_end_score is not None:
        scores = scores.masked_fill(~torch.tensor(rollouts.finished), float(missing_end_score))
    return scores


def empty_share(rollouts: Rollouts) -> float:
    """Share of answers that hold nothing but their end."""
    empty = [len(ids) == 1 and end for ids, end in zip(rollouts.answers, rollouts.finished, strict=True)]
    return sum(empty) / len(empty)


class SampledKL(NamedTuple):
    """log pi - log pi_ref summed over the tokens of an answer, mean over answers, nats."""

    generated: float
    """Over generated tokens: an estimate of the KL to the reference, per answer."""
    forced: float
    """Over forced tokens, which no policy drew."""


def sampled_kl(
    policy: ChatModel, reference: ChatModel, rollouts: Rollouts, *, temperature: float | int
) -> SampledKL:
    """KL of the policy that drew the rollouts to a reference, by those rollouts, at their temperature."""

    def log_probs(model: ChatModel) -> list[Float[Tensor, " token"]]:
        def taken(logs: Float[Tensor, "token d_vocab"], row: int) -> Float[Tensor, " token"]:
            ids = torch.tensor(rollouts.answers[row], device=logs.device)
            return (logs / temperature).log_softmax(-1).gather(-1, ids[:, None])[:, 0]

        return map_completions(model, rollouts.prompts, rollouts.answers, taken)

    ratios = [here - before for here, before in zip(log_probs(policy), log_probs(reference), strict=True)]
    parts = [
        (float(ratio[forced:].double().sum()), float(ratio[:forced].double().sum()))
        for ratio, forced in zip(ratios, rollouts.forced, strict=True)
    ]
    generated, prefixes = zip(*parts, strict=True)
    return SampledKL(sum(generated) / len(parts), sum(prefixes) / len(parts))
