"""Loading prompt sets: the builtin one, named public ones, folders, single files, data sets from the Hub.

    prompts = load_prompts("builtin", ending="period")
    prompts = load_prompts("advbench+alpaca")            # of `interp data ls`
    prompts["harmful", "train"].texts[:2]

`interp.data.prompt_sets` defines prompt sets and explains why their endings matter; its names are re-exported here.
"""

import json
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

from interp.data.files import SUFFIXES, source_rows, text_column
from interp.data.named_prompts import named_parts
from interp.data.overlaps import overlap
from interp.data.prompt_sets import (
    CLOSING,
    COMPARED_ENDINGS,
    ENDINGS,
    KINDS,
    SPLITS,
    Ending,
    Kind,
    Prompts,
    PromptSet,
    Split,
    as_prompts,
    with_ending,
)
from interp.data.registry import names_sets
from interp.models.prompt_inputs import category_name
from interp.storage.paths import expanded

__all__ = [
    "ANSWER_COLUMNS",
    "CLOSING",
    "COMPARED_ENDINGS",
    "ENDINGS",
    "HELD_OUT_TEXT",
    "KINDS",
    "SPLITS",
    "Ending",
    "Kind",
    "PromptSet",
    "Prompts",
    "Split",
    "as_prompts",
    "load_prompts",
    "read_answered",
    "read_prompts",
    "with_ending",
]

logger = logging.getLogger(__name__)

ANSWER_COLUMNS = ("output", "completion", "response", "answer")
"""Names of columns that hold the answer to a prompt; the first one present is used."""

_BUILTIN = Path(__file__).parent / "assets" / "builtin"
HELD_OUT_TEXT = _BUILTIN / "text.txt"
"""A page of plain prose for cross-entropy, which none of the bundled models was trained on."""
_COMPARED = 2000
"""Prompts of a split that are compared with those of another for being nearly the same; 0.2 ms each."""
_FRACTIONS = {"train": 0.6, "val": 0.2, "test": 0.2}


def load_prompts(
    source: str | Path | Mapping[str, Any] = "builtin",
    *,
    ending: Ending = "as-is",
    column: str | None = None,
    seed: int = 0,
) -> PromptSet:
    """Load a prompt set.

    Args:
        source: `builtin`; named public sets, `advbench+alpaca` or `jailbreakbench:harmful+alpaca`
            (`interp.data.registry`), whose files are on this machine; a folder with
            `{harmful,harmless,borderline}_{train,val,test}` in files of `files.SUFFIXES`; or single sources by part,
            `{"harmful": F, "harmless": G}` or `{"harmful_train": F, ...}`, each a file,
            `hub:owner/name[:config][:split]`, a named set, or prompts themselves. As a string:
            `harmful=F,harmless=G`. Missing splits are cut from the existing ones by a seeded shuffle, and noted, as
            are prompts that stand in two splits exactly or nearly.
        ending: treatment of the prompts' endings.
        column: text column; by default the first of `TEXT_COLUMNS` that is present.
        seed: seed of the shuffle that cuts missing splits.

    Raises:
        ValueError: unknown source, empty or unreadable file, unknown column, empty row; the message names file and
            row.
    """
    if isinstance(source, str) and source == "builtin":
        return _builtin().with_ending(ending)
    if isinstance(source, str) and "=" in source:
        pairs = [_assignment(item) for item in source.split(",")]
        source = dict(pairs)
        if len(source) < len(pairs):
            raise ValueError(
                f"a part is given twice in {','.join('='.join(p) for p in pairs)!r}; give each once"
            )
    if isinstance(source, str) and names_sets(source):
        name, read = source, named_parts(source)
        if ("harmless", None) not in read and not any(kind == "harmless" for kind, _ in read):
            raise ValueError(f"{source} has no harmless prompts; add a set that has, such as {source}+alpaca")
    elif isinstance(source, Mapping):
        shown = {key: value if isinstance(value, (str, Path)) else "given" for key, value in source.items()}
        name = ",".join(f"{key}={value}" for key, value in shown.items())
        read = {
            _part(key): _read(str(value), column, label=f"{name}/{key}", kind=_part(key)[0])
            if isinstance(value, (str, Path))
            else as_prompts(value, source=f"{name}/{key}")
            for key, value in source.items()
        }
    elif not isinstance(source, (str, Path)):
        raise ValueError(
            "a prompt set is a name, a folder, or prompts by kind, such as {'harmful': [...], 'harmless': [...]}; got "
            f"{type(source).__name__}"
        )
    elif str(source).startswith("hub:"):
        raise ValueError(f"{source} is one list of prompts; say what it holds: harmful={source},harmless=...")
    else:
        name = str(source)
        files = _folder_files(expanded(source))
        read = {_part(key): _read(value, column, label=f"{name}/{key}") for key, value in files.items()}
    parts, notes = _complete(read, seed)
    notes += _duplicates(parts) + _near_duplicates(parts)
    for note in notes:
        logger.warning("%s: %s", name, note)
    return PromptSet(name, parts, notes=tuple(notes)).with_ending(ending)


def read_prompts(path: str | Path, *, column: str | None = None) -> Prompts:
    """Read the prompts of one file, `hub:owner/name[:config][:split]`, or `data:NAME[:KIND]` of a named set.

    Raises:
        ValueError: as `load_prompts`.
    """
    return _read(str(path), column, label=str(path))


