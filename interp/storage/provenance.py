"""Provenance of results: model, prompts, seed, library versions, date."""

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
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

IN_MEMORY = "in memory"
"""In place of a hash of files, for a model that is not what files hold."""


@dataclass(frozen=True, kw_only=True)
class ModelProvenance:
    """Fields that identify the model that was run."""

    model: str
    """Name of the model, as `interp.load` takes it."""
    revision: str | None
    """Commit on the Hub; None for a local model."""
    weights_hash: str
    """SHA-256 over all weights at the start of the run."""
    adapter: str | None
    """Folder's name or Hub id of the given adapter; None without one, and for what a bundled model has anyway."""
    adapter_hash: str | None
    """SHA-256 of the adapter's files; None without an adapter."""
    template_hash: str | None
    """SHA-256 of the chat template."""
    n_layers: int
    """Number of decoder blocks."""
    d_model: int
    """Width of the residual stream."""
    dtype: str
    """Dtype of the weights, e.g. `float32`."""
    device: str
    """Device that the model ran on, e.g. `cpu`."""
    chat_template: str | None = None
    """Template given instead of the tokenizer's own, a file or `plain`; None for its own."""
    thinking: bool | None = None
    """Whether thinking was switched on or off in the template; None for the template's default."""
    files_hash: str | None = None
    """SHA-256 of the files of model and adapter (of a commit's name, for those of the Hub); `in memory` for weights or
    a chat template that are not those of files; None in runs written before this was recorded."""
    prompt_frame: tuple[str, str] | None = None
    """Rendered text before and after an instruction; None where it is unknown."""
    date: str | None = None
    """Date that the chat template shows, ISO 8601; None where it shows none."""
    delta: str | None = None
    """File of a sparse change of the weights that was applied after the adapter; None without one."""
    precision: str = "exact"
    """Precision of matrix products: `exact`, or `fast` for bfloat16 ones in a float32 model."""
    precision_cost: dict[str, float] | None = None
    """What `fast` costs on this model, where it was measured: `states_error`, the largest relative error of a layer's
    states; `direction_cosine`, the lowest cosine of a layer's direction with the exact one; and `completions_differ`,
    the share of completions that differ from the exact ones, of `completions`."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """Size and hash of one kind of prompts in one split."""

    n: int
    """Number of prompts."""
    hash: str
    """SHA-256 of the texts, in order."""


@dataclass(frozen=True, kw_only=True)
class PromptsProvenance:
    """Fields that identify the prompt set."""

    name: str
    """Name of the set: `builtin`, a folder, or the files."""
    ending: str
    """Treatment of the prompts' endings: `as-is`, `strip`, `period`."""
    notes: tuple[str, ...]
    """Warnings given when it was loaded."""
    splits: dict[str, Split]
    """Size and hash of every split by `kind/split`, e.g. `harmful/train`."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Provenance of a result."""

    model: ModelProvenance | None
    """Model of the run; None where no chat model is run."""
    prompts: PromptsProvenance | None
    """Prompt set of the run; None where no prompts are used."""
    seed: int
    """Seed of all random numbers."""
    versions: dict[str, str]
    """Versions of Python and the main libraries."""
    threads: int
    """Number of torch threads on the CPU, on which the last digits of sums depend."""
    created: str
    """Start time of the run, UTC, ISO 8601."""

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
        """Device of the model; `cpu` for a run without one."""
        return "cpu" if self.model is None else self.model.device

    @property
    def notes(self) -> tuple[str, ...]:
        """Caveats on the prompts and the model that a reader needs before the numbers."""
        notes = () if self.prompts is None else self.prompts.notes
        if self.model is not None and self.model.model in ("smollm2", "smollm2-safe", "smollm2-form"):
            bundled = "This is the bundled 135M model organism: the result shows that the method runs, not what large "
            notes = (*notes, f"{bundled}aligned models do.")
        return notes


def provenance_of(model: Any, prompts: Any, *, seed: int) -> Provenance:
    """Provenance of a run that starts now.

    Args:
        model: a `ChatModel`, or None.
        prompts: a `PromptSet`, or None.
    """
    import torch

    about = None if prompts is None else dict(prompts.provenance)
    return Provenance(
        model=None if model is None else ModelProvenance(**model.provenance),
        prompts=None
        if about is None
        else PromptsProvenance(
            name=about["name"],
            ending=about["ending"],
            notes=tuple(about["notes"]),
            splits={name: Split(**split) for name, split in about["splits"].items()},
        ),
        seed=seed,
        versions=library_versions(),
        threads=torch.get_num_threads(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


_NAMES_OF_MODEL = ("model", "adapter", "chat_template", "precision_cost")
"""Fields that name a place, where hashes beside them say what is there; and what was measured, not asked for."""


def content_key(about: Provenance) -> dict[str, Any]:
    """What a result depends on of its model and prompts: their content, not what they are called or where they are."""
    model, prompts = about.model, about.prompts
    return {
        "model": None
        if model is None
        else {name: value for name, value in asdict(model).items() if name not in _NAMES_OF_MODEL},
        "prompts": None if prompts is None else prompts_key(asdict(prompts)),
    }


def precision_line(about: Provenance) -> str | None:
    """What rounded products cost a run in `fast`, in words; None for one in `exact`."""
    model = about.model
    if model is None or model.precision != "fast":
        return None
    said, cost = "Products in bfloat16 (precision 'fast')", model.precision_cost
    if not cost:
        return f"{said}; what that costs was not measured."
    said += (
        f": on {cost['prompts']:.0f} prompts, states differ by up to {cost['states_error']:.1%} of a layer's norm, and "
        f"directions have a cosine of {cost['direction_cosine']:.4f} or more with exact ones"
    )
    if n := cost.get("completions"):
        said += f"; {cost['completions_differ'] * n:.0f} of {n:.0f} completions differ"
    return f"{said}."


def prompts_key(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What a result depends on of its prompts: ending, and size and hash of every split."""
    return {"ending": provenance["ending"], "splits": provenance["splits"]}


def provenance(model: Mapping[str, Any], prompts: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """Provenance fields for a direction file.

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
    from importlib.metadata import PackageNotFoundError, version

    versions = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            versions[library] = "not installed"
    return versions
