"""GGUF files → folders of float32 safetensors in the cache, converted once.

A split file is converted as a whole, whichever of its shards is given. Only a file of which everything was used is
converted (`interp.models.gguf_conversion`).

The cache folder is `$INTERP_CACHE`, else `$XDG_CACHE_HOME/interp`, else `~/.cache/interp`; a converted copy is verified
by its SHA-256, in a process once for each size, time and inode of a file, and converted again when it does not match.
"""

import hashlib
import json
import logging
import os
import re
from pathlib import Path
from typing import Any

from interp.storage.atomic_files import draft_folder, remove_folder
from interp.storage.file_hashes import remembered_sha256
from interp.storage.paths import expanded
from interp.storage.typed_json import read_json

logger = logging.getLogger(__name__)
_RECORD = "interp-conversion.json"
"""File of a converted copy with the hashes of the others."""

CONVERSION = 2
"""Version of the conversion; a copy of an earlier one is made again."""
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


def cache_folder() -> Path:
    """The folder that holds converted checkpoints."""
    if folder := os.environ.get("INTERP_CACHE"):
        return expanded(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "interp"


def convert_gguf(path: str | Path) -> Path:
    """Dequantise a GGUF file to a safetensors folder in the cache, once; return that folder.

    The folder is named by the file's SHA-256 (of all shards for a split file) and appears by one rename, so a killed
    conversion leaves nothing behind. A copy with a file that no longer matches its recorded hash is converted again.

    Raises:
        ValueError: the file does not exist, is not GGUF, is truncated, or holds what the model would not use.
        OSError: the cache folder is full or not writable.
    """
    path = expanded(path)
    if not path.is_file():
        raise ValueError(f"no such GGUF file: {path}; check the path")
    with path.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise ValueError(f"{path} is not a GGUF file (it does not start with 'GGUF'); check the download")
    shards = shards_of(path)
    digest = remembered_sha256(path) if len(shards) == 1 else _joint_digest(shards)
    match = _SHARD.fullmatch(path.name)
    target = cache_folder() / f"{match[1] if match else path.stem}-{digest[:16]}"
    if target.is_dir():
        if _is_intact(target):
            return target
        logger.warning(
            "the converted copy in %s is of an earlier version or is damaged; converting %s again",
            target,
            path,
        )
        remove_folder(target)
    logger.warning("converting %s to safetensors in %s (once)", path.name, target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with draft_folder(target) as scratch:
        unfinished = scratch / "model"
        _dequantise(shards, unfinished)
        record = {"version": CONVERSION, "gguf_sha256": digest, "files_sha256": _digests(unfinished)}
        (unfinished / _RECORD).write_text(json.dumps(record, indent=1))
        try:
            unfinished.rename(target)
        except OSError:  # another process finished the same conversion first
            if not _is_intact(target):
                raise
    return target


def shards_of(path: Path) -> list[Path]:
    """All files of the model that `path` is a shard of, by name; `path` alone where it is not one of several.

    Raises:
        ValueError: a shard is not beside the others.
    """
    match = _SHARD.fullmatch(path.name)
    if match is None:
        return [path]
    stem, _, total = match.groups()
    shards = [path.parent / f"{stem}-{number:05}-of-{total}.gguf" for number in range(1, int(total) + 1)]
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise ValueError(
            f"{path} is one of {int(total)} files of a model, and {', '.join(missing[:3])} "
            f"{'is' if len(missing) == 1 else 'are'} missing from its folder; download all of them"
        )
    return shards


def _joint_digest(shards: list[Path]) -> str:
    return hashlib.sha256("".join(map(remembered_sha256, shards)).encode()).hexdigest()


def _dequantise(shards: list[Path], folder: Path) -> None:
    # Imported here because most loads find a converted copy.
    from interp.models.gguf_conversion import write_converted

    write_converted(shards, folder)


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file: a damaged configuration or tokenizer is as wrong as damaged weights."""
    return {path.name: remembered_sha256(path) for path in sorted(folder.iterdir()) if path.name != _RECORD}


def _is_intact(folder: Path) -> bool:
    try:
        record = read_json(folder / _RECORD, dict[str, Any], remedy="converting again")
        if record.get("version") != CONVERSION:
            return False
        return bool(record["files_sha256"]) and record["files_sha256"] == _digests(folder)
    except (OSError, ValueError, KeyError):
        return False
