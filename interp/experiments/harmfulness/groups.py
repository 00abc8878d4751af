"""Section 3.1 and appendix B: prompts, what the model does with them, and the four behaviour groups."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from interp.data.prompts import Ending, Kind, Prompts, PromptSet, Split, load_prompts
from interp.evaluation.early_verdicts import refusal_verdicts
from interp.evaluation.records import GROUPS, MIN_IN_GROUP, Group
from interp.evaluation.responses import MIN_BEHAVING, behaving_rows, respond
from interp.experiments.harmfulness import Config
from interp.experiments.harmfulness.analysis import Anchors, Groups
from interp.models.chat_model import ChatModel
from interp.models.tokens import ChatTokens, tokenize
from interp.representations.beliefs import states
from interp.storage.stages import Stages

HARMLESS: tuple[tuple[Kind, Split], ...] = (("harmless", "test"), ("borderline", "test"))
"""Held-out prompts of the harmless groups."""
Label = Literal["full", "truncated"]
"""Whose reply says what the model does: the whole prompt's, or the prompt's cut after the instruction."""


class Part(NamedTuple):
    """Prompts of one kind and split under one ending, and what the model does with them."""

    prompts: Prompts
    full: tuple[bool | None, ...]
    """Refused, from the whole prompt; None for a reply without an answer."""
    cut: tuple[bool | None, ...]
    """Refused, from the prompt cut after the instruction; None for a reply without an answer."""
    silent: tuple[bool | None, ...]
    """No word, from the prompt cut after the instruction; the source counts that as refused."""
    states: Float[Tensor, "prompt layer role d_model"]

    def flags(self, label: Label) -> list[bool | None]:
        """Whether each prompt is refused; None for an empty reply to the truncated prompt, which says nothing."""
        if label == "full":
            return list(self.full)
        return [None if silent else flag for flag, silent in zip(self.cut, self.silent, strict=True)]


Measured = Mapping[tuple[Kind, Split], Part]


def used_prompts(prompts: PromptSet, config: Config) -> dict[tuple[Kind, Split], Prompts]:
    """The prompts used; borderline ones are builtin's where the set has none, other anchors where they are named."""
    builtin = load_prompts("builtin") if ("borderline", "test") not in prompts else prompts
    parts: dict[tuple[Kind, Split], Prompts] = {
        ("harmful", "train"): prompts["harmful", "train"].first(config.n_train),
        ("harmless", "train"): prompts["harmless", "train"].first(config.n_train),
        ("harmful", "test"): prompts["harmful", "test"].first(config.n_test),
        ("harmless", "test"): prompts["harmless", "test"].first(config.n_test),
        ("borderline", "test"): builtin["borderline", "test"].first(config.n_test),
    }
    if config.anchors:
        parts["borderline", "train"] = load_prompts(config.anchors)["harmless", "train"].first(config.n_train)
    elif ("borderline", "train") in builtin:
        parts["borderline", "train"] = builtin["borderline", "train"].first(config.n_train)
    return parts


def measure(
    model: ChatModel,
    parts: Mapping[tuple[Kind, Split], Prompts],
    ending: Ending,
    config: Config,
    stages: Stages,
) -> dict[tuple[Kind, Split], Part]:
    """Replies to whole and truncated prompts, and states, of every part under one ending."""
    measured = {}
    for (kind, split), part in stages.progress(parts.items(), f"replies, {ending}"):
        ended = part.with_ending(ending)
        tokens = tokenize(model.tokenizer, ended.texts)

        def replies(
            ended: Prompts = ended, tokens: ChatTokens = tokens
        ) -> tuple[tuple[bool | None, ...], ...]:
            max_new_tokens = config.max_new_tokens
            full = refusal_verdicts(model, tokens, substrings="zhao", max_new_tokens=max_new_tokens)
            cut = respond(
                model, ended, tokens=tokens.truncated(), substrings="zhao", max_new_tokens=max_new_tokens
            )
            return full.flags, cut.flags, tuple(not reply.strip() for reply in cut.replies)

        full, cut, silent = stages.keep(
            f"{ending}-replies-{kind}-{split}", replies, tuple[tuple[bool | None, ...], ...]
        )
        measured[kind, split] = Part(ended, full, cut, silent, states(model, tokens))
    return measured


def fit_anchors(model: ChatModel, measured: Measured) -> Anchors:
    """Refused harmful and accepted harmless training prompts.

    Raises:
        ValueError: too few of them.
    """
    bad, good = measured["harmful", "train"], measured["harmless", "train"]
    rows = behaving_rows(harmful=bad.full, harmless=good.full, model_name=model.name)
    return Anchors(harmful=bad.states[rows.refused], harmless=good.states[rows.answered])


class BehaviourGroups(NamedTuple):
    """The four behaviour groups among held-out prompts."""

    states: dict[Group, Tensor]
    ids: dict[Group, list[str]]


def behaviour_groups(measured: Measured, label: Label) -> BehaviourGroups:
    """States and ids of the four behaviour groups, by the reply that the label names."""
    pools: dict[str, Sequence[Part]] = {
        "harmful": [measured["harmful", "test"]],
        "harmless": [measured[key] for key in HARMLESS],
    }
    groups = BehaviourGroups({}, {})
    for name in GROUPS:
        does, kind = name.split()
        hidden = torch.cat([part.states for part in pools[kind]])
        ids = [i for part in pools[kind] for i in part.prompts.ids]
        flags = [flag for part in pools[kind] for flag in part.flags(label)]
        rows = [row for row, flag in enumerate(flags) if flag is (does == "refused")]
        groups.states[name] = hidden[rows]
        groups.ids[name] = [ids[row] for row in rows]
    return groups


class AtInst(NamedTuple):
    """Groups and anchors of the clusters at `t_inst`, and whose reply they are by."""

    groups: Groups
    anchors: Anchors
    label: Label


def groups_at_inst(measured: Measured, anchors: Anchors, full: Groups, cut: Groups) -> AtInst:
    """Groups by the truncated prompt's reply, as in the source, if these are large enough; else by the whole one's."""
    bad, good = measured["harmful", "train"], measured["harmless", "train"]
    refused = torch.tensor([flag is True for flag in bad.flags("truncated")])
    accepted = torch.tensor([flag is False for flag in good.flags("truncated")])
    filled = min(int(refused.sum()), int(accepted.sum())) >= MIN_BEHAVING
    if not filled or min(len(cut["accepted harmful"]), len(cut["refused harmless"])) < MIN_IN_GROUP:
        return AtInst(full, anchors, "full")
    truncated = Anchors(harmful=bad.states[refused], harmless=good.states[accepted])
    return AtInst(cut, truncated, "truncated")
