"""GGUF files of tiny models as llama.cpp's converter writes them, whole, changed and split."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import PreTrainedModel

from tests.conftest import CHATML, make_tokenizer

Key = tuple[Any, gguf.GGUFValueType]
F32, U32, TEXT, BOOL = (
    gguf.GGUFValueType.FLOAT32,
    gguf.GGUFValueType.UINT32,
    gguf.GGUFValueType.STRING,
    gguf.GGUFValueType.BOOL,
)


def write_model(
    path: Path, architecture: str, hf: PreTrainedModel, keys: Mapping[str, Key] | None = None
) -> Path:
    """Any decoder whose names gguf knows, unquantised, with the byte-level tokenizer of the tests.

    Args:
        keys: further architecture keys.
    """
    config: Any = hf.config
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    for key, (value, kind) in (keys or {}).items():
        _add(writer, f"{architecture}.{key}", value, kind)
    _add_tokenizer(writer, config.vocab_size)
    names = gguf.get_tensor_name_map(
        next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture),
        config.num_hidden_layers,
    )
    tied = config.tie_word_embeddings
    for name, value in hf.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        stem, _, suffix = name.rpartition(".")
        weight = value.detach().float()
        if architecture == "llama" and (".q_proj." in name or ".k_proj." in name):
            heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
            weight = interleaved(weight, heads)
        if architecture.startswith("gemma") and "norm" in name:  # stored as w + 1
            weight = weight + 1
        writer.add_tensor(f"{names.get_name(stem)}.{suffix}", weight.contiguous().numpy())
    _finish(writer)
    return path


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows in llama.cpp's order, where the two halves that RoPE rotates alternate."""
    rows = weight.shape[0]
    return (
        weight.reshape(heads, 2, rows // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
    )


def _add_tokenizer(writer: gguf.GGUFWriter, size: int) -> None:
    names = {i: token for token, i in make_tokenizer().get_vocab().items()}
    # The reader wants a merge; "z" and "q" do not meet in our texts.
    texts = ["zq" if i == 259 else names.get(i, f"<unused{i}>") for i in range(size)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(texts)
    writer.add_token_types([3 if 256 <= i < 259 else 1 for i in range(size)])
    writer.add_token_merges(["z q"])
    writer.add_bos_token_id(257)
    writer.add_eos_token_id(258)
    writer.add_pad_token_id(256)
    writer.add_chat_template(CHATML)


def copy_gguf(
    source: Path,
    target: Path,
    *,
    keys: Mapping[str, Key | None] | None = None,
    keep: Callable[[str], bool] = lambda _: True,
    tensors: Mapping[str, np.ndarray] | None = None,
    split_max_tensors: int = 0,
    alignment: int = 32,
) -> Path:
    """A copy with keys set or (None) left out, tensors left out or added, or cut into shards."""
    reader = gguf.GGUFReader(str(source))
    changes = dict(keys or {})
    writer = gguf.GGUFWriter(
        str(target),
        str(reader.fields["general.architecture"].contents()),
        split_max_tensors=split_max_tensors,
    )
    if alignment != 32:
        writer.add_custom_alignment(alignment)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture" or name in changes:
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, sub_type=inner)
    for name, change in changes.items():
        if change is not None:
            _add(writer, name, *change)
    for tensor in reader.tensors:
        if keep(tensor.name):
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    for name, value in (tensors or {}).items():
        writer.add_tensor(name, value)
    _finish(writer)
    return target


def _add(writer: gguf.GGUFWriter, name: str, value: Any, kind: gguf.GGUFValueType) -> None:
    inner = None
    if kind == gguf.GGUFValueType.ARRAY:
        inner = BOOL if isinstance(value[0], bool) else U32
    writer.add_key_value(name, value, kind, sub_type=inner)


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
