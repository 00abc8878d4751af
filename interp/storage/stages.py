"""Finished stages of a run, stored until the run is complete, so that a killed run continues where it stopped.

    with open_stages("runs/demo", key={"experiment": "demo", "seed": 0}) as stages:
        scores = stages.keep("scores", lambda: compute_scores(), Scores)     # computed once, however often it is killed
        stages.lap("scores")                                                 # seconds, by stage
        for layer in stages.progress(range(30), "layers"):
            ...

`open_stages(None, ...)` behaves the same and stores nothing, so experiments need not check whether there is a folder.
`keep` always returns what was written and read again, so that an interrupted run gives the same numbers as one that was
not.
"""

import hashlib
import json
import logging
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from interp.display.progress import progress
from interp.storage.atomic_files import remove_folder, remove_strays, write_file, write_tensors
from interp.storage.locks import folder_lock, resolved
from interp.storage.provenance import Provenance, provenance_of
from interp.storage.reply_records import RecordedReply, recorder
from interp.storage.typed_json import first_line, from_json, to_json, to_plain

logger = logging.getLogger(__name__)
_SETTINGS, _CODE = "settings.sha256", "code.sha256"
"""Files that say which settings, and which version of the code, the values were computed with."""
_REPLIES = ".replies"
"""Ending of the name under which a stage's recorded replies are stored."""
_MISSING = object()
T = TypeVar("T")


def stage_name(text: str) -> str:
    """A label as part of the name of a stage or file: letters in lower case, digits, dots, else hyphens."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")


class StageCache:
    """Named values in a folder, each written atomically.

    Values are anything that `typed_json` writes, or a mapping of names to tensors. A cache with another key is emptied
    with a warning; one written by another version of this library's code is kept, with a warning.

    Args:
        folder: folder of the values.
        key: JSON-serialisable settings that the values depend on.
    """

    def __init__(self, folder: str | Path, key: Mapping[str, Any]) -> None:
        self.folder = resolved(folder)
        self._digest = hashlib.sha256(json.dumps(to_plain(key), sort_keys=True).encode()).hexdigest()
        remove_strays(self.folder)
        if self.folder.is_dir() and _read_stamp(self.folder / _SETTINGS) != self._digest:
            if self._holds_values():
                logger.warning("%s holds stages of a run with other settings; starting again", self.folder)
            self.remove()
        if self.folder.is_dir() and _read_stamp(self.folder / _CODE) not in (None, code_hash()):
            logger.warning(
                "%s holds stages that another version of interp computed; remove the folder to compute them again",
                self.folder,
            )

    def _begin(self) -> None:
        """Make the folder, with its stamps, when the first value comes: a run that fails before leaves none."""
        if not (self.folder / _SETTINGS).is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_file(self.folder / _SETTINGS, self._digest.encode())
        if not (self.folder / _CODE).is_file():
            write_file(self.folder / _CODE, code_hash().encode())

    def _holds_values(self) -> bool:
        return any(
            path.is_dir() or path.suffix in (".json", ".safetensors") for path in self.folder.iterdir()
        )

    def workspace(self, name: str) -> Path:
        """A folder for further files, removed with the values."""
        self._begin()
        (self.folder / name).mkdir(parents=True, exist_ok=True)
        return self.folder / name

    def __contains__(self, name: str) -> bool:
        return self._json(name).is_file() or self._tensors(name).is_file()

    def names(self, prefix: str = "") -> list[str]:
        """Names of the stored values, sorted."""
        stems = {
            p.stem for ending in ("json", "safetensors") for p in self.folder.glob(f"{prefix}*.{ending}")
        }
        # A hidden one is a draft; recorded replies belong to the value of their stage.
        return sorted(name for name in stems if not name.startswith(".") and not name.endswith(_REPLIES))

    def get(self, name: str, kind: Any = Any) -> Any:
        """The stored value of this name, or None; mappings of tensors need no `kind`.

        Raises:
            ValueError: the stored value is damaged or of another type.
        """
        if self._tensors(name).is_file():
            from safetensors import SafetensorError
            from safetensors.torch import load_file

            try:
                return load_file(self._tensors(name))
            except (SafetensorError, ValueError) as error:
                raise ValueError(f"{self._tensors(name)} is damaged ({first_line(error)})") from error
        path = self._json(name)
        return from_json(kind, path.read_bytes(), source=str(path)) if path.is_file() else None

    def put(self, name: str, value: Any, kind: Any = Any) -> None:
        """Write a value, replacing an older one."""
        self._begin()
        if _is_tensors(value):
            draft = self.folder / f".{name}.safetensors"
            write_tensors(draft, value)
            draft.replace(self._tensors(name))
        else:
            write_file(self._json(name), to_json(value, kind))

    def whole(self, name: str, kind: Any = Any, default: Any = None) -> Any:
        """The stored value of this name; the default where there is none, or a damaged one, which is removed."""
        if name not in self:
            return default
        try:
            return self.get(name, kind)
        except ValueError as error:
            logger.warning("%s; computing it again", error)
            self.drop(name)
            return default

    def keep(self, name: str, compute: Callable[[], T], kind: Any = Any) -> T:
        """The stored value of this name, computed and stored where there is none or a damaged one."""
        if (value := self.whole(name, kind, default=_MISSING)) is not _MISSING:
            logger.info("continuing: %s is there", name)
            self._recall(name)
            return value
        self.put(name, self._recorded(name, compute), kind)
        return self.get(name, kind)

    def _recorded(self, name: str, compute: Callable[[], T]) -> T:
        """Compute a value; replies that are recorded meanwhile are stored before it, and given back by `_recall`."""
        record = recorder()
        if record is None:
            return compute()
        with record.stage(name) as replies:
            value = compute()
        if replies:
            self.put(f"{name}{_REPLIES}", tuple(replies), tuple[RecordedReply, ...])
        return value

    def _recall(self, name: str) -> None:
        """Give a finished stage's replies back to the recorder of this context."""
        if (record := recorder()) is not None:
            record.replies += self.get(f"{name}{_REPLIES}", tuple[RecordedReply, ...]) or ()

    def open_tensors(self, name: str) -> Any:
        """A context that reads large tensors of this name one at a time (`safetensors.safe_open`)."""
        from safetensors import safe_open

        return safe_open(str(self._tensors(name)), framework="pt")

    def drop(self, name: str) -> None:
        """Remove a value if it exists."""
        self._json(name).unlink(missing_ok=True)
        self._tensors(name).unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the folder atomically: a kill leaves either all of it or a renamed rest that is ignored."""
        remove_folder(self.folder)

    def discard_empty(self) -> None:
        """Remove the folder unless it holds a value or a file of a workspace."""
        if self.folder.is_dir() and not any(
            path.is_file() and path.name not in (_SETTINGS, _CODE) for path in self.folder.rglob("*")
        ):
            self.remove()

    def _json(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _tensors(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"


class Stages:
    """The context of one run: stored stages, seconds by stage, progress. Made by `open_stages`."""

    def __init__(
        self,
        cache: StageCache | None,
        scratch: Callable[[], Path],
        *,
        provenance: Provenance,
        show_progress: bool,
        workers: Any = None,
    ) -> None:
        self.cache = cache
        """Cache of finished stages; None for a run without a folder."""
        self.provenance = provenance
        """Provenance of the run, for its result."""
        self.show_progress = show_progress
        """Whether progress bars are drawn."""
        self.workers = workers
        """Workers that share the parts of the run (`interp.engine.ray.Workers`); None is this process."""
        self._scratch = scratch
        self._seconds: dict[str, float] = {}
        self._begun = time.perf_counter()

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by stage, and their sum as `total`."""
        return {**self._seconds, "total": round(sum(self._seconds.values()), 3)}

    def keep(self, name: str, compute: Callable[[], T], kind: Any = Any) -> T:
        """The value of a stage: read if it was finished before, else computed and stored.

        Args:
            name: unique in the run; it becomes a file name.
            kind: type of the value, such as a dataclass; JSON values and mappings of tensors need none.
        """
        if self.cache is not None:
            return self.cache.keep(name, compute, kind)
        record = recorder()
        with nullcontext() if record is None else record.stage(name):
            value = compute()
        if _is_tensors(value):
            return value
        return from_json(kind, to_json(value, kind), source=name)

    def stored(self, name: str, kind: type[T]) -> T | None:
        """The value of a stage that was finished before; None where there is none, or a damaged one."""
        return None if self.cache is None else self.cache.whole(name, kind)

    def lap(self, stage: str) -> None:
        """Add the time since the last lap to this stage."""
        now = time.perf_counter()
        self._seconds[stage] = round(self._seconds.get(stage, 0.0) + now - self._begun, 3)
        self._begun = now
        if (record := recorder()) is not None:
            record.lap(stage)

    def progress(self, items: Iterable[T], label: str, *, total: int | None = None) -> Iterator[T]:
        """Iterate over the items, with a progress bar where `show_progress` is set.

        Args:
            total: number of items; None counts them first.
        """
        if total is None:
            items = list(items)
            total = len(items)
        return progress(items, total=total, label=label, show=self.show_progress)

    def workspace(self, name: str) -> Path:
        """A folder for further files of the run, such as checkpoints; removed when the run is complete."""
        if self.cache is not None:
            return self.cache.workspace(name)
        folder = self._scratch() / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder


