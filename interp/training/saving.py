"""Files of a fine-tuning run, written atomically.

- `out/checkpoint-{examples}` and `out` itself: a PEFT adapter or a model, as `interp.load` takes it;
- `out/training.json`: the record of a finished run, read instead of training again under equal settings;
- `<out>.parts`: the trainer's own checkpoints (optimiser, schedule, RNG) that a killed run resumes from.

The record names every file of the run by its hash. It is removed before anything else is, and a run whose files are not
those of its record is not finished.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from interp.models.chat_model import ChatModel
from interp.models.content_hashes import content_hash
from interp.storage.atomic_files import draft_folder, remove_folder, remove_strays, write_file
from interp.storage.file_hashes import file_sha256
from interp.storage.typed_json import read_json
from interp.training.config import TrainConfig

logger = logging.getLogger(__name__)

Files = dict[str, bytes]
"""Files of a checkpoint by name."""
RECORD = "training.json"
"""File in the folder of a finished run with settings, examples seen and losses."""
COMPLETE = "complete"
"""File that marks a trainer's own checkpoint as complete, with the size of each of its files."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A finished fine-tuning run."""

    folder: Path
    """Folder of the trained adapter or model."""
    checkpoints: Mapping[int, Path]
    """Adapter or model folders by number of examples seen, ascending."""
    loss: float
    """Mean training loss: nats per completion token (supervised), DPO loss per pair (preferences)."""
    losses: tuple[tuple[int, float], ...]
    """Pairs of examples seen and mean loss since the previous entry."""


def write_checkpoint(adapted: Any, folder: Path, model: ChatModel, config: TrainConfig) -> None:
    """Write the adapter or model atomically as a folder that `interp.load` takes."""
    with draft_folder(folder) as draft:
        if config.method == "full":
            adapted.save_pretrained(draft)
            model.tokenizer.save_pretrained(draft)
        else:
            _save_adapter(adapted, draft, getattr(torch, config.saved_dtype))
        folder.mkdir(exist_ok=True)
        # Weights are written last: a folder without them is not a checkpoint.
        for file in sorted(draft.iterdir(), key=lambda path: "model" in path.name):
            file.replace(folder / file.name)


def _save_adapter(adapted: Any, folder: Path, dtype: torch.dtype) -> None:
    from peft import get_peft_model_state_dict

    state = {
        key: value.to(dtype)
        for key, value in get_peft_model_state_dict(adapted, adapter_name="default").items()
    }
    adapted.save_pretrained(
        str(folder), state_dict=state, save_embedding_layers=False, selected_adapters=["default"]
    )


def run_key(
    model: ChatModel,
    examples: Sequence[tuple[str, ...]],
    config: TrainConfig,
    start: str | Path | None,
) -> str:
    """Hash of everything that a run's weights depend on: equal for runs that end with the same weights."""
    facts = {
        "weights": model.weights_hash,
        "template": model.template_hash,
        "examples": [tuple(row) for row in examples],
        "kind": type(examples[0]).__name__,
        "config": asdict(config),
        "start": None if start is None else content_hash(str(start)),
    }
    if model.precision == "fast":  # its products round
        facts["precision"] = "fast"
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class _Record:
    """Content of a run's record, as far as it is read again."""

    key: str
    """`run_key` of the run."""
    losses: tuple[tuple[int, float], ...]
    """Pairs of examples seen and mean loss."""
    loss: float
    """Mean training loss."""
    files: dict[str, str]
    """SHA-256 of the weights of the run and its checkpoints, by path; of other files only that they are there."""


def files_of(folder: Path) -> Files:
    """A checkpoint's files, to be sent to another process."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def write_files(folder: Path, files: Files) -> None:
    """Write a checkpoint that was sent: its weights after the rest, since a folder without them is none, and its record
    last, since a run without one is not finished."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in sorted(files, key=lambda name: (name == RECORD, "model" in name)):
        write_file(folder / name, files[name])


