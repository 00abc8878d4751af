"""What the downloaded files of a named set hold: rows against the published number, endings, repeated prompts.

    check_set(data_set("xstest"))          # a card; `.endings` are shares of prompts by how they end

Public sets end their prompts differently, and at `t_inst` a difference in means between two such sets is punctuation:
the shares of endings say whether two sets may be contrasted as they are (`interp.representations.confounds`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from interp.data.downloads import Files, checked_files
from interp.data.named_prompts import named_rows, part_prompts
from interp.data.prompt_sets import CLOSING, Prompts
from interp.data.registry import DataSet
from interp.display.cards import Card, Shown, Table

ENDING_NAMES = ("full stop", "question mark", "other mark", "no mark")
"""How a prompt may end."""


@dataclass(frozen=True, kw_only=True)
class CheckedPart:
    """One part of a set on this machine."""

    label: str
    """Kind and split."""
    rows: int
    """Prompts that were read; rows of the file where the set has no label of prompts."""
    published: int | None
    """Published number of rows; None where it is not recorded."""
    repeated: int
    """Prompts that an earlier one of the part is, word for word."""
    endings: Mapping[str, float]
    """Share of prompts by how they end; empty where the set has no label of prompts."""

    @property
    def whole(self) -> bool | None:
        """Whether there are as many rows as published; None where that is not recorded."""
        return None if self.published is None else self.rows == self.published


@dataclass(frozen=True, kw_only=True, repr=False)
class CheckedSet(Shown):
    """A named set on this machine."""

    name: str
    files: tuple[str, ...]
    """Its files."""
    ends: str | None
    """How its prompts are said to end."""
    parts: tuple[CheckedPart, ...]

    def _card(self) -> Card:
        rows = [
            [
                part.label,
                part.rows,
                "not recorded" if part.published is None else part.published,
                part.repeated,
                *(f"{part.endings[name]:.0%}" if part.endings else "" for name in ENDING_NAMES),
            ]
            for part in self.parts
        ]
        header = ["part", "rows", "published", "repeated", *ENDING_NAMES]
        short = [part.label for part in self.parts if part.whole is False]
        return Card(
            title=f"{self.name}: {len(self.files)} files, unchanged since first use",
            facts={"files": ", ".join(self.files), "said to end": self.ends or "not recorded"},
            tables=[Table(header=header, rows=rows)],
            notes=[f"not as many rows as published: {', '.join(short)}"] if short else [],
        )


def check_set(found: DataSet) -> CheckedSet:
    """Read every part of a set that is on this machine and compare it with what is published.

    Raises:
        ValueError: not on this machine, changed since first use, or not readable.
    """
    files = checked_files(found)
    return CheckedSet(
        name=found.name,
        files=tuple(dict.fromkeys(str(file) for of_part in files.values() for file in of_part)),
        ends=found.ends,
        parts=tuple(_checked_parts(found, files)),
    )


def _checked_parts(found: DataSet, files: Files) -> list[CheckedPart]:
    checked = []
    for part, of_part in files.items():
        if part.kind is None:
            rows = sum(1 for _ in named_rows(found.name, part.split))
            repeated, shares = 0, {}
        else:
            prompts = part_prompts(found, part, of_part)
            rows, repeated, shares = len(prompts), len(prompts) - len(set(prompts.texts)), endings(prompts)
        checked.append(
            CheckedPart(label=part.label, rows=rows, published=part.rows, repeated=repeated, endings=shares)
        )
    return checked


def endings(prompts: Prompts | Sequence[str]) -> dict[str, float]:
    """Share of prompts that end with each of `ENDING_NAMES`; of none, all are 0."""
    texts = [text.rstrip() for text in (prompts.texts if isinstance(prompts, Prompts) else prompts)]
    counts = dict.fromkeys(ENDING_NAMES, 0)
    for text in texts:
        last = text[-1:]
        name = (
            "full stop"
            if last in ".。" and last
            else "question mark"
            if last in "?？" and last
            else "other mark"
            if last and last in CLOSING
            else "no mark"
        )
        counts[name] += 1
    return {name: count / max(1, len(texts)) for name, count in counts.items()}
