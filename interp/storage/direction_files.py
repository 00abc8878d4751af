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

Pickled files are opened with `weights_only=True` only. llama.cpp adds `direction.N` to the output of block N, which is
the input of block N + 1: a direction at `resid_pre` of layer l is `direction.(l-1)`. It refuses `direction.0`, so
layers 0 and 1 cannot be written.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from interp.directions import Direction
from interp.storage.atomic_files import write_file

FORMAT = "interp-direction"
FORMAT_VERSION = 1

DirectionInput = Direction | Tensor | np.ndarray | Sequence[float | int] | str | Path
"""Types accepted as a direction: a `Direction`, plain numbers along d_model, or a direction file."""


def write_direction(path: str | Path, direction: Direction) -> Path:
    """Write a direction with its site, layer, position and provenance to a safetensors file, atomically."""
    write_file(Path(path), direction_bytes(direction))
    return Path(path)


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
    return save({"direction": direction.vector.detach().to("cpu", torch.float32).contiguous()}, metadata)


def read_direction(path: str | Path, *, layer: int | None = None, position: int | None = None) -> Direction:
    """Read a direction from any of the formats above.

    Args:
        layer: layer to read, where the file holds several.
        position: index into the file's position axis (may be negative), for `mean_diffs.pt`.

    Raises:
        ValueError: no such file, unknown format, newer format, missing or out-of-range layer or position, or values
            that are not finite.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ValueError(f"no such direction file: {path}")
    if path.suffix == ".gguf":
        return _from_layers(_read_control_vector(path), layer, path)
    if path.suffix == ".safetensors":
        metadata, tensors = _read_safetensors(path)
        if metadata.get("format") == FORMAT:
            return _ours(metadata, tensors["direction"], path)
        if len(tensors) != 1:
            raise ValueError(
                f"{path} holds {len(tensors)} tensors and no interp metadata; save one tensor [layer, d_model]"
            )
        return _from_tensor(next(iter(tensors.values())), path, layer, position)
    if path.suffix in (".pt", ".pth", ".bin"):
        try:
            tensor = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise ValueError(f"cannot read {path} as weights-only: {str(error).splitlines()[0]}") from error
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{path} holds a {type(tensor).__name__}, not a tensor")
        return _from_tensor(tensor, path, layer, position)
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
            vector = torch.as_tensor(given, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                "a direction is a Direction, a tensor, a numpy vector, a list of numbers or a direction file; got "
                f"{type(given).__name__}"
            ) from error
    if vector.ndim != 1 or not vector.is_floating_point():
        raise ValueError(
            f"a direction has one axis of floats, d_model; got shape {tuple(vector.shape)}, {vector.dtype}"
        )
    return vector


_PUBLISHED_SCORES = {"bypass": "refusal_score", "induce": "steering_score", "kl": "kl_div_score"}


def read_direction_evaluations(path: str | Path) -> list[dict[str, Any]]:
    """Read the table for `selection.pick` from a published `direction_evaluations.json`.

    Source: artefacts of Arditi et al. 2024 (`andyrdt/refusal_direction`), one file per model with all candidates. NaN
    scores are kept.

    Raises:
        ValueError: no such file, no JSON list, or a row without one of its columns.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no such file: {path}")
    try:
        rows = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error.msg}, line {error.lineno})") from error
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path} must hold a list of candidates")
    table = []
    for number, row in enumerate(rows):
        if missing := [k for k in ("position", "layer", *_PUBLISHED_SCORES.values()) if k not in row]:
            raise ValueError(f"{path}, row {number} has no {missing[0]}; is it direction_evaluations.json?")
        scores = {ours: row[theirs] for ours, theirs in _PUBLISHED_SCORES.items()}
        scores = {key: math.nan if value is None else float(value) for key, value in scores.items()}
        table.append({"position": int(row["position"]), "layer": int(row["layer"]), **scores})
    return table


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

    path = Path(path)
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
    try:
        with torch.serialization.safe_globals(rebuild):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"cannot read {path} as weights-only: {str(error).splitlines()[0]}") from error
    if isinstance(found, np.ndarray):
        found = torch.from_numpy(np.ascontiguousarray(found))
    if not isinstance(found, Tensor):
        raise ValueError(f"{path} holds a {type(found).__name__}, not a tensor")
    return found.to(torch.float32).contiguous()


