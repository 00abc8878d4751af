"""Finished stages of a run, kept until it is whole, and the seconds that each took."""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from interp.storage.atomic_files import plain, write_file, write_tensors

logger = logging.getLogger(__name__)


class Parts:
    """Finished parts of a run, kept until it is whole, so that a killed run continues.

    Parts made under other settings are discarded; parts made by other code of this library are kept, with a warning.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any]) -> None:
        target = Path(folder)
        self.folder = target.with_name(f"{target.name}.parts")
        key = hashlib.sha256(json.dumps(plain(settings), sort_keys=True).encode()).hexdigest()
        stamp = self.folder / "settings.sha256"
        if self.folder.is_dir() and (not stamp.is_file() or stamp.read_text() != key):
            logger.warning("%s holds parts of a run with other settings; starting anew", self.folder)
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_file(stamp, key.encode())
        code, made_by = _code_hash(), self.folder / "code.sha256"
        if not made_by.is_file():
            write_file(made_by, code.encode())
        elif made_by.read_text() != code:
            logger.warning(
                "%s holds parts that another version of interp made; remove it to compute them anew",
                self.folder,
            )

    def numbers(self, name: str, compute: Callable[[], Any]) -> Any:
        """A JSON-able part: read when finished before, else computed and kept."""
        path = self.folder / f"{name}.json"
        if path.is_file():
            logger.info("continuing: %s is there", name)
            return json.loads(path.read_text())
        value = plain(compute())
        write_file(path, json.dumps(value).encode())
        return value

    def tensors(self, name: str, compute: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """A part made of tensors: read when finished before, else computed and kept."""
        path = self.folder / f"{name}.safetensors"
        if not path.is_file():
            draft = self.folder / f".{name}.safetensors"
            write_tensors(draft, compute())
            draft.replace(path)
        else:
            logger.info("continuing: %s is there", name)
        return load_file(path)

    def discard(self) -> None:
        """Remove the parts; the run is whole."""
        shutil.rmtree(self.folder, ignore_errors=True)


@cache
def _code_hash() -> str:
    """Of the library's source files."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(str(file.relative_to(package)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


class Stopwatch:
    """Seconds by stage, for provenance."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._begun = time.perf_counter()

    @property
    def with_total(self) -> dict[str, float]:
        """Seconds by stage, and their sum as `total`."""
        return {**self.seconds, "total": round(sum(self.seconds.values()), 3)}

    def lap(self, stage: str) -> None:
        """Book the time since the last lap under this stage."""
        now = time.perf_counter()
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + now - self._begun, 3)
        self._begun = now
