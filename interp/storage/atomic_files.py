"""Atomic writes and removals of files and folders, and writing of tensors.

A file or folder is written under a hidden name beside its target and renamed: after a kill the target is the old one,
the new one, or absent. The name of a draft says which process writes it, so that the next writer of the same target
removes those of processes that are gone.

    .<name>.draft-<host>-<pid>-<random>     being written
    .<name>.removed-<random>                being removed
"""

import glob
import os
import platform
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from interp.storage.paths import expanded

if TYPE_CHECKING:
    from torch import Tensor

_DRAFT = re.compile(r"\.draft-(?P<host>.*)-(?P<pid>\d+)-[^-]+")


def write_file(path: Path, data: bytes) -> None:
    """Write a file atomically.

    Raises:
        OSError: the disk is full or not writable; an older file is untouched.
    """
    with replacing_file(path) as draft:
        draft.write_bytes(data)


def write_tensors(
    path: Path, tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors and metadata to a safetensors file; not atomic by itself.

    Raises:
        OSError: the disk is full or not writable.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        # A contiguous copy of each: safetensors rejects tensors that share memory.
        plain = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
        save_file(plain, path, None if metadata is None else dict(metadata))
    except SafetensorError as error:  # how safetensors reports a full disk
        raise OSError(f"cannot write {path}: {error}") from error


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Path of a draft that replaces `path` when the context exits normally and is removed otherwise."""
    path = expanded(path)  # readers of all formats expand `~`
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_strays(path)
    draft = path.with_name(_draft_name(path))
    try:
        yield draft
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise OSError(error.errno, f"cannot write {path} ({error.strerror or error})") from error
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


@contextmanager
def draft_folder(target: Path) -> Iterator[Path]:
    """A new folder beside `target`, on the same disk; what is left of it is removed when the context exits."""
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_strays(target)
    draft = target.with_name(_draft_name(target))
    draft.mkdir()
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder atomically: it is renamed before its files are deleted, so that no part of it counts.

    What killed processes left of earlier removals is removed as well, whether the folder is still there or not.
    """
    remove_strays(folder)
    if folder.is_dir():
        away = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.removed-"))
        folder.rename(away / "folder")
        shutil.rmtree(away, ignore_errors=True)


def remove_strays(target: Path) -> None:
    """Remove what killed processes left of drafts and removals of this file or folder."""
    name = glob.escape(target.name)
    for stray in target.parent.glob(f".{name}.removed-*"):
        _delete(stray)
    for draft in target.parent.glob(f".{name}.draft-*"):
        if _is_abandoned(draft, target.name):
            _delete(draft)


def _draft_name(target: Path) -> str:
    return f".{target.name}.draft-{platform.node()}-{os.getpid()}-{secrets.token_hex(4)}"


def _is_abandoned(draft: Path, name: str) -> bool:
    """Whether the process that writes a draft is gone; False for another machine's."""
    import psutil

    match = _DRAFT.fullmatch(draft.name.removeprefix(f".{name}"))
    if match is None or match["host"] != platform.node():
        return False
    try:
        # A process that began after the draft was made has only inherited the number.
        return psutil.Process(int(match["pid"])).create_time() > draft.stat().st_ctime + 1
    except (psutil.Error, OSError):
        return True


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
