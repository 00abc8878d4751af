"""Directions in files: this library's format and those of other tools.

| file | read | written |
|---|---|---|
| `*.safetensors` with our metadata | yes | yes |
| `direction.pt` + `direction_metadata.json` (refusal-direction) | yes | |
| `mean_diffs.pt`, shape [position, layer, d_model] | yes, with layer and position | |
| `*.pt` or `*.safetensors` tensor [layer, d_model] | yes, with layer | |
| llama.cpp GGUF control vector | yes, with layer | yes, additive only |
| `direction_evaluations.json` (refusal-direction) | yes, as a table | |
| `src/run/*` tensors (harmfulness) | yes, as tensors | |

Pickled files are opened with `weights_only=True` only. Control vectors have a file of their own
(`interp.storage.control_vectors`).
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import ConfigDict, Field
from safetensors.torch import save
from torch import Tensor

from interp.directions import Direction, check_vector
from interp.storage.atomic_files import write_file
from interp.storage.control_vectors import read_control_vector
from interp.storage.paths import expanded
from interp.storage.tensor_files import (
    TensorFile,
    check_tensors,
    format_version,
    plain_tensor,
    read_safetensors,
    read_torch_file,
    sealed,
)
from interp.storage.typed_json import first_line, from_plain, read_json

FORMAT = "interp-direction"
FORMAT_VERSION = 2

DirectionInput = Direction | Tensor | np.ndarray | Sequence[float | int] | str | Path
"""Types accepted as a direction: a `Direction`, plain numbers along d_model, or a direction file."""


def write_direction(path: str | Path, direction: Direction) -> Path:
    """Write a direction with its site, layer, position and provenance to a safetensors file, atomically."""
    path = expanded(path)
    write_file(path, direction_bytes(direction))
    return path


def direction_bytes(direction: Direction) -> bytes:
    """Content of a direction file."""
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "site": direction.site,
        "layer": str(direction.layer),
        "position": direction.position,
        "sign": direction.sign,
        "kind": direction.kind,
        "norm": repr(direction.norm),
        "mean_activation_norm": repr(direction.mean_activation_norm),
        "provenance": json.dumps(dict(direction.provenance)),
    }
    tensors = {"direction": direction.vector.detach().to("cpu", torch.float32).contiguous()}
    return save(tensors, sealed(metadata, tensors))


def read_direction(path: str | Path, *, layer: int | None = None, position: int | None = None) -> Direction:
    """Read a direction from any of the formats above.

    Args:
        layer: layer to read, where the file holds several.
        position: index into the file's position axis (may be negative), for `mean_diffs.pt`.

    Raises:
        ValueError: no such file, unknown format, newer format, missing or out-of-range layer or position, or values
            that are not finite.
    """
    path = expanded(path)
    if not path.is_file():
        raise ValueError(f"no such direction file: {path}")
    if path.suffix == ".gguf":
        return _from_layers(read_control_vector(path), layer, path)
    if path.suffix == ".safetensors":
        file = read_safetensors(path)
        tensors = file.tensors
        if file.metadata.get("format") == FORMAT:
            return _ours(file, path)
        if len(tensors) != 1:
            raise ValueError(
                f"{path} holds {len(tensors)} tensors and no interp metadata; save one tensor [layer, d_model]"
            )
        return _from_tensor(next(iter(tensors.values())), path, layer, position)
    if path.suffix in (".pt", ".pth", ".bin"):
        return _from_tensor(read_torch_file(path), path, layer, position)
    raise ValueError(f"{path}: unknown kind of direction file; known: .safetensors, .pt, .gguf")


def as_direction(given: DirectionInput) -> Direction | Tensor:
    """Return a direction unchanged, read it from a file, or convert plain numbers to a tensor of at least float32.

    Raises:
        ValueError: a file that cannot be read, or values that are not numbers along one axis.
    """
    if isinstance(given, (str, Path)):
        return read_direction(given)
    if isinstance(given, Direction):
        return given
    if isinstance(given, Tensor):
        vector = given
    else:
        try:
            # The float64 of numpy and Python exceeds the precision of activations.
            vector = torch.from_numpy(_real(given).astype(np.float32))
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                "a direction is a Direction, a tensor, a numpy vector, a list of numbers or a direction file; got "
                f"{type(given).__name__}"
            ) from error
    check_vector(vector)
    return vector


def _real(given: Any) -> np.ndarray:
    """Numbers as an array of native byte order.

    Raises:
        ValueError: complex numbers, truth values, text, or values that are masked.
    """
    values = np.asarray(given)
    if values.dtype == object:
        values = values.astype(np.float64)
    if values.dtype.kind not in "fiu" or np.ma.is_masked(given):
        raise ValueError("not real numbers")
    return values


@dataclass(frozen=True, kw_only=True)
class _Evaluation:
    """One candidate of a published `direction_evaluations.json`; a score that could not be computed is null or NaN."""

    position: int
    layer: int
    refusal_score: float | None
    steering_score: float | None
    kl_div_score: float | None


def read_direction_evaluations(path: str | Path) -> list[dict[str, Any]]:
    """Read the table for `selection.pick` from a published `direction_evaluations.json`.

    Source: artefacts of Arditi et al. 2024 (`andyrdt/refusal_direction`), one file per model with all candidates. NaN
    scores are kept.

    Raises:
        ValueError: no such file, no JSON list, or a row without one of its columns.
    """
    path = expanded(path)
    if not path.is_file():
        raise ValueError(f"no such file: {path}")
    remedy = "take direction_evaluations.json as it was published"
    rows = read_json(path, list[_Evaluation], remedy=remedy)
    if not rows:
        raise ValueError(f"{path} is damaged (it lists no candidates); {remedy}")
    return [
        {
            "position": row.position,
            "layer": row.layer,
            "bypass": math.nan if row.refusal_score is None else row.refusal_score,
            "induce": math.nan if row.steering_score is None else row.steering_score,
            "kl": math.nan if row.kl_div_score is None else row.kl_div_score,
        }
        for row in rows
    ]


def read_published_tensor(path: str | Path) -> Tensor:
    """Read a tensor of the harmfulness repository's `src/run` folder: plain, or a float16 numpy array in a torch file.

    Opened with `weights_only=True`, which additionally allows only the numpy functions that rebuild an array. Strided
    views become contiguous, and all tensors float32.

    Source: artefacts of Zhao et al. 2025 (`CHATS-lab/LLMs_Encode_Harmfulness_Refusal_Separately`).

    Raises:
        ValueError: no such file, or one that holds anything else.
    """
    import codecs

    from numpy._core import multiarray

    path = expanded(path)
    if not path.is_file():
        raise ValueError(f"no such file: {path}")
    rebuild: list[Any] = [
        (multiarray._reconstruct, "numpy.core.multiarray._reconstruct"),  # as named by numpy 1  # pyright: ignore[reportAttributeAccessIssue]
        multiarray._reconstruct,  # pyright: ignore[reportAttributeAccessIssue]
        np.ndarray,
        np.dtype,
        codecs.encode,
        type(np.dtype(np.float16)),
        type(np.dtype(np.float32)),
    ]
    found = read_torch_file(path, rebuild)
    if isinstance(found, np.ndarray):
        try:
            found = torch.from_numpy(np.ascontiguousarray(found))
        except TypeError:
            raise ValueError(f"{path} holds an array of {found.dtype}; save floats") from None
    return plain_tensor(found, path).contiguous()


@dataclass(frozen=True, kw_only=True)
class _Metadata:
    """Metadata of a direction file, all of which safetensors keeps as text."""

    __pydantic_config__ = ConfigDict(allow_inf_nan=False)

    format_version: int
    site: str
    layer: Annotated[int, Field(ge=0)]
    position: str
    sign: str
    kind: str
    mean_activation_norm: Annotated[float, Field(ge=0)] | None
    provenance: dict[str, Any]


def _ours(file: TensorFile, path: Path) -> Direction:
    remedy = "write the direction again"
    format_version(file, path, FORMAT_VERSION)
    plain: dict[str, Any] = dict(file.metadata)
    if plain.get("mean_activation_norm") == "None":
        plain["mean_activation_norm"] = None
    try:
        plain["provenance"] = json.loads(plain.get("provenance", "null"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged (provenance: {first_line(error)}); {remedy}") from None
    metadata = from_plain(_Metadata, plain, source=str(path))
    vector = file.tensors.get("direction")
    if vector is None or vector.ndim != 1:
        raise ValueError(f"{path} is damaged (no vector named direction in it); {remedy}")
    if vector.is_floating_point() and not torch.isfinite(vector).all():
        raise ValueError(f"{path}: the direction holds NaN or infinite values; {remedy}")
    check_tensors(file, path, remedy=remedy)
    return Direction(
        vector=vector,
        layer=metadata.layer,
        position=metadata.position,
        site=metadata.site,
        sign=metadata.sign,
        kind=metadata.kind,
        mean_activation_norm=metadata.mean_activation_norm,
        provenance=metadata.provenance,
    )


@dataclass(frozen=True, kw_only=True)
class _PublishedMetadata:
    """Content of `direction_metadata.json` beside a published direction."""

    layer: Annotated[int, Field(ge=0)] | None = None
    pos: int | str = "unknown"


def _from_tensor(found: Any, path: Path, layer: int | None, position: int | None) -> Direction:
    tensor = plain_tensor(found, path)
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{path} holds NaN or infinite values; make it again")
    if tensor.numel() == 0:
        raise ValueError(f"{path} holds a tensor without values, shape {tuple(tensor.shape)}; save it again")
    metadata_path = path.with_name("direction_metadata.json")
    if tensor.ndim == 1:
        metadata = _PublishedMetadata()
        if metadata_path.is_file():
            metadata = read_json(metadata_path, _PublishedMetadata, remedy="correct or remove it")
        layer = layer if metadata.layer is None else metadata.layer
        if layer is None:
            raise ValueError(f"{path} holds one vector and no {metadata_path.name} beside it; say its layer")
        return _imported(tensor, layer, str(metadata.pos), path)
    if tensor.ndim == 3:
        if position is None or not -tensor.shape[0] <= position < tensor.shape[0]:
            raise ValueError(f"{path} has {tensor.shape[0]} positions; say which, got position={position}")
        name = str(position if position < 0 else position - tensor.shape[0])
        return _from_layers(dict(enumerate(tensor[position])), layer, path, name)
    if tensor.ndim == 2:
        return _from_layers(dict(enumerate(tensor)), layer, path)
    raise ValueError(
        f"{path} has shape {tuple(tensor.shape)}; expected [d_model], [layer, d_model] or [position, layer, d_model]"
    )


def _from_layers(
    vectors: dict[int, Tensor], layer: int | None, path: Path, position: str = "unknown"
) -> Direction:
    if layer is None and len(vectors) == 1:
        layer = next(iter(vectors))
    if layer is None or layer not in vectors:
        have = sorted(vectors)
        raise ValueError(f"{path} has layers {have[0]}..{have[-1]}; say which, got layer={layer}")
    return _imported(vectors[layer].clone(), layer, position, path)


def _imported(vector: Tensor, layer: int, position: str, path: Path) -> Direction:
    if not vector.any():
        raise ValueError(f"{path}: the vector of layer {layer} is zero, which is no direction; take another")
    return Direction(
        vector=vector,
        layer=layer,
        position=position,
        sign="as in the file",
        kind="imported",
        provenance={"file": path.name},
    )
