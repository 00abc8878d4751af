"""Activations on disk: one safetensors file with the prompts' ids and categories, written as they are computed.

    store_activations(model, prompts, "acts.safetensors", layers=range(10, 20))
    acts = read_activations("acts.safetensors")
    acts["resid_pre"].shape                                   # [prompt, layer, role, d_model]

Each site is one tensor [prompt, layer, role, d_model] under its own name, so that any reader of safetensors opens the
file; layers, roles, prompts and provenance are JSON in its metadata. Only one batch is held in memory. The file appears
under its name when it is whole.

The metadata ends with a hash over header and activations, checked on reading: SHA-256 of the header, with zeros in its
place, and of the SHA-256 of every prompt's activations, site by site.
"""

import hashlib
import json
import math
import shutil
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from interp.engine.activation_values import Activations
from interp.engine.activations import Batch, activation_batches
from interp.engine.reads import Request, requested
from interp.engine.stored_activations import StoreInput
from interp.models.chat_model import ChatModel
from interp.models.layers import Layers
from interp.models.prompt_inputs import PromptIdentity
from interp.models.sites import SITES, Site, Sites
from interp.models.tokens import ChatTokens, Positions, PromptInput
from interp.storage.atomic_files import replacing_file
from interp.storage.paths import expanded
from interp.storage.provenance import library_versions

FORMAT = "interp-activations"
FORMAT_VERSION = 2

_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_MAX_HEADER = 100_000_000
"""Bytes of a header that readers of safetensors accept."""
_UNSEALED = "0" * 64
"""Placeholder of the hash, of its length."""


@dataclass(frozen=True, kw_only=True)
class StoredActivations:
    """A written file of activations."""

    path: Path
    """The file."""
    sites: tuple[Site, ...]
    """Names of its tensors."""
    shape: tuple[int, int, int, int]
    """Shape of each tensor: prompt, layer, role, d_model."""
    layers: tuple[int, ...]
    """What the layer axis counts."""
    roles: tuple[str, ...]
    """What the role axis counts."""
    size: int
    """Bytes of the file."""


@torch.no_grad()
def store_activations(
    model: ChatModel,
    prompts: PromptInput,
    path: str | Path,
    *,
    sites: Sites = "resid_pre",
    layers: Layers = None,
    positions: Positions = ("t_inst", "t_post_inst"),
    store: StoreInput = None,
    show_progress: bool = False,
) -> StoredActivations:
    """Collect activations into a safetensors file, atomically and batch by batch; the values are those of `collect`.

    Args:
        prompts: as for `collect`.
        sites: one or several of `chat_model.SITES`.
        layers: an int, a range, a list, or None for all.
        positions: token roles to read.
        store: activation store, or where it is, as for `collect`.
        show_progress: draw a progress bar.

    Raises:
        ValueError: as `collect`, or a file that is larger than the free space of its disk; the message says how large.
        OSError: the disk is full or not writable.
    """
    tokens, request = requested(model, prompts, sites, layers, positions)
    batches = activation_batches(model, tokens, request, store=store, show_progress=show_progress)
    return write_batches(expanded(path), file_head(model, tokens, request), batches)


@dataclass(frozen=True, eq=False, kw_only=True)
class FileHead:
    """Everything about a file of activations but the activations."""

    header: bytes
    """Its first bytes."""
    request: Request
    """What is stored of each prompt."""
    shape: tuple[int, int, int, int]
    """Shape of each tensor: prompt, layer, role, d_model."""
    bytes_a_prompt: int
    """Bytes of one prompt in one tensor."""


def file_head(model: ChatModel, tokens: ChatTokens, request: Request) -> FileHead:
    """The head of the file for these tokens.

    Raises:
        ValueError: a dtype that cannot be stored, or more text than a header holds.
    """
    shape = (len(tokens), len(request.layers), len(request.roles), model.d_model)
    return FileHead(
        header=_header(model, request, shape, tokens.identity),
        request=request,
        shape=shape,
        bytes_a_prompt=math.prod(shape[1:]) * model.dtype.itemsize,
    )


def write_batches(path: Path, head: FileHead, batches: Iterable[Batch]) -> StoredActivations:
    """Write the file batch by batch; it appears under its name when it is whole.

    Raises:
        ValueError: a file that is larger than the free space of its disk.
        OSError: the disk is full or not writable.
    """
    path = expanded(path)
    request, shape, header = head.request, head.shape, head.header
    size_of_site = shape[0] * head.bytes_a_prompt
    size = len(header) + len(request.sites) * size_of_site
    _check_space(path, size, request, shape)
    starts = {site: len(header) + k * size_of_site for k, site in enumerate(request.sites)}
    hashes = {site: [b""] * shape[0] for site in request.sites}
    with replacing_file(path) as draft, draft.open("wb") as stream:
        for rows, batch in batches:
            for site, values in batch.items():
                _write_rows(stream, starts[site], rows, values, hashes[site])
        stream.seek(0)
        stream.write(_with_hash(header, _UNSEALED, _content_hash(header, hashes)))
        stream.truncate(size)
    return StoredActivations(
        path=path, sites=request.sites, shape=shape, layers=request.layers, roles=request.roles, size=size
    )


