"""Where queries stand under different system prompts: the states that the safety plane is fitted on.

    states = safety_representations(model, {"harmful": [...], "harmless": [...]}, {"none": "", "default": text})
    states.values.shape                     # [condition, query, d_model], harmful queries first
    states.of("default", harmful=True)      # [query, d_model]

A condition is a system prompt: none (the template's own default, where it has one), a text, or a trained
`SafetyPrompt`. A state is read at the last prompt token: after the final norm, as Zheng et al. 2024
(arXiv:2401.18018, code) do, or at a site of any layer. Prompts that end differently put punctuation into states too:
compare with `ending="period"`.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.data.prompts import Ending, Prompts, as_prompts
from interp.engine.activations import collect
from interp.engine.log_probs import final_states, next_token_of_states
from interp.engine.safety_prompts import SafetyPrompt
from interp.evaluation.records import RefusalTokens
from interp.evaluation.refusal_probabilities import Judge, sample_refusals, string_judge
from interp.evaluation.refusals import find_refusal_tokens
from interp.models.chat_model import ChatModel, Site
from interp.models.layers import Layers
from interp.models.prompt_inputs import PromptIdentity
from interp.models.system_slots import system_slot
from interp.models.tokens import PromptInput, tokenize

Conditions = Mapping[str, str | SafetyPrompt]
"""System prompts by name: an empty text is none, a text, or a trained prompt."""
Queries = Mapping[str, PromptInput]
"""Queries by kind, `harmful` and `harmless`."""


@dataclass(frozen=True, eq=False, kw_only=True)
class SafetyStates:
    """States of harmful and harmless queries under several system prompts."""

    values: Float[Tensor, "condition query d_model"]
    """In float32, on the CPU; harmful queries first."""
    conditions: tuple[str, ...]
    """Names of the system prompts."""
    harmful: Bool[Tensor, " query"]
    """Whether each query is harmful."""
    place: str
    """`final_norm`, or a site's name, such as `blocks.12.hook_resid_pre`."""
    ending: Ending
    """Treatment of the queries' endings."""
    identity: PromptIdentity
    """Ids, categories and hash of the queries."""

    def of(self, condition: str, *, harmful: bool) -> Float[Tensor, "query d_model"]:
        """States of one kind of query under one system prompt.

        Raises:
            ValueError: unknown condition.
        """
        if condition not in self.conditions:
            raise ValueError(f"no states under {condition!r}; there are {', '.join(self.conditions)}")
        return self.values[self.conditions.index(condition)][self.harmful == harmful]


def safety_representations(
    model: ChatModel,
    queries: Queries,
    prompts: Conditions,
    *,
    layer: int | Literal["final"] = "final",
    site: Site = "resid_pre",
    ending: Ending = "as-is",
) -> SafetyStates:
    """States of the queries' last prompt token under every system prompt.

    Args:
        queries: by kind, `harmful` and `harmless`.
        prompts: system prompts by name.
        layer: `final` is after the final norm, as published.
        site: site of that layer.
        ending: treatment of the queries' endings.

    Raises:
        ValueError: a kind or prompts missing, a template without a system slot, or a layer out of range.
    """
    if layer == "final":
        return _read(
            model, queries, prompts, ending, "final_norm", lambda tokens: final_states(model, tokens)[None]
        )[0]
    number = model.layer(layer)
    return _collected(model, queries, prompts, ending, site, (number,))[0]


def safety_representations_by_layer(
    model: ChatModel,
    queries: Queries,
    prompts: Conditions,
    *,
    layers: Layers = None,
    site: Site = "resid_pre",
    ending: Ending = "as-is",
) -> tuple[SafetyStates, ...]:
    """`safety_representations` at a site of several layers, from one pass over the queries for each system prompt.

    Args:
        layers: which layers; every one when None.
    """
    return _collected(model, queries, prompts, ending, site, model.layer_list(layers))


def _collected(
    model: ChatModel,
    queries: Queries,
    prompts: Conditions,
    ending: Ending,
    site: Site,
    layers: tuple[int, ...],
) -> tuple[SafetyStates, ...]:
    def read(tokens: Any) -> Tensor:
        found = collect(model, tokens, sites=site, layers=layers, positions="t_post_inst")
        return found[site][:, :, 0].transpose(0, 1).float()

    return _read(model, queries, prompts, ending, [model.site(site, layer) for layer in layers], read)


def _read(
    model: ChatModel,
    queries: Queries,
    prompts: Conditions,
    ending: Ending,
    places: str | list[str],
    read: Any,
) -> tuple[SafetyStates, ...]:
    sides = query_sides(queries, ending)
    every = joined(sides)
    if not prompts:
        raise ValueError('no system prompt to read states under; give at least {"none": ""}')
    rows = []
    for prompt in prompts.values():
        with asked_under(model, every, prompt) as tokens:
            rows.append(read(tokens))
    values = torch.stack(rows, dim=1)  # [layer, condition, query, d_model]
    harmful = torch.arange(len(every)) < len(sides[0])
    return tuple(
        SafetyStates(
            values=value,
            conditions=tuple(prompts),
            harmful=harmful,
            place=place,
            ending=ending,
            identity=PromptIdentity(
                ids=every.ids, categories=every.categories, texts=every.texts, source=every.source
            ),
        )
        for place, value in zip([places] if isinstance(places, str) else places, values, strict=True)
    )


