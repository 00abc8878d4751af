"""Prompts and prompt sets: requests with ids and categories, by kind and split, with controlled endings.

How prompts *end* is a confound: at `t_inst` a difference in means between sets that end differently encodes
punctuation, not harm. Every set therefore takes `ending="as-is" | "strip" | "period"`, kept in provenance.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

from interp.display.cards import Card, Shown, Table
from interp.models.prompt_inputs import gather_prompts
from interp.models.scalars import whole_number

if TYPE_CHECKING:  # keeps this module importable without torch
    from interp.models.tokens import PromptInput

Ending = Literal["as-is", "strip", "period"]
"""Treatment of prompt endings: unchanged, without closing punctuation, or with a full stop."""
ENDINGS: tuple[Ending, ...] = get_args(Ending)
"""All treatments of prompt endings."""
COMPARED_ENDINGS: tuple[Ending, ...] = ("as-is", "period")
"""The two endings that every result at `t_inst` is compared under: unchanged, and identical for all prompts."""
Kind = Literal["harmful", "harmless", "borderline"]
"""Kind of request; a borderline prompt looks harmful but is harmless."""
KINDS: tuple[Kind, ...] = get_args(Kind)
"""All kinds of requests."""
PAIRED_KINDS: tuple[Literal["harmful"], Literal["harmless"]] = ("harmful", "harmless")
"""The two kinds that directions, centres and detectors are fitted on."""
Split = Literal["train", "val", "test"]
"""Directions are fitted on train, layers and roles are selected on val, results are reported on test."""
SPLITS: tuple[Split, ...] = get_args(Split)
CLOSING = " \t\r\n.!?…。！？"
"""Characters that count as the ending of a prompt, not its content."""


@dataclass(frozen=True, repr=False)
class Prompts(Shown):
    """Prompts of one kind and split."""

    texts: tuple[str, ...]
    """The instructions, with endings applied."""
    ids: tuple[str, ...]
    """Ids of the prompts, shown in figures and logs instead of the text."""
    categories: tuple[str | None, ...]
    """Harm category of each prompt; None where the source gives none."""
    source: str
    """Set, kind and split, e.g. `builtin/harmful/train`."""
    conversations: tuple[tuple[Mapping[str, Any], ...], ...] = ()
    """Messages of each prompt where prompts are conversations; `texts` then holds them as JSON."""

    def __len__(self) -> int:
        return len(self.texts)

    def __iter__(self) -> Iterator[str]:
        return iter(self.texts)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the texts, in order."""
        return hashlib.sha256("\x00".join(self.texts).encode()).hexdigest()

    def __repr__(self) -> str:
        return f"Prompts({self.source}: {len(self)} prompts)"

    def _card(self) -> Card:
        counts = Counter(category for category in self.categories if category)
        ids = ", ".join(self.ids[:3]) + (", …" if len(self) > 3 else "")
        return Card(
            title=f"Prompts {self.source}",
            facts={
                "prompts": len(self),
                "categories": ", ".join(f"{name} {n}" for name, n in sorted(counts.items())) or "not given",
                "ids": ids,
            },
            notes=["The words are in .texts; harmful prompts are research data and are not shown unasked."],
        )

    def first(self, n: int) -> "Prompts":
        """At most the first n prompts.

        Raises:
            ValueError: n is no whole number, or below 0.
        """
        return self.take(list(range(min(whole_number(n, "the number of prompts", at_least=0), len(self)))))

    def shuffled(self, seed: int) -> "Prompts":
        """The same prompts in a seeded random order."""
        order = list(range(len(self)))
        random.Random(seed).shuffle(order)
        return self.take(order)

    def take(self, rows: list[int]) -> "Prompts":
        """The prompts at these rows, in this order."""
        return replace(
            self,
            texts=tuple(self.texts[i] for i in rows),
            ids=tuple(self.ids[i] for i in rows),
            categories=tuple(self.categories[i] for i in rows),
            conversations=tuple(self.conversations[i] for i in rows) if self.conversations else (),
        )

    def joined(self, other: "Prompts") -> "Prompts":
        """These prompts followed by those of `other`, under the name of these."""
        if bool(self.conversations) != bool(other.conversations):
            raise ValueError(f"{self.source} and {other.source} are not both instructions")
        return replace(
            self,
            texts=self.texts + other.texts,
            ids=self.ids + other.ids,
            categories=self.categories + other.categories,
            conversations=self.conversations + other.conversations,
        )

    def with_ending(self, ending: Ending) -> "Prompts":
        """The same prompts with endings as-is, stripped of closing punctuation, or with a full stop.

        Raises:
            ValueError: unknown ending, a prompt that is punctuation only, or conversations.
        """
        if self.conversations and ending != "as-is":
            raise ValueError(f"{self.source} holds conversations, whose endings stay; take ending='as-is'")
        try:
            texts = tuple(with_ending(text, ending) for text in self.texts)
        except ValueError as error:
            bare = [i for i, text in zip(self.ids, self.texts, strict=True) if not text.rstrip(CLOSING)]
            if bare:
                raise ValueError(f"{self.source}: prompt {bare[0]} is punctuation only; remove it") from error
            raise
        return replace(self, texts=texts)


