"""Run folders on disk: written atomically, readable without a model, typed.

    <run>/result.json           the experiment's typed result: numbers, tables, provenance (or result.json.gz)
    <run>/tensors.safetensors   directions and other tensors
    <run>/figures/*.json        Plotly figures
    <run>/report.html           one page that opens offline

A run is written to a hidden folder beside its target and renamed, so that a killed run leaves the old result or none.
The working folder itself (`--out .`) is not renamed but emptied and filled, since a shell stands in it; a kill in the
middle is completed at the next start. The finished stages of a killed run are kept by `interp.storage.stages`.

`result.json` and `tensors.safetensors` each hold a hash of their own content, so that a number changed afterwards is
not taken for a measured one. Runs without the hash, written before it was recorded, are read as they are.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from interp.storage.atomic_files import draft_folder, write_tensors
from interp.storage.locks import folder_lock, resolved
from interp.storage.paths import expanded
from interp.storage.typed_json import from_plain, read_json, to_plain

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from torch import Tensor

FORMAT_VERSION = 2
RESULT_NAMES = ("result.json", "result.json.gz")


class Header(NamedTuple):
    """Header of a `result.json`, with its result still untyped."""

    experiment: str
    """Name of the experiment."""
    body: dict[str, Any]
    """The experiment's result as plain JSON values."""
    path: Path
    """Path of the file."""
    sha256: str | None = None
    """Hash of name and result as they were written; None in runs written before it was recorded."""


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
    with replacing_folder(expanded(folder)) as draft:
        body = to_plain(result, type(result))
        payload = {
            "format_version": FORMAT_VERSION,
            "experiment": experiment,
            "sha256": _content_hash(experiment, body),
            **body,
        }
        (draft / "result.json").write_text(json.dumps(payload, indent=1, allow_nan=False) + "\n")
        if tensors:
            from interp.storage.tensor_files import sealed

            write_tensors(draft / "tensors.safetensors", tensors, sealed({}, tensors))
        if figures:
            (draft / "figures").mkdir()
            for name, figure in figures.items():
                (draft / "figures" / f"{name}.json").write_text(str(figure.to_json()))
        if isinstance(report, str):
            (draft / "report.html").write_text(report, encoding="utf-8")
        for name, data in (files or {}).items():
            (draft / name).write_bytes(data)
    return expanded(folder)


def result_file(folder: str | Path) -> Path | None:
    """The result of a run folder: `result.json`, or `result.json.gz` as published runs have it; None without one."""
    paths = (expanded(folder) / name for name in RESULT_NAMES)
    return next((path for path in paths if path.is_file()), None)


def stored_json(folder: str | Path) -> dict[str, Any]:
    """The result of a run folder as plain JSON values, header included, as it was written.

    Raises:
        ValueError: not a run folder, or a damaged one.
    """
    return read_json(_existing(expanded(folder)), dict[str, Any], remedy="run the experiment again")


def _existing(folder: Path) -> Path:
    path = result_file(folder)
    if path is None:
        raise ValueError(f"{folder} holds no result.json; is it the --out of a finished run?")
    return path


def read_header(folder: str | Path) -> Header:
    """The experiment's name and the untyped body of a run folder's `result.json`.

    Raises:
        ValueError: not a run folder, unreadable JSON, or a format this version does not know.
    """
    folder = expanded(folder)
    recover(folder)
    path = _existing(folder)
    body: dict[str, Any] = read_json(path, dict[str, Any], remedy="run the experiment again")
    version, name, sha256 = (body.pop(key, None) for key in ("format_version", "experiment", "sha256"))
    if version != FORMAT_VERSION or not isinstance(name, str):
        again = f"`interp run {name} --out {folder}`" if isinstance(name, str) else "the command that made it"
        raise ValueError(
            f"{path} has format_version {version}, this interp reads {FORMAT_VERSION}; make it again with {again}, or "
            "install the interp that wrote it (see its provenance)"
        )
    return Header(name, body, path, None if sha256 is None else str(sha256))


