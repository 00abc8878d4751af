"""The legs of all seeds over workers (`interp.engine.ray`): an arm of a seed is a part.

A part aligns one arm, or unlearns one checkpoint and aligns it again. Between the two this process matches the arms, so
a worker sends the adapters of an alignment back with its measurements, and gets the one that was matched. They are put
where the legs of one process leave them: a run that continues may have workers or none.

A worker makes the start of a seed for itself, when the first part of that seed comes, and holds one at a time. Nothing
of a worker's folders is left after its part.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import NamedTuple

from interp.data.prompt_sets import PromptSet
from interp.engine.ray import Pool, open_workers
from interp.experiments.method_elasticity import Config
from interp.experiments.method_elasticity.legs import (
    Grid,
    Seed,
    Start,
    alignment_name,
    second_name,
    unlearning_name,
)
from interp.experiments.method_elasticity.methods import material
from interp.experiments.method_elasticity.results import Alignment, Arm, Leg, Match
from interp.experiments.method_elasticity.tracking import adapter_at
from interp.models.named_models import load_same, source_of
from interp.models.sources import ModelSource
from interp.storage.stages import open_stages
from interp.training.saving import Files, files_of, write_files

Legs = list[tuple[Leg, Alignment | None]]
"""What is unlearned, each with its second alignment."""


class _Aligned(NamedTuple):
    """What a worker gives of a first alignment."""

    alignment: Alignment
    adapters: dict[int, Files]
    """Adapters by step."""


class _Unlearning(NamedTuple):
    """What a worker is given to unlearn."""

    seed: int
    matches: tuple[Match, ...]
    """Matches that took one checkpoint; none is the control that was not aligned."""
    adapter: Files


def shared_grid(seeds: Sequence[Seed]) -> list[Grid]:
    """The legs of every seed, each computed by a worker and stored here.

    Raises:
        ValueError: a model that workers cannot load, or workers that cannot be had.
    """
    given, stages = seeds[0], seeds[0].stages
    source = source_of(given.base)
    prepare = partial(_Worker, source, given.base.weights_hash, given.prompts, given.config)
    with open_workers(prepare, stages.workers) as pool:
        aligned = _aligned(pool, seeds)
        stages.lap("align")
        matches = [seed.matches(first) for seed, first in zip(seeds, aligned, strict=True)]
        legs = _unlearned(pool, seeds, matches)
        stages.lap("unlearn and align again")
    return [
        Grid(
            list(first.values()),
            chosen,
            [leg for leg, _ in of_seed],
            [second for _, second in of_seed if second is not None],
        )
        for first, chosen, of_seed in zip(aligned, matches, legs, strict=True)
    ]


def _aligned(pool: "Pool[_Worker]", seeds: Sequence[Seed]) -> list[dict[Arm, Alignment]]:
    """The first alignment of every seed and arm; the adapters of those computed now are put into the seeds' folders."""
    stages = seeds[0].stages
    parts: list[tuple[Seed, Arm]] = [(seed, arm) for seed in seeds for arm in seed.trained_arms]
    found = {
        (seed.seed, arm): stages.stored(alignment_name(seed.seed, arm), Alignment) for seed, arm in parts
    }
    todo: list[tuple[Seed, Arm]] = [part for part in parts if found[part[0].seed, part[1]] is None]
    asked: list[tuple[int, Arm]] = [(seed.seed, arm) for seed, arm in todo]
    finished = pool.map(_align, asked)
    for number, computed in stages.progress(finished, "align", total=len(todo)):
        seed, arm = todo[number]
        for step, files in computed.adapters.items():
            write_files(adapter_at(seed.adapters(arm), step), files)
        name = alignment_name(seed.seed, arm)
        found[seed.seed, arm] = stages.keep(name, lambda c=computed: c.alignment, Alignment)
    return [
        {arm: first for arm in seed.trained_arms if (first := found[seed.seed, arm]) is not None}
        for seed in seeds
    ]


