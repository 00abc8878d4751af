"""Hashes of checkpoints on disk, by what is in their files: equal for equal copies anywhere, at any time.

Only files that a model, tokenizer or adapter is loaded from count, and of their settings not the names of the places
that they came from. Neither a path nor a time of modification enters the hash.
"""

import hashlib
import json
from pathlib import Path

from interp.storage.file_hashes import remembered_sha256
from interp.storage.paths import expanded

_LOADED = (
    "*.safetensors",
    "*.safetensors.index.json",
    "pytorch_model*.bin",
    "pytorch_model*.bin.index.json",
    "adapter_model.bin",
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "*.py",
)
"""Files that loading reads; a trainer leaves others beside them, with times and paths inside."""
_NAMES_OF_PLACES = ("_name_or_path", "base_model_name_or_path")


def content_hash(place: str) -> str:
    """SHA-256 of the content of a checkpoint or adapter folder, or of a file; a name elsewhere stands for itself."""
    path = expanded(place)
    if path.is_file():
        return file_hash(path)
    if not path.is_dir():
        return hashlib.sha256(place.encode(errors="surrogateescape")).hexdigest()
    files = {file for pattern in _LOADED for file in path.glob(pattern) if file.is_file()}
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(f"{file.name}\0{_settings_hash(file) or file_hash(file)}\0".encode())
    return digest.hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file; `unreadable` for one that cannot be read, which loading it will say."""
    try:
        return remembered_sha256(path)  # a series hashes its shared base once
    except OSError:
        return "unreadable"


def _settings_hash(path: Path) -> str | None:
    """SHA-256 of a configuration without the names of places; None for other files and unreadable ones."""
    if path.name not in ("config.json", "adapter_config.json"):
        return None
    try:
        settings = json.loads(path.read_bytes())
        kept = {key: value for key, value in settings.items() if key not in _NAMES_OF_PLACES}
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
