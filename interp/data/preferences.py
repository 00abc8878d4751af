"""Preference sets: prompt, preferred and rejected reply, what is known of both, with splits by prompt.

    preferences = builtin_preferences()
    preferences["train"][0].chosen
    preferences = load_preferences("hub:PKU-Alignment/PKU-SafeRLHF", prefer="harmless")

Pairs of one prompt stand in one split, so that held-out accuracy is accuracy on prompts that were never trained on. The
bundled set is described in `assets/preferences/CARD.md`: its harmful and harmless requests have the same replies with
opposite preference, so that wording alone does not decide. `interp.data.preference_files` reads files and the Hub.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from interp.data.examples import Preference
from interp.data.files import read_rows
from interp.data.prompt_sets import SPLITS, Prompts, Split
from interp.data.prompts import load_prompts
from interp.data.replies import REFUSALS, STUBS
from interp.display.cards import Card, Shown, Table

Side = Literal["chosen", "rejected"]
"""A reply of a pair."""
SHARES: Mapping[Split, float] = {"train": 0.8, "val": 0.1, "test": 0.1}
"""Shares of the prompts in splits that are cut here."""
_ANSWERS = Path(__file__).parent / "assets" / "preferences" / "answers.jsonl"
_PER_CATEGORY: Mapping[Split, int] = {"train": 16, "val": 4, "test": 4}
"""Builtin prompts of each harm category in the bundled set, which makes 240 of each kind."""


class PairLabels(NamedTuple):
    """What is known of a pair beyond which reply is preferred; None where the source does not say."""

    helpful: Side | None = None
    """The more helpful reply."""
    harmless: Side | None = None
    """The less harmful reply."""
    severity: tuple[int | None, int | None] = (None, None)
    """Severity of harm of the chosen and the rejected reply, 0 (none) to 3."""
    category: str | None = None
    """Harm category, or the subject of the prompt."""


NOT_LABELLED = PairLabels()
"""Labels of a pair of which nothing else is known."""


@dataclass(frozen=True, kw_only=True)
class PreferencePair:
    """One prompt with a preferred and a rejected reply."""

    id: str
    """Id in its set."""
    prompt: str
    """The last user turn."""
    chosen: str
    """The preferred reply."""
    rejected: str
    """The other reply."""
    labels: PairLabels = NOT_LABELLED
    """What else is known of both."""
    before: tuple[tuple[str, str], ...] = ()
    """Turns before the prompt as (role, text); empty for most sets."""

    def __post_init__(self) -> None:
        for name in ("prompt", "chosen", "rejected"):
            if not getattr(self, name).strip():
                raise ValueError(f"pair {self.id}: {name} is empty; correct or remove the row")
        if self.chosen.strip() == self.rejected.strip():
            raise ValueError(f"pair {self.id}: chosen and rejected are identical; remove the row")

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation up to the reply."""
        turns = [*self.before, ("user", self.prompt)]
        return [{"role": role, "content": text} for role, text in turns]

    @property
    def context(self) -> str:
        """What the replies answer, as one text: the prompt, or the whole conversation as JSON."""
        return json.dumps(self.messages) if self.before else self.prompt


