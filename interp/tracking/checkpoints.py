"""Which checkpoints a series has: found by name, ordered, identified by their content. Loads no torch.

    checkpoints = find_checkpoints(["runs/sft"], base="smollm2")  # checkpoint-* inside, sorted by step

| given | is |
|---|---|
| a folder with `checkpoint-*` inside | all of them, by step |
| a folder with `adapter_config.json` | a PEFT adapter on `base`, or on the base it names |
| a folder with `config.json`, a `.gguf` file, a bundled name, a Hub id | a whole model |
| `owner/name@revision[,revision...]` | that Hub id at each revision, e.g. `EleutherAI/pythia-70m@step0,step1000` |
| a `ModelSource` | what its name stands for, loaded with its dtype, device and chat template |
| a `ChatModel` | itself |

`interp.tracking.series` loads them.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from interp.models.content_hashes import content_hash
from interp.models.sources import BUNDLED_MODELS, ModelSource, split_revision
from interp.storage.typed_json import read_json

if TYPE_CHECKING:
    from interp.models.chat_model import ChatModel

Named: TypeAlias = "str | Path | ModelSource | ChatModel"
"""What stands for a checkpoint or several."""

_DEFAULTS = ModelSource("")
_NUMBERED = re.compile(r"checkpoint-(\d+)")
_STEP = re.compile(r"(?:step|iter|checkpoint)[-_]?(\d+)(k?)", re.IGNORECASE)


@dataclass(frozen=True, eq=False, kw_only=True)
class Checkpoint:
    """One checkpoint of a series, not loaded."""

    label: str
    """Name in results and messages, unique in its series."""
    step: int | None
    """Training step, or training examples where `interp.training.finetune` wrote it; None where it is unknown."""
    source: str
    """Model to load: name, folder or Hub id."""
    adapter: str | None = None
    """PEFT adapter to load on it."""
    revision: str | None = None
    """Hub revision."""
    live: "ChatModel | None" = field(default=None, repr=False)
    """A model that is already in memory."""
    options: ModelSource = field(default=_DEFAULTS, repr=False)
    """Dtype, device, chat template and batch size to load it with."""

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the content: that of the files, not where they are nor when they were written; a live model's
        weights and template."""
        if self.live is not None:
            facts = [self.live.weights_hash, self.live.template_hash]
            facts += ["precision fast"] if self.live.precision == "fast" else []
        else:
            facts = [content_hash(place) if place else None for place in (self.source, self.adapter)]
        if self.options.dtype or self.options.chat_template:
            template = self.options.chat_template
            facts += [self.options.dtype, content_hash(str(template)) if template else None]
        if self.options.precision == "fast":
            facts.append("precision fast")
        if self.options.thinking is not None:
            facts.append(f"thinking {self.options.thinking}")
        if self.options.date is not None:
            facts.append(f"date {self.options.date}")
        return hashlib.sha256(json.dumps([*facts, self.revision], default=str).encode()).hexdigest()


@dataclass(frozen=True, eq=False, kw_only=True)
class Series:
    """Checkpoints in order, and the candidates for their reference."""

    checkpoints: tuple[Checkpoint, ...]
    """The checkpoints, in the order in which they are measured and plotted."""
    references: tuple[Checkpoint, ...]
    """Candidates for the reference, in order of preference."""

    @property
    def reference_fingerprints(self) -> set[str]:
        """Fingerprints of the candidates for the reference."""
        return {checkpoint.fingerprint for checkpoint in self.references}


def find_series(
    given: "Sequence[Named] | Named",
    *,
    reference: "Named | None" = None,
    base: "str | ChatModel | None" = None,
) -> Series:
    """The checkpoints that these names, folders and models stand for, and the reference among them.

    Args:
        reference: a label of the series, or another checkpoint; None is the first of the series that loads.
        base: model that adapters belong to, by name or loaded; None takes the one that each names.

    Raises:
        ValueError: as for `find_checkpoints`, a reference that stands for several checkpoints, or a base that is no
            model or that no checkpoint needs.
    """
    if isinstance(base, str):
        ModelSource(base).check()
    source = base if base is None or isinstance(base, str) else base.source
    checkpoints = find_checkpoints(given, base=source)
    if reference is None:
        _check_used(base, checkpoints)
        return Series(checkpoints=tuple(checkpoints), references=tuple(checkpoints))
    label = reference.name if isinstance(reference, ModelSource) else str(reference)
    named = [checkpoint for checkpoint in checkpoints if checkpoint.label == label]
    if not named:
        named = find_checkpoints(reference, base=source)
    if len(named) != 1:
        raise ValueError(
            f"the reference {label} stands for {len(named)} checkpoints; name one of "
            f"{', '.join(checkpoint.label for checkpoint in named)}"
        )
    _check_used(base, [*checkpoints, *named])
    return Series(checkpoints=tuple(checkpoints), references=tuple(named))


