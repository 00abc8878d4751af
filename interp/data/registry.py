"""Named public data sets: where each comes from, its licence and columns, and which of its rows are harmful.

    data_set("xstest").licence                     # "CC-BY-4.0"
    load_prompts("advbench+alpaca")                # harmful prompts of one set, harmless ones of another
    load_prompts("jailbreakbench:harmful+alpaca")  # one kind of a set that has several

The table is `assets/registry.toml`. No data set is part of this project: its files are downloaded by
`interp data fetch`, or by hand into the folder that the error names (`interp.data.downloads`). A revision is a commit
of the Hub set or of the GitHub repository, and None where none is known that others pin as well.
"""

import tomllib
from collections.abc import Mapping
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from interp.data.prompt_sets import Kind, Split
from interp.storage.settings import problem

SetKind = Literal["harmful", "harmless", "borderline", "jailbreak", "preference", "multiple choice"]
"""What a set is mainly made for; its parts say what its prompts are."""
SET_KINDS: tuple[SetKind, ...] = get_args(SetKind)
"""All kinds of sets."""
Where = tuple[Mapping[str, tuple[str, ...]], ...]
"""Conditions on columns, of which the first whose column a file has decides: `{column: patterns}`, `!` for not."""

_TABLE = Path(__file__).parent / "assets" / "registry.toml"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SetPart(_Strict):
    """Some rows of a set: the files that they are in, and which of their rows."""

    kind: Kind | None = None
    """What the prompts are; None where the set has no label of prompts."""
    split: Split | None = None
    """The set's own split; None for a set without one."""
    rows: int | None = None
    """Published number of rows; None where it is not recorded here."""
    download: tuple[str, ...] = ()
    """Paths of the files at the source; empty where they are not recorded here."""
    files: tuple[str, ...]
    """Patterns of names of downloaded files, lower case, without the ending; the first that matches decides."""
    several: bool = False
    """Whether all files that match belong to the part, not one alone."""
    lines: bool = False
    """Whether a file holds one prompt a line, without a header, whatever its ending says."""
    where: Where = ()
    """Which rows belong to the part; all when empty."""
    sha256: Mapping[str, str] = Field(default_factory=dict)
    """Published hash of a file by its name."""

    def __hash__(self) -> int:
        return hash((self.kind, self.split, self.files))

    @property
    def label(self) -> str:
        """Kind and split, for messages and records."""
        return "/".join(filter(None, (self.kind, self.split))) or "all rows"


class Columns(_Strict):
    """Names of columns, lower case, the first that a file has being used."""

    prompt: tuple[str, ...]
    category: tuple[str, ...] = ()
    id: tuple[str, ...] = ()
    answer: tuple[str, ...] = ()
    label: tuple[str, ...] = ()
    further_input: tuple[str, ...] = ()
    """Column of a text that belongs to the prompt; rows where it is not empty are left out."""


class DataSet(_Strict):
    """A named public data set."""

    name: str
    """Name, as `--prompts` takes it."""
    title: str
    """What it is, in a few words."""
    kind: SetKind
    """What it is mainly made for."""
    hub: str | None = None
    """Id on the Hub."""
    github: str | None = None
    """Repository on GitHub, where the set is published there."""
    revision: str | None = None
    """Commit of `github` if there is one, else of `hub`; None where it is not pinned."""
    licence: str
    """Licence of the data, as their publisher names it."""
    non_commercial: bool = False
    """Whether the licence excludes commercial use."""
    gated: bool = False
    """Whether the Hub gives the files only to an account that has agreed to terms."""
    ends: str | None = None
    """How its prompts end; None where it has not been recorded (`interp data check` measures it)."""
    citation: str
    """Authors, year, arXiv id."""
    columns: Columns
    """Columns of its files."""
    parts: tuple[SetPart, ...]
    """Its parts by kind and split."""

    @property
    def source(self) -> str:
        """Where its files are published, with the revision."""
        place = f"github.com/{self.github}" if self.github else f"huggingface.co/datasets/{self.hub}"
        return f"{place} at {self.revision[:12]}" if self.revision else f"{place} (not pinned)"

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Kinds of prompts that it has."""
        return tuple(dict.fromkeys(part.kind for part in self.parts if part.kind is not None))

    @property
    def rows(self) -> int | None:
        """Published number of rows, of all parts; None where one of them is not recorded."""
        counts = [part.rows for part in self.parts]
        return None if None in counts else sum(count for count in counts if count is not None)


@cache
def known_sets() -> Mapping[str, DataSet]:
    """Every named set, by name."""
    table = tomllib.loads(_TABLE.read_text(encoding="utf-8"))
    try:
        return {name: DataSet(name=name, **entry) for name, entry in table.items()}
    except ValidationError as error:
        raise ValueError(f"{_TABLE}: {problem(error)}") from None


def data_set(name: str) -> DataSet:
    """A named set; upper case, spaces, hyphens and underscores do not count.

    Raises:
        ValueError: unknown name.
    """
    found = _by_plain_name().get(plain_name(name))
    if found is None:
        raise ValueError(f"unknown data set {name!r}; known: {', '.join(known_sets())}")
    return found


def plain_name(name: str) -> str:
    """A name without case, spaces, hyphens and underscores, for comparison."""
    return "".join(char for char in name.lower() if char.isalnum())


@cache
def _by_plain_name() -> Mapping[str, DataSet]:
    return {plain_name(name): found for name, found in known_sets().items()}


def names_sets(source: str) -> bool:
    """Whether `a`, `a:kind` or `a+b:kind` names data sets, as `load_prompts` reads it; one known name is enough."""
    if "=" in source or "/" in source or source.startswith("hub:"):
        return False
    return any(plain_name(member.partition(":")[0]) in _by_plain_name() for member in source.split("+"))


def column_of(row: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    """The first of these columns that a row has, whatever its case; None where it has none."""
    have = {str(name).lower().strip(): str(name) for name in row}
    return next((have[name] for name in names if name in have), None)


def belongs(row: Mapping[str, Any], where: Where) -> bool:
    """Whether a row meets the conditions of a part."""
    have = {str(name).lower().strip(): value for name, value in row.items()}
    for condition in where:
        if all(column in have for column in condition):
            return all(_matches(have[column], patterns) for column, patterns in condition.items())
    return True


def _matches(value: Any, patterns: tuple[str, ...]) -> bool:
    text = "" if value is None else str(value).strip().lower()
    wanted = [pattern for pattern in patterns if not pattern.startswith("!")]
    if any(fnmatch(text, pattern[1:]) for pattern in patterns if pattern.startswith("!")):
        return False
    return not wanted or any(fnmatch(text, pattern) for pattern in wanted)
