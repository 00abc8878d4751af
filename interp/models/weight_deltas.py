"""Sparse changes of a model's weights, as a value and as a file that proves itself.

    delta = recovered.delta                                   # places and values, against one set of weights
    write_delta("recovered.safetensors", delta)
    model = interp.load("runs/sft", delta="recovered.safetensors")
    with with_delta(model, delta): ...                        # or for a while (`interp.models.adapted_models`)

The file is safetensors. For each changed tensor NAME it holds `NAME.gaps`, the gaps between the ascending flat indices
(the first counts from 0; `gaps.cumsum()` gives them back) in the smallest integer type that holds them, and
`NAME.values`, the new values in the model's dtype. Metadata: the hashes of the weights before and after, and
where they come from.

A delta is applied to no other weights than those it was made for, and what comes out is compared with the hash that was
stored. A dtype is part of the weights: a delta of float32 weights does not fit the same model in bfloat16.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor, nn

from interp.models.weight_hashes import WeightHash
from interp.storage.atomic_files import replacing_file, write_tensors
from interp.storage.paths import expanded
from interp.storage.tensor_files import TensorFile, check_seal, format_version, read_safetensors, sealed
from interp.storage.typed_json import from_plain

FORMAT = "interp-weight-delta"
FORMAT_VERSION = 1
_REMEDY = "make the delta again"
_GAPS, _VALUES = ".gaps", ".values"
_GAP_TYPES = (torch.uint8, torch.uint16, torch.int32, torch.int64)


@dataclass(frozen=True, eq=False, kw_only=True)
class WeightChange:
    """New values at some places of one tensor."""

    indices: Int[Tensor, " place"]
    """Flat indices into the tensor, ascending."""
    values: Float[Tensor, " place"]
    """The values there, in the tensor's dtype."""

    def __post_init__(self) -> None:
        if (self.indices.diff() < 1).any() or (self.indices[:1] < 0).any():
            raise ValueError("indices of a weight change must be ascending, from 0, without repetitions")


@dataclass(frozen=True, eq=False, kw_only=True)
class WeightDelta:
    """A sparse change of one model's weights."""

    changes: Mapping[str, WeightChange]
    """By name of the parameter; tensors without a change are left out."""
    base_hash: str
    """`weights_hash` of the model that it applies to."""
    result_hash: str
    """`weights_hash` of the model with it."""
    base: str = ""
    """Name of that model."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """How it was made."""

    @property
    def n_changed(self) -> int:
        """Number of weights that it changes."""
        return sum(len(change.indices) for change in self.changes.values())

    def __repr__(self) -> str:
        return f"WeightDelta({self.n_changed:,} weights of {len(self.changes)} tensors of {self.base or 'a model'})"


@dataclass(frozen=True, kw_only=True)
class _About:
    """Metadata of a file."""

    base_hash: str
    result_hash: str
    base: str
    provenance: dict[str, Any]


def write_delta(path: str | Path, delta: WeightDelta) -> Path:
    """Write a delta as a safetensors file, atomically; returns its path.

    Raises:
        OSError: the disk is full or not writable; an older file is untouched.
    """
    path, tensors = expanded(path), dict[str, Tensor]()
    for name, change in delta.changes.items():
        tensors[name + _GAPS] = _gaps(change.indices)
        tensors[name + _VALUES] = change.values
    about = _About(
        base_hash=delta.base_hash,
        result_hash=delta.result_hash,
        base=delta.base,
        provenance=dict(delta.provenance),
    )
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "about": json.dumps(asdict(about), sort_keys=True),
    }
    with replacing_file(path) as draft:
        write_tensors(draft, tensors, metadata=sealed(metadata, tensors))
        draft.chmod(0o644)  # weights are written private
    return path


def read_delta(path: str | Path) -> WeightDelta:
    """Read a delta from its file.

    Raises:
        ValueError: no such file, a damaged one, another kind of file, or one of a newer format.
    """
    path = expanded(path)
    if not path.is_file():
        raise ValueError(f"no such weight delta: {path}; give a file that `write_delta` made")
    file = read_safetensors(path, remedy=_REMEDY)
    if file.metadata.get("format") != FORMAT:
        raise ValueError(
            f"{path} is a safetensors file, but no weight delta; give one that `write_delta` made"
        )
    format_version(file, path, FORMAT_VERSION)
    if "sha256" not in file.metadata:
        raise ValueError(f"{path} is damaged (it has no hash of its content); {_REMEDY}")
    check_seal(file, path, remedy=_REMEDY)
    try:
        plain = json.loads(file.metadata.get("about", ""))
    except ValueError:
        raise ValueError(f"{path} is damaged (its metadata are no JSON); {_REMEDY}") from None
    about: _About = from_plain(_About, plain, source=str(path))
    return WeightDelta(
        changes=_changes(file, path),
        base_hash=about.base_hash,
        result_hash=about.result_hash,
        base=about.base,
        provenance=about.provenance,
    )


@torch.no_grad()
def apply_delta(
    model: nn.Module, delta: WeightDelta, *, shown: str, hash_of: Callable[[], str] | None = None
) -> dict[str, WeightChange]:
    """Write a delta into a model's weights; after an error they are what they were.

    Args:
        shown: name of the model in messages.
        hash_of: the hash of the model's current weights, where something remembers it.

    Returns:
        The change that undoes it.

    Raises:
        ValueError: a delta of other weights, of another dtype, or whose result is not what it was.
    """
    hash_of = hash_of or partial(WeightHash().of, model)
    weights = dict(model.named_parameters())
    _check_fits(weights, delta, shown)
    if (found := hash_of()) != delta.base_hash:
        raise ValueError(
            f"the delta is not of these weights: it was made for {delta.base or 'weights'} "
            f"({delta.base_hash[:12]}), and {shown} is {found[:12]}; load the model that it was made for"
        )
    undo = put_changes(weights, delta.changes)
    try:
        result = hash_of()
    except BaseException:
        put_changes(weights, undo)
        raise
    if result != delta.result_hash:
        put_changes(weights, undo)
        raise ValueError(
            f"the delta does not give the weights that it was made for: {shown} with it is {result[:12]}, not "
            f"{delta.result_hash[:12]}; {_REMEDY}"
        )
    return undo


@torch.no_grad()
def put_changes(
    weights: Mapping[str, nn.Parameter], changes: Mapping[str, WeightChange]
) -> dict[str, WeightChange]:
    """Write values into weights in place; returns the change that undoes it."""
    undo = {
        name: WeightChange(indices=change.indices, values=take(weights[name], change.indices))
        for name, change in changes.items()
    }
    for name, change in changes.items():
        put(weights[name], change.indices, change.values)
    return undo


def with_changes(weights: Mapping[str, Tensor], changes: Mapping[str, WeightChange]) -> dict[str, Tensor]:
    """Changed copies of the weights that have a change, by name; the others have none."""
    copies: dict[str, Tensor] = {}
    for name, change in changes.items():
        copies[name] = weights[name].detach().clone(memory_format=torch.contiguous_format)
        put(copies[name], change.indices, change.values)
    return copies


def take(weight: Tensor, indices: Int[Tensor, " place"]) -> Float[Tensor, " place"]:
    """A weight's values at flat indices, as a new tensor."""
    return weight.detach().reshape(-1)[indices.to(weight.device)]


