"""Results and parts as they were before they were typed."""

import hashlib
import json
import logging
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from interp.display.cards import Card, Shown, result_card
from interp.storage.atomic_files import plain, write_file, write_tensors
from interp.storage.run_folders import recover, replacing_folder

if TYPE_CHECKING:
    import plotly.graph_objects as go

logger = logging.getLogger(__name__)


class Parts:
    """Finished parts of a run, kept until it is whole, so that a killed run continues.

    Parts made under other settings are discarded; parts made by other code of this library are kept, with a warning.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any]) -> None:
        target = Path(folder)
        self.folder = target.with_name(f"{target.name}.parts")
        key = hashlib.sha256(json.dumps(plain(settings), sort_keys=True).encode()).hexdigest()
        stamp = self.folder / "settings.sha256"
        if self.folder.is_dir() and (not stamp.is_file() or stamp.read_text() != key):
            logger.warning("%s holds parts of a run with other settings; starting anew", self.folder)
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_file(stamp, key.encode())
        code, made_by = _code_hash(), self.folder / "code.sha256"
        if not made_by.is_file():
            write_file(made_by, code.encode())
        elif made_by.read_text() != code:
            logger.warning(
                "%s holds parts that another version of interp made; remove it to compute them anew",
                self.folder,
            )

    def numbers(self, name: str, compute: Callable[[], Any]) -> Any:
        """A JSON-able part: read when finished before, else computed and kept."""
        path = self.folder / f"{name}.json"
        if path.is_file():
            logger.info("continuing: %s is there", name)
            return json.loads(path.read_text())
        value = plain(compute())
        write_file(path, json.dumps(value).encode())
        return value

    def tensors(self, name: str, compute: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """A part made of tensors: read when finished before, else computed and kept."""
        path = self.folder / f"{name}.safetensors"
        if not path.is_file():
            draft = self.folder / f".{name}.safetensors"
            write_tensors(draft, compute())
            draft.replace(path)
        else:
            logger.info("continuing: %s is there", name)
        return load_file(path)

    def discard(self) -> None:
        """Remove the parts; the run is whole."""
        shutil.rmtree(self.folder, ignore_errors=True)


@cache
def _code_hash() -> str:
    """Of the library's source files."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(str(file.relative_to(package)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


class Stopwatch:
    """Seconds by stage, for provenance."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._begun = time.perf_counter()

    @property
    def with_total(self) -> dict[str, float]:
        """Seconds by stage, and their sum as `total`."""
        return {**self.seconds, "total": round(sum(self.seconds.values()), 3)}

    def lap(self, stage: str) -> None:
        """Book the time since the last lap under this stage."""
        now = time.perf_counter()
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + now - self._begun, 3)
        self._begun = now


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
    recover(folder)
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
