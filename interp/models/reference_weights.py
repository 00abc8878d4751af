"""A second set of weights of a model's own architecture, to compare with and to copy from.

It is a loaded model, or a checkpoint folder whose safetensors are read tensor by tensor, so that no second model has to
fit into memory:

    aligned = reference_weights("checkpoints/aligned", model)
    aligned.tensor("model.layers.0.mlp.up_proj.weight")     # on the model's device, in its dtype
    with aligned.running(model, below=20) as reference:      # a model whose first 20 blocks compute with these weights
        collect_means(reference, prompts, layers=19)

What is no pair (another architecture, vocabulary or tokenizer, quantised weights) is refused when it is opened.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn

from interp.models.chat_model import ChatModel
from interp.models.checkpoint_files import check_folder, reason_of
from interp.models.content_hashes import content_hash
from interp.models.snapshots import Snapshot
from interp.storage.paths import expanded
from interp.storage.typed_json import first_line, read_json

_AGAIN = "copy or download it again"


class ReferenceWeights(ABC):
    """Weights by the names that they have in the model that they are compared with."""

    name: str
    """Name in messages and provenance."""

    @property
    @abstractmethod
    def digest(self) -> str:
        """Hash of all weights (of a loaded model) or of the files that are read (of a folder)."""

    @abstractmethod
    def tensor(self, name: str) -> Tensor:
        """The weight of this name, on the device and in the dtype of the model that it is compared with."""

    @abstractmethod
    def running(self, model: ChatModel, *, below: int) -> Any:
        """A context that yields a model which computes with these weights up to the block `below`."""


def reference_weights(source: "ChatModel | str | Path", model: ChatModel) -> ReferenceWeights:
    """The weights of a loaded model or of a checkpoint folder, as a pair of `model`.

    Raises:
        ValueError: not a pair of one architecture, vocabulary and tokenizer; quantised weights in either; a folder that
            is not there, has no safetensors, or whose tensors have other names.
    """
    check_plain(model)
    if isinstance(source, ChatModel):
        check_plain(source)
        _check_configs(model, source.hf.config.to_dict(), source.name)
        _check_vocabularies(model, source.tokenizer, source.name)
        return _OfModel(source, model)
    if not isinstance(source, (str, Path)):
        raise ValueError(
            f"the other weights are a loaded model or a folder, got {type(source).__name__}; give interp.load(...)"
        )
    folder = expanded(source)
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"no checkpoint folder: {source} (it has no config.json); give a folder that transformers saved, or "
            "interp.load(...) for a Hub id, an adapter or a .gguf file"
        )
    check_folder(folder)
    settings = read_json(folder / "config.json", dict[str, Any], remedy=_AGAIN)
    _check_configs(model, settings, folder.name)
    _check_computing(model, folder)
    _check_vocabularies(model, _tokenizer(folder), folder.name)
    return _OfFolder(folder, model)


def check_plain(model: ChatModel) -> None:
    """Refuse a model whose weights are not ordinary floating-point numbers.

    Raises:
        ValueError: quantised weights.
    """
    if not Snapshot(model.hf).is_plain:
        raise ValueError(
            f"the weights of {model.name} are stored quantised, so they cannot be copied one by one; load the model "
            "unquantised"
        )


class _OfModel(ReferenceWeights):
    def __init__(self, source: ChatModel, model: ChatModel) -> None:
        self.name, self._source = source.name, source
        self._weights, self._like = dict(source.hf.named_parameters()), dict(model.hf.named_parameters())
        for name, weight in self._like.items():
            _check_shape(
                name, None if name not in self._weights else self._weights[name].shape, weight, self.name
            )

    @property
    def digest(self) -> str:
        return self._source.weights_hash

    def tensor(self, name: str) -> Tensor:
        return self._weights[name].detach().to(self._like[name])

    @contextmanager
    def running(self, model: ChatModel, *, below: int) -> Iterator[ChatModel]:  # noqa: ARG002
        yield self._source


class _OfFolder(ReferenceWeights):
    def __init__(self, folder: Path, model: ChatModel) -> None:
        self.name, self._folder = folder.name, folder
        self._like = dict(model.hf.named_parameters())
        self._shards: dict[Path, Any] = {}
        stored = _stored_names(folder)
        prefix = f"{model.hf.base_model_prefix}."
        head: Any = model.hf.get_output_embeddings()
        unread = set() if head is None else {id(weight) for weight in head.parameters()}
        unread -= {id(model.embedding.weight)}
        self._places: dict[str, tuple[Path, str]] = {}
        for name, weight in self._like.items():
            found = name if name in stored else name.removeprefix(prefix)
            if found in stored:
                self._places[name] = stored[found], found
                _check_shape(name, self._slice(name).get_shape(), weight, self.name)
            elif id(weight) not in unread:  # the unembedding is not read
                raise ValueError(
                    f"{folder} has no tensor {name}: it is another architecture, or its tensors have other names than "
                    f"{model.name}'s; load it and give the model, interp.load({str(folder)!r})"
                )

    @property
    def digest(self) -> str:
        return content_hash(str(self._folder))

    def tensor(self, name: str) -> Tensor:
        path, found = self._places[name]
        try:
            return self._file(path).get_tensor(found).to(self._like[name])
        except Exception as error:  # a reader of hostile bytes
            raise ValueError(f"{path} cannot be read ({first_line(error)}); {_AGAIN}") from error

    @contextmanager
    def running(self, model: ChatModel, *, below: int) -> Iterator[ChatModel]:
        """The model itself, whose weights up to that block lie elsewhere for the context."""
        above = {id(weight) for block in model.blocks[below:] for weight in block.module.parameters()}
        own = [
            (weight, weight.data, name)
            for name, weight in model.hf.named_parameters()
            if id(weight) not in above and name in self._places
        ]
        with model.lock:
            try:
                for weight, _, name in own:
                    weight.data = self.tensor(name)
                yield model
            finally:
                for weight, data, _ in own:
                    weight.data = data

    def _slice(self, name: str) -> Any:
        path, found = self._places[name]
        return self._file(path).get_slice(found)

    def _file(self, path: Path) -> Any:
        if path not in self._shards:
            try:
                self._shards[path] = safe_open(str(path), framework="pt").__enter__()  # memory-mapped
            except Exception as error:  # a reader of hostile bytes
                raise ValueError(f"{path} is damaged ({first_line(error)}); {_AGAIN}") from error
        return self._shards[path]


def _stored_names(folder: Path) -> dict[str, Path]:
    """The shard of every tensor of a checkpoint folder."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        content = read_json(index, dict[str, Any], remedy=_AGAIN)
        named = content.get("weight_map")
        if not isinstance(named, dict):
            raise ValueError(f"{index} has no weight_map; {_AGAIN}")
        shards = {str(name): folder / str(shard) for name, shard in named.items()}
        for shard in set(shards.values()):
            if not shard.is_file():
                raise ValueError(f"shard {shard.name} is missing from {folder}; {_AGAIN}")
        return shards
    files = sorted(folder.glob("model*.safetensors"))
    if len(files) != 1:
        raise ValueError(
            f"folder {folder} has {len(files)} files model*.safetensors and no index; save the model as safetensors, "
            "or load it and give the model"
        )
    try:
        with safe_open(str(files[0]), framework="pt") as stream:
            return dict.fromkeys(stream.keys(), files[0])
    except Exception as error:  # a reader of hostile bytes
        raise ValueError(f"{files[0]} is damaged ({first_line(error)}); {_AGAIN}") from error


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # errors of Rust, torch and Python
        raise ValueError(f"cannot load the tokenizer in {folder}: {reason_of(error)}") from error


_SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
)


def _check_configs(model: ChatModel, other: dict[str, Any], name: str) -> None:
    if other.get("quantization_config"):
        raise ValueError(
            f"the weights of {name} are stored quantised, so they cannot be copied one by one; give it unquantised"
        )
    ours = model.hf.config.to_dict()
    for key in ("model_type", *_SIZES):
        if key in ours and key in other and ours[key] != other[key]:
            raise ValueError(
                f"{model.name} and {name} are no pair: {key} is {ours[key]} in one and {other[key]} in the other; give "
                "two checkpoints of one architecture"
            )
    if ours.get("vocab_size") != other.get("vocab_size"):
        raise ValueError(
            f"{model.name} and {name} are no pair: their vocabularies have {ours.get('vocab_size')} and "
            f"{other.get('vocab_size')} entries; give two checkpoints with one vocabulary"
        )


_COMPUTING = (
    "rope_parameters",
    "rms_norm_eps",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "hidden_act",
    "head_dim",
    "sliding_window",
    "num_experts_per_tok",
)
"""Settings that change what the same weights compute."""


def _check_computing(model: ChatModel, folder: Path) -> None:
    """Refuse a folder whose model computes otherwise: its weights run in the modules of the model."""
    config: Any = model.hf.config
    ours, theirs = (c.to_dict() for c in (config, type(config).from_pretrained(folder)))
    for key in _COMPUTING:
        if key in ours and key in theirs and not _alike(ours[key], theirs[key]):
            raise ValueError(
                f"{model.name} and {folder.name} compute differently: {key} is {ours[key]} in one and {theirs[key]} in "
                f"the other; load the folder and give the model, interp.load({str(folder)!r})"
            )


def _alike(one: Any, other: Any) -> bool:
    """Whether two settings are equal, but for the rounding of a GGUF file and what only one of them says."""
    if isinstance(one, dict) and isinstance(other, dict):
        return all(_alike(one[key], other[key]) for key in one.keys() & other.keys())
    if isinstance(one, float | int) and isinstance(other, float | int):
        return math.isclose(one, other, rel_tol=1e-5)
    return one == other


def _check_vocabularies(model: ChatModel, tokenizer: Any, name: str) -> None:
    ours, theirs = model.tokenizer.get_vocab(), tokenizer.get_vocab()
    if ours != theirs:
        different = sum(theirs.get(token) != number for token, number in ours.items())
        raise ValueError(
            f"{model.name} and {name} are no pair: their tokenizers number {max(different, 1)} tokens differently; "
            "give two checkpoints with one tokenizer"
        )


def _check_shape(name: str, found: Any, weight: nn.Parameter, other: str) -> None:
    if found is None or list(found) != list(weight.shape):
        theirs = "missing" if found is None else list(found)
        raise ValueError(
            f"the pair does not fit: {name} is {list(weight.shape)} in one and {theirs} in {other}; give two "
            "checkpoints of one architecture and vocabulary"
        )
