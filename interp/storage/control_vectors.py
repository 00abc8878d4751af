"""Control vectors of llama.cpp: GGUF files with one vector per layer, which is added to the residual stream.

llama.cpp adds `direction.N` to the output of block N, which is the input of block N + 1: a direction at `resid_pre` of
layer l is `direction.(l-1)`. It refuses `direction.0`, so layers 0 and 1 cannot be written.

A file written here holds a hash of its content, which llama.cpp ignores; of another tool's, everything is checked that
the format prescribes: kind, names, float vectors of one length, and tensors that fill the file without gaps.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.directions import Direction
from interp.storage.atomic_files import replacing_file
from interp.storage.paths import expanded
from interp.storage.tensor_files import TensorFile, check_tensors, sealed
from interp.storage.typed_json import first_line

_ARCHITECTURE = "controlvector"
_HINT, _COUNT, _SEAL = "controlvector.model_hint", "controlvector.layer_count", "interp.sha256"
_FLOATS = ("F32", "F16", "F64")
"""Types whose values the reader returns as numbers, not as packed bytes."""
_REMEDY = "write the control vector again"


def write_control_vector(
    path: str | Path, direction: Direction, *, architecture: str, coefficient: float = 1.0
) -> Path:
    """Write a llama.cpp control vector that adds `coefficient * direction` at the direction's layer.

    Args:
        architecture: GGUF architecture name of the model, e.g. `llama`, `qwen2` (the Hugging Face `model_type`).

    Raises:
        ValueError: layer 0 or 1, or a site other than resid_pre, which a control vector cannot express, or a vector
            that is zero or not finite.
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
    path, count = expanded(path), direction.layer - 1
    step = (coefficient * direction.vector).to("cpu", torch.float32).contiguous()
    if not (torch.isfinite(step).all() and step.any()):
        raise ValueError(
            "a control vector adds a finite vector that is not zero; got coefficient "
            f"{coefficient:g} times a direction of norm {direction.norm:g}"
        )
    tensors = {f"direction.{count}": step}
    seal = sealed({_HINT: architecture, _COUNT: str(count)}, tensors)["sha256"]
    with replacing_file(path) as draft:
        writer = gguf.GGUFWriter(str(draft), _ARCHITECTURE)
        writer.add_string(_HINT, architecture)
        writer.add_uint32(_COUNT, count)
        writer.add_string(_SEAL, seal)
        for name, tensor in tensors.items():
            writer.add_tensor(name, tensor.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return path


def read_control_vector(path: Path) -> dict[int, Tensor]:
    """The vectors of a GGUF control vector by the layer whose input they are added to, as float32.

    Raises:
        ValueError: damaged, or no control vector; the message is one line that names the file.
    """
    import gguf

    try:
        reader = gguf.GGUFReader(str(path))
        texts = {name: str(field.contents()) for name, field in reader.fields.items()}
        problem = next(_problems(reader.tensors, texts, path.stat().st_size, reader.alignment), None)
        found = {} if problem else _vectors(reader.tensors)
    except Exception as error:  # a reader of hostile bytes
        raise ValueError(f"cannot read {path} as GGUF ({first_line(error)}); {_REMEDY}") from error
    if problem is not None:
        raise ValueError(f"{path} {problem}; {_REMEDY}")
    if _SEAL in texts:
        metadata = {name: texts[name] for name in (_HINT, _COUNT) if name in texts}
        check_tensors(TensorFile({**metadata, "sha256": texts[_SEAL]}, found), path, remedy=_REMEDY)
    return {int(name.removeprefix("direction.")) + 1: vector for name, vector in found.items()}


def _vectors(tensors: Sequence[Any]) -> dict[str, Tensor]:
    return {tensor.name: torch.from_numpy(tensor.data.copy()).float() for tensor in tensors}


def _problems(tensors: Sequence[Any], fields: Mapping[str, str], size: int, alignment: int) -> Iterator[str]:
    """What keeps a GGUF file from being a whole control vector, as the end of a sentence."""
    kind = fields.get("general.architecture")
    if kind != _ARCHITECTURE:
        yield f"is a GGUF file of {kind!r} and holds no direction.N tensors; it is not a control vector"
    if not tensors:
        yield "is damaged (it holds no direction.N tensors)"
    for tensor in tensors:
        if not re.fullmatch(r"direction\.[1-9][0-9]{0,5}", tensor.name):
            yield f"is damaged ({tensor.name[:40]!r} in it is not direction.1 or later)"
        elif tensor.tensor_type.name not in _FLOATS:
            yield f"holds {tensor.name} as {tensor.tensor_type.name}, not as floats"
        elif tensor.data.ndim != 1 or tensor.data.shape != tensors[0].data.shape:
            yield "is damaged (its directions are not vectors of one length)"
    placed = sorted(tensors, key=lambda tensor: tensor.data_offset)
    ends = [tensor.data_offset + tensor.n_bytes for tensor in placed]
    starts = [*(tensor.data_offset for tensor in placed[1:]), size]
    if any(not 0 <= start - end < alignment for end, start in zip(ends, starts, strict=True)):
        yield "is damaged (bytes are missing, shared or left over between its vectors)"
    if any(not torch.isfinite(vector).all() for vector in _vectors(tensors).values()):
        yield "holds NaN or infinite values"