def write_record(out: Path, record: Mapping[str, Any], steps: Mapping[int, int]) -> None:
    """Write the record of a finished run, with the hashes of its files."""
    payload = {**record, "files": _hashes(out, steps)}
    write_file(out / RECORD, json.dumps(payload, indent=1).encode())


def _hashes(out: Path, steps: Mapping[int, int]) -> dict[str, str]:
    """SHA-256 of the weights in the run's own folder and its checkpoints', and `whole` for settings that can be read.

    Settings may change after training, as when `interp train-safe` sets the adapter's scale.
    """
    hashes = {}
    for folder in (out, *(out / f"checkpoint-{count}" for count in sorted(steps.values()))):
        for path in sorted(folder.glob("*.safetensors")):
            hashes[str(path.relative_to(out))] = file_sha256(path)
        for path in sorted(folder.glob("*config.json")):
            with suppress(ValueError):
                read_json(path, dict[str, Any], remedy="")
                hashes[str(path.relative_to(out))] = "whole"
    return hashes


def parts_folder(out: Path) -> Path:
    """Folder of the trainer's own checkpoints."""
    return out.with_name(f"{out.name}.parts")


def open_parts(out: Path, key: str) -> Path:
    """Folder of the trainer's own checkpoints; those of a run with other settings are removed."""
    (out / RECORD).unlink(missing_ok=True)  # first of all: what is removed below is no finished run's
    parts = parts_folder(out)
    stamp = parts / "settings.sha256"
    remove_strays(parts)
    if parts.is_dir() and (not stamp.is_file() or stamp.read_bytes() != key.encode()):
        if any(parts.glob("checkpoint-*")):
            logger.warning("%s holds parts of a run with other settings; starting again", parts)
        remove_folder(parts)
    for hidden in out.glob(".checkpoint-*.*"):
        remove_strays(out / hidden.name.split(".")[1])
    if not parts.is_dir():  # checkpoints of another run must not pass for this one's
        for old in out.glob("checkpoint-*"):
            remove_folder(old)
        for pattern in ("adapter_model.*", "model*.safetensors*"):
            for weights in out.glob(pattern):
                weights.unlink()
    write_file(stamp, key.encode())
    return parts


def mark_complete(state: Path) -> None:
    """Mark a trainer's own checkpoint as complete."""
    write_file(state / COMPLETE, json.dumps(_sizes(state)).encode())


def _sizes(state: Path) -> dict[str, int]:
    files = (path for path in state.rglob("*") if path.is_file() and path.name != COMPLETE)
    return {str(path.relative_to(state)): path.stat().st_size for path in sorted(files)}


def last_state(parts: Path) -> Path | None:
    """The trainer's last complete checkpoint, or None; incomplete and damaged ones are removed."""
    whole = []
    for state in parts.glob("checkpoint-*"):
        try:
            if read_json(state / COMPLETE, dict[str, int], remedy="training again") == _sizes(state):
                whole.append(state)
                continue
        except (OSError, ValueError):
            pass
        remove_folder(state)
    return max(whole, key=lambda state: int(state.name.rsplit("-", 1)[-1]), default=None)


def read_finished(out: Path, key: str, steps: Mapping[int, int]) -> Trained | None:
    """The run stored in `out`, if it has these settings and all its files are whole."""
    if not (out / RECORD).is_file():
        return None
    try:
        record = read_json(out / RECORD, _Record, remedy="training again")
    except ValueError as error:
        logger.warning("%s", error)
        return None
    if record.key != key:
        return None
    folders = {count: out / f"checkpoint-{count}" for count in steps.values()}
    asked, found = {"", *(folder.name for folder in folders.values())}, _hashes(out, steps)
    expected = {name: digest for name, digest in record.files.items() if Path(name).parent.name in asked}
    if {Path(name).parent.name for name in expected} != asked:
        return None  # trained before without some of these checkpoints
    if wrong := [name for name, digest in expected.items() if found.get(name) != digest]:
        logger.warning("%s is missing or damaged; training again", out / wrong[0])
        return None
    return Trained(folder=out, checkpoints=folders, loss=record.loss, losses=record.losses)