def as_prompts(given: "PromptInput", *, source: str = "given prompts") -> Prompts:
    """Convert any prompt input (`interp.models.prompt_inputs`) to `Prompts`, with its ids where it has them.

    Args:
        source: name in results for inputs without a name of their own.

    Raises:
        ValueError: no prompts, or something that is not a list of prompts.
    """
    from interp.models.tokens import ChatTokens

    if isinstance(given, Prompts):
        return given
    if isinstance(given, ChatTokens):
        items, identity = (), given.identity
    else:
        items, identity = gather_prompts(given)
    messages = [({"role": "user", "content": item},) if isinstance(item, str) else item for item in items]
    several = any(not isinstance(item, str) for item in items)
    return Prompts(
        texts=identity.texts,
        ids=identity.ids,
        categories=identity.categories,
        source=identity.source or source,
        conversations=tuple(messages) if several else (),
    )


def with_ending(text: str, ending: Ending) -> str:
    """One prompt with its ending as-is, stripped of closing punctuation, or with a full stop.

    Raises:
        ValueError: unknown ending, or a prompt that is punctuation only.
    """
    if ending not in get_args(Ending):
        raise ValueError(f"unknown ending {ending!r}; known: {', '.join(get_args(Ending))}")
    if ending == "as-is":
        return text
    bare = text.rstrip(CLOSING)
    if not bare:
        raise ValueError("a prompt is punctuation only; remove it")
    return bare + "." if ending == "period" else bare


@dataclass(frozen=True)
class PromptSet(Shown):
    """Named prompts by kind and split."""

    name: str
    """Name of the set: `builtin`, a folder, or a Hub data set."""
    parts: Mapping[tuple[Kind, Split], Prompts]
    """Prompts by (kind, split)."""
    ending: Ending = "as-is"
    """Treatment of the prompts' endings."""
    notes: tuple[str, ...] = field(default=())
    """Caveats for readers of a result, such as duplicates or generated splits."""

    def __getitem__(self, key: tuple[Kind, Split]) -> Prompts:
        if key not in self.parts:
            known = ", ".join("/".join(part) for part in self.parts)
            asked = "/".join(map(str, key)) if isinstance(key, tuple) else repr(key)
            raise ValueError(
                f"prompt set {self.name} has no {asked}; it has {known}: write prompts['harmful', 'train']"
            )
        return self.parts[key]

    def __contains__(self, key: tuple[Kind, Split]) -> bool:
        return key in self.parts

    def with_ending(self, ending: Ending) -> "PromptSet":
        """The same set with another treatment of endings (see `Prompts.with_ending`).

        Raises:
            ValueError: unknown ending, or `as-is` for a set whose original endings are lost.
        """
        if ending == "as-is" and self.ending != "as-is":
            raise ValueError(f"{self.name} has ending={self.ending!r}; load it again for ending='as-is'")
        parts = {key: part.with_ending(ending) for key, part in self.parts.items()}
        return replace(self, parts=parts, ending=ending)

    @property
    def provenance(self) -> dict[str, Any]:
        """Name, ending, and size and hash of every split."""
        return {
            "name": self.name,
            "ending": self.ending,
            "notes": list(self.notes),
            "splits": {"/".join(key): {"n": len(p), "hash": p.hash} for key, p in self.parts.items()},
        }

    def __repr__(self) -> str:
        sizes = ", ".join(f"{'/'.join(key)} {len(part)}" for key, part in self.parts.items())
        return f"PromptSet({self.name}, ending={self.ending}: {sizes})"

    def _card(self) -> Card:
        kinds: list[Kind] = list(dict.fromkeys(kind for kind, _ in self.parts))
        rows = [
            [kind, *(len(self.parts[kind, s]) if (kind, s) in self.parts else "" for s in SPLITS)]
            for kind in kinds
        ]
        return Card(
            title=f"PromptSet {self.name}",
            facts={"ending": self.ending},
            tables=[Table(header=["prompts", *SPLITS], rows=rows)],
            notes=self.notes,
        )


def with_held_out(prompts: Prompts, *, share: float = 0.25, seed: int = 0) -> tuple[Prompts, Prompts]:
    """Prompts to fit on and prompts held out, cut by a seeded shuffle; copies of one text stay on one side.

    Raises:
        ValueError: a share outside 0..1, or fewer than two different prompts.
    """
    if not 0 < share < 1:
        raise ValueError(f"the share of held-out prompts must lie between 0 and 1, got {share}")
    unique = {text: row for row, text in reversed(list(enumerate(prompts.texts)))}
    distinct = prompts.take(sorted(unique.values())).shuffled(seed)
    if len(distinct) < 2:
        raise ValueError(
            f"{prompts.source} has {len(distinct)} different prompts; fitting and testing take at least 2"
        )
    n = min(len(distinct) - 1, max(1, round(share * len(distinct))))
    return distinct.take(list(range(n, len(distinct)))), distinct.take(list(range(n)))
