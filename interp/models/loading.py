"""Names → a Hugging Face causal LM and its tokenizer, on disk or in memory.

A name is a bundled model (`smollm2`, `smollm2-safe`, `smollm2-form`), a local folder, a `.gguf` file or a Hub id, each
optionally with a PEFT adapter on top, and a sparse change of weights after that (`interp.models.weight_deltas`). GGUF
files are converted once into a folder of safetensors (`interp.models.gguf`).

What it is not: a downloader. Hub access is left to transformers; nothing executes code from a checkpoint unless
the caller passes `trust_remote_code=True`, and pickled weights are only ever read by transformers' own
weights-only loader.
"""

import logging
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from interp.models.adapter_merging import merge_adapter
from interp.models.adapter_tokenizers import adapter_tokenizer
from interp.models.checkpoint_files import check_folder, check_stored_numbers, reason_of
from interp.models.gguf import convert_gguf
from interp.models.hub import hub_options
from interp.models.sources import BUNDLED_MODELS, ModelSource, SourceFiles
from interp.models.tokenizer_files import read_tokenizer
from interp.models.weight_checks import check_finite, check_unused
from interp.models.weight_deltas import apply_delta, read_delta

logger = logging.getLogger(__name__)


class Checkpoint(NamedTuple):
    """A loaded checkpoint with the facts that provenance needs."""

    hf: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    revision: str | None
    adapter: str | None
    source: str
    """The name without its revision."""
    files: SourceFiles | None
    """The files it was read from; None where they changed meanwhile."""

    @property
    def origin(self) -> str:
        """What loads it from any working folder: the name, or the whole path of what is here."""
        is_local = self.source not in BUNDLED_MODELS and Path(self.source).exists()
        return str(Path(self.source).resolve()) if is_local else self.source


def load_checkpoint(
    name: str,
    *,
    adapter: str | None = None,
    revision: str | None = None,
    dtype: torch.dtype | str | None = None,
    device: str | torch.device | None = None,
    delta: str | Path | None = None,
    trust_remote_code: bool = False,
) -> Checkpoint:
    """Load the model and tokenizer that `name` stands for, in eval mode.

    Raises:
        ValueError: unknown name, folder without weights, unreadable GGUF, or an adapter or delta made for another
            model; the message says what is missing and how to fix it.
    """
    kind = None if dtype is None else str(dtype).removeprefix("torch.")
    asked = ModelSource(name, adapter, revision, kind, delta=None if delta is None else str(delta))
    asked.check()
    change = (
        None if delta is None else read_delta(delta)
    )  # a damaged file is found before the model is loaded
    device = _device(device)
    wanted = None if asked.dtype is None else getattr(torch, asked.dtype)
    if wanted is None and torch.device(device).type == "cpu":
        wanted = torch.float32
    place, before = asked.place, asked.files()
    source = str(convert_gguf(place) if place.suffix == ".gguf" else place)
    revision = asked.revision_asked()
    hf, tokenizer = _from_pretrained(
        source, shown=asked.source, revision=revision, dtype=wanted, trust_remote_code=trust_remote_code
    )
    if len(asked.adapter_places) > 1:
        logger.warning(
            "adapter %s is merged on top of the adapter of %s; if it was trained on the model below, load that one",
            asked.adapter,
            asked.source,
        )
    folder = None
    for folder in map(str, asked.adapter_places):
        merge_adapter(hf, folder, shown=asked.source)
        embedding: Any = hf.get_input_embeddings()
        tokenizer = adapter_tokenizer(
            tokenizer, folder, n_embeddings=len(embedding.weight), trust_remote_code=trust_remote_code
        )
    if change is not None:
        apply_delta(hf, change, shown=asked.shown)
    hf = hf.eval().to(torch.device(device))  # pyright: ignore[reportArgumentType]
    files = asked.files()  # only now is what comes from the Hub in its cache
    if before is not None and files is not None and before.stamps != files.stamps:
        files = None  # written to while they were read
    return Checkpoint(hf, tokenizer, asked.shown, revision, folder, asked.source, files)


def _device(device: str | torch.device | None) -> str:
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"unknown device {device!r}; give cpu, cuda, cuda:1, ...") from error
    if wanted.type == "meta":
        raise ValueError("device 'meta' holds no numbers; give cpu, cuda, cuda:1, ...")
    if wanted.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (wanted.index or 0) >= count:
            raise ValueError(
                f"device {device!r} is not there: this machine has {count} CUDA devices; give device='cpu'"
            )
    try:
        torch.empty(0, device=wanted)
    except Exception as error:  # each kind of device has a class of errors of its own
        raise ValueError(
            f"device {str(device)!r} is not there, or torch was built without it; give device='cpu'"
        ) from error
    return str(wanted)


def _from_pretrained(
    source: str, *, shown: str, revision: str | None, dtype: torch.dtype | None, trust_remote_code: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    folder = Path(source)
    options = {} if folder.is_dir() else hub_options(source, revision=revision)
    if folder.is_dir():
        check_folder(folder)
    was_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        if folder.is_dir():
            check_stored_numbers(folder)
        tokenizer = read_tokenizer(source, trust_remote_code=trust_remote_code, options=options)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype or "auto",
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **options,
        )
        hf, found = loaded
        # transformers fills weights that are not there with random numbers, and says so in a log line.
        if found["missing_keys"]:
            missing = sorted(found["missing_keys"])
            raise ValueError(f"{len(missing)} tensors are missing from the weights, first {missing[0]}")
        check_unused(hf, found["unexpected_keys"])
        check_finite(hf)
    except Exception as error:  # readers of files of anybody's making, with errors of Rust, torch and Python
        reason = reason_of(error)
        if folder.is_dir():
            raise ValueError(f"cannot load the checkpoint in {folder}: {reason}") from error
        raise ValueError(
            f"model {shown!r} is not bundled ({', '.join(BUNDLED_MODELS)}), not a folder or .gguf file here, and could "
            f"not be had from the Hub or its cache ({reason}); check the spelling, or on a connected machine run "
            f"`hf download {shown}` and copy the cache"
        ) from error
    finally:
        if was_enabled:
            transformers_logging.enable_progress_bar()
    return hf, tokenizer