def read_result(header: Header, kind: type[Any]) -> Any:
    """Read the typed result of a run.

    Raises:
        ValueError: a field is missing or of another type, in which case the message names the file and the path inside
            it, or a value is not the one that was written.
    """
    result = from_plain(kind, header.body, source=str(header.path))
    if header.sha256 not in (None, _content_hash(header.experiment, header.body)):
        raise ValueError(
            f"{header.path} was changed after it was written (its numbers are not those of its sha256); restore it, or "
            "run the experiment again"
        )
    return result


def _content_hash(experiment: str, body: Mapping[str, Any]) -> str:
    """SHA-256 of an experiment's name and plain result, whatever their layout in the file."""
    return hashlib.sha256(json.dumps([experiment, body], sort_keys=True).encode()).hexdigest()


def read_tensors(folder: str | Path) -> "dict[str, Tensor]":
    """Read the tensors of a run; empty where none were stored.

    Raises:
        ValueError: the file is damaged.
    """
    from interp.storage.tensor_files import check_seal, read_safetensors

    stored, remedy = expanded(folder) / "tensors.safetensors", "run the experiment again"
    if not stored.is_file():
        return {}
    file = read_safetensors(stored, remedy=remedy)
    check_seal(file, stored, remedy=remedy)
    return file.tensors


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A draft folder that replaces `folder` when the context exits normally and is removed otherwise."""
    folder = resolved(folder)
    with folder_lock(folder):
        recover(folder)
        _check_replaceable(folder)
        with draft_folder(folder) as draft:
            yield draft
            draft.chmod(0o755)
            if folder == Path.cwd():
                draft.rename(_whole(folder))
                _fill(folder)
                return
            old = _aside(folder)
            if folder.exists():
                folder.rename(old)
            draft.rename(folder)
            shutil.rmtree(old, ignore_errors=True)


def check_target(folder: Path) -> None:
    """Find whether a run could be stored here, before it is computed.

    Raises:
        ValueError: the folder is a file, contains other files but no result, is being written by another run, or cannot
            be written.
    """
    recover(folder)
    _check_replaceable(resolved(folder))
    check_writable(folder)


def check_writable(path: Path) -> None:
    """Find whether a file or folder of this path could be made, without making it.

    Raises:
        ValueError: something in the way, no permission, or another process that is writing it.
    """
    try:
        with folder_lock(path):
            pass
    except OSError as error:
        place = error.filename or resolved(path).parent
        raise ValueError(
            f"cannot write {path}: {place}: {str(error.strerror).lower()}; give another --out"
        ) from None


def _check_replaceable(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give a folder")
    if folder.is_dir() and any(folder.iterdir()) and result_file(folder) is None:
        raise ValueError(f"{folder} holds other files and no result; give a new or empty folder")


def _aside(folder: Path) -> Path:
    """Name of an older result while a new one takes its place."""
    return folder.with_name(f".{folder.name}.old")


def _whole(folder: Path) -> Path:
    """Name of a whole new result whose folder has yet to be emptied for it."""
    return folder.with_name(f".{folder.name}.new")


def _moving(folder: Path) -> Path:
    """Name of a whole new result that is being moved into its empty folder."""
    return folder.with_name(f".{folder.name}.moving")


def _fill(folder: Path) -> None:
    """Replace the files of a folder by those of the whole new result beside it; goes on where a kill stopped it."""
    if _whole(folder).is_dir():
        for entry in sorted(folder.iterdir(), key=lambda path: path.name in RESULT_NAMES):
            # The old result goes last: while it is there, so is the right to remove what lies beside it.
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        _whole(folder).rename(_moving(folder))
    if _moving(folder).is_dir():
        for entry in sorted(_moving(folder).iterdir(), key=lambda path: path.name in RESULT_NAMES):
            entry.rename(folder / entry.name)
        _moving(folder).rmdir()


def recover(folder: Path) -> None:
    """Complete or undo the replacement of a result that a kill interrupted between two renames."""
    folder = resolved(folder)
    if not any(rest.is_dir() for rest in (_aside(folder), _whole(folder), _moving(folder))):
        return
    try:
        with folder_lock(folder):
            _fill(folder)
            if not (old := _aside(folder)).is_dir():
                return
            if folder.exists():
                shutil.rmtree(old, ignore_errors=True)
            else:
                old.rename(folder)
    except ValueError:  # another process is between the two renames now
        return