def _unlearned(
    pool: "Pool[_Worker]", seeds: Sequence[Seed], matches: Sequence[Sequence[Match]]
) -> list[Legs]:
    """What is unlearned in every seed, in the order of its matches, then the control."""
    stages, found = seeds[0].stages, dict[str, tuple[Leg, Alignment | None]]()
    todo: list[tuple[Seed, tuple[Match, ...]]] = []
    for seed, chosen in zip(seeds, matches, strict=True):
        # Two matchings may take the same checkpoint; one worker unlearns it, once.
        groups = dict.fromkeys((match.arm, match.step) for match in chosen)
        parts = [tuple(m for m in chosen if (m.arm, m.step) == group) for group in groups]
        for part in [*parts, *([()] if "none" in seed.config.controls else [])]:
            kept = {unlearning_name(seed.seed, match): _kept(seed, match) for match in part or (None,)}
            found |= {name: legs for name, legs in kept.items() if legs is not None}
            if None in kept.values():
                todo.append((seed, part))
    finished = pool.map(_unlearn, (_unlearning(seed, part) for seed, part in todo))
    label = "unlearn and align again"
    for number, computed in stages.progress(finished, label, total=len(todo)):
        seed, part = todo[number]
        for match, legs in zip(part or (None,), computed, strict=True):
            found[unlearning_name(seed.seed, match)] = _keep(seed, match, legs)
    return [
        [
            found[unlearning_name(seed.seed, match)]
            for match in [*chosen, *([None] if "none" in seed.config.controls else [])]
        ]
        for seed, chosen in zip(seeds, matches, strict=True)
    ]


def _unlearning(seed: Seed, matches: tuple[Match, ...]) -> _Unlearning:
    """The part, with the adapter that was matched."""
    files: Files = {}
    if matches:
        folder = adapter_at(seed.adapters(matches[0].arm), matches[0].step)
        files = files_of(folder)
    return _Unlearning(seed.seed, matches, files)


def _kept(seed: Seed, match: Match | None) -> tuple[Leg, Alignment | None] | None:
    """An unlearning with its second alignment as it was stored; None where either is missing."""
    leg = seed.stages.stored(unlearning_name(seed.seed, match), Leg)
    if leg is None or match is None or not seed.aligns_again(match):
        return None if leg is None else (leg, None)
    second = seed.stages.stored(second_name(seed.seed, match.arm), Alignment)
    return None if second is None else (leg, second)


def _keep(
    seed: Seed, match: Match | None, legs: tuple[Leg, Alignment | None]
) -> tuple[Leg, Alignment | None]:
    """Store both. The second comes first: where it is missing, one process unlearns again to have its adapter."""
    leg, second = legs
    if match is not None and second is not None:
        second = seed.stages.keep(second_name(seed.seed, match.arm), lambda: legs[1], Alignment)
    return seed.stages.keep(unlearning_name(seed.seed, match), lambda: leg, Leg), second


# In the workers


class _Worker:
    """The state of a worker: the base, and the start of the seed that its last part was of."""

    def __init__(self, source: ModelSource, weights_hash: str, prompts: PromptSet, config: Config) -> None:
        self.base, self.prompts, self.config = load_same(source, weights_hash), prompts, config
        self._open = ExitStack()
        self._start: tuple[int, Start] | None = None

    @contextmanager
    def seed(self, number: int) -> Iterator[tuple[Seed, Start]]:
        """A seed with a folder of its own, removed with the context, and the model that it starts from."""
        with open_stages(None, key={}) as stages:
            dealt = material(self.prompts, self.config, number)
            seed = Seed(self.base, self.prompts, dealt, self.config, stages, number)
            if self._start is None or self._start[0] != number:
                self._open.close()  # the base has its own weights again
                self._start = number, self._open.enter_context(seed.start())
            yield seed, self._start[1]


def _align(worker: _Worker, part: tuple[int, Arm]) -> _Aligned:
    number, arm = part
    with worker.seed(number) as (seed, start):
        alignment = seed.aligned(arm, start)
        steps = [moment.step for moment in alignment.moments if moment.step]
        folders = {step: adapter_at(seed.adapters(arm), step) for step in steps}
        return _Aligned(
            alignment,
            {step: files_of(folder) for step, folder in folders.items() if folder.is_dir()},
        )


def _unlearn(worker: _Worker, part: _Unlearning) -> Legs:
    with worker.seed(part.seed) as (seed, start):
        if not part.matches:
            return [(seed.unlearned_start(start), None)]
        write_files(adapter_at(seed.adapters(part.matches[0].arm), part.matches[0].step), part.adapter)
        return [seed.unlearned(match, start) for match in part.matches]
