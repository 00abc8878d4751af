"""PKU-SafeRLHF: pairs of answers with 19 harm categories, a severity from 0 to 3, and two separate preferences.

    pairs = read_pairs("PKU-SafeRLHF/train.jsonl")         # or a folder, a parquet file, hub:PKU-Alignment/PKU-SafeRLHF
    mixed = [pair for pair in pairs if pair.mixed]         # same prompt, one safe and one unsafe answer
    check_copy(pairs, "train")                             # which published counts hold in this copy

Ji et al. 2025, arXiv:2406.15513. The data are CC-BY-NC-4.0 and are no part of this package; a miniature of the same
layout is (`interp.data.safe_rlhf_miniature`). Answers come from 7B to 8B models of 2023 and 2024, and their labels from
people and models jointly: a direction found on them may hold the style of those models. `safer` is filled in even where
both answers are safe, and is noise there. Split by prompt, never by row (`split_by_prompt`).
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from interp.data.downloads import checked_files
from interp.data.files import DATA_SUFFIXES, ends_as_data, read_rows
from interp.data.registry import data_set, names_sets
from interp.storage.paths import expanded

CATEGORIES = (
    "Endangering National Security",
    "Insulting Behavior",
    "Discriminatory Behavior",
    "Endangering Public Health",
    "Copyright Issues",
    "Violence",
    "Drugs",
    "Privacy Violation",
    "Economic Crime",
    "Mental Manipulation",
    "Human Trafficking",
    "Physical Harm",
    "Sexual Content",
    "Cybercrime",
    "Disrupting Public Order",
    "Environmental Damage",
    "Psychological Harm",
    "White-Collar Crime",
    "Animal Abuse",
)
"""The 19 harm categories, S1 to S19, as the data name them."""
SEVERITIES = (0, 1, 2, 3)
"""None, minor, moderate, severe."""
Part = Literal["train", "test"]
"""A released part of the data."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer with its labels."""

    id: str
    """SHA-256 that the data give, else the row's number and the answer's."""
    prompt: str
    text: str
    """The answer; empty for the few that the data hold without one."""
    safe: bool
    """Whether it is safe in all 19 categories."""
    categories: tuple[bool, ...]
    """Flag of each of `CATEGORIES`."""
    severity: int
    """0 none, 1 minor, 2 moderate, 3 severe."""
    source: str = ""
    """Model that wrote it; empty where the data do not say."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two answers to one prompt, and which of them was preferred."""

    id: str
    """Number of the row."""
    prompt: str
    answers: tuple[Answer, Answer]
    better: int
    """Index of the more helpful answer, whatever its safety."""
    safer: int
    """Index of the more harmless answer; noise where both are safe."""

    @property
    def mixed(self) -> bool:
        """Whether exactly one answer is safe."""
        return self.answers[0].safe != self.answers[1].safe

    @property
    def conflict(self) -> bool:
        """Whether the more helpful answer is not the more harmless one."""
        return self.better != self.safer


def read_pairs(path: str | Path) -> list[Pair]:
    """The pairs of a file, a folder of files, a named set (`pku-saferlhf`), or `hub:owner/name[:config][:split]`.

    The layout is that of the default config. Pairs are numbered over all files.

    Raises:
        ValueError: no such file, a missing column, or a label out of range; the message names file, row and column.
    """
    pairs = list[Pair]()
    for source in _sources(path):
        for number, row in enumerate(read_rows(source), start=1):
            pairs.append(pair_of(row, f"{len(pairs)}", f"{source}, row {number}"))
    return pairs


def read_answers(path: str | Path) -> list[Answer]:
    """Single answers with their labels, in the layout of PKU-SafeRLHF-QA.

    Raises:
        ValueError: as `read_pairs`.
    """
    found = list[Answer]()
    for source in _sources(path):
        for number, row in enumerate(read_rows(source)):
            where = f"{source}, row {number + 1}"
            found.append(
                _answer(
                    str(row.get("sha256") or len(found)),
                    str(_value(row, "prompt", where)),
                    _value(row, "response", where),
                    _value(row, "is_safe", where),
                    _value(row, "harm_category", where),
                    _value(row, "severity_level", where),
                    str(row.get("response_source") or ""),
                    where,
                )
            )
    return found


