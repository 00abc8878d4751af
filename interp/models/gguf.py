"""GGUF files → folders of float32 safetensors in the cache, converted once.

The cache folder is `$INTERP_CACHE`, else `$XDG_CACHE_HOME/interp`, else `~/.cache/interp`; a converted copy is verified
by its SHA-256 at every use and converted again when it does not match.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """The folder that holds converted checkpoints."""
    if folder := os.environ.get("INTERP_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "interp"


def convert_gguf(path: Path) -> Path:
    """Dequantise a GGUF file to a safetensors folder in the cache, once; return that folder.

    The folder is named by the file's SHA-256 and appears by one rename, so a killed conversion leaves nothing
    behind. A copy whose weights no longer match their recorded hash is converted again.

    Raises:
        ValueError: the file does not exist, is not GGUF, or is truncated.
        OSError: the cache folder is full or not writable.
    """
    if not path.is_file():
        raise ValueError(f"no such GGUF file: {path}; check the path")
    with path.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise ValueError(f"{path} is not a GGUF file (it does not start with 'GGUF'); check the download")
    digest = _sha256(path)
    target = cache_folder() / f"{path.stem}-{digest[:16]}"
    if target.is_dir():
        if _is_intact(target):
            return target
        logger.warning("the converted copy in %s is damaged; converting %s again", target, path)
        shutil.rmtree(target)
    logger.warning("converting %s to safetensors in %s (once)", path.name, target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        unfinished = Path(scratch) / "model"
        _dequantise(path, unfinished)
        record = {"gguf_sha256": digest, "weights_sha256": _weights_digest(unfinished)}
        (unfinished / "interp-conversion.json").write_text(json.dumps(record, indent=1))
        try:
            unfinished.rename(target)
        except OSError:  # another process finished the same conversion first
            if not _is_intact(target):
                raise
    return target


def _dequantise(path: Path, folder: Path) -> None:
    # Parse the header and every tensor's extent first: a truncated file is found in a second, not in minutes,
    # and gets a message of its own.
    import gguf

    try:
        gguf.GGUFReader(str(path))
    except Exception as error:
        raise ValueError(
            f"cannot read {path} as GGUF ({error}); it is truncated or damaged, download it again"
        ) from error
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
        hf = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=torch.float32)
    except Exception as error:
        raise ValueError(f"transformers cannot convert {path}: {error}") from error
    # The weights are plain float32 now; save_pretrained refuses as long as the model says it is quantised.
    hf.__dict__["hf_quantizer"] = None
    hf.config.__dict__.pop("quantization_config", None)
    try:
        hf.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    except SafetensorError as error:  # how safetensors reports a full disk
        raise OSError(f"cannot write {folder}: {error}") from error
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _weights_digest(folder: Path) -> dict[str, str]:
    return {path.name: _sha256(path) for path in sorted(folder.glob("*.safetensors"))}


def _is_intact(folder: Path) -> bool:
    try:
        record = json.loads((folder / "interp-conversion.json").read_text())
        return bool(record["weights_sha256"]) and record["weights_sha256"] == _weights_digest(folder)
    except (OSError, ValueError, KeyError):
        return False
