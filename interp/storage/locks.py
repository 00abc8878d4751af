"""A lock on a run folder: one process writes it at a time, and a killed one holds nothing.

    with folder_lock(Path("runs/demo")):        # a second run with the same folder gets a ValueError
        ...

The lock is the operating system's on a hidden file beside the folder, `.<name>.lock`. It ends with its process, however
that ends; the file is removed by whoever holds the lock. Entering it again in the same thread is allowed.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from interp.storage.atomic_files import remove_strays
from interp.storage.paths import expanded


def resolved(folder: str | Path) -> Path:
    """The absolute path of a folder to be written, which has a name: `.` is the working folder's own.

    Raises:
        ValueError: the root of the file system, beside which nothing can be written.
    """
    path = expanded(folder).resolve()
    if not path.name:
        raise ValueError(f"{folder} is the root of the file system; give a folder in it")
    return path


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold the lock on a folder, and remove what killed processes left of it.

    Raises:
        ValueError: another process, or another thread of this one, is writing the folder.
        OSError: the place of the folder is not writable.
    """
    from filelock import FileLock, Timeout  # loads asyncio

    folder = resolved(folder)
    made = _make_parents(folder)
    path = folder.with_name(f".{folder.name}.lock")
    lock = FileLock(path, is_singleton=True)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        if not _is_held(path):
            raise OSError(errno.EACCES, "nothing can be written there", str(folder.parent)) from None
        raise ValueError(
            f"{folder} is being written by another run{_holder(path)}; wait until it ends, or give another folder"
        ) from None
    try:
        if lock.lock_counter == 1:
            path.write_text(str(os.getpid()))
            remove_strays(folder)
        yield
    finally:
        if lock.lock_counter == 1:  # still held: nobody can take a file that vanishes under it
            path.unlink(missing_ok=True)
        lock.release()
        if not folder.exists():
            _remove_empty(made)


def _is_held(path: Path) -> bool:
    """Whether a lock that could not be had is a file at all: in some places none can be made, and no error says so."""
    try:
        path.touch()
    except OSError:
        return False
    return True


def _holder(path: Path) -> str:
    try:
        return f" (process {int(path.read_text())})"
    except (OSError, ValueError):
        return ""


def _make_parents(folder: Path) -> list[Path]:
    """Make the folders above; returns those that were not there, innermost first."""
    missing = [parent for parent in folder.parents if not parent.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    return missing


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return