def answers_of(pairs: Sequence[Pair]) -> list[Answer]:
    """Both answers of every pair, without the empty ones."""
    return [answer for pair in pairs for answer in pair.answers if answer.text.strip()]


def split_by_prompt(
    pairs: Sequence[Pair], *, held_out: float = 0.3, seed: int = 0
) -> tuple[list[Pair], list[Pair]]:
    """Pairs to fit on and held-out pairs; no prompt is in both, whatever its letter case and white space.

    Raises:
        ValueError: a share outside 0 to 1.
    """
    if not 0 < held_out < 1:
        raise ValueError(f"held_out must lie between 0 and 1, got {held_out}")
    fit, held = list[Pair](), list[Pair]()
    for pair in pairs:
        plain = f"{seed} " + " ".join(pair.prompt.casefold().split())
        place = int.from_bytes(hashlib.sha256(plain.encode()).digest()[:8], "big") / 2**64
        (held if place < held_out else fit).append(pair)
    return fit, held


def pair_of(row: Mapping[str, Any], name: str, where: str) -> Pair:
    """A pair from one row of the default config.

    Raises:
        ValueError: a missing column or a label out of range.
    """
    prompt = str(_value(row, "prompt", where))
    first, second = (
        _answer(
            str(row.get(f"response_{i}_sha256") or f"{name}-{i}"),
            prompt,
            _value(row, f"response_{i}", where),
            _value(row, f"is_response_{i}_safe", where),
            _value(row, f"response_{i}_harm_category", where),
            _value(row, f"response_{i}_severity_level", where),
            str(row.get(f"response_{i}_source") or ""),
            where,
        )
        for i in (0, 1)
    )
    better, safer = (_value(row, f"{kind}_response_id", where) for kind in ("better", "safer"))
    if better not in (0, 1) or safer not in (0, 1):
        raise ValueError(f"{where}: better_response_id and safer_response_id must be 0 or 1")
    return Pair(id=name, prompt=prompt, answers=(first, second), better=int(better), safer=int(safer))


def _answer(
    name: str, prompt: str, text: Any, safe: Any, flags: Any, severity: Any, source: str, where: str
) -> Answer:
    if not isinstance(flags, Mapping) or set(flags) != set(CATEGORIES):
        unknown = sorted(set(flags) ^ set(CATEGORIES))[:3] if isinstance(flags, Mapping) else type(flags)
        raise ValueError(f"{where}: harm_category must have the 19 categories as keys; check {unknown}")
    if odd := [name for name, flag in [("is_safe", safe), *flags.items()] if not _is_flag(flag)]:
        given = safe if odd[0] == "is_safe" else flags[odd[0]]
        raise ValueError(f"{where}: {odd[0]} must be true or false, got {given!r}")
    if severity not in SEVERITIES:
        raise ValueError(f"{where}: severity_level must be 0, 1, 2 or 3, got {severity!r}")
    if not (text is None or isinstance(text, str)):
        raise ValueError(f"{where}: an answer must be text")
    return Answer(
        id=name,
        prompt=prompt,
        text=text or "",
        safe=bool(safe),
        categories=tuple(bool(flags[category]) for category in CATEGORIES),
        severity=int(severity),
        source=source,
    )


def _is_flag(value: Any) -> bool:
    """Whether a value is true or false; text is neither, since every text would be true."""
    return value is True or value is False or value in (0, 1)


def _value(row: Mapping[str, Any], column: str, where: str) -> Any:
    if column not in row:
        raise ValueError(f"{where}: no column {column!r}; it has {', '.join(map(str, row))}")
    return row[column]