def query_sides(queries: Queries, ending: Ending = "as-is") -> tuple[Prompts, Prompts]:
    """Harmful and harmless queries with this ending.

    Raises:
        ValueError: a kind missing, or another one.
    """
    if set(queries) != {"harmful", "harmless"}:
        raise ValueError(
            f"queries come by kind, harmful and harmless; got {', '.join(map(str, queries)) or 'none'}"
        )
    harmful, harmless = (
        as_prompts(queries[kind], source=kind).with_ending(ending) for kind in ("harmful", "harmless")
    )
    return harmful, harmless


def joined(sides: Sequence[Prompts]) -> Prompts:
    """Several lists of prompts as one.

    Raises:
        ValueError: conversations, which a system prompt is not put into.
    """
    if any(side.conversations for side in sides):
        raise ValueError(
            "the safety plane reads single instructions, got conversations; pass their last messages"
        )
    return Prompts(
        texts=tuple(text for side in sides for text in side.texts),
        ids=tuple(name for side in sides for name in side.ids),
        categories=tuple(category for side in sides for category in side.categories),
        source=" and ".join(side.source for side in sides),
    )


def asked_under(model: ChatModel, queries: Prompts, prompt: str | SafetyPrompt) -> Any:
    """A context with the tokens of the queries under a system prompt."""
    if isinstance(prompt, SafetyPrompt):
        return prompt.standing_in(model, queries)
    if not prompt.strip():
        return nullcontext(tokenize(model.tokenizer, queries))
    return nullcontext(system_slot(model.tokenizer, queries, prompt).tokens)


@dataclass(frozen=True, eq=False, kw_only=True)
class RefusalTargets:
    """Refusal probability of every query under every system prompt: what the refusal direction is fitted to."""

    values: Float[Tensor, "condition query"]
    """0 to 1; harmful queries first."""
    method: Literal["sampled", "first-token"]
    """Share of sampled answers that refuse, or probability of a refusal's first token."""
    tokens: RefusalTokens | None = None
    """The first tokens that count, with `first-token`."""


def refusal_targets(
    model: ChatModel,
    queries: Queries,
    prompts: Conditions,
    *,
    method: Literal["sampled", "first-token"] = "first-token",
    n_samples: int = 25,
    max_new_tokens: int = 300,
    judge: Judge = string_judge,
    ending: Ending = "as-is",
    seed: int = 0,
    states: SafetyStates | None = None,
    show_progress: bool = False,
) -> RefusalTargets:
    """How likely the model is to refuse each query under each system prompt.

    Args:
        method: `sampled` as published; `first-token` is one pass a query, for models whose refusals begin alike.
        n_samples: answers to each query, of which four fifths count; `judge` and `max_new_tokens` are for them too.
        states: those of the same queries under the same system prompts after the final norm: first tokens are read from
            them, without a pass.

    Raises:
        ValueError: states of something else, or as `safety_representations` and `sample_refusals`.
    """
    sides = query_sides(queries, ending)
    every, n = joined(sides), len(sides[0])
    if states is not None and (states.place, states.ending, states.conditions, states.identity.texts) != (
        "final_norm",
        ending,
        tuple(prompts),
        every.texts,
    ):
        raise ValueError(
            "states must be those of the same queries and system prompts, with the same ending, after the final norm; "
            "leave them out, and they are computed"
        )
    if method == "sampled":
        rows = []
        for prompt in prompts.values():
            with asked_under(model, every, prompt) as tokens:
                samples = sample_refusals(
                    model,
                    tokens,
                    n_samples=n_samples,
                    max_new_tokens=max_new_tokens,
                    judge=judge,
                    seed=seed,
                    show_progress=show_progress,
                )
            rows.append(samples.probability)
        return RefusalTargets(values=torch.stack(rows), method=method)
    if method != "first-token":
        raise ValueError(f"method must be 'sampled' or 'first-token', got {method!r}")
    if states is None:
        states = safety_representations(model, queries, prompts, ending=ending)
    tables = [next_token_of_states(model, rows) for rows in states.values]
    mean = (
        torch.stack([torch.stack([t[:n].exp().mean(0), t[n:].exp().mean(0)]) for t in tables]).mean(0).log()
    )
    opens = find_refusal_tokens(mean[:1], mean[1:], model.tokenizer)
    ids = list(opens.ids)
    values = torch.stack([table[:, ids].exp().sum(-1).clamp(max=1) for table in tables])
    return RefusalTargets(values=values, method=method, tokens=opens)