def write_control_vector(
    path: str | Path, direction: Direction, *, architecture: str, coefficient: float = 1.0
) -> Path:
    """Write a llama.cpp control vector that adds `coefficient * direction` at the direction's layer.

    Args:
        architecture: GGUF architecture name of the model, e.g. `llama`, `qwen2` (the Hugging Face `model_type`).

    Raises:
        ValueError: layer 0 or 1, or a site other than resid_pre, which a control vector cannot express.
    """
    import gguf

    if direction.site != "resid_pre":
        raise ValueError(
            f"a control vector acts on the residual stream between blocks, not at {direction.site}"
        )
    if direction.layer < 2:
        raise ValueError(
            f"a direction at layer {direction.layer} cannot be a control vector: llama.cpp adds direction.N to the "
            "output of block N and refuses N = 0, so the first layer it reaches is 2"
        )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    writer = gguf.GGUFWriter(str(draft), "controlvector")
    writer.add_string("controlvector.model_hint", architecture)
    writer.add_uint32("controlvector.layer_count", direction.layer - 1)
    step = (coefficient * direction.vector).to("cpu", torch.float32).contiguous()
    writer.add_tensor(f"direction.{direction.layer - 1}", step.numpy())
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    return path


def _read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(str(path), framework="pt") as stream:
            return stream.metadata() or {}, {key: stream.get_tensor(key) for key in stream.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file or is damaged ({error})") from error


def _ours(metadata: dict[str, str], vector: Float[Tensor, " d_model"], path: Path) -> Direction:
    if int(metadata["format_version"]) > FORMAT_VERSION:
        raise ValueError(
            f"{path} has format_version {metadata['format_version']}, this interp reads up to {FORMAT_VERSION}; "
            "upgrade interp"
        )
    norm = metadata["mean_activation_norm"]
    return Direction(
        vector=vector,
        layer=int(metadata["layer"]),
        position=metadata["position"],
        site=metadata["site"],
        sign=metadata["sign"],
        kind=metadata["kind"],
        mean_activation_norm=None if norm == "None" else float(norm),
        provenance=json.loads(metadata["provenance"]),
    )


def _from_tensor(tensor: Tensor, path: Path, layer: int | None, position: int | None) -> Direction:
    tensor = tensor.detach().to(torch.float32)
    metadata_path = path.with_name("direction_metadata.json")
    if tensor.ndim == 1:
        metadata: dict[str, Any] = json.loads(metadata_path.read_text()) if metadata_path.is_file() else {}
        layer = metadata.get("layer", layer)
        if layer is None:
            raise ValueError(f"{path} holds one vector and no {metadata_path.name} beside it; say its layer")
        return _imported(tensor, layer, str(metadata.get("pos", "unknown")), path)
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
    return Direction(
        vector=vector,
        layer=layer,
        position=position,
        sign="as in the file",
        kind="imported",
        provenance={"file": path.name},
    )


def _read_control_vector(path: Path) -> dict[int, Tensor]:
    import gguf

    try:
        reader = gguf.GGUFReader(str(path))
    except Exception as error:
        raise ValueError(f"cannot read {path} as GGUF ({error})") from error
    found = {
        int(tensor.name.split(".")[1]) + 1: torch.from_numpy(tensor.data.copy()).float()
        for tensor in reader.tensors
        if tensor.name.startswith("direction.")
    }
    if not found:
        raise ValueError(f"{path} holds no direction.N tensors; it is not a control vector")
    return found
