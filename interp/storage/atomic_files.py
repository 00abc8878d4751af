"""Atomic writes of files, and of tensors."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def write_file(path: Path, data: bytes) -> None:
    """Write a file atomically.

    Raises:
        OSError: the disk is full or not writable; an older file is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
        Path(draft).chmod(0o644)  # mkstemp creates private files
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise


def write_tensors(path: Path, tensors: "Mapping[str, Tensor]") -> None:
    """Write tensors to a safetensors file; not atomic by itself.

    Raises:
        OSError: the disk is full or not writable.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        # A contiguous copy of each: safetensors rejects tensors that share memory.
        save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, path)
    except SafetensorError as error:  # how safetensors reports a full disk
        raise OSError(f"cannot write {path}: {error}") from error