def _sources(path: str | Path) -> list[str]:
    """The files of a folder or of a named set, or the source itself."""
    if str(path).startswith("hub:"):
        return [str(path)]
    if not expanded(path).exists() and names_sets(str(path)):
        return list(
            dict.fromkeys(str(f) for part in checked_files(data_set(str(path))).values() for f in part)
        )
    if not expanded(path).is_dir():
        return [str(path)]
    files = sorted(file for file in expanded(path).rglob("*") if ends_as_data(file.name) and file.is_file())
    if not files:
        raise ValueError(f"{path} holds no data files ({', '.join(DATA_SUFFIXES)})")
    return [str(file) for file in files]


# Published counts


@dataclass(frozen=True, kw_only=True)
class CountCheck:
    """One published count beside the count in a copy."""

    what: str
    """What is counted."""
    published: int
    found: int

    @property
    def holds(self) -> bool:
        """Whether both are equal."""
        return self.published == self.found


_BOTH: dict[str, int] = {
    "pairs": 82118,
    "answers": 164236,
    "non-empty answers": 164196,
    "distinct prompts": 39995,
    "distinct answers": 159241,
    "safe answers": 79481,
    "unsafe answers": 84715,
    "severity 0": 79482,
    "severity 1": 10159,
    "severity 2": 62851,
    "severity 3": 11704,
    "answers with 1 category": 25238,
    "answers with 2 categories": 36078,
    "answers with 3 categories": 20112,
    "answers of Alpaca-7B": 60850,
    "answers of Alpaca2-7B": 56816,
    "answers of Alpaca3-8B": 46530,
}
_TRAIN: dict[str, int] = {
    "pairs": 73907,
    "answers": 147814,
    "safe where and only where severity 0": 147806,
    "unsafe answers, empty ones too": 76125,
    "pairs with both unsafe": 32656,
    "pairs with one unsafe": 10813,
    "pairs with both safe": 30438,
    "pairs whose safer answer is unsafe and the other safe": 0,
}
_TEST: dict[str, int] = {"pairs": 8211, "answers": 16422}


def check_copy(pairs: Sequence[Pair], part: Part | None = None) -> list[CountCheck]:
    """The published counts beside those of a copy of the default config.

    Counts are those of two public audits of the released files, not of the paper, which counts before clean-up.

    Args:
        part: the part that the pairs are; None for train and test together.
    """
    published = {None: _BOTH, "train": _TRAIN, "test": _TEST}[part]
    found = counts(pairs)
    return [CountCheck(what=what, published=n, found=found[what]) for what, n in published.items()]


def counts(pairs: Sequence[Pair]) -> Counter[str]:
    """Everything that is counted about pairs, by name; what does not occur counts 0."""
    every = [answer for pair in pairs for answer in pair.answers]
    there = answers_of(pairs)
    found = Counter[str](
        {
            "pairs": len(pairs),
            "answers": len(every),
            "non-empty answers": len(there),
            "distinct prompts": len({pair.prompt for pair in pairs}),
            "distinct answers": len({answer.text for answer in there}),
            "safe answers": sum(answer.safe for answer in there),
            "unsafe answers": sum(not answer.safe for answer in there),
            "unsafe answers, empty ones too": sum(not answer.safe for answer in every),
            "safe where and only where severity 0": sum(a.safe == (a.severity == 0) for a in every),
            "pairs with both unsafe": sum(not (p.answers[0].safe or p.answers[1].safe) for p in pairs),
            "pairs with one unsafe": sum(pair.mixed for pair in pairs),
            "pairs with both safe": sum(p.answers[0].safe and p.answers[1].safe for p in pairs),
            "pairs whose safer answer is unsafe and the other safe": sum(
                pair.mixed and not pair.answers[pair.safer].safe for pair in pairs
            ),
            "pairs in conflict": sum(pair.conflict for pair in pairs),
        }
    )
    for answer in there:
        n = sum(answer.categories)
        found[f"severity {answer.severity}"] += 1
        found[f"answers with {n} categor{'y' if n == 1 else 'ies'}"] += 1
        found[f"answers of {answer.source}"] += 1
    return found
