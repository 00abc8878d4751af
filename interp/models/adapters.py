"""PEFT adapters: reading one from its folder and attaching it to a loaded model.

    adapted = attach_adapter(hf, "runs/sft/checkpoint-64", shown="smollm2")   # a PeftModel over hf

An adapter is attached as PEFT itself does, with the initialisation that its configuration names: some (PiSSA, OLoRA)
take a part out of the base weights when they are attached, and the stored matrices only fit what is left.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from interp.models.checkpoint_files import check_folder, reason_of
from interp.models.hub import holds_file, hub_options
from interp.models.sources import is_adapter
from interp.storage.paths import expanded
from interp.storage.typed_json import first_line


def method_name(config: Any) -> str:
    """PEFT's name of an adapter's method, with the initialisation where it is not the usual one."""
    method = str(getattr(config.peft_type, "value", config.peft_type))
    initialisation = getattr(config, "init_lora_weights", True)
    return f"{method} ({initialisation})" if isinstance(initialisation, str) else method


def adapter_named(name: str) -> str | None:
    """The folder or Hub id of an adapter that a name stands for; None where it is something else."""
    folder = expanded(name)
    if folder.exists():
        return str(folder) if is_adapter(folder) else None
    return name if holds_file(name, "adapter_config.json") else None


def attach_adapter(hf: PreTrainedModel, adapter: str, *, shown: str, dropout: float | None = None) -> Any:
    """A `PeftModel` that runs `hf` with a stored adapter.

    Attaching may write to weights of `hf` (biases, norms, initialisations that change the base), and removing the
    adapter does not undo that: wrap it in a `Snapshot`.

    PEFT itself loads an adapter of another model with a warning at most, so names and shapes are compared first, and
    values afterwards.

    Args:
        adapter: PEFT folder or Hub id.
        shown: the model's name in messages.
        dropout: make the adapter trainable, with this dropout on its inputs; None leaves it frozen.

    Raises:
        ValueError: no adapter there, unreadable, made for another model, or of a method that cannot be attached.
    """
    from peft import LoraConfig, get_peft_model

    config, weights = _read(adapter)
    method = method_name(config)
    if config.is_prompt_learning:
        raise ValueError(
            f"adapter {adapter} ({method}) learns prompts, not weights; interp takes adapters of weights"
        )
    if isinstance(config, LoraConfig) and dropout is not None:
        config.lora_dropout = dropout
    config.inference_mode = dropout is None
    wrong = f"adapter {adapter} does not fit {shown}"
    made_for = f"it was made for {config.base_model_name_or_path}"
    try:
        with quiet_peft():
            model: Any = get_peft_model(hf, config)
    # PEFT has a class of errors for every method; whichever it is, the adapter cannot be attached.
    except Exception as error:
        raise ValueError(f"{wrong} ({method}): {first_line(error)}; {made_for}") from error
    try:
        _fill(model, config, weights)
    except Exception as error:  # PEFT does not check the types of its settings
        raise ValueError(f"{wrong}: {first_line(error)}; {made_for}") from error
    return model


def _read(adapter: str) -> tuple[Any, dict[str, Tensor]]:
    from peft import PeftConfig, load_peft_weights

    if Path(adapter).is_dir() and not is_adapter(Path(adapter)):
        raise ValueError(f"adapter folder {adapter} has no adapter_config.json; pass the folder PEFT saved")
    options = (
        {} if Path(adapter).is_dir() else hub_options(adapter, revision=None, file="adapter_config.json")
    )
    what = f"adapter {adapter}"
    if Path(adapter).is_dir():
        check_folder(Path(adapter))
    try:
        config = PeftConfig.from_pretrained(adapter, **options)
        what = f"{what} ({method_name(config)})"
        weights = load_peft_weights(adapter, device="cpu", **options)
        if damaged := [
            name
            for name, value in weights.items()
            if value.is_floating_point() and not value.isfinite().all()
        ]:
            raise ValueError(f"{damaged[0]} holds NaN or infinite values")
        for name, value in weights.items():
            if "lora_" in name and not value.is_floating_point():
                raise ValueError(f"{name} holds {value.dtype}, which trained weights are not")
    except Exception as error:  # a reader of files of anybody's making
        raise ValueError(f"cannot read {what}: {reason_of(error)}") from error
    return config, weights


def _fill(model: Any, config: Any, weights: dict[str, Tensor]) -> None:
    """Load the stored tensors and check that every one of them arrived."""
    from peft.utils import set_peft_model_state_dict

    with quiet_peft():
        own = stored_tensors(model)
        if with_embeddings := not weights.keys() <= own.keys():
            own = stored_tensors(model, with_embeddings)
        expected = {key: value.shape for key, value in own.items()}
        found = {key: value.shape for key, value in weights.items()}
        # AdaLoRA's ranks shrink in training, and PEFT resizes its modules to them when it loads.
        if getattr(config, "rank_pattern", None) and config.peft_type == "ADALORA":
            found = {key: expected.get(key, shape) for key, shape in found.items()}
        if expected != found:
            different = sorted(expected.keys() ^ found.keys()) or sorted(
                key for key in expected if expected[key] != found[key]
            )
            raise ValueError(f"{len(different)} tensors differ, first {different[0]}")
        result = set_peft_model_state_dict(model, weights)
        arrived = stored_tensors(model, with_embeddings)
    lost = list(result.unexpected_keys) + [
        key for key, value in weights.items() if key in arrived and not _equal(arrived[key], value)
    ]
    if lost:
        raise ValueError(f"{len(lost)} tensors of its file cannot be put in place, first {sorted(lost)[0]}")


def stored_tensors(adapted: Any, with_embeddings: bool = False) -> dict[str, Tensor]:
    """The tensors that the attached adapter's file has, by their names there.

    Args:
        with_embeddings: with the base model's embeddings, which PEFT stores where they were trained or resized. Left
            to itself it asks the Hub whether they were.
    """
    from peft import get_peft_model_state_dict

    return get_peft_model_state_dict(adapted, save_embedding_layers=with_embeddings)


def _equal(arrived: Tensor, stored: Tensor) -> bool:
    return arrived.shape == stored.shape and torch.equal(arrived.cpu(), stored.to(arrived.dtype))


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Without PEFT's warnings about what no user of this library can fix."""
    with warnings.catch_warnings():
        # The base stands in a cache folder, so its recorded name never matches; shapes are compared instead.
        warnings.filterwarnings("ignore", message=".*base_model_name_or_path.*", category=UserWarning)
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        # What a merge into tied weights does is compared on the model itself.
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings.*", category=UserWarning)
        yield
