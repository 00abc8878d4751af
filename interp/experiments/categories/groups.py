"""Prompts by harm category, and those that each kind of direction is fitted on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from interp.data.prompts import Kind, Prompts, PromptSet
from interp.evaluation.responses import rows_where
from interp.experiments.categories import Config
from interp.representations.records import HarmAndRefusal

_MIN_CATEGORIES = 3


def pooled(prompts: PromptSet, kind: Kind) -> Prompts:
    """All splits of a kind concatenated in order, without repeated texts."""
    texts, ids, categories = [], [], []
    seen: set[str] = set()
    for (other, _), part in prompts.parts.items():
        if other != kind:
            continue
        for text, name, category in zip(part.texts, part.ids, part.categories, strict=True):
            if text not in seen:
                seen.add(text)
                texts.append(text)
                ids.append(name)
                categories.append(category)
    if not texts:
        raise ValueError(f"prompt set {prompts.name} has no {kind} prompts")
    return Prompts(tuple(texts), tuple(ids), tuple(categories), f"{prompts.name}/{kind}")


def labelled(prompts: PromptSet, config: Config) -> tuple[Prompts, Int[Tensor, " prompt"], list[str]]:
    """Harmful prompts of the categories that have enough, their category's number, and the categories' names.

    Raises:
        ValueError: fewer than three such categories.
    """
    everything = pooled(prompts, "harmful")
    by: dict[str, list[int]] = {}
    for row, category in enumerate(everything.categories):
        if category is not None:
            by.setdefault(category, []).append(row)
    names = sorted(name for name, rows in by.items() if len(rows) >= config.min_per_category)
    if len(names) < _MIN_CATEGORIES:
        had = ", ".join(f"{name} {len(rows)}" for name, rows in sorted(by.items())) or "none"
        raise ValueError(
            f"{prompts.name} must have {_MIN_CATEGORIES} harm categories of {config.min_per_category} prompts or more, "
            f"got {had}; give a file with a column category"
        )
    rows = [row for name in names for row in by[name][: config.n_per_category]]
    places = [i for i, name in enumerate(names) for _ in by[name][: config.n_per_category]]
    return everything.take(rows), torch.tensor(places), names


@dataclass(frozen=True, eq=False, kw_only=True)
class Group:
    """Prompts that one kind of direction is fitted on."""

    rows: list[int]
    """Harmful prompts."""
    labels: Int[Tensor, " row"]
    """Category of each row, counted among those that are kept."""
    harmless: list[int]
    """Harmless prompts."""
    kept: list[int]
    """Categories that are kept."""
    filtered: bool
    """Whether only prompts that behave were taken."""

    def names(self, names: Sequence[str]) -> tuple[str, ...]:
        """Names of the categories with enough prompts."""
        return tuple(names[i] for i in self.kept)


def groups_of(
    refused: Mapping[str, Sequence[bool | None]],
    labels: Int[Tensor, " prompt"],
    names: Sequence[str],
    config: Config,
) -> HarmAndRefusal[Group]:
    """Harmfulness takes every prompt; refusal what is refused, and answered, where enough categories allow it.

    Args:
        refused: by kind, whether the model refuses each prompt; None for a reply without an answer.
    """
    every = list(range(len(names)))
    all_rows, all_harmless = list(range(len(labels))), list(range(len(refused["harmless"])))
    whole = Group(rows=all_rows, labels=labels, harmless=all_harmless, kept=every, filtered=False)
    refused_harmful = torch.tensor([flag is True for flag in refused["harmful"]])
    kept = [i for i in every if int((refused_harmful & (labels == i)).sum()) >= config.min_per_category]
    answered = rows_where(refused["harmless"], refused=False)
    if len(kept) < _MIN_CATEGORIES or len(answered) < 2 * config.min_per_category:
        return HarmAndRefusal(harm=whole, refusal=whole)
    rows = [row for row in all_rows if refused_harmful[row] and int(labels[row]) in kept]
    behaving = Group(
        rows=rows,
        labels=torch.tensor([kept.index(int(labels[row])) for row in rows]),
        harmless=answered,
        kept=kept,
        filtered=True,
    )
    return HarmAndRefusal(harm=whole, refusal=behaving)
