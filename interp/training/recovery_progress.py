"""How far a recovery has come, as a file, so that one that was killed goes on from its last saved step.

The file is safetensors, written anew at every saved step: places of the restored weights at all of them
(`place/STEP/NAME`), and, where gradients are summed over steps, their sums (`gradient/NAME`), which take as much room
as the weights below the cut that differ. It holds no weights: these are the fine-tuned and the aligned models'.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from interp.storage.atomic_files import replacing_file, write_tensors
from interp.storage.tensor_files import check_seal, read_safetensors, sealed
from interp.storage.typed_json import from_json, to_json, to_plain
from interp.training.recovered import RecoveryStep

logger = logging.getLogger(__name__)
_FORMAT = "interp-recovery-progress-1"
_PLACE, _GRADIENT = "place/", "gradient/"


@dataclass(frozen=True, eq=False, kw_only=True)
class Progress:
    """A recovery up to a saved step."""

    course: tuple[RecoveryStep, ...] = ()
    """Steps so far; the last one was saved."""
    discarded: tuple[RecoveryStep, ...] = ()
    """The warm-up, where it was thrown away."""
    rollback: bool | None = None
    """Whether steps roll back; None until the warm-up has decided."""
    finished: bool = False
    """Whether no step is left."""
    saved: Mapping[int, Mapping[str, Tensor]] = field(default_factory=lambda: {0: {}})
    """Places of the restored weights at every saved step of the course."""
    gradients: Mapping[str, Tensor] = field(default_factory=dict)
    """Gradients summed over the steps so far; empty where each step begins from zero."""
    n_batches: int = 0
    """Number of mini-batches that they are summed over."""


@dataclass(frozen=True, kw_only=True)
class _About:
    """Metadata of a file."""

    key: str
    course: tuple[RecoveryStep, ...]
    discarded: tuple[RecoveryStep, ...]
    rollback: bool | None
    finished: bool
    saved: tuple[int, ...]
    n_batches: int


def progress_key(facts: Mapping[str, Any]) -> str:
    """A hash of everything that a recovery depends on but its task score, which is a function."""
    return hashlib.sha256(json.dumps(to_plain(facts), sort_keys=True).encode()).hexdigest()


def write_progress(path: Path, progress: Progress, key: str) -> None:
    """Write a recovery's progress, atomically.

    Raises:
        OSError: the disk is full or not writable; an older file is untouched.
    """
    tensors = {
        f"{_PLACE}{step}/{name}": _smallest(places)
        for step, by_name in progress.saved.items()
        for name, places in by_name.items()
    }
    tensors |= {f"{_GRADIENT}{name}": gradient for name, gradient in progress.gradients.items()}
    about = _About(
        key=key,
        course=progress.course,
        discarded=progress.discarded,
        rollback=progress.rollback,
        finished=progress.finished,
        saved=tuple(progress.saved),
        n_batches=progress.n_batches,
    )
    metadata = {"format": _FORMAT, "about": to_json(about, _About).decode()}
    with replacing_file(path) as draft:
        write_tensors(draft, tensors, metadata=sealed(metadata, tensors))


def _smallest(places: Tensor) -> Tensor:
    """Ascending indices in the smaller type that holds them."""
    return places.int() if len(places) == 0 or int(places[-1]) < 2**31 else places


def read_progress(path: Path, key: str) -> Progress:
    """The progress of the recovery with this key; none where there is no file, or one that is damaged or of another
    recovery, which a warning tells."""
    if not path.is_file():
        return Progress()
    try:
        file = read_safetensors(path)
        check_seal(file, path, remedy="remove it")
        if file.metadata.get("format") != _FORMAT:
            raise ValueError(f"{path} holds no progress of a recovery; remove it, or give another file")
        about: _About = from_json(_About, file.metadata.get("about", ""), source=str(path))
    except ValueError as error:
        logger.warning("%s; starting again", error)
        return Progress()
    if about.key != key:
        logger.warning("%s holds a recovery of other models, prompts or settings; starting again", path)
        return Progress()
    saved: dict[int, dict[str, Tensor]] = {step: {} for step in about.saved}
    gradients: dict[str, Tensor] = {}
    for name, tensor in file.tensors.items():
        if name.startswith(_PLACE):
            step, _, weight = name.removeprefix(_PLACE).partition("/")
            saved[int(step)][weight] = tensor.long()
        else:
            gradients[name.removeprefix(_GRADIENT)] = tensor
    return Progress(
        course=about.course,
        discarded=about.discarded,
        rollback=about.rollback,
        finished=about.finished,
        saved=saved,
        gradients=gradients,
        n_batches=about.n_batches,
    )
