"""Two stored runs side by side: what differs in their settings, and in their results with intervals.

interp.compare_runs("figures/demo", "figures/demo-qwen2.5-coder-0.5b")
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from interp.display.cards import Card, Shown, Table
from interp.experiments.definition import Run
from interp.experiments.running import open_run
from interp.stats import Estimate


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Comparison(Shown):
    """Differences between two runs of one experiment."""

    runs: tuple[Run[Any], Run[Any]]
    """The two."""
    settings: tuple[tuple[str, str, str], ...]
    """Model, prompts and settings that differ: name, first, second."""
    results: tuple[tuple[str, str, str, str], ...]
    """Estimates and numbers that differ: path, first, second, and `apart` where two intervals do not meet."""

    @property
    def tables(self) -> tuple[Table, Table]:
        """Settings, then results."""
        names = [str(run.folder) if run.folder is not None else "computed now" for run in self.runs]
        return (
            Table(header=["asked", *names], rows=[list(row) for row in self.settings]),
            Table(header=["found", *names, "95% intervals"], rows=[list(row) for row in self.results]),
        )

    def _card(self) -> Card:
        name = self.runs[0].experiment.name
        apart = sum(row[-1] == "apart" for row in self.results)
        notes = [f"{len(self.results)} numbers differ; the intervals of {apart} do not meet."]
        return Card(title=f"{name}: two runs compared", tables=self.tables, notes=notes)


def compare_runs(first: "Run[Any] | str | Path", second: "Run[Any] | str | Path") -> Comparison:
    """What differs between two runs of one experiment, in what was asked and in what was found.

    Args:
        first: a run, or its folder.
        second: likewise.

    Raises:
        ValueError: runs of different experiments, or a folder that holds none.
    """
    a, b = (run if isinstance(run, Run) else open_run(run) for run in (first, second))
    if a.experiment.name != b.experiment.name:
        raise ValueError(
            f"runs of one experiment can be compared, got {a.experiment.name} and {b.experiment.name}"
        )
    asked = [_asked(run) for run in (a, b)]
    leaves = [dict(_leaves(run.result)) for run in (a, b)]
    return Comparison(
        runs=(a, b),
        settings=tuple(
            (name, str(asked[0].get(name, "")), str(asked[1].get(name, "")))
            for name in dict.fromkeys([*asked[0], *asked[1]])
            if asked[0].get(name) != asked[1].get(name)
        ),
        results=tuple(
            (path, _text(one), _text(two), _apart(one, two))
            for path in sorted(
                dict.fromkeys([*leaves[0], *leaves[1]]), key=lambda p: not _estimated(p, leaves)
            )
            if _text(one := leaves[0].get(path)) != _text(two := leaves[1].get(path))
        ),
    )


def _asked(run: Run[Any]) -> dict[str, Any]:
    """Model, prompts and settings, by name."""
    about, asked = run.provenance, dict[str, Any]()
    if about.model is not None:
        parts = (
            "model",
            "revision",
            "adapter",
            "weights_hash",
            "template_hash",
            "dtype",
            "precision",
            "device",
        )
        asked |= {name: getattr(about.model, name) for name in parts}
    if about.prompts is not None:
        asked |= {"prompts": about.prompts.name, "ending": about.prompts.ending}
        asked |= {f"prompts {name}": split.hash[:12] for name, split in about.prompts.splits.items()}
    return asked | {f.name: getattr(run.result.config, f.name) for f in fields(run.result.config)}


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Estimate | float | int | str | None]]:
    """Every estimate, number and text of a result, by its path; lists of more than 40 are left out."""
    if isinstance(value, Estimate) or value is None or isinstance(value, (int, float, str)):
        yield path, value
    elif is_dataclass(value):
        left_out = ("provenance", "seconds", "config") if not path else ()
        for entry in fields(value):
            if entry.name not in left_out:
                yield from _leaves(getattr(value, entry.name), f"{path}.{entry.name}".lstrip("."))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}")
    elif isinstance(value, (list, tuple)) and len(value) <= 40:
        for number, item in enumerate(value):
            yield from _leaves(item, f"{path}.{number}")


def _estimated(path: str, found: list[dict[str, Any]]) -> bool:
    """Whether both runs have an estimate there; those come first."""
    return all(isinstance(leaves.get(path), Estimate) for leaves in found)


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) and math.isfinite(value) else str(value)


def _apart(one: Any, two: Any) -> str:
    if not (isinstance(one, Estimate) and isinstance(two, Estimate)):
        return ""
    return "apart" if one.above(two) or one.below(two) else ""
