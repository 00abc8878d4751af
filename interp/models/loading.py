"""Names → a Hugging Face causal LM and its tokenizer, on disk or in memory.

A name is a bundled model (`smollm2`, `smollm2-safe`), a local folder, a `.gguf` file or a Hub id, each optionally
with a PEFT adapter on top. GGUF files are converted once into a folder of safetensors (`interp.models.gguf`).

What it is not: a downloader. Hub access is left to transformers; nothing executes code from a checkpoint unless
the caller passes `trust_remote_code=True`, and pickled weights are only ever read by transformers' own
weights-only loader.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch.nn import Parameter
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from interp.models.gguf import convert_gguf
from interp.models.hub import hub_options
from interp.models.sources import BUNDLED_MODELS, ModelSource, SourceFiles, is_adapter


class NotSwappable(ValueError):
    """An adapter that changes more than the weights of layers that are there, so merging it is not undone exactly."""


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


def load_checkpoint(
    name: str,
    *,
    adapter: str | None = None,
    revision: str | None = None,
    dtype: torch.dtype | str | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
) -> Checkpoint:
    """Load the model and tokenizer that `name` stands for, in eval mode.

    Raises:
        ValueError: unknown name, folder without weights, unreadable GGUF, or an adapter made for another model;
            the message says what is missing and how to fix it.
    """
    asked = ModelSource(name, adapter, revision, None if dtype is None else str(dtype).removeprefix("torch."))
    asked.check()
    device = _device(device)
    wanted = None if asked.dtype is None else getattr(torch, asked.dtype)
    if wanted is None and device == "cpu":
        wanted = torch.float32
    place, before = asked.place, asked.files()
    source = str(convert_gguf(place) if place.suffix == ".gguf" else place)
    revision = asked.revision_asked()
    hf, tokenizer = _from_pretrained(
        source, shown=asked.source, revision=revision, dtype=wanted, trust_remote_code=trust_remote_code
    )
    folder = None if asked.adapter_place is None else str(asked.adapter_place)
    if folder is not None:
        hf = _with_adapter(hf, folder, shown=asked.source)
    hf = hf.eval().to(torch.device(device))  # pyright: ignore[reportArgumentType]
    files = asked.files()  # only now is what comes from the Hub in its cache
    if before is not None and files is not None and before.stamps != files.stamps:
        files = None  # written to while they were read
    return Checkpoint(hf, tokenizer, asked.shown, revision, folder, asked.source, files)


def _device(device: str | None) -> str:
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"unknown device {device!r}; give cpu, cuda, cuda:1, ...") from error
    if wanted.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (wanted.index or 0) >= count:
            raise ValueError(
                f"device {device!r} is not there: this machine has {count} CUDA devices; give device='cpu'"
            )
    return device


def _from_pretrained(
    source: str, *, shown: str, revision: str | None, dtype: torch.dtype | None, trust_remote_code: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    folder = Path(source)
    options = {} if folder.is_dir() else hub_options(source, revision=revision)
    was_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code, **options)
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
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
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


def attach_adapter(hf: PreTrainedModel, adapter: str, *, shown: str, dropout: float | None = None) -> Any:
    """A `PeftModel` that runs `hf` with a stored adapter; `unload()` on it gives the plain `hf` back.

    PEFT itself loads an adapter of another model with a warning at most, so names and shapes are compared first.

    Args:
        adapter: PEFT folder or Hub id.
        shown: the model's name in messages.
        dropout: make the adapter trainable, with this dropout on its inputs; None leaves it frozen.

    Raises:
        ValueError: no adapter there, unreadable, or made for another model.
    """
    from peft import LoraConfig, PeftConfig, get_peft_model, get_peft_model_state_dict, load_peft_weights
    from peft.utils import set_peft_model_state_dict

    if Path(adapter).is_dir() and not is_adapter(Path(adapter)):
        raise ValueError(f"adapter folder {adapter} has no adapter_config.json; pass the folder PEFT saved")
    options = (
        {} if Path(adapter).is_dir() else hub_options(adapter, revision=None, file="adapter_config.json")
    )
    try:
        config = PeftConfig.from_pretrained(adapter, **options)
        weights = load_peft_weights(adapter, device="cpu", **options)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ValueError(f"cannot read adapter {adapter}: {str(error).splitlines()[0]}") from error
    if config.is_prompt_learning:
        raise ValueError(f"adapter {adapter} learns prompts, not weights; interp takes adapters of weights")
    wrong = f"adapter {adapter} does not fit {shown}"
    made_for = f"it was made for {config.base_model_name_or_path}"
    if isinstance(config, LoraConfig):
        config.init_lora_weights = True
        if dropout is not None:
            config.lora_dropout = dropout
    config.inference_mode = dropout is None
    try:
        with quiet_peft():
            model: Any = get_peft_model(hf, config)
    except ValueError as error:
        raise ValueError(f"{wrong}: {str(error).splitlines()[0]}; {made_for}") from error
    expected = {key: value.shape for key, value in get_peft_model_state_dict(model).items()}
    found = {key: value.shape for key, value in weights.items()}
    if expected != found:
        model.unload()
        different = sorted(expected.keys() ^ found.keys()) or sorted(
            k for k in expected if expected[k] != found[k]
        )
        raise ValueError(f"{wrong}: {len(different)} tensors differ, first {different[0]}; {made_for}")
    set_peft_model_state_dict(model, weights)
    return model


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Without PEFT's warnings about what no user of this library can fix."""
    with warnings.catch_warnings():
        # The base stands in a cache folder, so its recorded name never matches; shapes are compared instead.
        warnings.filterwarnings("ignore", message=".*base_model_name_or_path.*", category=UserWarning)
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        yield


@contextmanager
def merged_adapter(hf: PreTrainedModel, adapter: str, *, shown: str) -> Iterator[None]:
    """`hf` with an adapter merged into its weights; its own weights again, bit for bit, when the context exits, each
    trainable or frozen as it was.

    Holds a copy of the weights that merging changes, so that many adapters can take turns on one loaded base.

    Raises:
        NotSwappable: the adapter replaces whole modules.
        ValueError: as `attach_adapter`.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    trainable = [(weight, weight.requires_grad) for weight in hf.parameters()]
    adapted = attach_adapter(hf, adapter, shown=shown)
    config = adapted.peft_config["default"]
    if getattr(config, "modules_to_save", None) or getattr(config, "trainable_token_indices", None):
        adapted.unload()
        _put_back(trainable)
        raise NotSwappable(f"adapter {adapter} replaces whole modules; load {shown} with adapter= instead")
    layers = [module.get_base_layer() for module in adapted.modules() if isinstance(module, BaseTunerLayer)]
    before = [(weight, weight.detach().clone()) for layer in layers for weight in layer.parameters()]
    adapted.merge_and_unload()
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, value in before:
                weight.copy_(value)
        _put_back(trainable)


def _put_back(trainable: list[tuple[Parameter, bool]]) -> None:
    for weight, flag in trainable:
        weight.requires_grad_(flag)


def _with_adapter(hf: PreTrainedModel, adapter: str, *, shown: str) -> PreTrainedModel:
    """Merge a PEFT adapter into `hf`."""
    return attach_adapter(hf, adapter, shown=shown).merge_and_unload()
