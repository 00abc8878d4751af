"""A GGUF file → a folder of float32 safetensors with configuration and tokenizer, everything in the file accounted for.

transformers reads the file. What it read is then compared with the file: architecture keys
(`interp.models.gguf_settings`), tensors (`gguf_tensors`) and tokenizer (`gguf_tokenizer`). Whatever would be left out
or filled in is a refusal. The shards of a split file are joined first (`gguf_shards`).
"""

import logging
import tempfile
from pathlib import Path
from typing import Any

import gguf
import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations.gguf.gguf_conversion_mapping import GGUF_ARCHS
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
from transformers.utils import logging as transformers_logging

from interp.models.checkpoint_files import reason_of
from interp.models.gguf_settings import configuration
from interp.models.gguf_shards import join_shards, split_count
from interp.models.gguf_tensors import check_tensors, rope_factors
from interp.models.gguf_tokenizer import check_tokenizer, set_splits

logger = logging.getLogger(__name__)

_NAMESPACES = ("GGUF", "general", "tokenizer", "split", "quantize")


def write_converted(shards: list[Path], folder: Path) -> None:
    """Write the model and the tokenizer of a file, or of all shards of a split file.

    Raises:
        ValueError: a damaged file, shards of several models, or contents that would not be used.
        OSError: the disk is full.
    """
    path = shards[0]
    readers = {shard: _reader(shard) for shard in shards}
    if len(shards) == 1:
        _write(path, readers[path], folder, path)
        return
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        whole = Path(scratch) / "whole.gguf"
        join_shards(readers, whole)
        readers.clear()
        _write(whole, _reader(whole), folder, path)


def _reader(path: Path) -> gguf.GGUFReader:
    """Parse the header and every tensor's extent: a truncated file is found in a second, not in minutes."""
    try:
        reader = gguf.GGUFReader(str(path))
    except Exception as error:
        raise ValueError(
            f"cannot read {path} as GGUF ({error}); it is truncated or damaged, download it again"
        ) from error
    placed = sorted(reader.tensors, key=lambda tensor: tensor.data_offset)
    ends = [reader.data_offset, *(int(tensor.data_offset + tensor.n_bytes) for tensor in placed)]
    for tensor, end in zip(placed, ends, strict=False):
        # The format puts each tensor at the first aligned byte behind the one before.
        if not 0 <= tensor.data_offset - end < reader.alignment:
            gap = tensor.data_offset - end
            raise ValueError(
                f"cannot use {path}: there are {gap} bytes between its tensors before {tensor.name}, which its "
                f"alignment of {reader.alignment} does not leave; it is damaged, or was written with another alignment"
            )
    return reader


def _write(path: Path, reader: gguf.GGUFReader, folder: Path, shown: Path) -> None:
    keys = {name: field.contents() for name, field in reader.fields.items()}
    architecture = str(keys.get("general.architecture"))
    _check_kind(reader, keys, architecture, shown)
    had_bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        settings, hf, tokenizer = _converted(path, reader, keys, architecture, shown)
        try:
            set_splits(tokenizer, keys)
            check_tokenizer(tokenizer, keys)
            check_tensors(reader.tensors, architecture, settings, hf)
        except ValueError as error:
            raise ValueError(f"cannot use {shown}: {error}") from error
        # The weights are plain float32 now; save_pretrained refuses as long as the model says it is quantised.
        hf.__dict__["hf_quantizer"] = None
        hf.config.__dict__.pop("quantization_config", None)
        hf.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    except SafetensorError as error:  # how safetensors reports a full disk
        raise OSError(f"cannot write {folder}: {error}") from error
    finally:
        if had_bar:
            transformers_logging.enable_progress_bar()


def _check_kind(reader: gguf.GGUFReader, keys: dict[str, Any], architecture: str, shown: Path) -> None:
    """Refuse what is not one whole language model."""
    if "general.architecture" not in keys:
        raise ValueError(f"cannot use {shown}: the key general.architecture is missing")
    if (kind := keys.get("general.type", "model")) != "model":
        raise ValueError(f"cannot use {shown}: its general.type is {kind!r}, not 'model'")
    if split_count(reader) > 1:
        raise ValueError(
            f"cannot use {shown}: it is one of {split_count(reader)} files of a model and has lost its name; name them "
            "MODEL-00001-of-0000N.gguf again, side by side in one folder"
        )
    if architecture in GGUF_ARCHS:
        raise ValueError(
            f"cannot use {shown}: architecture {architecture} has blocks without attention, which interp does not cover"
        )
    strange = sorted({name.partition(".")[0] for name in keys} - {architecture, *_NAMESPACES})
    if strange:
        logger.warning("%s: keys of %s are not used", shown.name, ", ".join(strange))


def _converted(
    path: Path, reader: gguf.GGUFReader, keys: dict[str, Any], architecture: str, shown: Path
) -> tuple[dict[str, Any], PreTrainedModel, PreTrainedTokenizerBase]:
    """What transformers reads of the configuration, and the model and tokenizer that it makes of the file."""
    try:
        settings = load_gguf_checkpoint(str(path), return_tensors=False)["config"]
    except Exception as error:
        raise ValueError(f"transformers cannot convert {shown}: {reason_of(error)}") from error
    own = {
        name.removeprefix(f"{architecture}."): value
        for name, value in keys.items()
        if name.startswith(f"{architecture}.")
    }
    names = {tensor.name for tensor in reader.tensors}
    if isinstance(n_layers := own.get("block_count"), int) and n_layers > len(reader.tensors):
        # transformers would build a billion layers before it finds that their tensors are missing.
        raise ValueError(
            f"cannot use {shown}: {architecture}.block_count is {n_layers}, and the file holds {len(reader.tensors)} "
            "tensors; download it again"
        )
    try:
        config = configuration(architecture, own, settings, names, rope_factors(reader.tensors))
    except ValueError as error:
        raise ValueError(f"cannot use {shown}: {error}") from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(path.parent),
            gguf_file=path.name,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:
        raise ValueError(f"transformers cannot convert {shown}: {reason_of(error)}") from error
    hf, found = loaded
    if missing := sorted(found["missing_keys"]):
        raise ValueError(
            f"cannot use {shown}: {len(missing)} tensors of the model are missing, first {missing[0]}, and would be "
            "random numbers"
        )
    return settings, hf, tokenizer
