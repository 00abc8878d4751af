"""Run folders on disk: written atomically, readable without a model, typed.

    <run>/result.json           the experiment's typed result: numbers, tables, provenance
    <run>/tensors.safetensors   directions and other tensors
    <run>/figures/*.json        Plotly figures
    <run>/report.html           one page that opens offline

A run is written to a hidden folder beside its target and renamed, so that a killed run leaves the old result or none.
The finished stages of a killed run are kept by `interp.storage.stages`.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from interp.storage.atomic_files import write_tensors
from interp.storage.typed_json import from_json, to_plain

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from torch import Tensor

FORMAT_VERSION = 2


class Header(NamedTuple):
    """Header of a `result.json`, with its result still untyped."""

    experiment: str
    """Name of the experiment."""
    body: dict[str, Any]
    """The experiment's result as plain JSON values."""
    path: Path
    """Path of the file."""


def write_run(
    folder: str | Path,
    experiment: str,
    result: Any,
    *,
    tensors: "Mapping[str, Tensor] | None" = None,
    figures: "Mapping[str, go.Figure] | None" = None,
    report: str | None = None,
    files: Mapping[str, bytes] | None = None,
) -> Path:
    """Write a run folder atomically, replacing an older one; returns its path.

    Args:
        result: a frozen dataclass.
        figures: figures by name.
        report: HTML of the report.
        files: content of further files by name.

    Raises:
        ValueError: the folder is a file, or contains other files but no result.
        OSError: the disk is full or not writable; the older result, if any, is untouched.
    """
    with replacing_folder(Path(folder)) as draft:
        payload = {
            "format_version": FORMAT_VERSION,
            "experiment": experiment,
            **to_plain(result, type(result)),
        }
        (draft / "result.json").write_text(json.dumps(payload, indent=1, allow_nan=False) + "\n")
        if tensors:
            write_tensors(draft / "tensors.safetensors", tensors)
        if figures:
            (draft / "figures").mkdir()
            for name, figure in figures.items():
                (draft / "figures" / f"{name}.json").write_text(str(figure.to_json()))
        if isinstance(report, str):
            (draft / "report.html").write_text(report, encoding="utf-8")
        for name, data in (files or {}).items():
            (draft / name).write_bytes(data)
    return Path(folder)


def read_header(folder: str | Path) -> Header:
    """The experiment's name and the untyped body of a run folder's `result.json`.

    Raises:
        ValueError: not a run folder, unreadable JSON, or a format this version does not know.
    """
    folder = Path(folder)
    recover(folder)
    path = folder / "result.json"
    if not path.is_file():
        raise ValueError(f"{folder} holds no result.json; is it the --out of a finished run?")
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); run the experiment again") from None
    if not isinstance(body, dict):
        raise ValueError(f"{path} is damaged (no JSON object); run the experiment again")
    version, name = body.pop("format_version", None), body.pop("experiment", None)
    if version != FORMAT_VERSION or not isinstance(name, str):
        again = f"`interp run {name} --out {folder}`" if isinstance(name, str) else "the command that made it"
        raise ValueError(
            f"{path} has format_version {version}, this interp reads {FORMAT_VERSION}; make it again with {again}, or "
            "install the interp that wrote it (see its provenance)"
        )
    return Header(name, body, path)


def read_result(header: Header, kind: type[Any]) -> Any:
    """Read the typed result of a run.

    Raises:
        ValueError: a field is missing or of another type; the message names the file and the path inside it.
    """
    return from_json(kind, json.dumps(header.body), source=str(header.path))


def read_tensors(folder: str | Path) -> "dict[str, Tensor]":
    """Read the tensors of a run; empty where none were stored.

    Raises:
        ValueError: the file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    stored = Path(folder) / "tensors.safetensors"
    try:
        return load_file(stored) if stored.is_file() else {}
    except SafetensorError as error:
        raise ValueError(f"{stored} is damaged ({error}); run the experiment again") from error


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A draft folder that replaces `folder` when the context exits normally and is removed otherwise."""
    _check_replaceable(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    recover(folder)
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


def check_target(folder: Path) -> None:
    """Find whether a run could be stored here, before it is computed.

    Raises:
        ValueError: the folder is a file, contains other files but no result, or cannot be written.
    """
    _check_replaceable(folder)
    check_writable(folder)


def check_writable(path: Path) -> None:
    """Find whether a file or folder of this path could be made, without making it.

    Raises:
        ValueError: something in the way, or no permission.
    """
    parent = path.absolute().parent
    while not parent.exists():
        parent = parent.parent
    try:
        with tempfile.TemporaryDirectory(dir=parent, prefix=".interp-"):
            pass
    except OSError as error:
        reason = str(error.strerror).lower()
        raise ValueError(f"cannot write {path}: {parent}: {reason}; give another --out") from None


def _check_replaceable(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "result.json").is_file():
        raise ValueError(f"{folder} holds other files and no result; give a new or empty folder")


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def recover(folder: Path) -> None:
    """Restore an older result that a kill between two renames left under its temporary name."""
    old = _aside(folder)
    if old.is_dir():
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(folder)