def read_activations(path: str | Path) -> Activations:
    """Read a file of activations with the ids and categories of its prompts.

    Raises:
        ValueError: no such file, no file of activations, a newer format, or a damaged one.
    """
    path = expanded(path)
    if not path.is_file():
        raise ValueError(f"no such file of activations: {path}")
    try:
        with safe_open(str(path), framework="pt") as stream:
            metadata = stream.metadata() or {}
            _check_format(metadata, path)
            values: dict[str, Tensor] = {name: stream.get_tensor(name) for name in stream.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file or is damaged ({error})") from error
    try:
        layers = tuple(int(layer) for layer in json.loads(metadata["layers"]))
        roles = tuple(str(role) for role in json.loads(metadata["roles"]))
        known = json.loads(metadata["prompts"])
        identity = PromptIdentity(
            ids=tuple(map(str, known["ids"])),
            categories=tuple(None if name is None else str(name) for name in known["categories"]),
            texts=tuple(map(str, known["texts"])),
            source=known["source"],
        )
        provenance: Mapping[str, Any] = dict(json.loads(metadata["provenance"]))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged: its metadata cannot be read ({error}); collect again"
        ) from error
    expected = [len(identity), len(layers), len(roles)]
    for site, value in values.items():
        if site not in SITES or list(value.shape[:-1]) != expected:
            raise ValueError(
                f"{path} is damaged: {site} has shape {list(value.shape)} for {expected} prompts, layers and roles; "
                "collect again"
            )
    if not _is_sealed(path, values, metadata.get("sha256", "")):
        raise ValueError(f"{path} is damaged (its content is not what was written); collect again")
    return Activations(
        values=values,  # pyright: ignore[reportArgumentType]
        layers=layers,
        roles=roles,
        identity=identity,
        provenance=provenance,
    )


def _check_format(metadata: Mapping[str, str], path: Path) -> None:
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is no file of activations; `interp collect` writes them")
    version = metadata.get("format_version", "")
    if version != str(FORMAT_VERSION):
        raise ValueError(
            f"{path} has format_version {version!r}, this interp reads {FORMAT_VERSION}; collect again, or install the "
            "interp that wrote it"
        )


def _header(model: ChatModel, request: Request, shape: tuple[int, ...], identity: PromptIdentity) -> bytes:
    """The first bytes of a safetensors file: the length of a JSON header, and the header."""
    if model.dtype not in _DTYPES:
        raise ValueError(
            f"activations of {model.dtype} cannot be stored; load the model in {', '.join(_DTYPES.values())}"
        )
    size = math.prod(shape) * model.dtype.itemsize
    prompts = {
        "ids": identity.ids,
        "categories": identity.categories,
        "texts": identity.texts,
        "source": identity.source,
    }
    provenance = {**model.provenance, "prompts": identity.provenance, "versions": library_versions()}
    entries: dict[str, Any] = {
        "__metadata__": {
            "format": FORMAT,
            "format_version": str(FORMAT_VERSION),
            "axes": "prompt layer role d_model",
            "layers": json.dumps(request.layers),
            "roles": json.dumps(request.roles),
            "prompts": json.dumps(prompts, ensure_ascii=False),
            "provenance": json.dumps(provenance),
            "sha256": _UNSEALED,
        }
    }
    for k, site in enumerate(request.sites):
        offsets = [k * size, (k + 1) * size]
        entries[site] = {"dtype": _DTYPES[model.dtype], "shape": list(shape), "data_offsets": offsets}
    text = json.dumps(entries, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # so that tensors are aligned
    if len(text) > _MAX_HEADER:
        raise ValueError(
            f"the texts of {shape[0]} prompts take {len(text) / 1e6:.0f} MB, and a safetensors file holds "
            f"{_MAX_HEADER / 1e6:.0f} MB of metadata; collect them in several files"
        )
    return struct.pack("<Q", len(text)) + text


def _check_space(path: Path, size: int, request: Request, shape: tuple[int, ...]) -> None:
    parent = path.absolute().parent
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    if size > free:
        n_prompts, n_layers, n_roles, d_model = shape
        raise ValueError(
            f"{path} would take {size / 1e9:,.1f} GB ({n_prompts} prompts x {n_layers} layers x {n_roles} positions x "
            f"{d_model} numbers x {len(request.sites)} sites), and {parent} has {free / 1e9:,.1f} GB free; take fewer "
            "layers, positions, sites or prompts, or a smaller dtype"
        )


def _write_rows(stream: BinaryIO, start: int, rows: list[int], values: Tensor, hashes: list[bytes]) -> None:
    """Write each prompt's activations to its own place and note its hash; batches come in the order of lengths."""
    data = values.to("cpu").contiguous().view(torch.uint8).flatten(1)
    for row, content in zip(rows, data, strict=True):
        stream.seek(start + row * data.shape[1])
        stream.write(written := content.numpy().tobytes())
        hashes[row] = hashlib.sha256(written).digest()


def _content_hash(header: bytes, hashes: Mapping[str, Sequence[bytes]]) -> str:
    """Hash of a file: its header with the placeholder, and the hashes of its rows in the order of the header."""
    digest = hashlib.sha256(header)
    for rows in hashes.values():
        digest.update(b"".join(rows))
    return digest.hexdigest()


def _is_sealed(path: Path, values: Mapping[str, Tensor], sha256: str) -> bool:
    """Whether a file holds what was written."""
    with path.open("rb") as stream:
        length = stream.read(8)
        header = length + stream.read(struct.unpack("<Q", length)[0])
    entries = json.loads(header[8:])
    hashes = {
        site: [
            hashlib.sha256(row.contiguous().view(torch.uint8).numpy().tobytes()).digest()
            for row in values[site]
        ]
        for site in entries
        if site != "__metadata__"
    }
    return (
        len(sha256) == len(_UNSEALED)
        and _content_hash(_with_hash(header, sha256, _UNSEALED), hashes) == sha256
    )


def _with_hash(header: bytes, old: str, new: str) -> bytes:
    """The header with another hash; it is the last entry of the metadata, whatever the prompts before it say."""
    before, _, after = header.rpartition(old.encode())
    return before + new.encode() + after