def put(weight: Tensor, indices: Int[Tensor, " place"], values: Float[Tensor, " place"]) -> None:
    """Write values at flat indices of a weight, in place."""
    indices, values = indices.to(weight.device), values.to(weight)
    with torch.no_grad():  # through the parameter, so that its version number counts the write
        if weight.is_contiguous():
            weight.view(-1)[indices] = values
        else:
            weight[torch.unravel_index(indices, weight.shape)] = values


def _check_fits(weights: Mapping[str, nn.Parameter], delta: WeightDelta, shown: str) -> None:
    """Refuse names, sizes and dtypes that are not the model's."""
    for name, change in delta.changes.items():
        weight = weights.get(name)
        if weight is None:
            raise ValueError(
                f"the delta is not of these weights: {shown} has no {name}; load {delta.base or 'the model'} that it "
                "was made for"
            )
        ours, theirs = (str(x.dtype).removeprefix("torch.") for x in (weight, change.values))
        if ours != theirs:
            raise ValueError(
                f"the delta holds {theirs} values, and {shown} has {ours} weights; load with dtype={theirs!r}"
            )
        if len(change.indices) and int(change.indices[-1]) >= weight.numel():
            raise ValueError(
                f"the delta is not of these weights: {name} of {shown} has {weight.numel()} values, and the delta "
                f"changes number {int(change.indices[-1])}; load {delta.base or 'the model'} that it was made for"
            )


def _gaps(indices: Int[Tensor, " place"]) -> Integer[Tensor, " place"]:
    """Gaps between ascending indices, the first from 0, in the smallest type that holds them."""
    gaps = indices.cpu().long().diff(prepend=torch.zeros(1, dtype=torch.long))
    largest = int(gaps.max()) if len(gaps) else 0
    return gaps.to(next(kind for kind in _GAP_TYPES if largest <= torch.iinfo(kind).max))


def _changes(file: TensorFile, path: Path) -> dict[str, WeightChange]:
    changes = {}
    for key in file.tensors:
        name = key.removesuffix(_GAPS).removesuffix(_VALUES)
        gaps, values = file.tensors.get(name + _GAPS), file.tensors.get(name + _VALUES)
        if gaps is None or values is None or gaps.ndim != 1 or gaps.shape != values.shape:
            raise ValueError(f"{path} is damaged ({name} has no gaps and values of one length); {_REMEDY}")
        if gaps.dtype not in _GAP_TYPES or not values.is_floating_point():
            raise ValueError(f"{path} is damaged ({name} holds {gaps.dtype} and {values.dtype}); {_REMEDY}")
        if not torch.isfinite(values).all():
            raise ValueError(f"{path} is damaged ({name} holds NaN or infinite values); {_REMEDY}")
        try:
            changes[name] = WeightChange(indices=gaps.long().cumsum(0), values=values)
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({name}: {error}); {_REMEDY}") from error
    return changes
