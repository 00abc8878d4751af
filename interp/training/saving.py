"""Files of a fine-tuning run, written atomically.

- `out/checkpoint-{examples}` and `out` itself: a PEFT adapter or a model, as `interp.load` takes it;
- `out/training.json`: the record of a finished run, read instead of training again under equal settings;
- `<out>.parts`: the trainer's own checkpoints (optimiser, schedule, RNG) that a killed run resumes from.
"""

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from interp.models.chat_model import ChatModel
from interp.models.sources import adapter_digest
from interp.storage.atomic_files import write_file
from interp.training.config import TrainConfig

logger = logging.getLogger(__name__)

RECORD = "training.json"
"""File in the folder of a finished run with settings, examples seen and losses."""
COMPLETE = "complete"
"""Empty file that marks a trainer's own checkpoint as complete."""


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
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        draft = Path(scratch)
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
        "start": None if start is None else (str(start), adapter_digest(str(start))),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def open_parts(out: Path, key: str) -> Path:
    """Folder of the trainer's own checkpoints; those of a run with other settings are removed."""
    parts = out.with_name(f"{out.name}.parts")
    stamp = parts / "settings.sha256"
    if parts.is_dir() and (not stamp.is_file() or stamp.read_text() != key):
        logger.warning("%s holds parts of a run with other settings; starting again", parts)
        shutil.rmtree(parts)
    if not parts.is_dir():  # checkpoints of another run must not pass for this one's
        for old in out.glob("checkpoint-*"):
            shutil.rmtree(old)
    (out / RECORD).unlink(missing_ok=True)
    write_file(stamp, key.encode())
    return parts


def last_state(parts: Path) -> Path | None:
    """The trainer's last complete checkpoint, or None; incomplete ones are removed."""
    whole = [path.parent for path in parts.glob(f"checkpoint-*/{COMPLETE}")]
    for folder in parts.glob("checkpoint-*"):
        if folder not in whole:
            shutil.rmtree(folder)
    return max(whole, key=lambda folder: int(folder.name.rsplit("-", 1)[-1]), default=None)


def read_finished(out: Path, key: str, steps: Mapping[int, int]) -> Trained | None:
    """The run stored in `out`, if it is complete and has these settings."""
    try:
        record = json.loads((out / RECORD).read_text())
    except (OSError, ValueError):
        return None
    folders = {count: out / f"checkpoint-{count}" for count in steps.values()}
    if record.get("key") != key or not all(folder.is_dir() for folder in folders.values()):
        return None
    losses = tuple((int(count), float(loss)) for count, loss in record["losses"])
    return Trained(folder=out, checkpoints=folders, loss=record["loss"], losses=losses)