def read_answered(path: str | Path, *, column: str | None = None) -> tuple[Prompts, tuple[str, ...]]:
    """Read instructions with their answers (column output, completion, response or answer), from a file or the Hub.

    Rows whose column `input` is not empty are left out (Alpaca's further input is no part of the instruction).

    Raises:
        ValueError: as `load_prompts`, or no column of answers.
    """
    source = str(path)
    rows = source_rows(source)
    have = list(rows[0]) if rows and isinstance(rows[0], Mapping) else []
    answer = next((name for name in ANSWER_COLUMNS if name in have), None)
    if answer is None:
        raise ValueError(
            f"{source} has no column of answers ({', '.join(ANSWER_COLUMNS)}); it has "
            f"{', '.join(map(str, have)) or 'none'}"
        )
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping) or answer not in row:
            raise ValueError(
                f"{source}, row {number}: no column {answer!r}; correct or remove the row, or leave its answer empty"
            )
    rows = [row for row in rows if not str(row.get("input") or "").strip()]
    answered = [row for row in rows if isinstance(row.get(answer), str) and row[answer].strip()]
    return _prompts(answered, column, source, source), tuple(row[answer] for row in answered)


def _builtin() -> PromptSet:
    pairs = [json.loads(line) for line in (_BUILTIN / "pairs.jsonl").read_text().splitlines()]
    parts: dict[tuple[Kind, Split], Prompts] = {}
    for split in SPLITS:
        rows = [row for row in pairs if row["split"] == split]
        # Categories alternate, so that the first n prompts cover all of them; harmful[i] and harmless[i] are matched.
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
    kind, _, split = str(key).partition("_")
    if kind not in KINDS or (split and split not in SPLITS):
        raise ValueError(
            f"unknown part {key!r}; use harmful, harmless or borderline, alone or with _train, _val or _test"
        )
    return kind, split or None  # pyright: ignore[reportReturnType]


def _folder_files(folder: Path) -> dict[str, str]:
    if not folder.is_dir():
        raise ValueError(
            f"unknown prompt set {str(folder)!r}: not 'builtin', not of `interp data ls`, no such folder; give single "
            "files as harmful=F,harmless=G"
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


def _read(source: str, column: str | None, *, label: str, kind: Kind | None = None) -> Prompts:
    """The prompts of a file, a Hub data set, or, where a kind is asked for or after `data:`, of a named set."""
    named = source.removeprefix("data:")
    if source != named or (kind is not None and names_sets(source) and not Path(source).exists()):
        return _named(named, kind, label)
    rows = source_rows(source)
    return _prompts(rows, column, source, label)


def _named(source: str, kind: Kind | None, label: str) -> Prompts:
    """All prompts of one kind of a named set, whatever its splits; of its only kind when None is asked for."""
    read = named_parts(source)
    kinds = list(dict.fromkeys(k for k, _ in read))
    if kind is None and len(kinds) > 1:
        raise ValueError(
            f"data:{source} has {' and '.join(kinds)} prompts; say which: data:{source}:{kinds[0]}"
        )
    wanted = kinds[0] if kind is None else kind
    lists = [part for (k, _), part in read.items() if k == wanted]
    if not lists:
        raise ValueError(f"{source} has no {wanted} prompts; it has {', '.join(kinds)}")
    return replace(reduce(Prompts.joined, lists), source=label)


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
        if any("\ud800" <= char <= "\udfff" for char in text):
            raise ValueError(
                f"{source}, row {number}: half of a character (a lone surrogate); correct the row"
            )
        texts.append(text)
    return Prompts(
        texts=tuple(texts),
        ids=tuple(f"{stem}-{number}" for number in range(len(texts))),
        categories=tuple(_category(row) for row in rows),
        source=label,
    )


def _category(row: Mapping[str, Any]) -> str | None:
    found = (category_name(row.get(key)) for key in ("category", "Category"))
    return next((name for name in found if name is not None), None)


def _complete(
    read: Mapping[tuple[Kind, Split | None], Prompts], seed: int
) -> tuple[dict[tuple[Kind, Split], Prompts], list[str]]:
    """Cut missing splits from the existing ones; splits are disjoint, so the source split shrinks."""
    parts: dict[tuple[Kind, Split], Prompts] = {}
    notes: list[str] = []
    for kind in KINDS:
        have: dict[Split, Prompts] = {split: read[kind, split] for split in SPLITS if (kind, split) in read}
        pool = read.get((kind, None))
        if kind == "borderline":
            # Borderline prompts are only used for measuring, never for fitting.
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
                # At least one row for this split and for each remaining one.
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


def _near_duplicates(parts: Mapping[tuple[Kind, Split], Prompts]) -> list[str]:
    """Notes on test prompts that a training prompt of the same kind nearly is, of the first `_COMPARED` of each."""
    notes = []
    for kind in ("harmful", "harmless"):
        train, test = (parts[kind, split].first(_COMPARED) for split in ("train", "test"))
        found = overlap(train, test)
        if found.near:
            notes.append(
                f"{found.near} of {len(test)} {kind} test prompts are nearly a training prompt (Jaccard index "
                f"{found.threshold:g} of 5-grams): held-out results are optimistic"
            )
    return notes


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
