"""Groups of prompts that detectors are evaluated on: those of table 3, some defined by the model's behaviour."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from interp.data.prompt_sets import PAIRED_KINDS
from interp.data.prompts import Prompts, PromptSet, load_prompts
from interp.data.wrappers import attempts, wrappers
from interp.evaluation.responses import rows_where
from interp.experiments.guard import Config

Replies = Callable[[str, Prompts], Sequence[bool | None]]
"""(name of the stage, prompts) → whether the model refuses each; None for a reply without an answer."""


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Prompts that are measured on."""

    prompts: dict[str, Prompts]
    """Prompts by group."""
    members: dict[str, tuple[str, list[int]]]
    """Groups that are part of another: its name, and their places in it."""


def measured_groups(prompts: PromptSet, config: Config, replies: Replies) -> Groups:
    """Test prompts by kind, wrapped requests that get through, an unseen set; and prompts whose behaviour misleads."""
    groups = {kind: prompts[kind, "test"].first(config.n_test) for kind in PAIRED_KINDS}
    if ("borderline", "test") in prompts:
        groups["borderline"] = prompts["borderline", "test"].first(config.n_test)
    refused = {kind: replies(f"test-{kind}", part) for kind, part in groups.items()}
    members = {
        "accepted harmful": ("harmful", rows_where(refused["harmful"], refused=False)),
        "refused harmless": ("harmless", rows_where(refused["harmless"], refused=True)),
    }
    if "borderline" in groups:
        members["refused borderline"] = ("borderline", rows_where(refused["borderline"], refused=True))
    plain = {
        "jailbreaks": groups["harmful"].take(
            rows_where(refused["harmful"], refused=True)[: config.n_wrapped]
        ),
        "harmless": groups["harmless"].take(
            rows_where(refused["harmless"], refused=False)[: config.n_wrapped]
        ),
    }
    named: dict[str, Prompts] = dict(groups)
    for family in config.families if config.n_wrapped else ():
        for label, asked in (
            (f"{family} jailbreaks", plain["jailbreaks"]),
            (f"{family}, harmless", plain["harmless"]),
        ):
            answered = _wrapped_and_answered(family, label, asked, replies)
            if len(answered):  # of harmful requests, jailbreaks that succeed
                named[label] = answered
    if config.unseen:
        named |= _unseen(config)
    return Groups(prompts=named, members=members)


def _wrapped_and_answered(family: str, label: str, asked: Prompts, replies: Replies) -> Prompts:
    """Requests in every wrapper of a family that the model answers."""
    texts = tuple(attempt.prompt for attempt in attempts(wrappers((family,)), asked))
    wrapped = _prompts(texts, label, label)
    if not texts:
        return wrapped
    name = f"wrapped-{label}".replace(" ", "-").replace(",", "")
    return wrapped.take(rows_where(replies(name, wrapped), refused=False))


def _unseen(config: Config) -> dict[str, Prompts]:
    """Prompts of the further set by kind, whatever their split."""
    other = load_prompts(config.unseen, seed=config.seed)
    groups = {}
    for kind in (*PAIRED_KINDS, "borderline"):
        parts = [part for (k, _), part in other.parts.items() if k == kind]
        if parts:
            texts = tuple(dict.fromkeys(text for part in parts for text in part.texts))
            whole = _prompts(texts, "unseen", config.unseen)
            groups[f"unseen {kind}"] = whole.shuffled(config.seed).first(config.n_test)
    return groups


def _prompts(texts: Sequence[str], label: str, source: str) -> Prompts:
    ids = tuple(f"{label}-{i}" for i in range(len(texts)))
    return Prompts(tuple(texts), ids, (None,) * len(texts), source)
