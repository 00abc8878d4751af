"""The files of a checkpoint or adapter folder, checked before a library reads them.

transformers reads a generation config that it cannot parse as if there were none, and PEFT checks no types: what they
would pass over or fail on with a traceback is refused here, with the file's name.
"""

import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp.storage.typed_json import first_line, read_json

_AGAIN = "copy or download it again"
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
"""What configurations call the number of layers."""


@dataclass(frozen=True, kw_only=True)
class _GenerationConfig:
    """What is used of a `generation_config.json`."""

    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None


_KINDS: dict[str, Any] = {
    "config.json": dict[str, Any],
    "generation_config.json": _GenerationConfig,
    "tokenizer_config.json": dict[str, Any],
    "special_tokens_map.json": dict[str, Any],
    "added_tokens.json": dict[str, Any],
    "adapter_config.json": dict[str, Any],
    "model.safetensors.index.json": dict[str, Any],
    "pytorch_model.bin.index.json": dict[str, Any],
}


def check_folder(folder: Path) -> None:
    """Read the settings in a checkpoint or adapter folder.

    Raises:
        ValueError: one is damaged, or not of its type.
    """
    for name, kind in _KINDS.items():
        if (folder / name).is_file():
            read_json(folder / name, kind, remedy=_AGAIN)
    template = folder / "chat_template.jinja"
    if template.is_file():
        try:
            template.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{template} is not UTF-8 text ({error.reason}); {_AGAIN}") from error


def check_stored_numbers(folder: Path) -> None:
    """Refuse weights that cannot be what the configuration describes, by their names and types alone.

    transformers would convert each integer to the float of the same value, and the answers would be noise; and it would
    build a billion layers for a damaged number before it finds that their weights are missing.

    Raises:
        ValueError: weights stored as integers in a checkpoint that does not say how it was quantised, or more layers
            than there are tensors.
    """
    config = read_json(folder / "config.json", dict[str, Any], remedy=_AGAIN)
    names: list[str] = []
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > path.stat().st_size:
                return  # damaged, which the reader of the weights says
            header = json.loads(file.read(size))
        names += header
        for name, entry in header.items():
            is_integer = name.endswith(".weight") and str(entry.get("dtype")).startswith(("I", "U"))
            if is_integer and "quantization_config" not in config:
                raise ValueError(
                    f"{name} in {path.name} is {entry['dtype']} and config.json has no quantization_config: its "
                    "scale is unknown; take the folder that the quantising library wrote, whole"
                )
    text = config.get("text_config")
    settings = text if isinstance(text, dict) else config
    n_layers = next((settings[name] for name in _LAYERS if isinstance(settings.get(name), int)), 0)
    if names and n_layers > len(names):
        raise ValueError(
            f"config.json describes {n_layers} layers, and the weights are {len(names)} tensors; {_AGAIN}"
        )


def reason_of(error: Exception) -> str:
    """Why a checkpoint cannot be read, in one line that never advises to switch a protection off."""
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error):
        return (
            "its pickled weights are damaged or hold more than tensors, which could run code; use safetensors"
        )
    if "ignore_mismatched_sizes" in str(error):
        return "the shapes of its tensors are not those that its configuration describes; take both from one checkpoint"
    return first_line(error)
