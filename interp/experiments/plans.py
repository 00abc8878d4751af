"""What a run would cost, before anything is loaded: tokens, passes, memory, disk and time, stage by stage.

An experiment whose folder has a `plan.py` is planned: `plan(config, sizes)` returns the `Work` of each stage, named as
in the run's `seconds`. `interp.experiments.sizes` counts the tokens of the very prompts that would run, from the
tokenizer and template; seconds come from the model's configuration and three speeds of this machine
(`interp.engine.costs`). What cannot be known before is taken at its bound, which the module of the plan names in
`BOUNDS`. Imports no torch.

    plan = planned("demo", model=ModelSource("smollm2-safe"), prompts="builtin")
    plan.seconds, plan.memory_bytes
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from interp.data.prompt_sets import PromptSet
from interp.engine.costs import MachineSpeed, Work
from interp.experiments import EXPERIMENTS
from interp.experiments.definition import Experiment
from interp.experiments.running import experiment
from interp.experiments.sizes import Sizes
from interp.models.model_sizes import BYTES, ModelSize
from interp.models.sources import ModelSource
from interp.models.token_counts import TokenCounter, model_files
from interp.storage.settings import CheckedSettings, Count
from interp.storage.typed_json import read_json

PASS_TOKENS = 5120
"""Tokens of a packed pass of a small model on a CPU (`PassBudget.packed_tokens`)."""


@dataclass(frozen=True, kw_only=True)
class CollectSettings(CheckedSettings):
    """What `interp collect` reads of every prompt."""

    sites: Count = 1
    """Number of sites."""
    layers: int = 0
    """Number of layers; 0 is all."""
    roles: Count = 2
    """Number of token roles."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run would take."""

    experiment: str
    """The experiment, or `collect`."""
    model: str
    """The model's name."""
    size: ModelSize
    dtype: str
    """Dtype of the model."""
    speed: MachineSpeed
    stages: dict[str, Work]
    """Work by stage."""
    prepacked: bool
    """Whether the blocks' weights are also held in oneDNN's layout."""
    bounds: str = "replies at full length"
    """What is not known before the run, and how it was counted."""

    @property
    def work(self) -> Work:
        """Work of all stages."""
        return Work.total(self.stages.values())

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by stage on an otherwise idle machine, loading left out."""
        return {name: work.seconds(self.size, self.speed) for name, work in self.stages.items()}

    @property
    def passes(self) -> int:
        """Passes: packed ones of at most `PASS_TOKENS` tokens, decoding steps, and passes with gradients."""
        return sum(
            -(-(work.read_tokens + work.swept_tokens) // PASS_TOKENS)
            + work.decoding_steps
            + work.gradient_passes
            for work in self.stages.values()
        )

    @property
    def memory_bytes(self) -> int:
        """Resident memory at its largest."""
        return self.work.memory_bytes(self.size, itemsize=BYTES[self.dtype], prepacked=self.prepacked)


def planned(
    name: str,
    *,
    model: ModelSource,
    prompts: str = "builtin",
    settings: Mapping[str, Any] | None = None,
    column: str | None = None,
    speed: MachineSpeed | None = None,
    again: bool = False,
) -> Plan:
    """The plan of an experiment, or of `collect`.

    Args:
        speed: speeds to plan with; those of this machine when None, measured at the first plan.
        again: measure this machine again.

    Raises:
        ValueError: an unknown experiment or setting, one without a plan, or a model or prompts that are not there.
    """
    method, config, bounds = _method(name, settings or {})
    folder = model_files(model)
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} has no config.json, so the model's size is not known")
    content = read_json(path, dict[str, Any], remedy="download it again")
    size = ModelSize.from_config(content, source=str(path))
    device = model.device or "cpu"
    dtype = model.dtype or ("float32" if device == "cpu" else content.get("dtype") or "bfloat16")
    if dtype not in BYTES:
        raise ValueError(f"dtype must be {', '.join(BYTES)}, got {dtype!r}")
    counter = TokenCounter.read(folder, model)
    sizes = Sizes(size, counter, _prompt_set(name, prompts, column), BYTES[dtype])
    stages = method(config, sizes)
    if speed is None:
        from interp.engine.machine_speed import machine_speed

        speed = machine_speed(dtype=dtype, device=device, again=again)
    return Plan(
        experiment=name,
        model=model.shown,
        size=size,
        dtype=dtype,
        speed=speed,
        stages=stages,
        prepacked=device == "cpu" and dtype == "float32",
        bounds=bounds,
    )


def with_plans() -> list[str]:
    """Names that can be planned."""
    return ["collect", *(name for name, package in EXPERIMENTS.items() if find_spec(f"{package}.plan"))]


def _method(name: str, settings: Mapping[str, Any]) -> tuple[Any, Any, str]:
    """The function that plans, the settings it is given, and the bounds that it takes."""
    kind = plan_settings(name)
    known = Experiment(name=name, summary="", config=kind, result=object, package=__name__)
    if name == "collect":
        return _collect, known.configure(settings), "nothing; every prompt is read once"
    module = import_module(f"{EXPERIMENTS[name]}.plan")
    return module.plan, known.configure(settings), getattr(module, "BOUNDS", Plan.bounds)


def plan_settings(name: str) -> type[Any]:
    """The settings that a plan takes: the experiment's, and where its `plan.py` says so (`Settings`) more.

    Raises:
        ValueError: an unknown experiment, or one without a plan.
    """
    if name == "collect":
        return CollectSettings
    chosen = experiment(name)
    if name not in with_plans():
        why = ""
        if chosen.default_model is None:
            why = ": it needs neither a model nor prompts, whose tokens a plan counts"
        raise ValueError(f"no plan for {name}{why}; there are plans for {', '.join(with_plans())}")
    return getattr(import_module(f"{chosen.package}.plan"), "Settings", chosen.config)


def _collect(config: CollectSettings, sizes: Sizes) -> dict[str, Work]:
    parts = [sizes.prompts[key] for key in sizes.prompts.parts]
    layers = config.layers or sizes.model.n_layers
    work = sizes.read(*parts, roles=config.roles * config.sites, layers=layers)
    return {"collect": work + Work(stored_bytes=work.held_numbers * sizes.itemsize)}


def _prompt_set(name: str, prompts: str, column: str | None) -> PromptSet:
    from interp.data.prompts import load_prompts, read_prompts

    if name == "collect" and Path(prompts).is_file():
        part = read_prompts(prompts, column=column)
        return PromptSet(prompts, {("harmless", "test"): part}, "as-is", ())
    return load_prompts(prompts, column=column)
