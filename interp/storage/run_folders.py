"""Results on disk: one folder a run, written whole or not at all, readable without a model.

    <run>/result.json           numbers, tables, provenance
    <run>/tensors.safetensors   directions and other tensors
    <run>/figures/*.json        Plotly figures
    <run>/report.html           one page that opens offline

A run is written to a hidden folder beside its target and renamed, so a killed run leaves the old result or none.
While a long run works, `Parts` keeps what is finished in `<run>.parts/`; the same run started again continues there.
"""

import hashlib
import json
import logging
import math
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from interp.display.cards import Card, Shown, result_card

if TYPE_CHECKING:
    import plotly.graph_objects as go

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
_LIBRARIES = (
    "interp-workbench",
    "torch",
    "transformers",
    "transformer-lens",
    "numpy",
    "scikit-learn",
    "plotly",
)


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
        payload = {"format_version": FORMAT_VERSION, **_plain(numbers)}
        (draft / "result.json").write_text(json.dumps(payload, indent=1, allow_nan=False) + "\n")
        if tensors:
            _write_tensors(draft / "tensors.safetensors", tensors)
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


def write_file(path: Path, data: bytes) -> None:
    """Write a file atomically: complete or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
        Path(draft).chmod(0o644)  # mkstemp makes it private
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise


class Parts:
    """Finished parts of a run, kept until it is whole, so that a killed run continues.

    Parts made under other settings are discarded; parts made by other code of this library are kept, with a warning.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any]) -> None:
        target = Path(folder)
        self.folder = target.with_name(f"{target.name}.parts")
        key = hashlib.sha256(json.dumps(_plain(settings), sort_keys=True).encode()).hexdigest()
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
        value = _plain(compute())
        write_file(path, json.dumps(value).encode())
        return value

    def tensors(self, name: str, compute: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """A part made of tensors: read when finished before, else computed and kept."""
        path = self.folder / f"{name}.safetensors"
        if not path.is_file():
            draft = self.folder / f".{name}.safetensors"
            _write_tensors(draft, compute())
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


def provenance(model: Mapping[str, Any], prompts: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """What a result or direction carries of where it comes from.

    Args:
        model: `ChatModel.provenance`.
        prompts: `PromptSet.provenance`.
        config: an experiment's frozen `Config`, with a `seed`.
    """
    return {
        **model,
        "prompts": dict(prompts),
        "config": asdict(config),
        "seed": config.seed,
        "versions": library_versions(),
        "threads": torch.get_num_threads(),
    }


def library_versions() -> dict[str, str]:
    """Python's and the main libraries' versions."""
    found = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            found[library] = "not installed"
    return found


def _plain(value: Any) -> Any:
    """JSON-able copy: NaN and infinity become null, objects with `as_dict` become dicts."""
    if hasattr(value, "as_dict"):
        value = value.as_dict()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Tensor):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    try:
        # A fresh contiguous copy each: safetensors refuses tensors that share memory.
        save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, path)
    except SafetensorError as error:  # how safetensors reports a full disk
        raise OSError(f"cannot write {path}: {error}") from error


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