@contextmanager
def open_stages(
    out: str | Path | None,
    *,
    key: Mapping[str, Any],
    provenance: Provenance | None = None,
    show_progress: bool = False,
    workers: Any = None,
) -> Iterator[Stages]:
    """The context of a run whose finished stages are stored in `<out>.parts` until it is complete.

    When the context exits normally the stages are removed; after an error, an interrupt or a kill they remain, and the
    same run continues there. A run that has finished no stage leaves nothing. One process at a time writes a folder.

    Args:
        out: the run's folder; None stores nothing.
        key: settings that the stages depend on; stages with another key are not used.
        provenance: provenance of the run, for its result.
        workers: workers of `interp.engine.ray`, for a run that shares its parts.

    Raises:
        ValueError: another run is writing the same folder.
    """
    with ExitStack() as stack:
        temporary: list[Path] = []

        def scratch() -> Path:
            if not temporary:
                temporary.append(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="interp-"))))
            return temporary[0]

        cache = None
        if out is not None:
            target = resolved(out)
            stack.enter_context(folder_lock(target))
            cache = StageCache(target.with_name(f"{target.name}.parts"), key)
            stack.callback(cache.discard_empty)
        about = provenance_of(None, None, seed=0) if provenance is None else provenance
        yield Stages(cache, scratch, provenance=about, show_progress=show_progress, workers=workers)
        if cache is not None:
            cache.remove()


def _is_tensors(value: Any) -> bool:
    """Whether this is a mapping of tensors, without importing torch to find out."""
    return isinstance(value, Mapping) and bool(value) and all(hasattr(v, "data_ptr") for v in value.values())


def _read_stamp(path: Path) -> str | None:
    """Content of a stamp; None where it is missing or damaged."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return None


@cache
def code_hash() -> str:
    """Hash of the library's source files."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(str(file.relative_to(package)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()