def _check_used(base: "str | ChatModel | None", checkpoints: Sequence[Checkpoint]) -> None:
    if isinstance(base, str) and all(checkpoint.adapter is None for checkpoint in checkpoints):
        raise ValueError(
            f"the base {base} would not be used, as every checkpoint is a whole model; leave it out"
        )


def find_checkpoints(
    given: "Sequence[Named] | Named",
    *,
    base: str | None = None,
) -> list[Checkpoint]:
    """The checkpoints that these names, folders and models stand for, in order.

    Args:
        base: model that adapters belong to; None takes the one each adapter names.

    Raises:
        ValueError: nothing given, a path that does not exist, or an adapter whose base is not known.
    """
    items: list[Any] = (
        list(given) if isinstance(given, Iterable) and not isinstance(given, (str, bytes)) else [given]
    )
    if not items:
        raise ValueError("no checkpoints were given; name folders, adapters, Hub ids or models")
    return _unique([checkpoint for item in items for checkpoint in _expand(item, base)])


def _expand(item: "Named", base: str | None) -> list[Checkpoint]:
    if isinstance(item, ModelSource):
        return [replace(checkpoint, options=item) for checkpoint in _expand(item.name, base)]
    if not isinstance(item, (str, Path)):
        from interp.models.chat_model import ChatModel  # a model is loaded, and torch with it

        if not isinstance(item, ChatModel):
            raise ValueError(
                "a checkpoint is a name, a folder, a ModelSource or a loaded model, "
                f"got {type(item).__name__}: {item!r:.60}"
            )
        return [Checkpoint(label=item.name, step=None, source=item.name, live=item)]
    text = str(item)
    path = Path(text)
    if path.is_dir():
        inside = [child for child in path.iterdir() if _NUMBERED.fullmatch(child.name) and child.is_dir()]
        if inside:
            ordered = sorted(inside, key=lambda child: int(child.name.rsplit("-", 1)[1]))
            return [_folder(child, base, label=f"{path.resolve().name}/{child.name}") for child in ordered]
        if (path / "adapter_config.json").is_file() or (path / "config.json").is_file():
            return [_folder(path, base, label=path.resolve().name)]
        raise ValueError(
            f"folder {path} is no checkpoint (config.json), no adapter (adapter_config.json) and holds no checkpoint-*"
        )
    if text in BUNDLED_MODELS or path.is_file():
        return [Checkpoint(label=path.name, step=_step(path.stem), source=text)]
    name, revisions = split_revision(text)
    if name.count("/") > 1 or name.startswith((".", "/", "~")) or name.endswith(".gguf"):
        raise ValueError(f"no such checkpoint: {text}; give a folder, an adapter, a .gguf file or a Hub id")
    if revisions is None:
        return [Checkpoint(label=text, step=_step(text), source=text)]
    if not all(revisions.split(",")):
        raise ValueError(f"{text} has an empty revision; write owner/name@revision[,revision...]")
    return [
        Checkpoint(label=f"{name}@{revision}", step=_step(revision), source=name, revision=revision)
        for revision in revisions.split(",")
    ]


def _folder(folder: Path, base: str | None, *, label: str) -> Checkpoint:
    config = folder / "adapter_config.json"
    step = _step(folder.name)
    # Named by its absolute path, so that the same command from another folder finds its finished parts.
    where = str(folder.resolve())
    if not config.is_file():
        return Checkpoint(label=label, step=step, source=where)
    if base is None:
        try:
            base = read_json(config, dict[str, Any], remedy="").get("base_model_name_or_path")
        except (OSError, ValueError):
            base = None
        if not isinstance(base, str) or not base:
            raise ValueError(f"adapter {folder} does not name its base model; give base= (--base)")
    return Checkpoint(label=label, step=step, source=base, adapter=where)


def _step(name: str) -> int | None:
    match = _STEP.search(name)
    return int(match[1]) * (1000 if match[2] else 1) if match else None


def _unique(checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    """The checkpoints with unique labels: a number is appended to a repeated one."""
    counts: dict[str, int] = {}
    unique = []
    for checkpoint in checkpoints:
        counts[checkpoint.label] = count = counts.get(checkpoint.label, 0) + 1
        label = checkpoint.label if count == 1 else f"{checkpoint.label} ({count})"
        unique.append(replace(checkpoint, label=label))
    return unique


def step_unit(checkpoints: Sequence[Checkpoint]) -> str:
    """Unit of the steps: training examples where `interp.training.finetune` wrote all folders, else training steps."""
    from interp.training.saving import RECORD  # loads torch

    folders = [Path(c.adapter or c.source) for c in checkpoints if c.step is not None]
    examples = folders and all((folder.parent / RECORD).is_file() for folder in folders)
    return "training examples" if examples else "step"
