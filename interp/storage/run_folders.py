"""Results on disk: one folder a run, written whole or not at all, readable without a model.

    <run>/result.json           numbers, tables, provenance
    <run>/tensors.safetensors   directions and other tensors
    <run>/figures/*.json        Plotly figures
    <run>/report.html           one page that opens offline

A run is written to a hidden folder beside its target and renamed, so a killed run leaves the old result or none.
While a long run works, `Parts` keeps what is finished in `<run>.parts/`; the same run started again continues there.
"""

import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from interp.display.cards import Card, Shown, result_card
from interp.storage.atomic_files import plain, write_tensors

if TYPE_CHECKING:
    import plotly.graph_objects as go

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1


@dataclass(frozen=True, eq=False, kw_only=True)
class StoredResult:
    """What a run folder holds."""

    numbers: dict[str, Any]
    """Contents of `result.json`: rates, tables, `provenance`, `experiment`."""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """Contents of `tensors.safetensors`."""
    folder: Path | None = None
    """Where it was read from."""


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class ExperimentResult(Shown):
    """Base of an experiment's `Result`: what a run found, drawn by its module's functions from the numbers alone."""

    numbers: dict[str, Any]
    """As in `result.json`."""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """As in `tensors.safetensors`."""

    def figures(self) -> "dict[str, go.Figure]":
        """All figures by name."""
        return self._experiment.figures(self.numbers)

    def save(self, folder: str | Path) -> Path:
        """Write the run folder: result, tensors, figures, report, and what else the experiment keeps."""
        return save_result(
            folder,
            self.numbers,
            tensors=self.tensors,
            figures=self.figures(),
            report=self._experiment.report(self.numbers),
            files=self._files(),
        )

    def _files(self) -> dict[str, bytes]:
        return {}

    @property
    def _experiment(self) -> Any:
        return sys.modules[type(self).__module__]

    def _card(self) -> Card:
        return result_card(self.numbers, self._experiment)


def save_result(
    folder: str | Path,
    numbers: Mapping[str, Any],
    *,
    tensors: Mapping[str, Tensor] | None = None,
    figures: Mapping[str, Any] | None = None,
    report: str | None = None,
    files: Mapping[str, bytes] | None = None,
) -> Path:
    """Write a run folder atomically, replacing an older one; returns its path.

    Args:
        figures: name → `plotly.graph_objects.Figure`.
        report: HTML of the report.
        files: name → content of further files.

    Raises:
        OSError: the disk is full or not writable; the older result, if any, is untouched.
    """
    with replacing_folder(Path(folder)) as draft:
        payload = {"format_version": FORMAT_VERSION, **plain(numbers)}
        (draft / "result.json").write_text(json.dumps(payload, indent=1, allow_nan=False) + "\n")
        if tensors:
            write_tensors(draft / "tensors.safetensors", tensors)
        if figures:
            (draft / "figures").mkdir()
            for name, figure in figures.items():
                (draft / "figures" / f"{name}.json").write_text(figure.to_json())
        if report is not None:
            (draft / "report.html").write_text(report, encoding="utf-8")
        for name, data in (files or {}).items():
            (draft / name).write_bytes(data)
    return Path(folder)


def load_result(folder: str | Path) -> StoredResult:
    """Read a run folder.

    Raises:
        ValueError: not a run folder, unreadable JSON, or a format this version does not know.
    """
    folder = Path(folder)
    _recover(folder)
    path = folder / "result.json"
    if not path.is_file():
        raise ValueError(f"{folder} holds no result.json; is it the --out of a finished run?")
    try:
        numbers = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is damaged ({error.msg}, line {error.lineno}); run the experiment again"
        ) from error
    found = numbers.pop("format_version", None) if isinstance(numbers, dict) else None
    if found != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format_version {found}, this interp reads {FORMAT_VERSION}; "
            "install the interp that wrote it (see its provenance) or run the experiment again"
        )
    stored = folder / "tensors.safetensors"
    try:
        tensors = load_file(stored) if stored.is_file() else {}
    except SafetensorError as error:
        raise ValueError(f"{stored} is damaged ({error}); run the experiment again") from error
    return StoredResult(numbers=numbers, tensors=tensors, folder=folder)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A draft folder that takes the place of `folder` when the context ends well and vanishes otherwise."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "result.json").is_file():
        raise ValueError(f"{folder} holds other files and no result; give a new or empty folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    _recover(folder)
    draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        yield draft
        draft.chmod(0o755)
        old = _aside(folder)
        if folder.exists():
            folder.rename(old)
        draft.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _recover(folder: Path) -> None:
    """Put an older result back that a kill between two renames left aside."""
    old = _aside(folder)
    if old.is_dir():
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(folder)
