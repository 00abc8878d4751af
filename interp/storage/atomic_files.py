"""Atomic writes, and conversion of values to JSON types."""

import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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


def plain(value: Any) -> Any:
    """A JSON-serialisable copy: NaN and infinity become null, dataclasses dicts, tensors lists."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if not isinstance(value, type) and hasattr(
        value, "data_ptr"
    ):  # a tensor, without importing torch to find out
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