@dataclass(frozen=True, kw_only=True, repr=False)
class PreferenceSet(Shown):
    """Pairs by split; a prompt stands in one split only."""

    name: str
    """Name of the set, its file, or its Hub id."""
    parts: Mapping[Split, tuple[PreferencePair, ...]]
    """Pairs by split."""
    notes: tuple[str, ...] = field(default=())
    """Caveats for readers of a result, such as rows left out."""

    def __post_init__(self) -> None:
        if not any(self.parts.values()):
            raise ValueError(f"preference set {self.name} has no pairs")
        owner: dict[str, tuple[Split, str]] = {}
        for split, pairs in self.parts.items():
            for pair in pairs:
                first = owner.setdefault(pair.context, (split, pair.id))
                if first[0] != split:
                    raise ValueError(
                        f"{self.name}: the prompt of pair {pair.id} ({split}) is also that of {first[1]} ({first[0]}); "
                        "held-out accuracy would not be held out: give one list of pairs and let it be cut by prompt"
                    )
        ids = Counter(pair.id for pairs in self.parts.values() for pair in pairs)
        if twice := [name for name, count in ids.items() if count > 1]:
            raise ValueError(f"{self.name}: the id {twice[0]} is given twice; ids must be unique")

    def __getitem__(self, split: Split) -> tuple[PreferencePair, ...]:
        if split not in self.parts:
            raise ValueError(f"preference set {self.name} has no {split}; it has {', '.join(self.parts)}")
        return self.parts[split]

    def __len__(self) -> int:
        return sum(map(len, self.parts.values()))

    def __iter__(self) -> Iterator[PreferencePair]:
        return (pair for pairs in self.parts.values() for pair in pairs)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of all pairs with their splits, in order."""
        return _hash([(split, pair) for split, pairs in self.parts.items() for pair in pairs])

    @property
    def provenance(self) -> dict[str, Any]:
        """Name, and size and hash of every split."""
        splits = {
            split: {"n": len(pairs), "hash": _hash([(split, pair) for pair in pairs])}
            for split, pairs in self.parts.items()
        }
        return {"name": self.name, "notes": list(self.notes), "splits": splits}

    def prompts(self, split: Split) -> Prompts:
        """The distinct prompts of a split, in order, as conversations where a pair has turns before its prompt."""
        unique = {pair.context: pair for pair in reversed(self[split])}
        pairs = [unique[context] for context in dict.fromkeys(pair.context for pair in self[split])]
        several = any(pair.before for pair in pairs)
        return Prompts(
            texts=tuple(pair.context for pair in pairs),
            ids=tuple(pair.id for pair in pairs),
            categories=tuple(pair.labels.category for pair in pairs),
            source=f"{self.name}/{split}",
            conversations=tuple(tuple(pair.messages) for pair in pairs) if several else (),
        )

    def preferences(self, split: Split) -> list[Preference]:
        """The pairs of a split as `training.preference_tune` takes them.

        Raises:
            ValueError: a pair with turns before its prompt, which it does not train on.
        """
        if longer := [pair.id for pair in self[split] if pair.before]:
            raise ValueError(
                f"{self.name}: pair {longer[0]} has turns before its prompt, and {len(longer)} in all; take "
                ".single_turn() to leave them out"
            )
        return [Preference(pair.prompt, pair.chosen, pair.rejected) for pair in self[split]]

    def single_turn(self) -> "PreferenceSet":
        """The set without pairs that have turns before their prompt; how many were left out stands in its notes."""
        parts = {split: tuple(p for p in pairs if not p.before) for split, pairs in self.parts.items()}
        gone = len(self) - sum(map(len, parts.values()))
        notes = (*self.notes, f"{gone} pairs with earlier turns left out") if gone else self.notes
        return replace(self, parts=parts, notes=notes)

    def first(self, n: int, *, split: Split = "train") -> "PreferenceSet":
        """The set with at most the first n pairs of a split."""
        return replace(self, parts={**self.parts, split: self[split][:n]})

    def __repr__(self) -> str:
        sizes = ", ".join(f"{split} {len(pairs)}" for split, pairs in self.parts.items())
        return f"PreferenceSet({self.name}: {sizes} pairs)"

    def _card(self) -> Card:
        rows = [
            [split, len(pairs), len({pair.context for pair in pairs})] for split, pairs in self.parts.items()
        ]
        return Card(
            title=f"PreferenceSet {self.name}",
            tables=[Table(header=["split", "pairs", "prompts"], rows=rows)],
            notes=[
                *self.notes,
                "The words are in the pairs; they are research data and are not shown unasked.",
            ],
        )


def cut_by_prompt(
    pairs: Sequence[PreferencePair],
    *,
    name: str,
    seed: int = 0,
    shares: Mapping[Split, float] = SHARES,
    notes: Sequence[str] = (),
) -> PreferenceSet:
    """Cut pairs into splits by a seeded hash of their prompts; neither order nor repeated prompts matter.

    Raises:
        ValueError: fewer prompts than splits.
    """
    contexts = sorted(
        {pair.context for pair in pairs},
        key=lambda text: hashlib.sha256(f"{seed}\0{text}".encode()).hexdigest(),
    )
    if len(contexts) < len(shares):
        raise ValueError(f"{name} has {len(contexts)} prompts, too few to cut {', '.join(shares)} from")
    home: dict[str, Split] = {}
    start, left = 0, list(shares)
    for split in shares:
        left.remove(split)
        stop = len(contexts) if not left else start + max(1, round(shares[split] * len(contexts)))
        stop = min(stop, len(contexts) - len(left))
        home |= dict.fromkeys(contexts[start:stop], split)
        start = stop
    parts: dict[Split, tuple[PreferencePair, ...]] = {
        split: tuple(pair for pair in pairs if home[pair.context] == split) for split in shares
    }
    return PreferenceSet(name=name, parts=parts, notes=tuple(notes))


def builtin_preferences() -> PreferenceSet:
    """The bundled set: 240 harmful requests, their 240 harmless twins, 60 answers (`assets/preferences/CARD.md`)."""
    prompts = load_prompts("builtin")
    answers = {row["id"]: row["answer"] for row in read_rows(_ANSWERS)}
    parts: dict[Split, tuple[PreferencePair, ...]] = {}
    for split in SPLITS:
        pairs: list[PreferencePair] = []
        counts = Counter[str | None]()
        harmful, harmless = prompts["harmful", split], prompts["harmless", split]
        for i, category in enumerate(harmful.categories):
            name = harmful.ids[i].removeprefix("harmful-")
            counts[category] += 1
            if counts[category] <= _PER_CATEGORY[split]:
                refusal, stub = REFUSALS[i % len(REFUSALS)], STUBS[i % len(STUBS)]
                pairs += _bundled(f"harmful-{name}", harmful.texts[i], refusal, stub, category, harmful=True)
                pairs += _bundled(f"harmless-{name}", harmless.texts[i], stub, refusal, category)
            if name in answers:
                refusal = REFUSALS[(i + 1) % len(REFUSALS)]
                pairs += _bundled(f"answered-{name}", harmless.texts[i], answers[name], refusal, category)
        parts[split] = tuple(pairs)
    return PreferenceSet(name="builtin", parts=parts)


def _bundled(
    name: str, prompt: str, chosen: str, rejected: str, category: str | None, *, harmful: bool = False
) -> list[PreferencePair]:
    """One pair with its labels; an empty stub has severity 0, since it holds nothing harmful."""
    labels = PairLabels(
        helpful=None if harmful else "chosen",
        harmless="chosen" if harmful else None,
        severity=(0, 0),
        category=category,
    )
    return [PreferencePair(id=name, prompt=prompt, chosen=chosen, rejected=rejected, labels=labels)]


def _hash(pairs: Sequence[tuple[str, PreferencePair]]) -> str:
    rows = [[split, p.id, p.context, p.chosen, p.rejected, list(p.labels)] for split, p in pairs]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
