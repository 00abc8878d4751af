"""What a result carries of where it comes from: model, prompts, seed, versions, when."""

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_LIBRARIES = (
    "interp-workbench",
    "torch",
    "transformers",
    "transformer-lens",
    "numpy",
    "scikit-learn",
    "plotly",
)


@dataclass(frozen=True, kw_only=True)
class ModelProvenance:
    """What identifies the model that was run."""

    model: str
    """Name as `interp.load` takes it."""
    revision: str | None
    """Commit on the Hub, where it comes from there."""
    weights_hash: str
    """Of every parameter as it was when the run began."""
    adapter: str | None
    """PEFT folder or Hub id that was merged in."""
    adapter_hash: str | None
    """Of the adapter's files."""
    template_hash: str | None
    """SHA-256 of the chat template."""
    n_layers: int
    """Decoder blocks."""
    d_model: int
    """Width of the residual stream."""
    dtype: str
    """Of the weights, e.g. `float32`."""
    device: str
    """Where it ran, e.g. `cpu`."""
    chat_template: str | None = None
    """Given in place of the tokenizer's own: a file, or `plain`."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """One kind of prompts in one split."""

    n: int
    """Prompts in it."""
    hash: str
    """SHA-256 of their texts, in order."""


@dataclass(frozen=True, kw_only=True)
class PromptsProvenance:
    """What identifies the prompt set."""

    name: str
    """`builtin`, a folder, or the files."""
    ending: str
    """What was done to the ends of prompts: `as-is`, `strip`, `period`."""
    notes: tuple[str, ...]
    """Warnings given when it was loaded."""
    splits: dict[str, Split]
    """By `kind/split`, e.g. `harmful/train`."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a result comes from."""

    model: ModelProvenance | None
    """None where no chat model is run."""
    prompts: PromptsProvenance | None
    """None where no prompts are used."""
    seed: int
    """Of everything random."""
    versions: dict[str, str]
    """Of Python and the main libraries."""
    threads: int
    """Of torch on the CPU; sums depend on it in the last digits."""
    created: str
    """When the run was begun, UTC, ISO 8601."""

    @property
    def model_name(self) -> str:
        """The model's name, or `no model`."""
        return "no model" if self.model is None else self.model.model

    @property
    def prompts_name(self) -> str:
        """The prompt set's name, or `no prompts`."""
        return "no prompts" if self.prompts is None else self.prompts.name

    @property
    def device(self) -> str:
        """Where the model ran; `cpu` for a run without one."""
        return "cpu" if self.model is None else self.model.device

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know of the prompts and the model before the numbers."""
        notes = () if self.prompts is None else self.prompts.notes
        if self.model is not None and self.model.model in ("smollm2", "smollm2-safe"):
            bundled = "This is the bundled 135M model organism: the result shows that the method runs, not what large "
            notes = (*notes, f"{bundled}aligned models do.")
        return notes


def provenance_of(model: Any, prompts: Any, *, seed: int) -> Provenance:
    """Provenance of a run that begins now.

    Args:
        model: a `ChatModel`, or None.
        prompts: a `PromptSet`, or None.
    """
    import torch

    found = None if prompts is None else dict(prompts.provenance)
    return Provenance(
        model=None if model is None else ModelProvenance(**model.provenance),
        prompts=None
        if found is None
        else PromptsProvenance(
            name=found["name"],
            ending=found["ending"],
            notes=tuple(found["notes"]),
            splits={name: Split(**split) for name, split in found["splits"].items()},
        ),
        seed=seed,
        versions=library_versions(),
        threads=torch.get_num_threads(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def provenance(model: Mapping[str, Any], prompts: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """What a direction's file carries of where it comes from.

    Args:
        model: `ChatModel.provenance`.
        prompts: `PromptSet.provenance`.
        config: an experiment's frozen `Config`, with a `seed`.
    """
    import torch

    return {
        **model,
        "prompts": dict(prompts),
        "config": asdict(config),
        "seed": config.seed,
        "versions": library_versions(),
        "threads": torch.get_num_threads(),
    }


def library_versions() -> dict[str, str]:
    """Python's and the main libraries' versions."""
    found = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            found[library] = "not installed"
    return found
