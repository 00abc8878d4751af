"""Tensors read from files of anybody's making: plain tensors, or one line that says what is wrong with the file.

Pickled files are opened with `weights_only=True` and nothing else. What torch says about a refused one is not passed
on, since it advises to switch that off.
"""

import hashlib
import json
import pickle
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from interp.storage.typed_json import first_line


class TensorFile(NamedTuple):
    """Content of a safetensors file."""

    metadata: dict[str, str]
    tensors: dict[str, Tensor]


def read_safetensors(path: Path, *, remedy: str = "make it again") -> TensorFile:
    """Metadata and all tensors of a safetensors file.

    Args:
        remedy: what to do about a damaged file, as the end of the message.

    Raises:
        ValueError: damaged, or another kind of file.
    """
    try:
        with safe_open(str(path), framework="pt") as stream:
            names = list(stream.keys())
            return TensorFile(stream.metadata() or {}, {name: stream.get_tensor(name) for name in names})
    except Exception as error:  # a reader of hostile bytes: errors of Rust, torch and Python
        reason = f"is not a safetensors file or is damaged ({first_line(error)})"
        raise ValueError(f"{path} {reason}; {remedy}") from error


def read_torch_file(path: Path, allowed: Sequence[Any] = ()) -> Any:
    """Content of a file that `torch.save` wrote, tensors and plain containers only.

    Args:
        allowed: further functions and classes that may be in it, as `torch.serialization.safe_globals` takes them.

    Raises:
        ValueError: damaged, or pickled objects of other kinds, which could run code.
    """
    try:
        with torch.serialization.safe_globals(list(allowed)), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            found = torch.load(path, map_location="cpu", weights_only=True)
            if zipfile.is_zipfile(path) and (
                record := zipfile.ZipFile(path).testzip()
            ):  # torch checks no sums
                raise ValueError(f"{record} is damaged")
            return found
    except Exception as error:  # a reader of hostile bytes
        if path.stat().st_size == 0:
            reason = "it is empty"
        elif isinstance(error, pickle.UnpicklingError):
            reason = "it is damaged, or pickles more than tensors, which could run code"
        else:
            reason = "it is damaged"
        raise ValueError(
            f"cannot read {path} as weights-only: {reason}; save the tensor alone, as .safetensors"
        ) from error


def plain_tensor(found: Any, path: Path) -> Tensor:
    """A tensor of numbers as float32.

    Raises:
        ValueError: no tensor, or one that is sparse, quantised, complex or without values.
    """
    if not isinstance(found, Tensor):
        raise ValueError(f"{path} holds a {type(found).__name__}, not a tensor")
    if found.layout != torch.strided or found.is_quantized or found.is_meta or found.is_nested:
        raise ValueError(f"{path} holds a sparse, nested, quantised or empty tensor; save plain numbers")
    if found.is_complex() or found.dtype == torch.bool:
        raise ValueError(f"{path} holds {found.dtype}; save floats")
    return found.detach().to(torch.float32)


def sealed(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Metadata with a hash of itself and the tensors, by which damage is found."""
    return {**metadata, "sha256": _file_hash(metadata, tensors)}


def format_version(file: TensorFile, path: Path, known: int) -> int:
    """The version of a format of ours; from version 2 on a file holds its hash.

    Raises:
        ValueError: a version newer than `known`, or none, or one that holds a hash in a file that does not.
    """
    version = file.metadata.get("format_version", "")
    if not (version.isascii() and version.isdigit() and len(version) < 5 and int(version) > 0):
        raise ValueError(f"{path} is damaged (format_version {version[:20]!r}); make it again")
    if int(version) > known:
        raise ValueError(
            f"{path} has format_version {version}, this interp reads up to {known}; upgrade interp"
        )
    if int(version) > 1 and "sha256" not in file.metadata:
        raise ValueError(f"{path} is damaged (no sha256 in it); make it again")
    return int(version)


def _file_hash(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    plain = sorted((key, value) for key, value in metadata.items() if key != "sha256")
    digest = hashlib.sha256(json.dumps(plain).encode())
    for name, tensor in sorted(tensors.items()):
        raw: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}\0".encode())
        digest.update(raw)
    return digest.hexdigest()


def check_seal(file: TensorFile, path: Path, *, remedy: str) -> None:
    """Raise a ValueError unless metadata and tensors are those that were written, where the file says so."""
    stored = file.metadata.get("sha256")
    if stored is not None and stored != _file_hash(file.metadata, file.tensors):
        raise ValueError(f"{path} is damaged (its content is not what was written); {remedy}")


def check_tensors(file: TensorFile, path: Path, *, remedy: str) -> None:
    """Raise a ValueError unless the tensors are those that were written, where the file says so, and finite."""
    check_seal(file, path, remedy=remedy)
    for name, tensor in file.tensors.items():
        if not tensor.is_floating_point() or tensor.numel() == 0 or not torch.isfinite(tensor).all():
            raise ValueError(f"{path} is damaged ({name} holds no values, NaN, or no floats); {remedy}")
