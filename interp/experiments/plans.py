"""What a run would cost, before anything is loaded: tokens, passes, memory, disk and time, stage by stage.

An experiment whose folder has a `plan.py` is planned: `plan(config, sizes)` returns the `Work` of each stage, named as
in the run's `seconds`. `Sizes` counts the tokens of the very prompts that would run, from the tokenizer and template;
seconds come from the model's configuration and two speeds of this machine (`interp.engine.costs`). Imports no torch.

    plan = planned("demo", model=ModelSource("smollm2-safe"), prompts="builtin")
    plan.seconds, plan.memory_bytes
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from interp.data.prompt_sets import Kind, Prompts, PromptSet, Split
from interp.engine.costs import DECODE_ROWS, MachineSpeed, Work
from interp.experiments import EXPERIMENTS
from interp.experiments.definition import Experiment
from interp.experiments.running import experiment
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


@dataclass(frozen=True, eq=False)
class Sizes:
    """The model's size and the prompts' tokens: what a plan is made of."""

    model: ModelSize
    counter: TokenCounter
    prompts: PromptSet
    itemsize: int = 4
    """Bytes of a number of the model's dtype."""

    @cached_property
    def n_post(self) -> int:
        """Tokens of the template after the instruction."""
        return self.counter.n_post()

    def part(self, kind: Kind, split: Split, n: int) -> Prompts:
        """At most `n` prompts of a kind and split; none where the set has none."""
        if (kind, split) not in self.prompts:
            return Prompts(texts=(), ids=(), categories=(), source=self.prompts.name)
        return self.prompts[kind, split].first(n)

    def read(self, *parts: Prompts, roles: int = 2, layers: int | None = None) -> Work:
        """Activations of prompts, each distinct beginning run once."""
        ids = self.counter.ids([text for part in parts for text in part.texts])
        held = len(ids) * roles * (self.model.n_layers if layers is None else layers) * self.model.d_model
        return Work(read_tokens=distinct(ids), held_numbers=held)

    def first_tokens(self, *parts: Prompts) -> Work:
        """Log-probabilities of the token after each prompt."""
        work = self.read(*parts, roles=0)
        return work + Work(unembedded=sum(map(len, parts)))

    def replies(self, part: Prompts, max_new_tokens: int, *, arms: int = 1, together: bool = False) -> Work:
        """Completions of prompts under each of several arms.

        Args:
            together: whether all arms decode in one batch, as in `generate_each`.
        """
        if not len(part):
            return Work()
        ids = self.counter.ids(part.texts)
        shared = common_prefix(ids)
        prefill = shared + sum(len(row) - shared for row in ids)
        rows = len(ids) * arms if together else len(ids)
        batches = -(-rows // DECODE_ROWS) * (1 if together else arms)
        return Work(
            read_tokens=prefill * arms,
            unembedded=len(ids) * arms,
            decoded_tokens=len(ids) * arms * (max_new_tokens - 1),
            decoding_steps=batches * (max_new_tokens - 1),
            cached_tokens=min(rows, DECODE_ROWS) * (max(map(len, ids)) + max_new_tokens),
        )


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
        """Forward passes: packed ones of at most `PASS_TOKENS` tokens, and decoding steps."""
        return sum(-(-work.run_tokens // PASS_TOKENS) + work.decoding_steps for work in self.stages.values())

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
    method, config = _method(name, settings or {})
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
    )


def distinct(ids: Sequence[Sequence[int]]) -> int:
    """Tokens of prompts when each distinct beginning counts once, as packed passes run them."""
    total = 0
    before: tuple[int, ...] = ()
    for row in sorted(map(tuple, ids)):
        total += len(row) - common_prefix([before, row])
        before = row
    return total


def common_prefix(ids: Sequence[Sequence[int]]) -> int:
    """Number of tokens that all rows begin with."""
    rows = [tuple(row) for row in ids]
    low, high = min(rows), max(rows)
    for i, (a, b) in enumerate(zip(low, high, strict=False)):
        if a != b:
            return i
    return min(len(low), len(high))


def with_plans() -> list[str]:
    """Names that can be planned."""
    return ["collect", *(name for name, package in EXPERIMENTS.items() if find_spec(f"{package}.plan"))]


def _method(name: str, settings: Mapping[str, Any]) -> tuple[Any, Any]:
    """The function that plans, and the settings it is given."""
    kind = plan_settings(name)
    known = Experiment(name=name, summary="", config=kind, result=object, package=__name__)
    if name == "collect":
        return _collect, known.configure(settings)
    return import_module(f"{EXPERIMENTS[name]}.plan").plan, known.configure(settings)


def plan_settings(name: str) -> type[Any]:
    """The settings that a plan takes: the experiment's, and where its `plan.py` says so (`Settings`) more.

    Raises:
        ValueError: an unknown experiment, or one without a plan.
    """
    if name == "collect":
        return CollectSettings
    chosen = experiment(name)
    if name not in with_plans():
        raise ValueError(f"no plan for {name}; there are plans for {', '.join(with_plans())}")
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
