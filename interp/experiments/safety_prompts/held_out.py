"""System prompts on held-out queries: replies, refusal probabilities, KL, and where the states lie in the plane."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from interp.data.prompt_sets import PAIRED_KINDS
from interp.data.prompts import Prompts
from interp.engine.generation import Completions, generate
from interp.engine.log_probs import map_completions
from interp.engine.safety_prompts import SafetyPrompt
from interp.evaluation.losses import token_kl
from interp.evaluation.refusal_probabilities import (
    Outcome,
    any_of_k,
    first_token_refusal,
    sample_refusals,
    single_sample,
    string_judge,
)
from interp.evaluation.responses import is_incoherent
from interp.experiments.safety_prompts import Behaviour, Config
from interp.experiments.safety_prompts.planes import Fitted, on_plane, shift_parts
from interp.models.chat_model import ChatModel
from interp.representations.safety_states import Conditions, SafetyStates, asked_under
from interp.stats import Estimate, mean_with_interval

OUTCOMES: dict[str, Outcome] = {"harmful": "complied", "harmless": "refused", "borderline": "refused"}
"""What counts in any of k, by kind of query."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Reference:
    """The model's own replies to harmless queries without a system prompt, which KL is measured on."""

    replies: tuple[tuple[int, ...], ...]
    log_p: Sequence[Float[Tensor, "token d_vocab"]]
    """In float16."""


def reference(model: ChatModel, harmless: Prompts, *, max_new_tokens: int) -> Reference:
    """Greedy replies and the distributions that they were taken from."""
    done = generate(model, harmless, max_new_tokens=max_new_tokens)
    log_p = map_completions(model, harmless, done.ids, lambda log_probs, _: log_probs.half().cpu())
    return Reference(replies=done.ids, log_p=log_p)


def behaviour(
    model: ChatModel,
    queries: Mapping[str, Prompts],
    asked: Conditions,
    name: str,
    fitted: Fitted,
    states: SafetyStates,
    against: Reference,
    config: Config,
) -> Behaviour:
    """One system prompt on held-out queries.

    Args:
        queries: held-out queries by kind.
        asked: every system prompt by name.
        name: the one that is measured.
        fitted: the plane and the tokens that begin refusals.
        states: of harmful and harmless queries under every system prompt.
    """
    prompt = asked[name]
    refused: dict[str, tuple[bool, ...]] = {}
    incoherent: dict[str, tuple[bool, ...]] = {}
    probability: dict[str, tuple[float, ...]] = {}
    sampled: dict[str, tuple[Estimate, Estimate]] = {}
    for kind, part in queries.items():
        with asked_under(model, part, prompt) as tokens:
            done = generate(model, tokens, max_new_tokens=config.max_new_tokens)
            probability[kind] = tuple(first_token_refusal(model, tokens, fitted.openers).tolist())
            if config.n_samples:
                samples = sample_refusals(
                    model,
                    tokens,
                    n_samples=config.n_samples,
                    max_new_tokens=config.sample_tokens,
                    seed=config.seed,
                )
                sampled[kind] = any_of_k(samples, OUTCOMES[kind]), single_sample(samples, OUTCOMES[kind])
        refused[kind], incoherent[kind] = judged(part, done)
    return Behaviour(
        refused=refused,
        incoherent=incoherent,
        probability=probability,
        kl=_kl(model, queries["harmless"], prompt, against, config.seed),
        points={
            kind: on_plane(fitted.space, states.of(name, harmful=kind == "harmful")) for kind in PAIRED_KINDS
        },
        shift=shift_parts(fitted.space, states, config.seed).get(name, {}),
        any_of_k={kind: both[0] for kind, both in sampled.items()},
        single={kind: both[1] for kind, both in sampled.items()},
    )


def judged(queries: Prompts, done: Completions) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
    """Whether each reply refuses, and whether it is incoherent; one that was cut while thinking is the latter."""
    answers = [answer or "" for answer in done.answers]
    refused = [string_judge(query, answer) for query, answer in zip(queries.texts, answers, strict=True)]
    return tuple(refused), tuple(map(is_incoherent, answers))


def _kl(
    model: ChatModel, harmless: Prompts, prompt: str | SafetyPrompt, against: Reference, seed: int
) -> Estimate:
    with asked_under(model, harmless, prompt) as tokens:
        values = token_kl(model, tokens, against.replies, against.log_p)
    means = [float(value.double().mean()) for value in values if len(value)]
    return mean_with_interval(means, seed=seed, unit="nats per token")


def random_prompt(like: SafetyPrompt, *, seed: int) -> Float[Tensor, "soft d_model"]:
    """Random embeddings, each as long as that of the prompt in its place."""
    noise = torch.randn(like.embeddings.shape, generator=torch.Generator().manual_seed(seed))
    return noise * (like.embeddings.norm(dim=1) / noise.norm(dim=1))[:, None]
