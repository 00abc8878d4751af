"""Prompt sets: harmful and harmless requests in named splits, with ids, categories and controlled endings.

How prompts *end* is a confound: at `t_inst` a difference in means between sets that end differently encodes
punctuation, not harm. Every set therefore takes `ending="as-is" | "strip" | "period"`, kept in provenance.

    prompts = load_prompts("builtin", ending="period")
    prompts["harmful", "train"].texts[:2]
"""

import hashlib
import json
import logging
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from interp.data.files import SUFFIXES, source_rows, text_column
from interp.display.cards import Card, Shown, Table
from interp.models.prompt_inputs import gather_prompts

if TYPE_CHECKING:  # torch is not needed to name prompts and their endings
    from interp.models.tokens import PromptInput

logger = logging.getLogger(__name__)

Ending = Literal["as-is", "strip", "period"]
Kind = Literal["harmful", "harmless", "borderline"]
Split = Literal["train", "val", "test"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SPLITS: tuple[Split, ...] = get_args(Split)
ENDINGS: tuple[Ending, ...] = get_args(Ending)
"""Every way in which prompts can end."""
COMPARED_ENDINGS: tuple[Ending, ...] = ("as-is", "period")
"""The two that are set side by side wherever something is read at `t_inst`: as they are, and all alike."""

ANSWER_COLUMNS = ("output", "completion", "response", "answer")

_BUILTIN = Path(__file__).parent / "assets" / "builtin"
HELD_OUT_TEXT = _BUILTIN / "text.txt"
"""A page of plain prose, for cross-entropy; no model of ours was trained on it."""
CLOSING = " \t\r\n.!?…。！？"
"""What counts as the end of a prompt and not its content."""
_FRACTIONS = {"train": 0.6, "val": 0.2, "test": 0.2}


@dataclass(frozen=True, repr=False)
class Prompts(Shown):
    """Prompts of one kind and split."""

    texts: tuple[str, ...]
    """The instructions, endings applied."""
    ids: tuple[str, ...]
    """What figures and logs show instead of the text."""
    categories: tuple[str | None, ...]
    """Harm category, where the source gives one."""
    source: str
    """Set, kind and split, e.g. `builtin/harmful/train`."""
    conversations: tuple[tuple[Mapping[str, Any], ...], ...] = ()
    """The messages of each prompt where prompts are conversations; `texts` are then these as JSON."""

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
        """At most the first n prompts."""
        return self.take(list(range(min(n, len(self)))))

    def shuffled(self, seed: int) -> "Prompts":
        """The same prompts in a seeded random order."""
        order = list(range(len(self)))
        random.Random(seed).shuffle(order)
        return self.take(order)

    def take(self, rows: list[int]) -> "Prompts":
        """These rows, in this order."""
        return replace(
            self,
            texts=tuple(self.texts[i] for i in rows),
            ids=tuple(self.ids[i] for i in rows),
            categories=tuple(self.categories[i] for i in rows),
            conversations=tuple(self.conversations[i] for i in rows) if self.conversations else (),
        )

    def with_ending(self, ending: Ending) -> "Prompts":
        """The same prompts with their ends as-is, stripped of closing punctuation, or ended by a full stop.

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
    """What stands for prompts (`interp.models.prompt_inputs`) as `Prompts`, with the ids that it has.

    Args:
        source: how results name it, where it has no name of its own.

    Raises:
        ValueError: no prompts, or something that is no list of prompts.
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
    """One prompt with its end as-is, stripped of closing punctuation, or ended by a full stop.

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
    """`builtin`, a folder, or a Hub data set."""
    parts: Mapping[tuple[Kind, Split], Prompts]
    """The prompts of each (kind, split) that the set has."""
    ending: Ending = "as-is"
    """What was done to the prompts' ends."""
    notes: tuple[str, ...] = field(default=())
    """What a reader of a result should know: duplicates, splits made by us."""

    def __getitem__(self, key: tuple[Kind, Split]) -> Prompts:
        if key not in self.parts:
            known = ", ".join("/".join(part) for part in self.parts)
            raise ValueError(f"prompt set {self.name} has no {'/'.join(key)}; it has {known}")
        return self.parts[key]

    def __contains__(self, key: tuple[Kind, Split]) -> bool:
        return key in self.parts

    def with_ending(self, ending: Ending) -> "PromptSet":
        """The same set with every prompt's ending changed (see `Prompts.with_ending`).

        Raises:
            ValueError: unknown ending, or the ends as they were in a set that has lost them.
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


def load_prompts(
    source: str | Path | Mapping[str, str | Path] = "builtin",
    *,
    ending: Ending = "as-is",
    column: str | None = None,
    seed: int = 0,
) -> PromptSet:
    """Load a prompt set.

    Args:
        source: `builtin`; a folder with `{harmful,harmless,borderline}_{train,val,test}.{jsonl,json,csv,parquet,txt}`;
            or single sources by part, `{"harmful": F, "harmless": G}` or `{"harmful_train": F, ...}`, each a file or
            `hub:owner/name[:config][:split]`. As a string: `harmful=F,harmless=G`. Splits that are missing are cut
            from the ones that are there, by a seeded shuffle, and noted.
        ending: what to do to the prompts' ends.
        column: text column; else the first of `TEXT_COLUMNS` that is there.
        seed: of the shuffle that cuts missing splits.

    Raises:
        ValueError: unknown source, empty or unreadable file, unknown column, empty row; the message names file and
            row.
    """
    if source == "builtin":
        return _builtin().with_ending(ending)
    if isinstance(source, str) and "=" in source:
        pairs = [_assignment(item) for item in source.split(",")]
        source = dict(pairs)
        if len(source) < len(pairs):
            raise ValueError(
                f"a part is given twice in {','.join('='.join(p) for p in pairs)!r}; give each once"
            )
    if isinstance(source, Mapping):
        name = ",".join(f"{key}={value}" for key, value in source.items())
        files = {key: str(value) for key, value in source.items()}
    elif str(source).startswith("hub:"):
        raise ValueError(f"{source} is one list of prompts; say what it holds: harmful={source},harmless=...")
    else:
        name, files = str(source), _folder_files(Path(source).expanduser())
    read = {_part(key): _read(value, column, label=f"{name}/{key}") for key, value in files.items()}
    parts, notes = _complete(read, seed)
    notes += _duplicates(parts)
    for note in notes:
        logger.warning("%s: %s", name, note)
    return PromptSet(name, parts, notes=tuple(notes)).with_ending(ending)


def read_prompts(path: str | Path, *, column: str | None = None) -> Prompts:
    """Prompts of one file or `hub:owner/name[:config][:split]`.

    Raises:
        ValueError: as `load_prompts`.
    """
    return _read(str(path), column, label=str(path))


def read_answered(path: str | Path, *, column: str | None = None) -> tuple[Prompts, tuple[str, ...]]:
    """Instructions with their answers (column output, completion, response or answer), from a file or the Hub.

    Rows whose column `input` is not empty are left out (Alpaca's further input is no part of the instruction).

    Raises:
        ValueError: as `load_prompts`, or no column of answers.
    """
    source = str(path)
    rows = source_rows(source)
    rows = [row for row in rows if not (isinstance(row, Mapping) and str(row.get("input") or "").strip())]
    have = list(rows[0]) if rows and isinstance(rows[0], Mapping) else []
    answer = next((name for name in ANSWER_COLUMNS if name in have), None)
    if answer is None:
        raise ValueError(
            f"{source} has no column of answers ({', '.join(ANSWER_COLUMNS)}); it has "
            f"{', '.join(map(str, have)) or 'none'}"
        )
    kept = [row for row in rows if isinstance(row.get(answer), str) and row[answer].strip()]
    return _prompts(kept, column, source, source), tuple(row[answer] for row in kept)


def _builtin() -> PromptSet:
    pairs = [json.loads(line) for line in (_BUILTIN / "pairs.jsonl").read_text().splitlines()]
    parts: dict[tuple[Kind, Split], Prompts] = {}
    for split in SPLITS:
        rows = [row for row in pairs if row["split"] == split]
        # Categories take turns, so that any first n prompts hold all of them; harmful[i] and harmless[i] are twins.
        rows.sort(key=lambda row: (row["id"].rsplit("-", 1)[1], row["category"]))
        for kind in ("harmful", "harmless"):
            parts[kind, split] = Prompts(
                texts=tuple(row[kind] for row in rows),
                ids=tuple(f"{kind}-{row['id']}" for row in rows),
                categories=tuple(row["category"] for row in rows),
                source=f"builtin/{kind}/{split}",
            )
    borderline = [
        json.loads(line) for line in (_BUILTIN / "borderline.jsonl").read_text().split("\n") if line
    ]
    for split in ("train", "test"):
        rows = [row for row in borderline if row["split"] == split]
        rows.sort(key=lambda row: (row["id"].rsplit("-", 1)[1], row["category"]))
        parts["borderline", split] = Prompts(
            texts=tuple(row["prompt"] for row in rows),
            ids=tuple(f"borderline-{row['id']}" for row in rows),
            categories=tuple(row["category"] for row in rows),
            source=f"builtin/borderline/{split}",
        )
    return PromptSet("builtin", parts)


def _assignment(item: str) -> tuple[str, str]:
    key, _, value = item.partition("=")
    return key.strip(), value.strip()


def _part(key: str) -> tuple[Kind, Split | None]:
    kind, _, split = key.partition("_")
    if kind not in KINDS or (split and split not in SPLITS):
        raise ValueError(
            f"unknown part {key!r}; use harmful, harmless or borderline, alone or with _train, _val or _test"
        )
    return kind, split or None  # pyright: ignore[reportReturnType]


def _folder_files(folder: Path) -> dict[str, str]:
    if not folder.is_dir():
        raise ValueError(
            f"unknown prompt set {str(folder)!r}: not 'builtin', no such folder; give single files as "
            "harmful=F,harmless=G"
        )
    files: dict[str, str] = {}
    for kind in KINDS:
        for part in (kind, *(f"{kind}_{split}" for split in SPLITS)):
            found = [
                folder / f"{part}{suffix}" for suffix in SUFFIXES if (folder / f"{part}{suffix}").is_file()
            ]
            if len(found) > 1:
                raise ValueError(f"{folder} has both {found[0].name} and {found[1].name}; keep one")
            if found:
                files[part] = str(found[0])
    missing = [kind for kind in ("harmful", "harmless") if not any(key.startswith(kind) for key in files)]
    if missing:
        raise ValueError(
            f"{folder} has no {missing[0]} prompts; expected files such as {missing[0]}_train.jsonl "
            f"({', '.join(SUFFIXES)})"
        )
    return files


def _read(source: str, column: str | None, *, label: str) -> Prompts:
    rows = source_rows(source)
    return _prompts(rows, column, source, label)


def _prompts(rows: list[Any], column: str | None, source: str, label: str) -> Prompts:
    if not rows:
        raise ValueError(f"{source} has no rows; remove it or fill it")
    column = text_column(rows, column, source)
    stem = Path(source.removeprefix("hub:")).stem
    texts: list[str] = []
    for number, row in enumerate(rows, start=1):
        text = row.get(column) if isinstance(row, Mapping) else None
        if not isinstance(text, str) or not text.strip():
            raise ValueError(
                f"{source}, row {number}: column {column!r} is empty or not text; correct or remove the row"
            )
        texts.append(text)
    return Prompts(
        texts=tuple(texts),
        ids=tuple(f"{stem}-{number}" for number in range(len(texts))),
        categories=tuple(_category(row) for row in rows),
        source=label,
    )


def _category(row: Mapping[str, Any]) -> str | None:
    for key in ("category", "Category"):
        if isinstance(row.get(key), str):
            return row[key]
    return None


def _complete(
    read: Mapping[tuple[Kind, Split | None], Prompts], seed: int
) -> tuple[dict[tuple[Kind, Split], Prompts], list[str]]:
    """Cut the splits that are missing from those that are there; disjoint, and the source shrinks by what is cut."""
    parts: dict[tuple[Kind, Split], Prompts] = {}
    notes: list[str] = []
    for kind in KINDS:
        have: dict[Split, Prompts] = {split: read[kind, split] for split in SPLITS if (kind, split) in read}
        pool = read.get((kind, None))
        if kind == "borderline":
            # Borderline prompts are only ever measured, never fitted.
            rows = pool or have.get("test") or next(iter(have.values()), None)
            if rows:
                parts[kind, "test"] = rows
            continue
        if not have and pool is None:
            raise ValueError(f"the prompt set has no {kind} prompts; give {kind}=FILE or {kind}_train=FILE")
        missing = [split for split in SPLITS if split not in have]
        if missing:
            donor = None if pool is not None else ("train" if "train" in have else next(iter(have)))
            rows = (pool if donor is None else have[donor]).shuffled(seed)  # pyright: ignore[reportOptionalMemberAccess]
            wanted = missing if donor is None else [*missing, donor]
            total = sum(_FRACTIONS[split] for split in wanted)
            if len(rows) < len(wanted):
                raise ValueError(
                    f"{rows.source} has {len(rows)} rows, too few to cut {', '.join(wanted)} from; add more"
                )
            start = 0
            for number, split in enumerate(wanted):
                left, others = len(rows) - start, len(wanted) - number - 1
                # At least one row for this split and for each that is still to come.
                size = max(1, round(len(rows) * _FRACTIONS[split] / total)) if others else left
                size = min(size, left - others)
                have[split] = replace(  # pyright: ignore[reportArgumentType]
                    rows.take(list(range(start, start + size))), source=f"{rows.source}->{split}"
                )
                start += size
            notes.append(
                f"{kind} {' and '.join(missing)} cut from {rows.source} (seed {seed}), as the set has none"
            )
        parts |= {(kind, split): have[split] for split in SPLITS}
    return parts, notes


def _duplicates(parts: Mapping[tuple[Kind, Split], Prompts]) -> list[str]:
    notes = []
    for kind in KINDS:
        owners = Counter(text for key, part in parts.items() if key[0] == kind for text in set(part.texts))
        across = sum(count > 1 for count in owners.values())
        if across:
            notes.append(
                f"{across} {kind} prompts stand in more than one split: held-out results are optimistic"
            )
    both = set[str]().union(*(p.texts for k, p in parts.items() if k[0] == "harmful")) & set[str]().union(
        *(p.texts for k, p in parts.items() if k[0] == "harmless")
    )
    if both:
        notes.append(f"{len(both)} prompts are both harmful and harmless")
    return notes
